"""The forward pass of Qwen3 in numpy, float32 throughout: what the program is judged by.

Written from the architecture (Qwen3 Technical Report, 2025) and plain on purpose: the whole sequence at once, no cache.
Affine weights are dequantized by mlx, with scales and biases cast to float32 first.
"""

import json
import pathlib

import mlx.core as mx
import numpy as np


def load_weights(folder):
    """The weights of a model folder by module name ("model.norm", "model.layers.0.self_attn.q_proj"), float32."""
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
    return weights


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight


def rotate(x, theta):
    """Rotary embedding of [heads, positions, head_dim] in the half-split form, positions from 0."""
    _, positions, head_dim = x.shape
    half = head_dim // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(2 / head_dim)
    frequencies = np.float32(1) / np.power(np.float32(theta), exponents)
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Qwen3:
    """A model folder, ready to run."""

    def __init__(self, folder):
        self.config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        self.weights = load_weights(folder)
        self.theta = (self.config.get("rope_parameters") or self.config)["rope_theta"]

    def logits(self, ids):
        """The logits [len(ids), vocab_size] of every position."""
        w, eps = self.weights, self.config["rms_norm_eps"]
        x = w["model.embed_tokens"][np.asarray(ids)]
        for i in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{i}."
            x = x + self.attention(layer + "self_attn.", rms_norm(x, w[layer + "input_layernorm"], eps))
            x = x + self.mlp(layer + "mlp.", rms_norm(x, w[layer + "post_attention_layernorm"], eps))
        x = rms_norm(x, w["model.norm"], eps)
        head = w["model.embed_tokens" if self.config["tie_word_embeddings"] else "lm_head"]
        result = x @ head.T
        assert result.dtype == np.float32
        return result

    def attention(self, name, x):
        c, w = self.config, self.weights
        positions, head_dim = len(x), c["head_dim"]

        def heads(projection, count):
            return (x @ w[name + projection].T).reshape(positions, count, head_dim).transpose(1, 0, 2)

        q = heads("q_proj", c["num_attention_heads"])
        k = heads("k_proj", c["num_key_value_heads"])
        v = heads("v_proj", c["num_key_value_heads"])
        q = rotate(rms_norm(q, w[name + "q_norm"], c["rms_norm_eps"]), self.theta)
        k = rotate(rms_norm(k, w[name + "k_norm"], c["rms_norm_eps"]), self.theta)
        group = c["num_attention_heads"] // c["num_key_value_heads"]
        k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(head_dim))
        future = np.triu(np.ones((positions, positions), bool), 1)
        mixed = softmax(np.where(future, np.float32(-np.inf), scores)) @ v
        return mixed.transpose(1, 0, 2).reshape(positions, -1) @ w[name + "o_proj"].T

    def mlp(self, name, x):
        gate, up = x @ self.weights[name + "gate_proj"].T, x @ self.weights[name + "up_proj"].T
        return (gate / (1 + np.exp(-gate)) * up) @ self.weights[name + "down_proj"].T


def token_losses(logits, ids):
    """-ln p of each token but the first, in double precision, from the logits [len(ids), vocab] of its sequence."""
    x = np.asarray(logits, np.float64)[:-1]
    x = x - x.max(axis=-1, keepdims=True)
    return np.log(np.exp(x).sum(axis=-1)) - x[np.arange(len(ids) - 1), np.asarray(ids)[1:]]
