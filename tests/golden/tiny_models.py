"""Tiny models of every family, of numbers from a seed, whose configurations hit what their families do in special cases.

Shared by the tests and by tools/make_family_goldens.py, which asks transformers what they answer.
"""

import json

import numpy as np
from model_files import write_tensors

VOCAB = 211
PROMPT = [int(id) for id in np.random.default_rng(7).integers(0, VOCAB, 300)]
PROMPTS = [1, 2, 63, 64, 65, 300]  # ids of PROMPT, a page of the cache being 64
GREEDY_TOKENS = 256

SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 84,
    "intermediate_size": 150,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 22,
    "vocab_size": VOCAB,
    "max_position_embeddings": 640,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 300.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
# Of its 11 pairs some stay, some mix and some shrink, and the scores grow.
YARN = {
    "rope_type": "yarn",
    "rope_theta": 300.0,
    "factor": 4.0,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 128,
}
GEMMA3 = {
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 40,
    "query_pre_attn_scalar": 30,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3000.0},
    },
}
GEMMA2 = {
    "model_type": "gemma2",
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 40,
    "query_pre_attn_scalar": 30,
    "tie_word_embeddings": True,
}
ODD_LAYERS = ["full_attention", "sliding_attention"] * 2
MODELS = {
    "llama": {"model_type": "llama"} | THETA,
    "llama-tied-scaled": {"model_type": "llama", "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    "phi3": {"model_type": "phi3", "partial_rotary_factor": 0.75, "sliding_window": 40} | THETA,
    # Heads as wide as transformers checks the factors for.
    "phi3-longrope": {
        "model_type": "phi3",
        "head_dim": 14,
        "tie_word_embeddings": True,
        "original_max_position_embeddings": 64,
        "rope_theta": 300.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.1, 1.2, 1.5, 1.9, 2.0, 2.5],
            "long_factor": [1.0, 1.5, 2.5, 4.0, 5.0, 7.0, 9.0],
        },
    },
    "phi3-partial-longrope": {
        "model_type": "phi3",
        "head_dim": 14,
        "num_key_value_heads": 6,
        "original_max_position_embeddings": 600,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 300.0,
            "partial_rotary_factor": 0.75,
            "attention_factor": 1.4,
            "short_factor": [1.0, 1.1, 1.2, 1.5, 2.5],
            "long_factor": [1.0, 1.5, 2.5, 4.0, 9.0],
        },
    },
    "qwen2": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 40} | THETA,
    "qwen2-yarn": {
        "model_type": "qwen2",
        "rope_parameters": YARN | {"truncate": False, "mscale": 2.0, "mscale_all_dim": 0.5},
    },
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 40,
        "max_window_layers": 3,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    }
    | THETA,
    "qwen3": {"model_type": "qwen3"} | THETA,
    "qwen3-dynamic": {
        "model_type": "qwen3",
        "num_attention_heads": 2,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 300.0, "factor": 4.0},
    },
    # Caps that many scores and logits come near to; then none, and windows where others see all.
    "gemma2": GEMMA2 | {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0} | THETA,
    "gemma2-uncapped": GEMMA2
    | {
        "layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "num_key_value_heads": 6,
        "head_dim": 18,
    }
    | THETA,
    "gemma3": {"model_type": "gemma3_text", "tie_word_embeddings": True} | GEMMA3,
    "granite": {
        "model_type": "granite",
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.4,
        "residual_multiplier": 0.3,
        "logits_scaling": 5.0,
    }
    | THETA,
    "granite-biases": {
        "model_type": "granite",
        "attention_bias": True,
        "mlp_bias": True,
        "attention_multiplier": 0.2,
        "num_key_value_heads": 3,
        "head_dim": 16,
        "tie_word_embeddings": True,
    }
    | THETA,
    "ministral": {"model_type": "ministral", "sliding_window": 40, "layer_types": ODD_LAYERS} | THETA,
    "ministral3": {"model_type": "ministral3", "rope_parameters": YARN | {"llama_4_scaling_beta": 0.3}},
    "mistral-window": {"model_type": "mistral", "sliding_window": 40} | THETA,
    "mistral": {"model_type": "mistral", "sliding_window": None, "num_key_value_heads": 6, "head_dim": 18} | THETA,
    "olmo2": {"model_type": "olmo2"} | THETA,
    "olmo2-one-head": {"model_type": "olmo2", "num_attention_heads": 1, "num_key_value_heads": 1} | THETA,
    "olmo3": {
        "model_type": "olmo3",
        "sliding_window": 40,
        "rope_parameters": {
            "full_attention": YARN,
            "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
        },
    },
    "olmo3-older": {
        "model_type": "olmo3",
        "num_key_value_heads": 6,
        "sliding_window": 300,
        "rope_theta": 500000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.5, "original_max_position_embeddings": 80},
        "layer_types": ODD_LAYERS,
        "tie_word_embeddings": True,
    },
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 2} | THETA,
    "smollm3-window": {
        "model_type": "smollm3",
        "no_rope_layers": [1, 0, 1, 0, 1],
        "use_sliding_window": True,
        "sliding_window": 40,
        "layer_types": ODD_LAYERS,
        "tie_word_embeddings": True,
    }
    | THETA,
}

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "mistral": "MistralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "ministral": "MinistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
# Of configurations at random: what their weights are made from, and what is asked of them.
CONFIG_SIZES = [
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
]
CONFIG_PROMPT = [3, 14, 15, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 0]
SHOWN_LOGITS = 16


