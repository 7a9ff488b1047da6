"""Products, norms and activations of the CPU kernels, judged by mlx and numpy."""

import subprocess

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")

pytestmark = pytest.mark.asan

# Ten times the greatest |a - b| / |b| found over all cases, AVX2 and portable kernels on Zen 5; three times for the norm.
BOUND = {
    "quantized_matmul": 10 * 4.3e-7,
    "matmul": 10 * 1e-7,
    "rms_norm": 3 * 3.2e-7,
    "silu_mul": 10 * 4.4e-8,
    "gelu_mul": 10 * 6e-8,
}
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


@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_matmul(results, found_within, bits, group, dtype, rows):
    rng = np.random.default_rng(bits * group + rows)
    w = mx.array(rng.standard_normal((70, 384)).astype(np.float32) * 0.05).astype(DTYPES[dtype])
    x = mx.array(rng.standard_normal((rows, 384)).astype(np.float32))
    codes, scales, biases = mx.quantize(w, group_size=group, bits=bits)
    expected = mx.quantized_matmul(
        x,
        codes,
        scales.astype(mx.float32),
        biases.astype(mx.float32),
        transpose=True,
        group_size=group,
        bits=bits,
    )
    tensors = {"x": x, "w": codes, "scales": scales, "biases": biases}
    for name, y in results("quantized_matmul", tensors, bits, group).items():
        found_within(name, relative(y, expected), BOUND["quantized_matmul"])


@pytest.mark.parametrize("rows", [1, 5, 66])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul(results, found_within, dtype, rows):
    rng = np.random.default_rng(rows)
    w = mx.array(rng.standard_normal((37, 203)).astype(np.float32)).astype(DTYPES[dtype])
    x = mx.array(rng.standard_normal((rows, 203)).astype(np.float32))
    expected = np.array(x).astype(np.float64) @ np.array(w.astype(mx.float32)).astype(np.float64).T
    for name, y in results("matmul", {"x": x, "w": w}).items():
        found_within(name, relative(y, expected), BOUND["matmul"])


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
