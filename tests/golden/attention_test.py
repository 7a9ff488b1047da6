"""Rope, the cache, attention and sampling, judged by mlx and by the definitions written out in numpy and Python."""

import math
import subprocess

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

pytestmark = pytest.mark.asan

PAGE = 64
EDGES = [0, 1, 62, 63, 64, 65, 126, 127, 128, 129]


@pytest.fixture(params=["portable", "avx2"])
def probe(request, binaries, tmp_path):
    """probe("rope", tensors, *arguments) runs the kernels of one instruction set and gives the tensors they made."""

    def call(command, tensors, *arguments):
        tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        safetensors_numpy.save_file(tensors, tmp_path / "in.safetensors")
        files = [tmp_path / "in.safetensors", tmp_path / "out.safetensors"]
        line = [binaries / "attention_probe", command, request.param, *files, *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode == 77:
            pytest.skip(f"this machine does not run {request.param} kernels")
        assert done.returncode == 0, done.stderr
        return safetensors_numpy.load_file(tmp_path / "out.safetensors")

    return call


def step_rows(pairs):
    """Rows of a step from (slot, position) pairs."""
    return np.array([[0, position, slot, 0] for slot, position in pairs], np.uint32)


def slot_words(top_k=0, temperature=0.0, top_p=1.0, seed=0):
    """One slot, of mask 0, as sixteen words."""
    floats = np.array([temperature, top_p], np.float32).view(np.uint32)
    none = 0xFFFFFFFF
    state = [0, none, none, 0, top_k, 0, none, 0]
    return [*state, *map(int, floats), 0, 0, 0, 0, seed & 0xFFFFFFFF, seed >> 32]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("dim", "rotated"), [(64, 64), (128, 128), (80, 32), (20, 20)])
def test_rope_is_that_of_mlx_and_of_the_formula(probe, found_within, interleaved, dim, rotated):
    rng = np.random.default_rng(1)
    positions = np.array([*EDGES, 1000, 4095])
    x = rng.standard_normal((len(positions), 3, dim)).astype(np.float32)
    frequencies = (10000.0 ** (-np.arange(rotated // 2) * 2.0 / rotated)).astype(np.float32)
    tensors = {"input": x, "rows": step_rows([(0, p) for p in positions]), "frequencies": frequencies}
    ours = probe("rope", tensors, int(interleaved))["output"]

    angle = (positions[:, None].astype(np.float32) * frequencies[None, :]).astype(np.float64)
    turn = np.exp(1j * angle)[:, None, :]
    pairs = (slice(0, rotated, 2), slice(1, rotated, 2))
    if not interleaved:
        pairs = (slice(0, rotated // 2), slice(rotated // 2, rotated))
    formula = x.astype(np.float64)
    turned = (formula[..., pairs[0]] + 1j * formula[..., pairs[1]]) * turn
    formula[..., pairs[0]], formula[..., pairs[1]] = turned.real, turned.imag
    greatest = np.abs(x).max()
    found_within("rope, of the greatest input", np.abs(ours - formula).max() / greatest, 2.0**-21)

    for row, position in enumerate(positions):
        theirs = mx.fast.rope(
            mx.array(x[row][None, :, None, :]),
            rotated,
            traditional=interleaved,
            base=None,
            scale=1.0,
            offset=int(position),
            freqs=mx.array(1.0 / frequencies),
        )
        # Its angle is position / (1 / frequency), rounded twice more: 2^-23 of the angle.
        bound = 2.0**-21 + position * 2.0**-22
        difference = np.abs(ours[row] - np.array(theirs)[0, :, 0, :]).max() / greatest
        found_within("rope, mlx, of the bound of a position", difference / bound, 10 * 0.044)


class Cache:
    """A paged cache of several sequences that only the probe fills, chunk by chunk."""

    def __init__(self, rng, lengths, kv_heads, dim):
        self.pages = [math.ceil(length / PAGE) for length in lengths]
        count = sum(self.pages) + 2
        ids = iter(rng.permutation(count))
        self.table = np.full((len(lengths), max(self.pages)), 0xFFFFFFFF, np.uint32)
        for slot, pages in enumerate(self.pages):
            self.table[slot, :pages] = [next(ids) for _ in range(pages)]
        self.data = np.full((2, count, kv_heads, PAGE, dim), np.nan, np.float32)

    def run(self, probe, scale, query, key, value, pairs):
        """Writes keys and values of the (slot, position) pairs and gives what they attend to."""
        tensors = {
            "query": query,
            "key": key,
            "value": value,
            "rows": step_rows(pairs),
            "page_table": self.table,
            "cache": self.data,
        }
        result = probe("attention", tensors, scale)
        assert not result["status"].any()
        self.data = result["cache"]
        return result["output"]


def softmax_attention(query, key, value, scale):
    """Causal attention [positions, heads, dim] in double."""
    group = query.shape[1] // key.shape[1]
    key, value = (np.repeat(x.astype(np.float64), group, axis=1) for x in (key, value))
    scores = np.einsum("qhd,khd->hqk", query.astype(np.float64), key) * scale
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), value)


def mlx_attention(query, key, value, scale):
    """The same by mlx, in float32."""
    heads_first = [mx.array(x.transpose(1, 0, 2)[None]) for x in (query, key, value)]
    result = mx.fast.scaled_dot_product_attention(*heads_first, scale=scale, mask="causal")
    return np.array(result)[0].transpose(1, 0, 2)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 32), (8, 2, 64), (6, 2, 128), (3, 1, 20)])
