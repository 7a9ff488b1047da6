#!/usr/bin/env python3
"""Writes tests/golden/data/configs.npz: what transformers reads of random valid configurations of each family.

Usage: PYTHON tools/make_config_goldens.py [FAMILY...], with transformers 5.17, torch and numpy, which the tests need not. Of
each family (of those named, if any are: the others stay as they are) 200 configurations with fields absent, null, in any
spelling and order, that transformers loads and that ask for nothing which docs/compatibility.md refuses; the sizes that it
reads, of which tiny_models.write_weights makes the weights; and the last logits of a prompt. One is drawn again where
transformers itself refuses it.
"""

import collections
import json
import pathlib
import random
import sys
import tempfile

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/golden"))

from model_files import write_npz  # noqa: E402
from tiny_models import CONFIG_PROMPT, CONFIG_SIZES, FAMILIES, SHOWN_LOGITS, write_weights  # noqa: E402

VARIATIONS = 200
MOST_WEIGHTS = 6_000_000
ROUNDING = 2e-6  # of logits, relative: what float32 does not determine shows nothing
ABSENT = object()
LAYERS = {"gemma2": 26, "gemma3_text": 26, "ministral3": 34, "smollm3": 36}  # where the file does not say
torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

SIZES = {
    "num_hidden_layers": [1, 2, 3, 5, 7] * 3 + [ABSENT],
    "hidden_size": [16, 24, 32] * 8 + [ABSENT],
    "intermediate_size": [12, 20] * 8 + [ABSENT],
    "num_attention_heads": [2, 4, 8] * 3 + [ABSENT] * 2,
    "num_key_value_heads": [1, 2, 4, None, ABSENT, ABSENT],
    "head_dim": [4, 6, 8, None, ABSENT, ABSENT],
    "vocab_size": [16, 24] * 12 + [ABSENT],
    "max_position_embeddings": [20, 32, 640, ABSENT],
    "rms_norm_eps": [1e-6, 1e-5, 0.02, ABSENT, ABSENT],
    "tie_word_embeddings": [True, False, ABSENT],
}
HARMLESS = {
    "attention_dropout": [0.0, 0.1],
    "initializer_range": [0.02, 0.5],
    "use_cache": [True, False],
    "pad_token_id": [None, 3],
    "bos_token_id": [None, 2],
    "eos_token_id": [None, 0, [1, 2]],
    "dtype": [None, "float32", "bfloat16"],
    "torch_dtype": [None, "float16"],
    "chunk_size_feed_forward": [0, 4],
    "output_hidden_states": [None, True, False],
    "output_attentions": [False],
    "return_dict": [None, True],
    "id2label": [None, {"0": "a", "1": "b", "2": "c"}],
    "problem_type": [None],
    "quantization_config": [None],
    "is_causal": [True],
    "is_encoder_decoder": [False],
    "per_layer_config": [None],
    "use_bidirectional_attention": [None, False],
    "transformers_version": [None, "4.40.0", "5.17.0"],
    "partial_rotary_factor": [None, 1.0],
    "max_window_layers": [0, 28],
    "_name_or_path": ["a/b", ""],
    "temperature": [0.5],
    "max_length": [20],
    "unknown": [10**30, float("nan"), float("inf"), None, [None, {"hidden_size": 3}]],
    "auto_map": [{}],
}
HARMLESS_OF = {
    "llama": {"mlp_bias": [False], "attention_bias": [False], "pretraining_tp": [None, 1, 2], "sliding_window": [None, 10**6]},
    "qwen3": {"attention_bias": [False], "use_sliding_window": [False], "sliding_window": [None, 3]},
    "gemma3_text": {
        "attention_bias": [False],
        "attn_logit_softcapping": [None],
        "final_logit_softcapping": [None],
        "hidden_act": [None, "silu", "gelu"],
        "cache_implementation": ["hybrid"],
        "_sliding_window_pattern": [2],
    },
    "ministral": {"attention_bias": [False, True], "mlp_bias": [True]},
    "ministral3": {"attention_bias": [False, True], "mlp_bias": [True]},
    "mistral": {"attention_bias": [False, True], "mlp_bias": [True]},
    "phi3": {"attention_bias": [False, True], "mlp_bias": [True], "resid_pdrop": [0, 0.1], "embd_pdrop": [0.0, 0.1]},
    "olmo2": {"attention_bias": [False], "sliding_window": [None, 10**6]},
    "smollm3": {"attention_bias": [False], "mlp_bias": [False]},
    "gemma2": {"attention_bias": [False], "hidden_act": [None, "silu", "gelu"], "cache_implementation": ["hybrid"]},
    "qwen2": {"attention_bias": [False, True], "mlp_bias": [True]},
    "olmo3": {"attention_bias": [False], "mlp_bias": [True]},
    "granite": {"sliding_window": [None, 10**6]},
}
GEMMA = {"hidden_activation": ["gelu_pytorch_tanh", ABSENT], "query_pre_attn_scalar": [16, 30, ABSENT]}
CAPS = {"attn_logit_softcapping": [None, 0.5, 50.0, ABSENT], "final_logit_softcapping": [None, 0.3, 30.0, ABSENT]}
OWN_FIELDS = {
    "gemma3_text": GEMMA,
    "gemma2": GEMMA | CAPS,
    "granite": {
        "hidden_act": ["silu", ABSENT],
        "attention_bias": [True, False, ABSENT],
        "mlp_bias": [True, False, ABSENT],
        "embedding_multiplier": [3, 0.5, ABSENT],
        "attention_multiplier": [0.2, 1, ABSENT],
        "residual_multiplier": [0.3, 2.0, ABSENT],
        "logits_scaling": [5.0, 1, ABSENT],
    },
}


