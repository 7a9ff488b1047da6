"""Damaged, contradictory and hostile input: one line that names the thing, exit status 1, nothing on stdout, no crash.

Also what looks odd but is right: both spellings of the rope settings, sharded files, tensors that contradict only the
`quantization` block. The sanitizers' builds run this file too: there a crash would not go unseen.
"""

import json
import os
import shutil
import subprocess

import pytest
from model_files import header_of, write_raw

pytestmark = pytest.mark.asan

NORM = "model.norm.weight"
QUERY = "model.layers.2.self_attn.q_proj"
IDS = [5, 6, 7, 8]


@pytest.fixture
def refuses(broken, fails, tmp_path):
    """refuses(says) asserts that the damaged model cannot be run."""
    (tmp_path / "ids").write_text(" ".join(map(str, IDS)))

    def call(*says, **options):
        says = [part for part in says if part]
        line = fails("generate", broken, "--ids", tmp_path / "ids", "--print", "ids", "--echo", says=says, **options)
        assert len(line) < 600, "a message that can be read"
        return line

    return call


@pytest.fixture
def bits(logits, tales):
    """bits(model) gives the bytes of the logits of a short sequence."""
    return lambda model: logits(model, IDS, len(IDS), raw=True)


# safetensors


def data_of(tensors):
    return b"".join(data for _, _, data in tensors.values())


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 4095, 4096, 100_000, -1])
def test_truncated_weights(broken, refuses, keep):
    raw = broken.weights.read_bytes()
    broken.weights.write_bytes(raw[:keep])
    refuses(broken.weights)


def test_weights_with_more_behind_them(broken, refuses):
    with open(broken.weights, "ab") as file:
        file.write(b"\0")
    refuses(broken.weights, "data")


LENGTHS = [0, 1, 2, 10_000_000, 100_000_001, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 9, 2**64 - 1]


@pytest.mark.parametrize("length", LENGTHS)
def test_lying_header_length(broken, refuses, length):
    tensors = broken.tensors()
    write_raw(broken.weights, header_of(tensors), data_of(tensors), length=length)
    refuses(broken.weights, "header")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}garbage",
        b'{"a":1}',
        b'{"a":{}}',
        b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},}',
        b'{"\xff":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        b'{"__metadata__":{"a":1}}',
        b'{"__metadata__":[]}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 1_000_000,
        b'{"' + b"n" * 100_000 + b'":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
    ],
    ids=lambda header: header[:12].decode(errors="replace") + f"...{len(header)}",
)
def test_headers_that_are_none(broken, refuses, header):
    write_raw(broken.weights, header, b"")
    refuses(broken.weights)


ENTRY_CHANGES = {
    "overlap": {"data_offsets": [0, 512]},
    "backwards": {"data_offsets": [512, 0]},
    "beyond the end": {"data_offsets": [10**9, 10**9 + 512]},
    "offsets of 2^64": {"data_offsets": [2**64, 2**64 + 512]},
    "offsets that wrap": {"data_offsets": [2**64 - 512, 0]},
    "negative offsets": {"data_offsets": [-512, 0]},
    "offsets in floating point": {"data_offsets": [0.0, 512.0]},
    "one offset": {"data_offsets": [0]},
    "three offsets": {"data_offsets": [0, 1, 2]},
    "no offsets": {"data_offsets": None},
    "shape too large": {"shape": [257]},
    "shape too small": {"shape": [255]},
    "shape that overflows": {"shape": [2**32, 2**32]},
    "shape that overflows to what fits": {"shape": [2**63, 2, 256]},
    "negative shape": {"shape": [-256]},
    "shape of strings": {"shape": ["256"]},
    "no shape": {"shape": None},
    "rank of 100": {"shape": [256] + [1] * 99},
    "unknown dtype": {"dtype": "BF17"},
    "dtype of another size": {"dtype": "F32"},
    "no dtype": {"dtype": None},
    "dtype that is a number": {"dtype": 16},
}


@pytest.mark.parametrize("name", ENTRY_CHANGES)
def test_lying_header_entries(broken, refuses, name):
    broken.edit_header(lambda header: header[NORM].update(ENTRY_CHANGES[name]))
    # Numbers of more than 64 bits end the reading of a header, which is no member that nobody reads.
    refuses(broken.weights, {"overlap": "data_offsets", "offsets of 2^64": "header"}.get(name, NORM))


