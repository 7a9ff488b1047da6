"""Products, norms and activations of the CPU kernels, judged by mlx, gguf and numpy."""

import subprocess

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")
gguf = pytest.importorskip("gguf")

pytestmark = pytest.mark.asan

# Ten times the greatest |a - b| / |b| found over all cases, AVX2 and portable kernels on Zen 5; three times for the norm.
BOUND = {
    "rms_norm": 3 * 3.2e-7,
    "silu_mul": 10 * 4.4e-8,
    "gelu_mul": 10 * 4.7e-8,
    "softcap": 10 * 3.8e-8,
}
# Of what all roundings of a product could add up to; found are 0.011 to 0.033 of it, by the weight format.
PRODUCT = 0.1
DTYPES = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}


@pytest.fixture
def results(binaries, tmp_path):
    """results("matmul", {"x": x, "w": w}) gives what each kernel computes, by the kernel's name."""

    def call(op, tensors, *arguments):
        source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
        mx.save_safetensors(str(source), tensors)
        command = [binaries / "ops_probe", op, source, target, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        outputs = {name: np.array(value) for name, value in mx.load(str(target)).items()}
        assert any(name.endswith("_portable") for name in outputs)
        return outputs

    return call


def relative(a, b):
    """The distance of two arrays over the length of the second."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def check_products(results, found_within, name, columns, tensors, weight, terms, *arguments):
    """Products of 1 to 17 rows with `weight` (as others decode it), in double, against every kernel.

    Eight lanes or more add ceil(K / 8) products each with one rounding each, then come 4 sums of lanes and the rounding
    of the result; the portable kernel rounds its products too, but has 16 lanes. `terms`: what rounding the weight's own
    operations may add, for each element of it, in units of the roundoff: 0 where they are exact.
    """
    rng = np.random.default_rng(len(name))
    weight = np.asarray(weight, np.float64)
    for rows in range(1, 18):
        x = rng.standard_normal((rows, columns)).astype(np.float32)
        expected = x.astype(np.float64) @ weight.T
        bound = np.abs(x.astype(np.float64)) @ ((columns / 8 + 6) * np.abs(weight) + terms).T * 2.0**-24
        outputs = results("matmul", {"x": mx.array(x), **tensors}, *arguments)
        for kernel, y in outputs.items():
            found_within(f"{kernel}, {name}, of the worst case", (np.abs(y - expected) / bound).max(), PRODUCT)


# Tiles are 180 outputs of 384 columns for up to 16 rows and 96 for 17: 193 straddle both.
OUTPUTS = 193


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_matmul_of_mlx_affine_weights(results, found_within, bits, group, dtype):
    rng = np.random.default_rng(bits * group)
    w = mx.array(rng.standard_normal((OUTPUTS, 384)).astype(np.float32) * 0.05).astype(DTYPES[dtype])
    codes, scales, biases = mx.quantize(w, group_size=group, bits=bits)
    wide = [a.astype(mx.float32) for a in (scales, biases)]
    weight = np.array(mx.dequantize(codes, *wide, group_size=group, bits=bits, stream=mx.cpu))
    # The product with a scale of 16 bits is exact, so one rounding or two are the same.
    step = np.abs(weight - np.repeat(np.array(wide[1]), group, axis=1))
    terms = 2 * np.abs(weight) + step * 1.001 if dtype == "f32" else np.zeros_like(weight)
    tensors = {"w": codes, "scales": scales, "biases": biases}
    check_products(results, found_within, f"{bits} bits", 384, tensors, weight, terms, "affine", bits, group)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_matmul_of_ggml_blocks(results, found_within, name):
    kind = gguf.GGMLQuantizationType[name]
    w = np.random.default_rng(7).standard_normal((OUTPUTS, 416)).astype(np.float32) * 0.05
    blocks = gguf.quants.quantize(w, kind)
    weight = gguf.quants.dequantize(blocks, kind)
    check_products(results, found_within, name, 416, {"w": mx.array(blocks)}, weight, 0, name.lower())


@pytest.mark.parametrize("columns", [203, 384])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul_of_plain_weights(results, found_within, dtype, columns):
    w = np.random.default_rng(columns).standard_normal((OUTPUTS, columns)).astype(np.float32)
    w = mx.array(w).astype(DTYPES[dtype])
    check_products(results, found_within, dtype, columns, {"w": w}, np.array(w.astype(mx.float32)), 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(results, found_within, dtype):
    rng = np.random.default_rng(4)
    w = mx.array(rng.standard_normal(1030).astype(np.float32)).astype(DTYPES[dtype])
    x = mx.array(rng.standard_normal((9, 1030)).astype(np.float32))
    expected = mx.fast.rms_norm(x, w.astype(mx.float32), 1e-6)
    for name, y in results("rms_norm", {"x": x, "w": w}).items():
        found_within(name, relative(y, expected), BOUND["rms_norm"])


def test_gelu_mul(results, found_within):
    rng = np.random.default_rng(6)
    gate = (rng.standard_normal((9, 1030)) * 2).astype(np.float32)
    up = rng.standard_normal((9, 1030)).astype(np.float32)
    x = gate.astype(np.float64)
    formula = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) * up
    assert relative(np.array(nn.gelu_approx(mx.array(gate))) * up, formula) < 1e-6
    for name, y in results("gelu_mul", {"x": mx.array(gate), "w": mx.array(up)}).items():
        found_within(name, relative(y, formula), BOUND["gelu_mul"])


def test_silu_mul(results, found_within):
    rng = np.random.default_rng(5)
    gate = (rng.standard_normal((9, 1030)) * 8).astype(np.float32)
    up = rng.standard_normal((9, 1030)).astype(np.float32)
    expected = gate.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64))) * up
    for name, y in results("silu_mul", {"x": mx.array(gate), "w": mx.array(up)}).items():
        found_within(name, relative(y, expected), BOUND["silu_mul"])


def test_softcap(results, found_within):
    x = (np.random.default_rng(8).standard_normal((9, 1030)) * 40).astype(np.float32)
    formula = 30 * np.tanh(x.astype(np.float64) / 30)
    assert relative(30 * mx.tanh(mx.array(x) / 30), formula) < 1e-6
    outputs = results("softcap", {"x": mx.array(x)}, 30)
    for name, y in outputs.items():
        found_within(name, relative(y, formula), BOUND["softcap"])
        assert y.tobytes() == outputs["softcap_f32_portable"].tobytes(), name