def some(rng, fields):
    """Each with a chance of a third."""
    return {key: rng.choice(values) for key, values in fields.items() if rng.random() < 1 / 3}


def draw(rng, fields):
    drawn = {key: rng.choice(values) for key, values in fields.items()}
    return {key: value for key, value in drawn.items() if value is not ABSENT}


def scaling(rng):
    """A block on rope without its theta, and what it may hold besides."""
    kind = rng.choice(["default", "default", "linear", "dynamic", "llama3", "yarn"])
    block = {"factor": rng.choice([2, 4.0, 8.0])} if kind != "default" else {}
    if kind == "yarn":
        turns = {"beta_fast": [None, 0, 32, 4], "beta_slow": [None, 0, 1, 2.0], "truncate": [True, False]}
        block |= some(rng, {"attention_factor": [None, 0.7, 1.5], "mscale": [0.5, 1], "mscale_all_dim": [0, 0.8]} | turns)
        block |= {"factor": rng.choice([1.5, 4.0, 4])}
    if kind == "llama3":
        block |= {"low_freq_factor": rng.choice([1, 1.0, 2.0]), "high_freq_factor": rng.choice([4, 4.0, 9.5])}
    if kind in ("llama3", "yarn"):
        block |= draw(rng, {"original_max_position_embeddings": [4, 8, 16, ABSENT]})
    unused = {"partial_rotary_factor": [1.0], "note": [None, 10**30, "x"]}
    if kind == "default":
        unused |= {"factor": [None, 3.0], "original_max_position_embeddings": [None, 8]}
    spellings = [["rope_type"], ["type"], ["type", "rope_type"]] + ([[]] if kind == "default" else [])
    return some(rng, unused) | block | dict.fromkeys(rng.choice(spellings), kind)


def theta(rng):
    return draw(rng, {"rope_theta": [100, 10000.0, 500000, ABSENT, ABSENT]})


def flat_rope(rng):
    return placed(rng, scaling(rng), theta(rng))


