"""Forward passes in numpy, float32 throughout: what the program is judged by.

Written from the architectures (technical reports of Llama 3 and Gemma 2, 2024, Qwen3 and Gemma 3, 2025; transformers where these
say nothing) and plain on purpose: the whole sequence at once, no cache, whose rounding is all that there is of it.
Affine weights are dequantized by mlx, with scales and biases cast to float32 first.
"""

import json
import pathlib

import mlx.core as mx
import numpy as np


def load_weights(folder):
    """The weights of a model folder by module name ("model.norm", "model.layers.0.self_attn.q_proj"), float32, and
    the type that the embedding is stored in, or its scales."""
    folder = pathlib.Path(folder)
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= mx.load(str(file))
    block = json.loads((folder / "config.json").read_text()).get("quantization")
    weights = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part != "weight":
            continue
        if module + ".scales" in tensors:
            scales, biases = (tensors[f"{module}.{p}"].astype(mx.float32) for p in ("scales", "biases"))
            tensor = mx.dequantize(tensor, scales, biases, block["group_size"], block["bits"], stream=mx.cpu)
        weights[module] = np.array(tensor.astype(mx.float32))
    embedding = "model.embed_tokens."
    return weights, tensors[embedding + ("scales" if embedding + "scales" in tensors else "weight")].dtype


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight


def rope_frequencies(head_dim, settings):
    """Of the pairs of a head, float32, with the scaling that `settings` ask for."""
    exponents = np.arange(head_dim // 2, dtype=np.float32) * np.float32(2 / head_dim)
    frequencies = np.float32(1) / np.power(np.float32(settings["rope_theta"]), exponents)
    kind = settings.get("rope_type", "default")
    if kind == "linear":
        return frequencies / np.float32(settings["factor"])
    if kind == "llama3":
        waves = 2 * np.pi / frequencies
        low, high, old = (
            settings[key] for key in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        )
        smooth = (old / waves - low) / (high - low)
        divided = frequencies / settings["factor"]
        between = (1 - smooth) * divided + smooth * frequencies
        scaled = np.where(waves > old / low, divided, np.where(waves < old / high, frequencies, between))
        return scaled.astype(np.float32)
    assert kind == "default"
    return frequencies


def rotate(x, frequencies):
    """Rotary embedding of [heads, positions, head_dim] in the half-split form, positions from 0."""
    _, positions, head_dim = x.shape
    half = head_dim // 2
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    """By tanh."""
    return np.float32(0.5) * x * (1 + np.tanh(np.sqrt(np.float32(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def capped(x, cap):
    return x if cap is None else np.float32(cap) * np.tanh(x / np.float32(cap))


class Llama:
    """A model folder, ready to run; other families say in what they differ."""

    activation = staticmethod(silu)

    def __init__(self, folder, cache=np.float32):
        self.cache = cache  # type that keys and values are rounded to
        self.config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        self.weights, self.embedding_dtype = load_weights(folder)

    def logits(self, ids):
        """The logits [len(ids), vocab_size] of every position."""
        x = self.embed(np.asarray(ids))
        for i in range(self.config["num_hidden_layers"]):
            x = self.layer(i, x)
        head = self.weights["model.embed_tokens" if self.config["tie_word_embeddings"] else "lm_head"]
        result = capped(self.norm("model.norm", x) @ head.T, self.config.get("final_logit_softcapping"))
        assert result.dtype == np.float32
        return result

    def embed(self, ids):
        return self.weights["model.embed_tokens"][ids]

    def layer(self, i, x):
        name = f"model.layers.{i}."
        x = x + self.attention(i, name + "self_attn.", self.norm(name + "input_layernorm", x))
        return x + self.mlp(name + "mlp.", self.norm(name + "post_attention_layernorm", x))

    def norm(self, name, x):
        return rms_norm(x, self.weights[name], self.config["rms_norm_eps"])

    def head_norm(self, name, x):
        return x

    def rope_settings(self, i):
        return self.config.get("rope_parameters") or self.config

    def score_scale(self):
        return 1 / np.sqrt(np.float32(self.config["head_dim"]))

    def window(self, i):
        """Positions that a row of layer i attends to."""
        return self.config["max_position_embeddings"]

    def attention(self, i, name, x):
        c, w = self.config, self.weights
        positions, head_dim = len(x), c["head_dim"]

        def heads(projection, count):
            return (x @ w[name + projection].T).reshape(positions, count, head_dim).transpose(1, 0, 2)

        q = heads("q_proj", c["num_attention_heads"])
        k = heads("k_proj", c["num_key_value_heads"])
        v = heads("v_proj", c["num_key_value_heads"])
        frequencies = rope_frequencies(head_dim, self.rope_settings(i))
        q = rotate(self.head_norm(name + "q_norm", q), frequencies)
        k = rotate(self.head_norm(name + "k_norm", k), frequencies)
        k, v = (kept.astype(self.cache).astype(np.float32) for kept in (k, v))
        group = c["num_attention_heads"] // c["num_key_value_heads"]
        k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
        scores = capped(q @ k.transpose(0, 2, 1) * self.score_scale(), c.get("attn_logit_softcapping"))
        ahead = np.arange(positions)[None, :] - np.arange(positions)[:, None]
        seen = (ahead <= 0) & (ahead > -self.window(i))
        mixed = softmax(np.where(seen, scores, np.float32(-np.inf))) @ v
        return mixed.transpose(1, 0, 2).reshape(positions, -1) @ w[name + "o_proj"].T

    def mlp(self, name, x):
        gate, up = x @ self.weights[name + "gate_proj"].T, x @ self.weights[name + "up_proj"].T
        return (self.activation(gate) * up) @ self.weights[name + "down_proj"].T


class Qwen3(Llama):
    def head_norm(self, name, x):
        return self.norm(name, x)


class Gemma2(Llama):
    activation = staticmethod(gelu)

    def embed(self, ids):
        root = mx.array(self.config["hidden_size"] ** 0.5).astype(self.embedding_dtype).astype(mx.float32).item()
        return super().embed(ids) * np.float32(root)

    def layer(self, i, x):
        name = f"model.layers.{i}."
        h = self.attention(i, name + "self_attn.", self.norm(name + "input_layernorm", x))
        x = x + self.norm(name + "post_attention_layernorm", h)
        h = self.mlp(name + "mlp.", self.norm(name + "pre_feedforward_layernorm", x))
        return x + self.norm(name + "post_feedforward_layernorm", h)

    def norm(self, name, x):
        return rms_norm(x, 1 + self.weights[name], self.config["rms_norm_eps"])

    def score_scale(self):
        return 1 / np.sqrt(np.float32(self.config["query_pre_attn_scalar"]))

    def window(self, i):
        full = self.config["layer_types"][i] == "full_attention"
        return self.config["max_position_embeddings" if full else "sliding_window"]


class Gemma3(Gemma2):
    def head_norm(self, name, x):
        return self.norm(name, x)

    def rope_settings(self, i):
        return self.config["rope_parameters"][self.config["layer_types"][i]]


def token_losses(logits, ids):
    """-ln p of each token but the first, in double precision, from the logits [len(ids), vocab] of its sequence."""
    x = np.asarray(logits, np.float64)[:-1]
    x = x - x.max(axis=-1, keepdims=True)
    return np.log(np.exp(x).sum(axis=-1)) - x[np.arange(len(ids) - 1), np.asarray(ids)[1:]]
