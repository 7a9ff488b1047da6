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


# The same configuration in other words.


def one_of(rng, *choices):
    return choices[rng.integers(len(choices))]


def some(rng, fields):
    """About half of them."""
    return {key: one_of(rng, *values) for key, values in fields.items() if rng.random() < 0.5}


def flat_rope(rng, block):
    """The settings of llama and qwen3 in one of their spellings."""
    kind = one_of(rng, "type", "rope_type")
    scaling = {kind if key == "rope_type" else key: value for key, value in block.items() if key != "rope_theta"}
    theta = {"rope_theta": block["rope_theta"]}
    places = [
        {"rope_parameters": scaling | theta},
        {"rope_scaling": scaling | theta},
        {"rope_scaling": scaling | theta, "rope_parameters": one_of(rng, None, {}, scaling | theta)},
        {"rope_parameters": scaling, **theta},
        {"rope_scaling": scaling, **theta},
        {"rope_parameters": scaling | theta, "rope_scaling": one_of(rng, None, {}), **some(rng, {"rope_theta": [block["rope_theta"]]})},
    ]
    if list(block) == ["rope_theta"]:
        places.append(theta | some(rng, {"rope_scaling": [None, {}], "rope_parameters": [None, {}]}))
    return places[rng.integers(len(places))]


def gemma_rope(rng, blocks):
    full, sliding = blocks["full_attention"], blocks["sliding_attention"]
    local = {"rope_local_base_freq": sliding["rope_theta"]}
    scaling = {key: value for key, value in full.items() if key != "rope_theta"}
    return one_of(
        rng,
        {"rope_parameters": blocks},
        {"rope_parameters": {"full_attention": full, "sliding_attention": one_of(rng, None, {})}, **local},
        {"rope_parameters": {"full_attention": scaling}, "rope_theta": full["rope_theta"], **local},
        {"rope_scaling": scaling, "rope_theta": full["rope_theta"], **local},
        {"rope_scaling": full, **local, **some(rng, {"rope_parameters": [None]})},
    )


HARMLESS = {
    "attention_dropout": [0.0, 0.1],
    "initializer_range": [0.02, 0.5],
    "use_cache": [True, False],
    "pad_token_id": [None, 3],
    "bos_token_id": [None, 2],
    "dtype": ["float32", "bfloat16"],
    "torch_dtype": ["float16"],
    "chunk_size_feed_forward": [0, 4],
    "output_hidden_states": [True, False],
    "return_dict": [True, False],
    "quantization_config": [None],
    "is_causal": [True],
    "is_encoder_decoder": [False],
    "per_layer_config": [None],
    "attention_bias": [False],
    "transformers_version": ["5.17.0"],
    "unknown_limit": [10**30],
}
HARMLESS_OF = {
    "llama": {"mlp_bias": [False], "pretraining_tp": [1, 2], "hidden_act": ["silu"]},
    "qwen3": {
        "hidden_act": ["silu"],
        "use_sliding_window": [False],
        "sliding_window": [None, 8],
        "max_window_layers": [0, 28],
        "layer_types": [None, ["full_attention"] * 2],
    },
    "gemma3_text": {
        "hidden_activation": ["gelu_pytorch_tanh"],
        "attn_logit_softcapping": [None],
        "final_logit_softcapping": [None],
        "use_bidirectional_attention": [False, None],
        "_sliding_window_pattern": [6],
    },
}


def variation(rng, config):
    """The same configuration: other spellings, more or fewer fields, in another order."""
    kind = config["model_type"]
    fields = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_parameters")}
    if kind == "gemma3_text":
        fields |= gemma_rope(rng, config["rope_parameters"])
        if rng.random() < 0.5:
            fields |= {"layer_types": None, "sliding_window_pattern": 2}
    else:
        fields |= flat_rope(rng, config.get("rope_parameters") or {"rope_theta": config["rope_theta"]})
        if rng.random() < 0.5:
            del fields["tie_word_embeddings"]
    fields |= some(rng, HARMLESS) | some(rng, HARMLESS_OF[kind])
    if "sliding_window_pattern" in fields and rng.random() < 0.5:
        del fields["layer_types"]
    keys = list(fields)
    rng.shuffle(keys)
    return {key: fields[key] for key in keys}


def read_by_transformers(config):
    """What decides about the logits, as transformers reads it; nothing where it is not installed."""
    try:
        from transformers import AutoConfig
    except ImportError:
        return None
    fields = json.loads(json.dumps(config))
    read = AutoConfig.for_model(fields.pop("model_type"), **fields)
    keys = [*CONFIG, "query_pre_attn_scalar", "hidden_act", "hidden_activation", "rope_parameters"]
    keys += ["layer_types", "is_causal"]
    result = {key: getattr(read, key, None) for key in keys}
    for block in [result["rope_parameters"], *result["rope_parameters"].values()]:
        if isinstance(block, dict):
            block.pop("type", None)
    windows = result["layer_types"] or []
    return result | {
        "layer_types": windows if "sliding_attention" in windows else [],
        "sliding_window": read.sliding_window if "sliding_attention" in windows else None,
        "is_causal": result["is_causal"] is not False,
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_configuration_in_other_words(logits, tmp_path, name):
    """Bit for bit the same, and the same to transformers, where it is installed."""
    config = FAMILIES[name][1] | {"hidden_size": 84}
    rng = np.random.default_rng(3)
    model = make_model(tmp_path / "model", config)
    ids = IDS[:48]  # more than the window
    expected, meant = logits(model, ids, raw=True), read_by_transformers(config)
    for _ in range(200):
        other = variation(rng, config)
        assert read_by_transformers(other) == meant, other
        (model / "config.json").write_text(json.dumps(other))
        assert logits(model, ids, raw=True) == expected, other


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
