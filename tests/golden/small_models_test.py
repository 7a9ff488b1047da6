"""Small models of random numbers, judged by the forward pass in numpy: with what the published fixtures do not have.

A head of its own, an eps that shows in every norm, another theta, widths that divide by nothing, data at any address.
"""

import json
import os
import select
import subprocess

import mlx.core as mx
import numpy as np
import pytest
from model_files import header_of, read_tensors, write_raw
from models_numpy import Gemma3, Llama, Qwen3

RELATIVE = 5e-6  # of logits: |a - b| / |b|
IDS = [int(id) for id in np.random.default_rng(5).integers(0, 211, 70)]  # more than one page of the cache

CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 81,
    "intermediate_size": 150,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 22,
    "vocab_size": 211,
    "max_position_embeddings": 96,
    "rms_norm_eps": 0.02,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}
GEMMA3 = {
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 40,
    "query_pre_attn_scalar": 30,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3000.0},
    },
}
# Of the 11 waves of a head some are below both bounds, some between and some above them.
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
FAMILIES = {
    "qwen3": (Qwen3, CONFIG | {"model_type": "qwen3", "rope_theta": 300.0}),
    "llama": (Llama, CONFIG | {"model_type": "llama", "rope_theta": 300.0}),
    "llama3": (Llama, CONFIG | {"model_type": "llama", "rope_parameters": LLAMA3 | {"rope_theta": 300.0}}),
    "gemma3": (Gemma3, CONFIG | {"model_type": "gemma3_text"} | GEMMA3),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    """The judge's class and a configuration."""
    return FAMILIES[request.param]


def relative(found, expected):
    assert found.shape == expected.shape
    difference = found.astype(np.float64) - expected
    return np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64))


def make_model(folder, config, dtype=mx.float32):
    """Writes a model of `config` from one seed. Queries, keys and what every norm reads are small: eps counts."""
    rng = np.random.default_rng(11)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads, head_dim = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    gemma = config["model_type"].startswith("gemma")
    tensors = {}

    def add(name, *shape, scale):
        tensors[name + ".weight"] = mx.array((scale * rng.standard_normal(shape)).astype(np.float32)).astype(dtype)

    def add_norm(name, size):
        add(name, size, scale=0.2)
        if not gemma:  # whose norms add 1
            tensors[name + ".weight"] += 1

    add("model.embed_tokens", vocab, hidden, scale=0.2 / (hidden**0.5 if gemma else 1))
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        norms = ["input_layernorm", "post_attention_layernorm"]
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if gemma else []
        for norm in norms:
            add_norm(layer + norm, hidden)
        if config["model_type"] != "llama":
            add_norm(layer + "self_attn.q_norm", head_dim)
            add_norm(layer + "self_attn.k_norm", head_dim)
        add(layer + "self_attn.q_proj", heads * head_dim, hidden, scale=0.02)
        add(layer + "self_attn.k_proj", kv_heads * head_dim, hidden, scale=0.02)
        add(layer + "self_attn.v_proj", kv_heads * head_dim, hidden, scale=0.1)
        add(layer + "self_attn.o_proj", hidden, heads * head_dim, scale=0.02)
        add(layer + "mlp.gate_proj", inner, hidden, scale=0.1)
        add(layer + "mlp.up_proj", inner, hidden, scale=0.1)
        add(layer + "mlp.down_proj", hidden, inner, scale=0.02)
    add_norm("model.norm", hidden)
    if not config.get("tie_word_embeddings", gemma):
        add("lm_head", vocab, hidden, scale=0.2)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


def usual_eps_in_heads(judge):
    """The class of a judge that norms queries and keys with another eps than all else."""

    class Changed(judge):
        def head_norm(self, name, x):
            config, self.config = self.config, self.config | {"rms_norm_eps": 1e-6}
            result = super().head_norm(name, x)
            self.config = config
            return result

    return Changed


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=["f32", "f16", "bf16"])
def test_a_head_of_its_own_and_an_eps_that_counts(logits, tmp_path, found_within, family, dtype):
    judge, config = family
    model = make_model(tmp_path / "model", config, dtype)
    found = logits(model, IDS, len(IDS))
    found_within("small models, logits, numpy", relative(found, judge(model).logits(IDS)), RELATIVE)
    # Each would show.
    changes = {"tie_word_embeddings": True, "rms_norm_eps": 1e-6}
    if "rope_theta" in config:
        changes["rope_theta"] = 1e4
    for key, value in changes.items():
        changed = judge(model)
        changed.config = config | {key: value}
        assert relative(changed.logits(IDS), found) > 100 * RELATIVE, key
    if judge is not Llama:
        assert relative(usual_eps_in_heads(judge)(model).logits(IDS), found) > 100 * RELATIVE


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=["f32", "f16", "bf16"])
def test_gemma_rounds_the_scale_of_its_embedding_as_the_weights(logits, tmp_path, found_within, dtype):
    """The root of 84 is another number in each of the types, which that of 81 is not."""
    judge, config = FAMILIES["gemma3"]
    model = make_model(tmp_path / "model", config | {"hidden_size": 84}, dtype)
    found_within("small models, logits, numpy", relative(logits(model, IDS, 70), judge(model).logits(IDS)), RELATIVE)


