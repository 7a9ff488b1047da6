"""The safetensors files and the formats of weights, judged by mlx, gguf, safetensors and numpy."""

import json
import shutil
import subprocess

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")
gguf = pytest.importorskip("gguf")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

pytestmark = pytest.mark.asan

WIDTHS = [2, 3, 4, 5, 6, 8]
GROUPS = [32, 64, 128]
DTYPES = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}


@pytest.fixture
def probe(binaries):
    """probe("copy", a, b) runs the test tool on safetensors files and gives the completed process."""

    def call(*arguments, status=0):
        command = [binaries / "format_probe", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == status, done.stderr
        return done

    return call


def bits_of(array):
    """The array's bytes as unsigned integers: equality of these is equality of bits, NaN and -0 included."""
    unsigned = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}[array.dtype.size]
    return np.array(mx.view(array, unsigned) if array.dtype != unsigned else array)


def matrices(dtype):
    """Matrices of [rows, 256] that reach the corners of the algorithm, by name."""
    rng = np.random.default_rng(20)
    normal = rng.standard_normal((64, 256)).astype(np.float32)
    column = np.arange(256, dtype=np.float32)
    result = {
        "normal": normal,
        "small": normal * 1e-3,
        "tiny": normal * 1e-6,
        "below_eps": normal * 1e-12,
        "large": normal * 1e3,
        "uniform": rng.random((64, 256), dtype=np.float32),
        "negative": -rng.random((64, 256), dtype=np.float32) - 0.5,
        "heavy_tails": (normal**7).astype(np.float32),
        "integers": rng.integers(-8, 8, (64, 256)).astype(np.float32),
        "ties": rng.integers(-16, 16, (64, 256)).astype(np.float32) / 2,
        "zeros": np.zeros((4, 256), np.float32),
        "negative_zeros": np.full((4, 256), -0.0, np.float32),
        "constant": np.repeat(np.array([[1.0], [-1.0], [0.1], [-3e-8]], np.float32), 256, axis=1),
        "equal_edges": np.stack([np.where(column % 2 == 0, 1, -1), np.where(column % 3 == 0, -2.5, 2.5)]).astype(np.float32),
        "outlier": np.where(column % 32 == 5, 100.0, 0.01)[None].repeat(4, 0).astype(np.float32),
        "negative_outlier": np.where(column % 32 == 5, -100.0, 0.01)[None].repeat(4, 0).astype(np.float32),
        "ramp": (column[None] - 128).repeat(4, 0),
    }
    if dtype == mx.float16:
        result["huge"] = np.clip(normal * 2e4, -65504, 65504)
        result["subnormal"] = normal * 3e-7
    else:
        result["huge"] = normal * 1e37
        result["subnormal"] = normal * 1e-39
    return {name: mx.array(value).astype(dtype) for name, value in result.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", WIDTHS)
def test_quantize_and_dequantize_bit_for_bit(probe, tmp_path, bits, group, dtype):
    inputs = matrices(DTYPES[dtype])
    mx.save_safetensors(str(tmp_path / "in.safetensors"), inputs)
    probe("quantize", tmp_path / "in.safetensors", tmp_path / "packed.safetensors", bits, group)
    probe("dequantize", tmp_path / "packed.safetensors", tmp_path / "out.safetensors", bits, group)
    packed = mx.load(str(tmp_path / "packed.safetensors"))
    restored = mx.load(str(tmp_path / "out.safetensors"))
    for name, value in inputs.items():
        codes, scales, biases = mx.quantize(value, group_size=group, bits=bits, stream=mx.cpu)
        assert scales.dtype == packed[name + ".scales"].dtype
        for part, expected in (("weight", codes), ("scales", scales), ("biases", biases)):
            found = packed[f"{name}.{part}"]
            assert found.shape == expected.shape
            np.testing.assert_array_equal(bits_of(found), bits_of(expected), err_msg=f"{name}.{part}")
        expected = mx.dequantize(
            codes, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group, bits=bits, stream=mx.cpu
        )
        np.testing.assert_array_equal(bits_of(restored[name]), bits_of(expected), err_msg=name)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_ggml_blocks_are_decoded_bit_for_bit(probe, tmp_path, name):
    kind = gguf.GGMLQuantizationType[name]
    rng = np.random.default_rng(5)
    size = gguf.constants.GGML_QUANT_SIZES[kind][1]
    blocks = {key: gguf.quants.quantize(np.array(value), kind) for key, value in matrices(mx.float32).items() if key != "huge"}
    random = rng.integers(0, 256, (512, 8 * size), dtype=np.uint8)  # every scale, subnormal ones and both zeros too
    scales = random.reshape(512, 8, size)[:, :, :2].copy().view(np.uint16)
    scales[(scales & 0x7C00) == 0x7C00] ^= 0x4000  # no infinities: NaN has no bits of its own
    scales[0, :4, 0] = [0, 0x8000, 1, 0x83FF]
    random.reshape(512, 8, size)[:, :, :2] = scales.view(np.uint8)
    blocks["random"] = random
    safetensors_numpy.save_file(blocks, tmp_path / "in.safetensors")
    probe(name.lower(), tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    found = safetensors_numpy.load_file(tmp_path / "out.safetensors")
    assert found.keys() == blocks.keys()
    for key, value in blocks.items():
        expected = gguf.quants.dequantize(value, kind)
        np.testing.assert_array_equal(found[key].view(np.uint32), expected.view(np.uint32), err_msg=key)


def test_values_that_are_not_finite_are_refused(probe, tmp_path):
    for bad in (np.nan, np.inf, -np.inf):
        value = np.ones((2, 64), np.float32)
        value[1, 3] = bad
        safetensors_numpy.save_file({"x": value}, tmp_path / "in.safetensors")
        done = probe("quantize", tmp_path / "in.safetensors", tmp_path / "out.safetensors", 4, 64, status=1)
        assert "finite values" in done.stderr
        assert not (tmp_path / "out.safetensors").exists()


def some_tensors():
    rng = np.random.default_rng(3)
    return {
        "a": rng.standard_normal((3, 5)).astype(np.float32),
        "odd": rng.integers(0, 255, 7).astype(np.uint8),
        "h": rng.standard_normal((2, 3, 4)).astype(np.float16),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "long": rng.integers(-9, 9, 3).astype(np.int64),
        "double": rng.standard_normal(2),
        "flags": np.array([True, False, True]),
        "unicode \u00fc \"quoted\" \\": np.arange(4, dtype=np.uint32),
    }


def test_files_of_the_python_package_are_read_and_ours_are_read_by_it(probe, tmp_path):
    tensors = some_tensors()
    safetensors_numpy.save_file(tensors, tmp_path / "in.safetensors", metadata={"format": "pt", "tab": "a\tb"})
    probe("copy", tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    found = safetensors_numpy.load_file(tmp_path / "out.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)
    raw = (tmp_path / "out.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert (8 + length) % 4096 == 0
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt", "tab": "a\tb"}
    sizes = {"I64": 8, "F64": 8, "F32": 4, "U32": 4, "F16": 2, "U8": 1, "BOOL": 1}
    keys = [(-sizes[v["dtype"]], k.encode()) for k, v in sorted(header.items(), key=lambda i: i[1]["data_offsets"])]
    assert sorted(keys) == sorted(keys, key=lambda k: k[0]), "by size, then by name"


def test_unaligned_files_of_mlx_are_read(probe, tmp_path):
    unaligned = 0
    for size in range(1, 12):
        arrays = {"x" * size: mx.arange(5, dtype=mx.float32), "y": mx.arange(3).astype(mx.bfloat16)}
        path = tmp_path / f"{size}.safetensors"
        mx.save_safetensors(str(path), arrays)
        lines = probe("list", path).stdout.splitlines()
        unaligned += sum(line.split()[-1] not in ("0", "4", "8", "12") for line in lines)
        probe("copy", path, tmp_path / "out.safetensors")
        found = mx.load(str(tmp_path / "out.safetensors"))
        for name, value in arrays.items():
            assert mx.array_equal(found[name], value)
    assert unaligned > 0, "mlx pads its header now: this test no longer shows what it is for"


@pytest.fixture
def model(tmp_path):
    """A folder with the tensors of a small dense model, some of which must not be packed."""
    rng = np.random.default_rng(9)
    folder = tmp_path / "in"
    folder.mkdir()

    def weight(*shape):
        return mx.array(rng.standard_normal(shape).astype(np.float32)).astype(mx.bfloat16)

    tensors = {
        "model.embed_tokens.weight": weight(50, 128),
        "model.layers.0.self_attn.q_proj.weight": weight(64, 128),
        "model.layers.0.self_attn.q_proj.bias": weight(64),
        "model.layers.0.self_attn.q_norm.weight": weight(64),
        "model.layers.0.mlp.down_proj.weight": weight(128, 96),
        "model.layers.0.input_layernorm.weight": weight(128),
        "model.layers.0.self_attn.rotary_emb.inv_freq": mx.ones(32),
        "model.norm.weight": weight(128).astype(mx.float32),
        "lm_head.weight": weight(50, 128),
    }
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    config = '{\n    "model_type": "llama",\n    "zebra": 1e-06,\n    "tie_word_embeddings": false,\n    "apple": [1, {"b": null}]\n}\n'
    (folder / "config.json").write_text(config)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "heldout.txt").write_text("not part of a model")
    return folder, tensors


LAYOUTS = ['\n{"model_type": "llama"}', '{"model_type":"llama"}', '{\n\t"model_type": "llama"\n}\n', ' { "model_type" : "llama" } ', "{}",
           '{"quantization_config": { }, "quantization":{}}', '{"a": {"quantization": {}},\n"quantization": {\n}}']  # fmt: skip


@pytest.mark.parametrize("text", LAYOUTS)
def test_config_of_any_layout_stays_json(run, model, tmp_path, text):
    folder, _ = model
    (folder / "config.json").write_text(text)
    run("quantize", folder, tmp_path / "out", "--bits", 8, "--group-size", 32)
    block = {"group_size": 32, "bits": 8, "mode": "affine"}
    expected = json.loads(text) | {"quantization": block, "quantization_config": block, "quantized_by": "refrain"}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == expected


@pytest.mark.parametrize("bits", WIDTHS)
def test_quantize_a_folder(run, model, tmp_path, bits):
    folder, tensors = model
    out = tmp_path / "out"
    run("quantize", folder, out, "--bits", bits, "--group-size", 64)
    found = mx.load(str(out / "model.safetensors"))
    packed = {"model.embed_tokens", "model.layers.0.self_attn.q_proj", "lm_head"}
    expected = {}
    for name, value in tensors.items():
        module = name.removesuffix(".weight")
        if module in packed and name.endswith(".weight"):
            parts = mx.quantize(value, group_size=64, bits=bits)
            expected |= {f"{module}.{k}": v for k, v in zip(("weight", "scales", "biases"), parts)}
        elif "inv_freq" not in name:
            expected[name] = value
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(bits_of(found[name]), bits_of(value), err_msg=name)

    text = (out / "config.json").read_text()
    config = json.loads(text)
    block = {"group_size": 64, "bits": bits, "mode": "affine"}
    assert config.pop("quantization") == block and config.pop("quantization_config") == block
    assert config.pop("quantized_by") == "refrain"
    assert list(config) == ["model_type", "zebra", "tie_word_embeddings", "apple"]
    assert text.startswith((folder / "config.json").read_text().rstrip().removesuffix("}").rstrip())
    assert sorted(p.name for p in out.iterdir()) == [
        "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"
    ]


def test_what_quantize_says_when_asked(run, model, tmp_path):
    folder, _ = model
    quiet = run("quantize", folder, tmp_path / "quiet")
    assert quiet.stdout == quiet.stderr == ""
    told = run("quantize", folder, tmp_path / "told", "-v")
    assert told.stdout == ""
    dropped, counts = told.stderr.splitlines()
    assert "inv_freq" in dropped and "dropped" in dropped
    assert counts == "3 tensors packed, 5 kept, 1 dropped; 0.1 MB -> 0.0 MB"


def test_a_tied_head_is_dropped(run, model, tmp_path):
    folder, _ = model
    config = folder / "config.json"
    config.write_text(config.read_text().replace("false", "true"))
    done = run("quantize", folder, tmp_path / "out", status=1)
    assert '"lm_head.weight": expected what "model.embed_tokens.weight" holds' in done.stderr
    weights = mx.load(str(folder / "model.safetensors"))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    run("quantize", folder, tmp_path / "out")
    assert not any(name.startswith("lm_head") for name in mx.load(str(tmp_path / "out/model.safetensors")))


def test_refusals(run, model, tmp_path):
    folder, _ = model

    def refused(*arguments, says):
        done = run("quantize", *arguments, status=1)
        assert done.stdout == ""
        assert says in done.stderr and done.stderr.count("\n") == 1, done.stderr

    out = tmp_path / "out"
    refused(folder, folder, says="other than the input")
    refused(tmp_path / "none", out, says="expected a model folder")
    run("quantize", folder, out)
    refused(out, tmp_path / "again", says="not quantized")
    refused(folder, out, says="--force")
    run("quantize", folder, out, "--force", "--bits", 8, "--group-size", 32)
    assert json.loads((out / "config.json").read_text())["quantization"]["bits"] == 8
    (out / "mine.txt").write_text("")
    refused(folder, out, "--force", says="mine.txt")
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("bits", WIDTHS)
def test_logits_are_those_of_the_weights_that_mlx_decodes(run, logits, models, tmp_path, bits):
    """A quantized folder gives the bits of a plain one in float32 with the weights that mlx decodes from it: scales of
    bf16 times codes are exact, so that one rounding or two are the same."""
    source = models / "tales-qwen3"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    run("quantize", source, packed, "--bits", bits, "--group-size", 32)
    plain.mkdir()
    tensors = mx.load(str(packed / "model.safetensors"))
    decoded = {}
    for name, value in tensors.items():
        module = name.rpartition(".")[0]
        if name.endswith(".weight") and f"{module}.scales" in tensors:
            parts = [tensors[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases")]
            decoded[name] = mx.dequantize(value, *parts, group_size=32, bits=bits, stream=mx.cpu)
        elif not name.endswith((".scales", ".biases")):
            decoded[name] = value
    mx.save_safetensors(str(plain / "model.safetensors"), decoded)
    shutil.copyfile(source / "config.json", plain / "config.json")
    shutil.copyfile(source / "tokenizer.json", plain / "tokenizer.json")
    ids = [*range(5, 75)]
    assert logits(packed, ids, len(ids), raw=True) == logits(plain, ids, len(ids), raw=True)


def test_the_embedded_model_is_what_the_command_makes(run, root, models, tmp_path):
    source = models / "tales-qwen3"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    run("quantize", source, tmp_path / "out", "--bits", 4, "--group-size", 64)
    for file in sorted((tmp_path / "out").iterdir()):
        committed = root / "models" / "tales-qwen3-4bit" / file.name
        assert committed.read_bytes() == file.read_bytes(), file.name