def config_of(name):
    return SIZES | MODELS[name]


def depends_on_length(name, length):
    """Whether the model answers to the first `length` ids by themselves otherwise than among all."""
    config, most = config_of(name), len(PROMPT) + GREEDY_TOKENS
    # A token that sees itself alone does not see its position.
    return "longrope" in json.dumps(config) and 1 < length <= config["original_max_position_embeddings"] < most


def write_model(folder, name, seed):
    return write_model_of(folder, config_of(name), seed)


def write_model_of(folder, config, seed):
    """A folder with the model's config.json and float32 weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder / "model.safetensors", config, np.random.default_rng(seed))
    return folder


def write_weights(path, config, rng, even=False):
    """Float32 weights of the sizes that config, which lacks none of them, says. even: matrices as of these models, whatever
    their widths, so that what they multiply neither grows nor vanishes."""
    tensors = {}
    family = config["model_type"]
    gemma, olmo = family.startswith("gemma"), family.startswith("olmo")
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]

    def add(tensor, *shape, scale, around=0.0, bias=False):
        if even and len(shape) == 2 and tensor != "model.embed_tokens":
            scale *= 0.7 * (SIZES["hidden_size"] / shape[1]) ** 0.5
        values = (around + scale * rng.standard_normal(shape)).astype("<f4")
        tensors[tensor + ".weight"] = ("F32", list(shape), values.tobytes())
        if bias:
            values = (0.3 * rng.standard_normal(shape[0])).astype("<f4")
            tensors[tensor + ".bias"] = ("F32", [shape[0]], values.tobytes())

    def norm(tensor, size):
        add(tensor, size, scale=0.2, around=0.0 if gemma else 1.0)  # Gemma's add 1 themselves

    norms = ["post_attention_layernorm"]
    norms += [] if olmo else ["input_layernorm"]
    norms += ["post_feedforward_layernorm"] if olmo or gemma else []
    norms += ["pre_feedforward_layernorm"] if gemma else []
    add("model.embed_tokens", vocab, hidden, scale=0.2 / (hidden**0.5 if gemma else 1))
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for each in norms:
            norm(layer + each, hidden)
        if olmo or family in ("qwen3", "gemma3_text"):
            norm(layer + "self_attn.q_norm", queries if olmo else config["head_dim"])
            norm(layer + "self_attn.k_norm", keys if olmo else config["head_dim"])
        biases, mlp_biases = family == "qwen2" or config.get("attention_bias"), config.get("mlp_bias")
        if family == "phi3":
            add(layer + "self_attn.qkv_proj", queries + 2 * keys, hidden, scale=0.2)
        else:
            add(layer + "self_attn.q_proj", queries, hidden, scale=0.2, bias=biases)
            add(layer + "self_attn.k_proj", keys, hidden, scale=0.2, bias=biases)
            add(layer + "self_attn.v_proj", keys, hidden, scale=0.1, bias=biases)
        add(layer + "self_attn.o_proj", hidden, queries, scale=0.1, bias=config.get("attention_bias"))
        if family == "phi3":
            add(layer + "mlp.gate_up_proj", 2 * inner, hidden, scale=0.1)
        else:
            add(layer + "mlp.gate_proj", inner, hidden, scale=0.1, bias=mlp_biases)
            add(layer + "mlp.up_proj", inner, hidden, scale=0.1, bias=mlp_biases)
        add(layer + "mlp.down_proj", hidden, inner, scale=0.1, bias=mlp_biases)
    norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        add("lm_head", vocab, hidden, scale=0.2)
    write_tensors(path, tensors)
