"""Every family as tiny models of random numbers, against what transformers answers to them (tools/make_family_goldens.py)."""

import json
import pathlib
import subprocess

import numpy as np
import pytest
from model_files import read_tensors, write_tensors
from tiny_models import (
    GREEDY_TOKENS,
    MODELS,
    PROMPT,
    PROMPTS,
    SIZES,
    THETA,
    depends_on_length,
    write_model,
    write_model_of,
)

RELATIVE = 1e-4  # of logits: |a - b| / |b|


@pytest.fixture(scope="module")
def answers():
    return np.load(pathlib.Path(__file__).parent / "data/families.npz")


@pytest.mark.parametrize("name", MODELS)
def test_answers_as_transformers_does(logits, tmp_path, found_within, answers, name):
    model = write_model(tmp_path / "model", name, int(answers[name + ".seed"]))
    greedy = answers[name + ".greedy"].tolist()
    found = logits(model, PROMPT + greedy, len(PROMPT) + GREEDY_TOKENS)
    np.testing.assert_array_equal(found[len(PROMPT) - 1 : -1].argmax(axis=1), greedy)
    for length, expected in zip(PROMPTS, answers[name + ".logits"], strict=True):
        alone = logits(model, PROMPT[:length])[-1]
        difference = np.linalg.norm(alone - expected) / np.linalg.norm(expected)
        found_within("tiny models, logits, transformers", difference, RELATIVE)
        same = (alone == found[length - 1]).all()
        assert same != depends_on_length(name, length), f"a prompt of {length}"


QUANTIZABLE = SIZES | THETA | {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}


def quantized(refrain, model, *options):
    folder = model.parent / (model.name + "-quantized")
    subprocess.run([refrain, "quantize", model, folder, *options], check=True, capture_output=True)
    return folder


def test_rows_of_matrices_stored_as_one_are_matrices(refrain, logits, tmp_path):
    """A phi3 made of a llama gives its bits, plain, and quantized as a whole."""
    config = QUANTIZABLE | {"model_type": "llama"}
    llama = write_model_of(tmp_path / "llama", config, 3)
    fused = {}
    for name, (dtype, shape, data) in read_tensors(llama / "model.safetensors").items():
        for parts, whole in ((("q_proj", "k_proj", "v_proj"), "qkv_proj"), (("gate_proj", "up_proj"), "gate_up_proj")):
            part = next((part for part in parts if part in name), None)
            if part:
                name = name.replace(part, whole)
        _, rows, before = fused.get(name, (dtype, [0, *shape[1:]], b""))
        fused[name] = (dtype, [rows[0] + shape[0], *shape[1:]], before + data)
    phi3 = tmp_path / "phi3"
    phi3.mkdir()
    (phi3 / "config.json").write_text(json.dumps(config | {"model_type": "phi3"}))
    write_tensors(phi3 / "model.safetensors", fused)
    assert logits(phi3, PROMPT, raw=True) == logits(llama, PROMPT, raw=True)
    assert logits(quantized(refrain, phi3), PROMPT, raw=True) == logits(quantized(refrain, llama), PROMPT, raw=True)


def test_biases_stay_when_a_model_is_quantized(refrain, logits, tmp_path):
    model = write_model_of(tmp_path / "model", QUANTIZABLE | {"model_type": "qwen2", "num_key_value_heads": 2}, 3)
    eight = quantized(refrain, model, "--bits", "8")
    for name, tensor in (tensors := read_tensors(model / "model.safetensors")).items():
        if name.endswith(".bias"):
            assert read_tensors(eight / "model.safetensors")[name] == tensor, name
    assert any(name.endswith(".bias") for name in tensors)
    plain, found = logits(model, PROMPT), logits(eight, PROMPT)
    assert np.linalg.norm(found - plain) < 0.05 * np.linalg.norm(plain)


def test_without_a_block_on_rope_a_ministral3_has_that_of_transformers(logits, tmp_path):
    """Its queries grow beyond a context that no other prompt comes to."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "max_position_embeddings": 32768, "sliding_window": 8}
    block = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    blocks = [{}, {"rope_parameters": block}, {"rope_parameters": block | {"llama_4_scaling_beta": 0.0}}]
    ids = (PROMPT * 55)[: 16384 + 8]
    models = [write_model_of(tmp_path / str(i), SIZES | sizes | rope | {"model_type": "ministral3"}, 3) for i, rope in enumerate(blocks)]
    absent, told, none = (logits(model, ids) for model in models)
    np.testing.assert_array_equal(absent, told)
    assert (absent != none).any()