def placed(rng, block, base):
    nothing = rng.choice([None, {}])
    places = [
        {"rope_parameters": block | base},
        {"rope_scaling": block | base},
        {"rope_parameters": block, **base},
        {"rope_scaling": block, **base},
        {"rope_parameters": block | base, "rope_scaling": nothing, **base},
        {"rope_scaling": block | base, "rope_parameters": nothing},
        {"rope_scaling": block | base, "rope_parameters": block | base, **base},
        {**base},
        {**base, "rope_scaling": nothing, "rope_parameters": rng.choice([None, {}])},
    ]
    return rng.choice(places)


def growing_rope(rng):
    """Of Ministral 3, whose block says how queries grow, too; without one a theta beside counts for nothing, and is refused."""
    block = scaling(rng)
    if block.get("rope_type", block.get("type")) == "yarn":
        block |= draw(rng, {"factor": [block["factor"], None]})
    if block.get("rope_type", block.get("type")) not in ("llama3", "yarn"):
        block["original_max_position_embeddings"] = rng.choice([4, 8, 16])
    block["llama_4_scaling_beta"] = rng.choice([0, 0.1, 0.5, 1.0, 1])
    block |= some(rng, {"max_position_embeddings": [None, 32]})
    if rng.random() < 0.8:
        fields = placed(rng, block, theta(rng))
        if not (fields.get("rope_scaling") or fields.get("rope_parameters")):
            fields.pop("rope_theta", None)
        return fields
    beside = {"rope_theta": [1000000, 1e6], "rope_scaling": [None, {}], "original_max_position_embeddings": [16384]}
    return some(rng, beside | {"rope_parameters": [None]})


def partial_rope(rng, fields):
    """Of Phi-3: of a part of each head, and with factors of each pair or without."""
    block, base, part, beside = {}, theta(rng), rng.choice([1, 1.0, 0.5, 0.75, 0.75]), {}
    original = rng.choice([4, 8, 16, 4096, ABSENT])
    if original is not ABSENT:
        beside["original_max_position_embeddings"] = original
    if rng.random() < 0.6:
        heads = fields.get("num_attention_heads", 32)
        width = fields.get("hidden_size", 3072) // heads
        if "head_dim" in fields:  # else transformers looks for two numbers of factors
            fields["head_dim"] = width
        pairs = int(width * part) // 2
        block = draw(rng, {"factor": [None, 2.0, 4, 0.5, ABSENT], "attention_factor": [None, 0.7, 2, ABSENT, ABSENT]})
        for key in ("short_factor", "long_factor"):
            block[key] = [rng.choice([1, 1.0, 1.5, 2, 7.25, 30]) for _ in range(pairs)]
        named = [{"rope_type": "longrope"}, {"type": "longrope"}, {"type": "su"}, {"type": "yarn"}]
        block |= rng.choice([*named, {"type": "su", "rope_type": "longrope"}])
        if block.get("type") == "su" or rng.random() < 0.3:
            block["original_max_position_embeddings"] = beside.get("original_max_position_embeddings", 4096)
    else:
        block = some(rng, {"factor": [None, 3.0], "original_max_position_embeddings": [None, 8], "note": [None, 10**30, "x"]})
        block |= rng.choice([{}, {"rope_type": "default"}, {"type": "default"}])
    whole = part == 1 and rng.random() < 0.5
    within = {} if whole else rng.choice([{}, {"partial_rotary_factor": part}])
    if not (whole or within) or rng.random() < 0.3:
        beside["partial_rotary_factor"] = part
    return beside | placed(rng, within | block, base)


def rope_of(rng, family, fields):
    if family in ("gemma3_text", "olmo3"):
        return rope_by_layer(rng, family)
    if family == "phi3":
        fields.pop("partial_rotary_factor", None)
        return partial_rope(rng, fields)
    return growing_rope(rng) if family == "ministral3" else flat_rope(rng)