def test_attention_is_that_of_mlx_however_the_batch_is_cut(probe, found_within, heads, kv_heads, dim):
    rng = np.random.default_rng(2)
    lengths = [130, 65, 1, 200]
    scale = float(np.float32(dim**-0.5))
    data = [
        [rng.standard_normal((n, h, dim)).astype(np.float32) for h in (heads, kv_heads, kv_heads)] for n in lengths
    ]
    # Positions in order within each sequence, sequences mixed at random.
    order = rng.permutation(np.repeat(np.arange(len(lengths)), lengths))
    seen = [0] * len(lengths)
    pairs = []
    for sequence in order:
        pairs.append((int(sequence), seen[sequence]))
        seen[sequence] += 1
    batch = [np.stack([data[s][part][p] for s, p in pairs]) for part in range(3)]

    whole = Cache(rng, lengths, kv_heads, dim).run(probe, scale, *batch, pairs)
    for sequence in range(len(lengths)):
        mine = whole[[i for i, (s, _) in enumerate(pairs) if s == sequence]]
        for theirs in (softmax_attention(*data[sequence], scale), mlx_attention(*data[sequence], scale)):
            error = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
            found_within("attention", error, 2e-6)

    # Chunks of other sizes, one of them the edge of a page, one with a single row: the same bits.
    cut = Cache(rng, lengths, kv_heads, dim)
    chunks, begin = [], 0
    for size in [1, 63, 64, 65, 31, 32, 127, 128]:
        end = min(begin + size, len(pairs))
        chunks.append(cut.run(probe, scale, *(part[begin:end] for part in batch), pairs[begin:end]))
        begin = end
    assert begin == len(pairs)
    assert np.concatenate(chunks).tobytes() == whole.tobytes()

    # Each sequence alone: the same bits.
    for sequence, length in enumerate(lengths):
        alone = Cache(rng, [length], kv_heads, dim)
        result = alone.run(probe, scale, *data[sequence], [(0, p) for p in range(length)])
        mine = whole[[i for i, (s, _) in enumerate(pairs) if s == sequence]]
        assert result.tobytes() == mine.tobytes()


def philox(counter, key):
    """Philox4x32-10."""
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        low = 0xFFFFFFFF
        counter = (b >> 32 ^ counter[1] ^ key[0], b & low, a >> 32 ^ counter[3] ^ key[1], a & low)
        key = (key[0] + 0x9E3779B9 & low, key[1] + 0xBB67AE85 & low)
    return counter


def draw(logits, allowed, temperature, top_k, top_p, seed, position):
    """The definition of `sample`, line by line."""
    admitted = [i for i in range(len(logits)) if allowed[i] and not math.isnan(logits[i])]
    greatest = min(admitted, key=lambda i: (-logits[i], i))
    if temperature == 0:
        return greatest
    candidates = [i for i in admitted if logits[i] > -math.inf]
    weight = {i: math.exp((logits[i] - logits[greatest]) / temperature) for i in candidates}
    if 0 < top_k < len(candidates):
        candidates = sorted(candidates, key=lambda i: (-logits[i], i))[:top_k]
    total = sum(weight[i] for i in candidates)
    if top_p < 1:
        kept, share = [], 0.0
        for i in sorted(candidates, key=lambda i: (-logits[i], i)):
            kept.append(i)
            share += weight[i]
            if share >= top_p * total:
                break
        candidates, total = kept, share
    uniform = philox((position, 0, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))[0] * 2.0**-32
    running = 0.0
    for i in candidates:
        running += weight[i]
        if running > uniform * total:
            return i
    return candidates[-1]


def test_sample_draws_what_the_definition_says(probe):
    rng = np.random.default_rng(3)
    count, vocabulary = 400, 777
    logits = (rng.standard_normal((count, vocabulary)) * 3).astype(np.float32)
    logits[::2] = np.round(logits[::2])  # ties
    logits[rng.random(logits.shape) < 0.02] = np.nan
    logits[rng.random(logits.shape) < 0.02] = -np.inf
    allowed = rng.random(vocabulary) < 0.8
    padded = np.zeros((vocabulary + 31) // 32 * 32, np.uint32)
    padded[:vocabulary] = allowed
    words = (padded.reshape(-1, 32) << np.arange(32, dtype=np.uint32)).sum(1).astype(np.uint32)
    settings = [
        {
            "temperature": float(rng.choice(np.array([0, 0.7, 1, 2.5], np.float32))),
            "top_k": int(rng.choice([0, 1, 20, 700, 5000])),
            "top_p": float(rng.choice(np.array([0, 0.5, 0.95, 1], np.float32))),
            "seed": int(rng.integers(2**63)),
        }
        for _ in range(count)
    ]
    positions = rng.integers(2**32, size=count)
    tensors = {
        "logits": logits,
        "index": np.arange(count, dtype=np.uint32),
        "rows": step_rows([(i, int(p)) for i, p in enumerate(positions)]),
        "slots": np.array([slot_words(**s) for s in settings], np.uint32),
        "masks": words[None, :],
    }
    ours = probe("sample", tensors)["rows"][:, 3]
    theirs = [draw(logits[i].tolist(), allowed, position=int(positions[i]), **settings[i]) for i in range(count)]
    assert ours.tolist() == theirs