def test_a_tied_head(logits, fails, tmp_path, found_within, family):
    judge, config = family
    model = make_model(tmp_path / "model", config | {"tie_word_embeddings": True})
    found = logits(model, IDS, len(IDS))
    found_within("small models, logits, numpy", relative(found, judge(model).logits(IDS)), RELATIVE)
    other = make_model(tmp_path / "other", config)  # whose head is another
    (other / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    arguments = ["logits", other, "--ids", tmp_path / "ids.txt", "-o", tmp_path / "out.npy"]
    fails(*arguments, says=[other, '"lm_head.weight"', '"model.embed_tokens.weight"'])


# What transformers takes where a configuration says nothing.
LEFT_OUT = {
    "qwen3": {"rope_theta": 1e4, "tie_word_embeddings": False},
    "llama": {"rope_theta": 1e4, "tie_word_embeddings": False, "num_key_value_heads": 6, "head_dim": 14},
    "gemma3": {"head_dim": 256, "query_pre_attn_scalar": 256, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_a_configuration_leaves_out(logits, tmp_path, found_within, name):
    judge, config = FAMILIES[name]
    config = config | {"hidden_size": 84} | LEFT_OUT[name]
    model = make_model(tmp_path / "model", config)
    found = logits(model, IDS, len(IDS))
    found_within("small models, logits, numpy", relative(found, judge(model).logits(IDS)), RELATIVE)
    for key in LEFT_OUT[name]:
        (model / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != key}))
        np.testing.assert_array_equal(logits(model, IDS, len(IDS)), found, err_msg=key)


def test_gemma_attends_to_everything_in_each_sixth_layer(logits, run, tmp_path, found_within):
    """Where neither types nor a period are given."""
    judge, config = FAMILIES["gemma3"]
    types = (["sliding_attention"] * 5 + ["full_attention"]) * 2 + ["sliding_attention"]
    config = config | {"num_hidden_layers": 13, "layer_types": types, "hidden_size": 24, "intermediate_size": 20}
    model = make_model(tmp_path / "model", config)
    found = logits(model, IDS)
    found_within("small models, logits, numpy", relative(found, judge(model).logits(IDS)[-1:]), RELATIVE)
    (model / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "layer_types"}))
    np.testing.assert_array_equal(logits(model, IDS), found)
    assert " 11 layers that attend to the last 40\n" in run("info", model).stdout


def test_data_may_lie_at_any_address(logits, tmp_path, family):
    _, config = family
    model = make_model(tmp_path / "model", config)
    weights = model / "model.safetensors"
    tensors = read_tensors(weights)
    text = json.dumps(header_of(tensors)).encode()
    data = b"".join(part for _, _, part in tensors.values())
    results = []
    for offset in (0, 1, 2, 4):
        header = text + b" " * ((offset - len(text)) % 8)
        assert (8 + len(header)) % 8 == offset
        write_raw(weights, header, data)
        results.append(logits(model, IDS, len(IDS), raw=True))
    assert results[1:] == results[:1] * 3


def test_weights_that_are_read_need_no_file_afterwards(refrain, run, logits, tmp_path):
    """Which is cut while the program waits for its reader, with the last rows ahead."""
    model = make_model(tmp_path / "model", FAMILIES["llama"][1] | {"hidden_size": 84})
    weights = model / "model.safetensors"
    tensors = read_tensors(weights)
    header = json.dumps(header_of(tensors)).encode()
    write_raw(weights, header + b" " * (-len(header) % 8), b"".join(part for _, _, part in tensors.values()))
    assert " 21 tensors usable where they lie, 0 to be copied\n" in run("info", model).stdout
    expected = logits(model, IDS, len(IDS), "--no-mmap", raw=True)
    assert expected == logits(model, IDS, len(IDS), raw=True)
    command = [refrain, "logits", model, "--ids", tmp_path / "ids.txt", "--last", str(len(IDS)), "-o", "/dev/stdout"]
    with subprocess.Popen([*command, "--no-mmap"], stdout=subprocess.PIPE, pipesize=4096) as process:
        select.select([process.stdout], [], [], 60)  # the first of 64 rows, which do not fit
        os.truncate(weights, 0)
        found = process.stdout.read()
    assert (process.returncode, found) == (0, expected)