def test_overlapping_tensors_and_holes(broken, refuses):
    tensors = broken.tensors()
    header = header_of(tensors)
    first, second, *_ = header
    original = dict(header[second])
    for by in (-4, 4):
        header[second]["data_offsets"] = [offset + by for offset in original["data_offsets"]]
        write_raw(broken.weights, header, data_of(tensors))
        assert first != second
        refuses(broken.weights, "data_offsets")


# Tensors


def test_missing_tensors(broken, fails, tmp_path):
    """Each kind of tensor in turn."""
    tensors = broken.tensors()
    (tmp_path / "ids").write_text("5")
    wanted = [name for name in tensors if ".layers." not in name or ".layers.3." in name]
    assert len(wanted) > 20
    for name in wanted:
        broken.set_tensors({key: value for key, value in tensors.items() if key != name})
        module = name.rpartition(".")[0]
        fails("generate", broken, "--ids", tmp_path / "ids", says=[broken.path, module])


SURPLUS = ["model.layers.6.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "extra", ""]


@pytest.mark.parametrize("name", SURPLUS)
def test_tensors_that_do_not_belong(broken, refuses, name):
    tensors = broken.tensors()
    tensors[name] = tensors[NORM]
    broken.set_tensors(tensors)
    refuses(broken.path, f'"{name}"', "qwen3")


def test_names_of_tensors_are_shown_safely(broken, refuses):
    tensors = broken.tensors()
    tensors["\x1b[31mred\nline\r" + "x" * 400] = tensors[NORM]
    broken.set_tensors(tensors)
    line = refuses(broken.path)
    assert "\x1b" not in line and "\r" not in line


PARTS = ("weight", "scales", "biases")


def test_a_tied_head_may_be_stored_again_or_alone_but_not_be_another(broken, bits, refuses, tales):
    tensors = broken.tensors()
    copy = {f"lm_head.{part}": tensors[f"model.embed_tokens.{part}"] for part in PARTS}
    broken.set_tensors(tensors | copy)
    assert bits(broken) == bits(tales)
    broken.set_tensors(copy | {name: value for name, value in tensors.items() if "embed_tokens" not in name})
    assert bits(broken) == bits(tales)
    for part in PARTS:
        dtype, shape, data = copy[f"lm_head.{part}"]
        other = data[:-1] + bytes([data[-1] ^ 1])
        broken.set_tensors(tensors | copy | {f"lm_head.{part}": (dtype, shape, other)})
        refuses(broken.path, '"lm_head.weight"', '"model.embed_tokens.weight"')


def test_tables_of_rope_are_skipped(broken, bits, tales):
    tensors = broken.tensors()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensors["model.rotary_emb.cos_cached"] = tensors[NORM]
    broken.set_tensors(tensors)
    assert bits(broken) == bits(tales)


TENSOR_CHANGES = {
    "norm of one less": (NORM, lambda d, s, b: (d, [s[0] - 1], b[:-2])),
    "norm as a matrix": (NORM, lambda d, s, b: (d, [1, s[0]], b)),
    "norm in integers": (NORM, lambda d, s, b: ("U16", s, b)),
    "norm in bytes": (NORM, lambda d, s, b: ("F8_E4M3", s, b[: s[0]])),
    "norm of nothing": (NORM, lambda d, s, b: (d, [0], b"")),
    "norm as a scalar": (NORM, lambda d, s, b: (d, [], b[:2])),
    "codes turned": (QUERY + ".weight", lambda d, s, b: (d, s[::-1], b)),
    "codes signed": (QUERY + ".weight", lambda d, s, b: ("I32", s, b)),
    "codes as floats": (QUERY + ".weight", lambda d, s, b: ("F32", s, b)),
    "codes of one row less": (QUERY + ".weight", lambda d, s, b: (d, [s[0] - 1, s[1]], b[: -4 * s[1]])),
    "codes of one bit": (QUERY + ".weight", lambda d, s, b: (d, [s[0], s[1] // 4], b[: len(b) // 4])),
    "codes of odd width": (QUERY + ".weight", lambda d, s, b: (d, [s[0], s[1] - 1], b[: -4 * s[0]])),
    "codes in three dimensions": (QUERY + ".weight", lambda d, s, b: (d, [1, *s], b)),
    "codes of nothing": (QUERY + ".weight", lambda d, s, b: (d, [s[0], 0], b"")),
    "scales of nothing": (QUERY + ".scales", lambda d, s, b: (d, [s[0], 0], b"")),
    "scales turned": (QUERY + ".scales", lambda d, s, b: (d, s[::-1], b)),
    "scales in bytes": (QUERY + ".scales", lambda d, s, b: ("U8", s, b[: len(b) // 2])),
    "scales of one group less": (QUERY + ".scales", lambda d, s, b: (d, [s[0], s[1] - 1], b[: -2 * s[0]])),
    "scales half as many": (QUERY + ".scales", lambda d, s, b: (d, [s[0], s[1] // 2], b[: len(b) // 2])),
    "biases of another type": (QUERY + ".biases", lambda d, s, b: ("F16", s, b)),
    "biases half as many": (QUERY + ".biases", lambda d, s, b: (d, [s[0], s[1] // 2], b[: len(b) // 2])),
}


@pytest.mark.parametrize("name", TENSOR_CHANGES)
def test_tensors_of_a_wrong_shape_or_type(broken, refuses, name):
    tensor, change = TENSOR_CHANGES[name]
    tensors = broken.tensors()
    tensors[tensor] = change(*tensors[tensor])
    broken.set_tensors(tensors)
    refuses(broken.weights, tensor.rpartition(".")[0])


def test_weights_that_are_not_finite(broken, fails, tmp_path):
    tensors = broken.tensors()
    (tmp_path / "ids").write_text("5 6 7")
    for pattern in (b"\xc0\x7f", b"\x80\x7f"):  # NaN, infinity
        dtype, shape, data = tensors[NORM]
        broken.set_tensors(tensors | {NORM: (dtype, shape, pattern * (len(data) // 2))})
        for options in ((), ("--temp", "1"), ("--temp", "1", "--top-k", "5", "--top-p", "0.5")):
            fails("generate", broken, "--ids", tmp_path / "ids", "-n", 5, *options, says="not finite")


def test_weights_that_are_huge_do_not_crash(broken, run, tmp_path):
    tensors = broken.tensors()
    (tmp_path / "ids").write_text("5 6 7")
    dtype, shape, data = tensors[NORM]
    broken.set_tensors(tensors | {NORM: (dtype, shape, b"\x7f\x7f" * (len(data) // 2))})
    done = run("generate", broken, "--ids", tmp_path / "ids", "--print", "ids", "-n", 5, status=None)
    assert done.returncode in (0, 1), done.stderr
    assert all(int(word) < 1447 for word in done.stdout.split())


# config.json against the tensors


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
DIMENSIONS = ["hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size"]


@pytest.mark.parametrize("factor", [0.5, 2])
@pytest.mark.parametrize("field", [*DIMENSIONS, "num_key_value_heads", "head_dim"])
def test_config_that_contradicts_the_shapes(broken, refuses, field, factor):
    value = json.loads((broken / "config.json").read_text())[field]
    broken.config(drop=["layer_types"], **{field: int(value * factor)})
    refuses(broken.path, "tensor", warnings=True)


@pytest.mark.parametrize("field", [*DIMENSIONS, "max_position_embeddings"])
@pytest.mark.parametrize("value", [0, -1, 2**31, 2**32, 2**64, 1e300, 2.5, "256", None, [256], True, {}])
def test_dimensions_that_are_none(broken, refuses, field, value):
    broken.config(**{field: value})
    refuses(broken / "config.json", field)


MOST = {
    "num_hidden_layers": 4096,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 4096,
    "hidden_size": 2**20,
    "intermediate_size": 2**20,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**28,
}


@pytest.mark.parametrize("field", MOST)
def test_dimensions_past_the_greatest(broken, refuses, field):
    broken.config(**{field: MOST[field] + 1})
    refuses(broken / "config.json", field, f"expected an integer in [1, {MOST[field]}], got {MOST[field] + 1}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "qwen4"}, ["model_type", "qwen4", "qwen3"]),
        ({"model_type": "llama"}, ["architectures", "LlamaForCausalLM", "Qwen3ForCausalLM"]),
        (
            {"model_type": "gemma3"},
            ["model_type", "gemma2, gemma3_text, granite, llama, ministral, ministral3, mistral, olmo2, olmo3, "
             "phi3, qwen2, qwen3, smollm3"],
        ),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, ["architectures", "Qwen3ForCausalLM"]),
        ({"model_type": None}, ["model_type"]),
        ({"model_type": 3}, ["model_type"]),
        ({"model_file": "model.py"}, ["model_file"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads"]),
        ({"num_key_value_heads": 0}, ["num_key_value_heads"]),
        ({"head_dim": 63}, ["head_dim"]),
        ({"head_dim": 0}, ["head_dim"]),
        ({"rms_norm_eps": 0}, ["rms_norm_eps"]),
        ({"rms_norm_eps": -1e-6}, ["rms_norm_eps"]),
        ({"rms_norm_eps": "small"}, ["rms_norm_eps"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"attention_bias": "no"}, ["attention_bias"]),
        ({"use_sliding_window": True}, ["use_sliding_window"]),
        ({"layer_types": ["sliding_attention"] * 6}, ["layer_types"]),
        ({"layer_types": ["full_attention"] * 5}, ["layer_types", "6 layers"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings"]),
        ({"tie_word_embeddings": False}, ["lm_head"]),
        ({"eos_token_id": "end"}, ["eos_token_id"]),
        ({"eos_token_id": -1}, ["eos_token_id"]),
        ({"rope_parameters": {"rope_theta": 0.0}}, ["rope_theta"]),
        ({"rope_parameters": {"rope_theta": -5}}, ["rope_theta"]),
        ({"rope_parameters": {"rope_theta": "high"}}, ["rope_theta"]),
        ({"rope_parameters": []}, ["rope_parameters"]),
        ({"rope_scaling": 4}, ["rope_scaling"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, ["rope_scaling", "contradicts"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["rope_parameters", "factor"]),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, ["factor"]),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, ["low_freq_factor"]),
        ({"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, ["high_freq_factor"]),
        ({"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 0}}, ["original_max_position_embeddings"]),
        ({"rope_parameters": LLAMA3 | {"type": "linear"}}, ["rope_type", "contradicts"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor"]),
        ({"partial_rotary_factor": 2.0}, ["partial_rotary_factor"]),
        ({"rope_theta": 500000.0}, ["rope_theta"]),
        ({"is_causal": False}, ["is_causal"]),
        ({"per_layer_config": {"1": {"skip": ["mlp"]}}}, ["per_layer_config"]),
        ({"rope_scaling": {"full_attention": {"rope_theta": 5.0}}}, ["rope_scaling.full_attention"]),
        ({"rope_scaling": {"rope_theta": float("nan")}}, ["rope_scaling.rope_theta", "NaN"]),
        ({"quantization": 4}, ["quantization"]),
        ({"quantization": {"group_size": 64, "bits": "4"}}, ["bits"]),
        ({"quantization": {"group_size": 0, "bits": 4}}, ["group_size"]),
        ({"quantization": {"group_size": 64, "bits": 4, "mode": "other"}}, ["mode", "other"]),
        ({"quantization": {"quant_method": "gptq"}}, ["gptq"]),
        ({"quantization": {}, "quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
        ({"quantization": [], "quantization_config": None}, ["quantization"]),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_config_that_is_not_provided_or_makes_no_sense(broken, refuses, changes, says):
    broken.config(**changes)
    refuses(broken.path, *says)


def rope_by_layer(**changes):
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    return {"rope_parameters": {"full_attention": plain, "sliding_attention": plain} | changes}


FAMILIES = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "gemma3": {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 64,
        **rope_by_layer(),
    },
}


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("llama", {}, ["tensor", "llama"]),  # nothing wrong with it, but for the tensors of another family
        ("llama", {"mlp_bias": True}, ["config.json", "mlp_bias"]),
        ("llama", {"attention_bias": True}, ["config.json", "attention_bias"]),
        ("llama", {"hidden_act": "gelu"}, ["config.json", "hidden_act"]),
        ("llama", {"layer_types": ["sliding_attention"] * 6}, ["config.json", "layer_types"]),
        ("llama", {"rope_scaling": {"rope_type": "mrope", "factor": 2.0}}, ["config.json", "rope_scaling", "mrope"]),
        ("gemma3", {}, ["tensor"]),
        ("gemma3", {"hidden_activation": "gelu"}, ["config.json", "hidden_activation"]),
        ("gemma3", {"attention_bias": True}, ["config.json", "attention_bias"]),
        ("gemma3", {"use_bidirectional_attention": True}, ["config.json", "use_bidirectional_attention"]),
        ("gemma3", {"attn_logit_softcapping": 50.0}, ["config.json", "attn_logit_softcapping"]),
        ("gemma3", {"final_logit_softcapping": 30.0}, ["config.json", "final_logit_softcapping"]),
        ("gemma3", {"query_pre_attn_scalar": 0}, ["config.json", "query_pre_attn_scalar"]),
        ("gemma3", {"sliding_window": 0}, ["config.json", "sliding_window"]),
        ("gemma3", {"sliding_window": None}, ["config.json", "sliding_window"]),
        ("gemma3", {"layer_types": ["chunked_attention"] * 6}, ["config.json", "layer_types", "chunked_attention"]),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, ["config.json", "layer_types"]),
        ("gemma3", {"rope_parameters": {"rope_theta": 10000.0}}, ["config.json", "full_attention"]),
        ("gemma3", rope_by_layer(full_attention={"rope_type": "mrope"}), ["config.json", "full_attention", "mrope"]),
        ("gemma3", {"rope_local_base_freq": 20000.0}, ["config.json", "rope_local_base_freq"]),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_what_other_families_do_not_provide(broken, refuses, family, changes, says):
    broken.config(**FAMILIES[family] | changes)
    refuses(broken.path, *says)


ROPE_TYPES = ["longrope", "su", "mrope", "other"]


@pytest.mark.parametrize("rope_type", ROPE_TYPES)
def test_rope_scaling_that_is_not_provided(broken, refuses, fails, rope_type):
    settings = {"factor": 4.0, "original_max_position_embeddings": 1024}
    broken.config(rope_parameters={"rope_theta": 10000.0, "rope_type": rope_type, **settings})
    refuses(broken / "config.json", "rope_parameters", rope_type)
    for key in ("type", "rope_type"):
        broken.config(drop=["rope_parameters"], rope_theta=10000.0, rope_scaling={key: rope_type, **settings})
        refuses(broken / "config.json", "rope_scaling", rope_type)
    fails("info", broken, says=["rope_scaling", rope_type])  # without the weights, too


def test_both_spellings_of_rope(broken, bits, tales):
    expected = bits(tales)
    broken.config(drop=["rope_parameters"], rope_theta=10000.0, rope_scaling=None)
    assert bits(broken) == expected
    broken.config(rope_theta=10000)
    assert bits(broken) == expected
    broken.config(rope_scaling={"type": "default"})
    assert bits(broken) == expected
    broken.config(rope_scaling={"rope_type": "default"})
    assert bits(broken) == expected
    broken.config(drop=["rope_scaling"], rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
    assert bits(broken) == expected, "both, and they agree"
    # Another theta has to be seen in either spelling, and be the same in both.
    broken.config(drop=["rope_theta"], rope_parameters={"rope_theta": 5000.0, "rope_type": "default"})
    other = bits(broken)
    assert other != expected
    broken.config(drop=["rope_parameters"], rope_theta=5000.0, rope_scaling=None)
    assert bits(broken) == other


WRONG_BLOCKS = [
    {"group_size": 64, "bits": 8},
    {"group_size": 32, "bits": 4},
    {"group_size": 64, "bits": 4, "mode": "mxfp4"},
    None,
    {},
]


@pytest.mark.parametrize("block", WRONG_BLOCKS)
def test_tensors_are_right_where_the_quantization_block_is_wrong(broken, run, bits, tales, tmp_path, block):
    broken.config(quantization=block, quantization_config=block)
    assert bits(broken) == bits(tales)
    (tmp_path / "ids").write_text("5")
    done = run("generate", broken, "--ids", tmp_path / "ids", "--print", "ids", "-n", 1)
    assert "refrain: warning: " in done.stderr and "config.json" in done.stderr and "tensor" in done.stderr


# Files of the folder


CONFIGS = ["", "{", "[]", "null", "3", '{"a": 1,}', "{}", '{"model_type": null}', "\ufeff{}x", "[" * 100_000]


@pytest.mark.parametrize("content", CONFIGS)
def test_broken_config(broken, refuses, content):
    (broken / "config.json").write_text(content, encoding="utf-8")
    refuses(broken / "config.json")


def test_config_of_bytes_that_are_no_text(broken, refuses):
    (broken / "config.json").write_bytes(b'{"model_type": "\xff"}')
    refuses(broken / "config.json")


def test_a_field_twice(broken, refuses):
    text = (broken / "config.json").read_text()
    (broken / "config.json").write_text(text.replace("{", '{"hidden_size": 512,', 1))
    refuses(broken / "config.json", "hidden_size")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_an_unread_field_twice(broken, run, tales, name):
    text = (broken / name).read_text(encoding="utf-8")
    (broken / name).write_text(text.replace("{", '{"note": 1, "note": {"a": 1, "a": 2},', 1), encoding="utf-8")
    found, expected = (run("generate", model, "-p", "Once", "-n", "3").stdout for model in (broken, tales))
    assert found == expected


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 1\n"
INSTEAD = {
    POINTER: "a Git LFS pointer",
    POINTER.replace("git-lfs", "hawser"): "a Git LFS pointer",
    "\n<!DOCTYPE html>\n<html>404</html>\n": "a web page",
    "<!-- cached --><HTML>": "a web page",
    "<head><title>Sign in</title>": "a web page",
    '<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>': "a web page",
    "\ufeff<html>": "a web page",
}


@pytest.mark.parametrize("content", INSTEAD)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_what_was_saved_in_place_of_a_file(broken, fails, name, content):
    (broken / name).write_text(content, encoding="utf-8")
    fails("generate", broken, "-p", "a", says=[broken / name, "expected", INSTEAD[content]])


@pytest.mark.parametrize("content", ["Entry not found", "Invalid username or password.\n", '{"error": "Repository not found"}'])
def test_what_a_server_said_in_place_of_weights(broken, fails, content):
    broken.weights.write_text(content)
    says = json.dumps(content.split("\n")[0])
    fails("generate", broken, "-p", "a", says=[broken.weights, "expected a safetensors file, got text", says])


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_numbers_of_python_that_nobody_reads(broken, run, tales, name):
    """What save_pretrained writes of a tokenizer without a limit, and what json.dump writes of a float."""
    numbers = {"model_max_length": int(1e30), "unread": [float("nan"), float("inf"), -float("inf"), -(2**64)]}
    broken.edit_json(name, numbers)
    assert "NaN" in (broken / name).read_text()
    for command, *options in (["generate", "-p", "Once", "-n", "3"], ["info"], ["tokenize"]):
        found, expected = (run(command, model, *options, input="Once\n").stdout for model in (broken, tales))
        assert found == expected


def test_absent_files(broken, fails, refuses):
    refuses_name = {"config.json": broken / "config.json", "model.safetensors": broken.path}
    for name, says in refuses_name.items():
        (broken / name).rename(broken / "away")
        refuses(says)
        fails("info", broken, says=says)
        (broken / "away").rename(broken / name)
    (broken / "tokenizer.json").unlink()
    for command in (["generate", broken, "-p", "a"], ["tokenize", broken]):
        fails(*command, input="a\n", says=broken / "tokenizer.json")


TOKENIZERS = [*CONFIGS[:3], "{}", '{"model": null}', '{"model": {"type": "BPE"}}', '{"model": {"type": "Unigram"}}']


@pytest.mark.parametrize("content", [*TOKENIZERS, "[" * 100_000])
def test_broken_tokenizer(broken, fails, content):
    (broken / "tokenizer.json").write_text(content)
    for command in (["generate", broken, "-p", "a", "--echo"], ["tokenize", broken], ["info", broken]):
        fails(*command, input="a\n", says=broken / "tokenizer.json")


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"eos_token_id": "a", "add_bos_token": 3}'])
def test_broken_small_files(broken, fails, name, content):
    (broken / name).write_text(content)
    fails("generate", broken, "-p", "a", says=broken / name)


FILES = ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("name", [*FILES, "generation_config.json", "tokenizer_config.json"])
def test_a_directory_in_place_of_a_file(broken, fails, name):
    (broken / name).unlink()
    (broken / name).mkdir()
    fails("generate", broken, "-p", "a", says=broken / name)


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_read(broken, fails, name):
    (broken / name).chmod(0)
    if os.access(broken / name, os.R_OK):  # the superuser reads everything; a link to nowhere will do
        (broken / name).unlink()
        (broken / name).symlink_to(broken / "nowhere")
    fails("generate", broken, "-p", "a", says=broken / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe_does_not_hang(broken, fails):
    broken.weights.unlink()
    os.mkfifo(broken.weights)
    fails("generate", broken, "-p", "a", says=broken.weights, timeout=20)


@pytest.mark.parametrize("command", ["generate", "logits", "info", "tokenize", "quantize"])
def test_a_model_that_is_not_there(fails, tmp_path, command):
    (tmp_path / "ids").write_text("5")
    logits = ["--ids", tmp_path / "ids", "-o", tmp_path / "out.npy"]
    rest = {"generate": ["-p", "a"], "logits": logits, "quantize": [tmp_path / "out"]}
    rest = rest.get(command, [])
    fails(command, tmp_path / "none", *rest, says=tmp_path / "none")
    if command != "tokenize":
        (tmp_path / "file").write_text("")
        fails(command, tmp_path / "file", *rest, says=tmp_path / "file")


# Shards


@pytest.mark.parametrize("index", [True, False])
def test_a_sharded_model_gives_the_same_bits(broken, bits, tales, run, index):
    broken.shard(3, index=index)
    assert bits(broken) == bits(tales)
    assert "154 in 3 files" in run("info", broken).stdout


def test_a_stale_index_is_no_matter_where_nothing_is_missing(broken, bits, tales):
    index = broken.shard(2)
    names, expected = sorted(set(index["weight_map"].values())), bits(tales)

    def with_map(**changes):
        broken.set_index(index | {"weight_map": index["weight_map"] | changes})

    with_map(**{NORM: next(name for name in names if name != index["weight_map"][NORM])})
    assert bits(broken) == expected
    with_map(**{NORM: "model-00009-of-00009.safetensors"})
    assert bits(broken) == expected
    with_map(**{"lm_head.weight": names[0]})
    assert bits(broken) == expected
    broken.set_index({"weight_map": {k: v for k, v in index["weight_map"].items() if k != NORM}})
    assert bits(broken) == expected
    broken.set_index({"weight_map": {k: "old-" + v for k, v in index["weight_map"].items()}})
    assert bits(broken) == expected


def test_bad_index_files(broken, refuses):
    index = broken.shard(2)
    index_file = broken / "model.safetensors.index.json"
    shutil.copyfile(broken / index["weight_map"][NORM], broken.path.parent / "outside.safetensors")
    for bad in ("../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\0b", "a\\b", 3):
        broken.set_index(index | {"weight_map": index["weight_map"] | {NORM: bad}})
        refuses(index_file, NORM)
    for content in ({}, {"weight_map": []}, {"weight_map": None}, []):
        broken.set_index(content)
        refuses(broken.path)
    index_file.write_text("{")
    refuses(index_file)


def test_a_missing_shard(broken, refuses):
    index = broken.shard(2)
    missing = broken / index["weight_map"][NORM]
    missing.unlink()
    line = refuses(missing, warnings=True)
    assert "as the index says" in line


def test_a_tensor_in_two_files(broken, refuses):
    broken.shard(2, index=False)
    shutil.copyfile(broken / "model-00001-of-00002.safetensors", broken / "model-extra.safetensors")
    refuses("model-extra.safetensors", "model-00001-of-00002.safetensors")


# Prompts and ids


@pytest.mark.parametrize("bad", [b"\xff", b"Once \xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf", b"a\x80"])
def test_prompt_that_is_no_utf8(refrain, tales, bad):
    for options in ([], ["--echo"]):
        command = [refrain, "generate", tales, "-p", bad, *options]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert done.returncode == 1 and done.stdout == b""
        assert done.stderr.startswith(b"refrain: error: ") and done.stderr.count(b"\n") == 1
        assert b"UTF-8" in done.stderr


def test_empty_prompts(fails, tales, tmp_path):
    fails("generate", tales, "-p", "", "--echo", says="prompt")
    for content in ("", " \n\t"):
        (tmp_path / "ids").write_text(content)
        fails("generate", tales, "--ids", tmp_path / "ids", says="prompt")
        fails("logits", tales, "--ids", tmp_path / "ids", "-o", tmp_path / "out.npy", says="prompt")
    assert not list(tmp_path.glob("out*"))


def test_prompt_longer_than_the_context(fails, tales, tmp_path):
    (tmp_path / "ids").write_text("5 " * 1025)
    fails("generate", tales, "--ids", tmp_path / "ids", "--print", "ids", "--echo", says=["prompt", "1024", "1025"])
    fails("logits", tales, "--ids", tmp_path / "ids", "-o", tmp_path / "out.npy", says=["prompt", "1024", "1025"])
    fails("generate", tales, "-p", "Once upon a time " * 1000, "--echo", says=["prompt", "1024"])
    assert not list(tmp_path.glob("out*")), "nothing is left behind"


TOO_LARGE = ["1472", "4294967295"]
NO_IDS = ["4294967296", "99999999999999999999999", "-1", "1.0", "0x10", "a", "5,6", "\ufeff5", "\0"]


@pytest.mark.parametrize("bad", TOO_LARGE + NO_IDS)
def test_ids_out_of_range_or_none_at_all(fails, tales, tmp_path, bad):
    (tmp_path / "ids").write_text(f"5 6 {bad} 7", encoding="utf-8")
    says = ["1472"] if bad in TOO_LARGE else [tmp_path / "ids", "word 3"]
    fails("generate", tales, "--ids", tmp_path / "ids", "--echo", says=says)
    fails("generate", tales, "--ids", tmp_path / "ids", "--echo", "--print", "ids", says=says)
    fails("logits", tales, "--ids", tmp_path / "ids", "-o", tmp_path / "out.npy", says=says)
    assert not list(tmp_path.glob("out*"))


def test_files_of_ids_that_cannot_be_read(fails, tales, tmp_path):
    for path in (tmp_path / "none", tmp_path):
        fails("generate", tales, "--ids", path, says=path)
        fails("logits", tales, "--ids", path, "-o", tmp_path / "out.npy", says=path)


# Output


def test_output_that_cannot_be_written(fails, tales, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a temporary file without a folder would lie
    (tmp_path / "ids").write_text("5")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for path in (tmp_path / "none" / "out.npy", tmp_path / "folder", tmp_path / "ids" / "out.npy"):
        fails("logits", tales, "--ids", tmp_path / "ids", "-o", path, says=path)
    for path in ("", "folder/"):
        says = f'"{path}": expected the name of a file'
        fails("logits", tales, "--ids", tmp_path / "ids", "-o", path, says=says)
    fails("logits", tales, "--ids", tmp_path / "ids", "-o", tmp_path / "a.npy", "--last", 0, says="last")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_run_keeps_the_old_output(fails, tales, tmp_path):
    (tmp_path / "out.npy").write_bytes(b"old")
    (tmp_path / "ids").write_text("5 2000")
    fails("logits", tales, "--ids", tmp_path / "ids", "-o", tmp_path / "out.npy", says="2000")
    assert (tmp_path / "out.npy").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids", "out.npy"]


def test_quantize_of_damaged_folders_and_to_places_that_cannot_be_written(broken, fails, tmp_path):
    out = tmp_path / "out"
    fails("quantize", broken, out, says=[broken.path, "quantized"])
    weights = broken.tensors()
    dense = {name: value for name, value in weights.items() if value[0] == "BF16" and name.endswith(".weight")}
    broken.set_tensors(dense)
    broken.config(drop=["quantization", "quantization_config"])
    (tmp_path / "file").write_text("")
    fails("quantize", broken, tmp_path / "file", says=tmp_path / "file")
    fails("quantize", broken, tmp_path / "file" / "out", says=tmp_path / "file")
    fails("quantize", broken, out, "--bits", 7, says="bits")
    fails("quantize", broken, out, "--group-size", 48, says="group-size")
    broken.weights.write_bytes(broken.weights.read_bytes()[:-1])
    fails("quantize", broken, out, says=broken.weights)
    assert not list(out.glob("*")) if out.exists() else True