def rope_by_layer(rng, family):
    """Of Gemma 3 and OLMo 3, which has no base of its own for windows."""
    full, sliding, base = scaling(rng), scaling(rng), theta(rng)
    older = full | {"rope_type": full["type"]} if "type" in full else full  # a type alone is refused
    near = theta(rng)
    local = {"rope_local_base_freq": near["rope_theta"]} if near and family == "gemma3_text" else {}
    nothing = rng.choice([None, {}])
    return rng.choice(
        [
            {"rope_parameters": {"full_attention": full | base, "sliding_attention": sliding | near}},
            {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}, **base, **local},
            {"rope_parameters": {"full_attention": full | base, "sliding_attention": sliding | near}, **base, **local},
            {"rope_parameters": {"full_attention": full | base, "sliding_attention": nothing}, **local},
            {"rope_parameters": {"sliding_attention": sliding | near}, **base},
            {"rope_parameters": nothing, **base, **local},
            {"rope_scaling": older, **base, **local},
            {"rope_scaling": older | base, "rope_parameters": None, **local},
            {"rope_scaling": nothing, **base, **local},
            {"rope_scaling": nothing, "rope_parameters": {"full_attention": full | base, "sliding_attention": sliding | near}},
            {**base, **local},
        ]
    )


def layer_fields(rng, family, layers):
    """What says of each layer how it attends."""
    full, windows = ["full_attention"] * layers, ["sliding_attention"] * layers
    mixed = [rng.choice(["full_attention", "sliding_attention"]) for _ in range(layers)]
    window = {"sliding_window": rng.choice([3, 5, 4096])}
    if family in ("llama", "qwen3", "olmo2", "granite"):
        return draw(rng, {"layer_types": [ABSENT, None, full]})
    if family == "ministral":
        return draw(rng, {"layer_types": [mixed, full, None, ABSENT], "sliding_window": [3, 5, 4096, None, ABSENT]})
    if family in ("ministral3", "phi3"):
        fields = draw(rng, {"sliding_window": [3, 5, 4096, None, ABSENT]})
        return fields | draw(rng, {"layer_types": [windows if fields.get("sliding_window") else full, None, ABSENT]})
    if family == "mistral":
        return draw(rng, {"sliding_window": [3, 5, 4096, None, ABSENT]})
    if family == "gemma3_text":
        types = draw(rng, {"layer_types": [mixed, mixed, windows, full, None, ABSENT]})
        return types | draw(rng, {"sliding_window_pattern": [2, 3, ABSENT], "sliding_window": [3, 5, 8, ABSENT]})
    if family in ("gemma2", "olmo3"):
        types = draw(rng, {"layer_types": [mixed, mixed, windows, full, None, ABSENT]})
        return types | draw(rng, {"sliding_window": [3, 5, 8, ABSENT]})
    if family == "qwen2":
        fields = draw(rng, {"use_sliding_window": [True, True, False, ABSENT], "max_window_layers": [0, 1, 28, ABSENT]})
        fields |= draw(rng, {"layer_types": [mixed, full, None, ABSENT, ABSENT]})
        return fields | draw(rng, {"sliding_window": [3, 5, None, ABSENT]})
    rope = [rng.choice([0, 1]) for _ in range(layers + rng.choice([0, 0, 2]))]
    fields = draw(rng, {"no_rope_layers": [rope, rope, None, ABSENT], "no_rope_layer_interval": [1, 2, 3, ABSENT]})
    kinds = [{}, {"sliding_window": None}, window, window | {"layer_types": mixed}, {"layer_types": full}, {"layer_types": None}]
    return fields | rng.choice(kinds) | draw(rng, {"use_sliding_window": [True, False, ABSENT]})


def variation(rng, family):
    fields = {"model_type": family} | draw(rng, SIZES)
    fields |= some(rng, HARMLESS) | some(rng, HARMLESS_OF[family])
    fields |= layer_fields(rng, family, fields.get("num_hidden_layers", LAYERS.get(family, 32)))
    fields |= rope_of(rng, family, fields)
    fields |= draw(rng, OWN_FIELDS[family] if family in OWN_FIELDS else {"hidden_act": ["silu", ABSENT]})
    if family in ("phi3", "smollm3"):  # else beyond so small a vocabulary, which is refused
        fields.setdefault("pad_token_id", None)
    fields |= draw(rng, {"architectures": [ABSENT, None, [FAMILIES[family]]]})
    keys = list(fields)
    rng.shuffle(keys)
    return {key: fields[key] for key in keys}


def sizes_of(family, read):
    sizes = {key: getattr(read, key, None) for key in CONFIG_SIZES}
    if not hasattr(read, "head_dim"):
        sizes["head_dim"] = read.hidden_size // read.num_attention_heads
    return sizes if family == "granite" else sizes | {"attention_bias": False, "mlp_bias": False}


def weights_of(sizes):
    attention = 2 * (sizes["num_attention_heads"] + sizes["num_key_value_heads"]) * sizes["head_dim"]
    layer = sizes["hidden_size"] * (attention + 3 * sizes["intermediate_size"])
    return sizes["num_hidden_layers"] * layer + (2 - sizes["tie_word_embeddings"]) * sizes["hidden_size"] * sizes["vocab_size"]


def answer(folder, family, config):
    """The sizes and the last logits; nothing if it is too large for a test, or rounding decides."""
    (folder / "config.json").write_text(json.dumps(config))
    read = transformers.AutoConfig.from_pretrained(folder)
    sizes = sizes_of(family, read)
    turned = sizes["head_dim"]
    if family == "phi3":
        turned = int(turned * read.rope_parameters["partial_rotary_factor"])
    if weights_of(sizes) > MOST_WEIGHTS or sizes["head_dim"] % 2 != 0 or turned % 2 != 0:
        return None
    write_weights(folder / "model.safetensors", sizes | {"model_type": family}, np.random.default_rng(0), even=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()

    def logits():
        with torch.no_grad():
            return model(torch.tensor([CONFIG_PROMPT]), use_cache=False, return_dict=True).logits[0, -1].numpy()[:SHOWN_LOGITS]

    single = logits()
    model.double()
    double = logits()
    assert np.isfinite(single).all()
    return (sizes, single) if np.linalg.norm(single - double) <= ROUNDING * np.linalg.norm(double) else None


def main():
    out = ROOT / "tests/golden/data/configs.npz"
    named = sys.argv[1:]
    arrays = dict(np.load(out)) if named else {}
    versions = np.array([f"transformers {transformers.__version__}", f"torch {torch.__version__}"])
    assert (arrays.setdefault("versions", versions) == versions).all(), "made by other versions: make all anew"
    for family in named or FAMILIES:
        rng, found, refused, seen = random.Random(family), [], collections.Counter(), set()
        while len(found) < VARIATIONS:
            config = variation(rng, family)
            with tempfile.TemporaryDirectory() as folder:
                try:
                    answered = answer(pathlib.Path(folder), family, config)
                except Exception as error:  # of any kind: it does not load this
                    refused[str(error).strip().replace("\n", " ")[-100:]] += 1
                    continue
            if answered:
                found.append((config, *answered))
                seen |= set(config)
        print(family, len(seen), "fields; transformers refused:", flush=True)
        for error, count in refused.most_common(8):
            print(f"    {count}: {error}")
        lines = "\n".join(json.dumps(config) for config, _, _ in found)
        arrays[family + ".configs"] = np.frombuffer(lines.encode(), np.uint8)
        arrays[family + ".sizes"] = np.array([[sizes[key] for key in CONFIG_SIZES] for _, sizes, _ in found], np.int32)
        arrays[family + ".logits"] = np.array([logits for _, _, logits in found], np.float32)
    write_npz(out, arrays)


if __name__ == "__main__":
    main()
