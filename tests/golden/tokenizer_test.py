"""The tokenizer against the Python package `tokenizers`: the same ids and the same text, for generated strings.

REFRAIN_TOKENIZER_STRINGS sets how many strings each comparison draws (default 5000).
"""

import copy
import json
import os
import random
import struct
import subprocess

import pytest
import tokenizers

COUNT = int(os.environ.get("REFRAIN_TOKENIZER_STRINGS", "5000"))

SCRIPTS = [
    (0x20, 0x7E), (0xA0, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
    (0xC00, 0xC7F), (0xE00, 0xE7F), (0xE80, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF),
    (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x214F), (0x2460, 0x24FF), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
    (0xA960, 0xA97F), (0xAC00, 0xD7FB), (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFE20, 0xFE2F), (0xFF00, 0xFFEF),
    (0x10000, 0x100FF), (0x11300, 0x1137F), (0x11900, 0x1195F), (0x11F00, 0x11F59), (0x1D100, 0x1D1FF),
    (0x1D400, 0x1D7FF), (0x1E4D0, 0x1E4F9), (0x2F800, 0x2FA1D), (0x31350, 0x323AF),
]  # fmt: skip
MARKS = [
    *range(0x300, 0x370), *range(0x591, 0x5BE), *range(0x64B, 0x660), *range(0x898, 0x8A0), 0x93C, 0x94D, 0x9BC, 0x9BE,
    0xC3C, 0xD3E, 0xDCF, *range(0xE38, 0xE3B), *range(0xF71, 0xF76), 0x1037, *range(0x1161, 0x1176),
    *range(0x11A8, 0x11C3), *range(0x1AB0, 0x1ACF), *range(0x1DC0, 0x1E00), *range(0x20D0, 0x20F1), 0x302A, 0x3099,
    0x309A, *range(0xFE20, 0xFE30), 0x110BA, 0x1133E, 0x11930, 0x1D165, 0x1E4EC, 0x1E08F,
]  # fmt: skip
SPACES = " \t\n\r\v\f\x1c\x85\xa0\u1680\u180e\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
EMOJI = ["😀", "👨‍👩‍👧‍👦", "🇩🇪", "👍🏽", "❤️", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "1️⃣", "🫩", "©️"]
WORDS = "once upon a time the fox and an owl lived by Sam's old well they'LL don't I'm We'Ve it'ſ you'RE he'd 'S".split()
NUMBERS = ["1", "42", "2024", "3.14159", "1,000,000", "٣٤", "½", "Ⅷ", "一二", "0x1F", "1e-5"]
MARKUP = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_", "|>", "<|endoftext|", "<<|im_end|>>", "<tool>", "<word>", "<s>",
          " <strip> ", "<strip>", "caf\u00e9", "cafe\u0301", "aab", "aabaa"]  # fmt: skip


def any_char(rng):
    while True:
        c = rng.choice([rng.randrange(0x110000), rng.randrange(0x3000), rng.randrange(0x10000)])
        if not 0xD800 <= c <= 0xDFFF:
            return chr(c)


def script(rng):
    low, high = rng.choice(SCRIPTS)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 8)))


def marks(rng):
    base = rng.choice(["a", "e", "\u0915", "\u05d0", "\u1100", "\U00011935", "\uac00", "ö", "\u0344", rng.choice(WORDS), any_char(rng)])
    return base + "".join(chr(rng.choice(MARKS)) for _ in range(rng.randint(1, 6)))


def run_of(rng):
    return rng.choice([any_char(rng), rng.choice(SPACES), rng.choice("ae1.!'-=\n")]) * rng.choice([2, 3, 7, 30, 200])


PIECES = [
    lambda rng: rng.choice(WORDS),
    lambda rng: " " + rng.choice(WORDS),
    lambda rng: rng.choice(SPACES) * rng.randint(1, 3),
    lambda rng: rng.choice(["\n", "\r\n", "\r", "\n\n", " \n", "\n ", "\r\r\n", "\t\n\t"]),
    lambda rng: rng.choice(NUMBERS),
    lambda rng: rng.choice(MARKUP),
    lambda rng: rng.choice(EMOJI),
    lambda rng: "".join(rng.choice(".,;:!?'\"()[]{}<>|/\\@#$%^&*-_=+~`") for _ in range(rng.randint(1, 4))),
    lambda rng: chr(rng.randrange(0x20)),
    lambda rng: "".join(any_char(rng) for _ in range(rng.randint(1, 4))),
    script,
    script,
    marks,
    run_of,
]


def strings(seed, count):
    rng = random.Random(seed)
    yield ""
    for _ in range(count - 1):
        yield "".join(rng.choice(PIECES)(rng) for _ in range(rng.randint(1, 12)))


def qwen(models_folder, name="tales-qwen3"):
    return json.loads((models_folder / name / "tokenizer.json").read_text())


def added(id, content, **flags):
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": id, "content": content, **base, **flags}


def with_added_tokens(config, normalized):
    config = copy.deepcopy(config)
    next_id = 1 + max(config["model"]["vocab"].values())
    for content, flags in [
        ("<tool>", {}),
        ("<word>", {"single_word": True}),
        ("<strip>", {"lstrip": True, "rstrip": True}),
        ("<s>", {"special": True, "rstrip": True}),
        ("cafe\u0301", {}),
        ("aa", {"single_word": True}),
        ("aab", {"special": True}),
        ("a\u0300", {"lstrip": True}),
        ("<|im_", {"special": True}),
        (" the", {}),
        ("\r\r", {"rstrip": True}),
        ("\n\n", {"lstrip": True, "rstrip": True}),
    ]:
        config["added_tokens"].append(added(next_id, content, normalized=normalized, **flags))
        next_id += 1
    return config


GPT2 = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def variant(config, name):
    config = copy.deepcopy(config)
    model = config["model"]
    if name == "legacy_merges":
        model["merges"] = ["#version: 0.2"] + [" ".join(m) for m in model["merges"]]
    elif name == "ignore_merges":
        model["ignore_merges"] = True
        model["vocab"]["fox'"] = 1 + max(model["vocab"].values())
        for word in ["Ġzqxj", "Qzq", "ĠĠĠĠĠĠĠĠ!"]:
            model["vocab"][word] = 1 + max(model["vocab"].values())
    elif name == "gpt2":
        config["normalizer"], config["pre_tokenizer"] = None, GPT2
    elif name == "prefix_space":
        config["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True
    elif name == "no_pre_tokenizer":
        config["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        config["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}]}
    elif name == "missing_bytes":
        for byte in ["Ċ", "Ł", "q"]:
            gone = [t for t in model["vocab"] if byte in t]
            for token in gone:
                del model["vocab"][token]
            model["merges"] = [m for m in model["merges"] if byte not in m[0] + m[1]]
    elif name == "unknown":
        config = variant(config, "missing_bytes")
        config["model"]["unk_token"] = "z"
    elif name == "fuse_unknown":
        config = variant(config, "unknown")
        config["model"]["fuse_unk"] = True
    elif name == "added":
        config = with_added_tokens(config, False)
    elif name == "added_normalized":
        config = with_added_tokens(config, True)
    elif name == "categories":
        pattern = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|\p{N}{1,3}|[\P{L}\d]{2}|\p{P}+|[^\S\n]+|\D"
        config["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}
    elif name == "empty_matches":
        config["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"(?=[a-m])|\s*|^x?"}
    else:
        assert name == "plain"
    return config


VARIANTS = ["plain", "legacy_merges", "ignore_merges", "gpt2", "prefix_space", "no_pre_tokenizer", "missing_bytes",
            "unknown", "fuse_unknown", "added", "added_normalized", "categories", "empty_matches"]  # fmt: skip


class Probe:
    """Our tokenizer over many strings at once."""

    def __init__(self, binary, file):
        self.binary, self.file = binary, file

    def _records(self, mode, special, records):
        data = b"".join(struct.pack("<I", len(r)) + r for r in records)
        command = [self.binary, self.file, mode, "on" if special else "off"]
        result = subprocess.run(command, input=data, capture_output=True, check=False)
        assert result.returncode == 0, result.stderr.decode()
        out, at = [], 0
        while at < len(result.stdout):
            (size,) = struct.unpack_from("<I", result.stdout, at)
            out.append(result.stdout[at + 4 : at + 4 + size])
            at += 4 + size
        assert len(out) == len(records)
        return out

    def encode(self, texts, special):
        raw = self._records("encode", special, [t.encode() for t in texts])
        return [list(struct.unpack(f"<{len(r) // 4}I", r)) for r in raw]

    def decode(self, ids, special):
        raw = self._records("decode", special, [struct.pack(f"<{len(i)}I", *i) for i in ids])
        return [r.decode() for r in raw]


@pytest.fixture(scope="session")
def probe_binary(binaries):
    path = binaries / "tokenizer_probe"
    if not path.is_file():
        pytest.fail(f"{path}: the test tool has not been built")
    return path


@pytest.fixture(scope="session")
def base(tales, request):
    """The tokenizer of the embedded model, or of the larger models while there is none."""
    folder = tales if (tales / "tokenizer.json").is_file() else request.getfixturevalue("models") / "tales-qwen3"
    return json.loads((folder / "tokenizer.json").read_text())


def compare(config, tmp_path, probe_binary, seed, count):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(config, ensure_ascii=False))
    ours, theirs = Probe(probe_binary, file), tokenizers.Tokenizer.from_file(str(file))
    texts = list(strings(seed, count))
    for special in (False, True):
        theirs.encode_special_tokens = not special
        wanted = [e.ids for e in theirs.encode_batch(texts, add_special_tokens=False)]
        got = ours.encode(texts, special)
        different = [(t, w, g) for t, w, g in zip(texts, wanted, got) if w != g]
        assert not different, f"{len(different)} of {count}, special={special}: {different[0]!r}"
    rng = random.Random(seed)
    size = theirs.get_vocab_size() + 5
    lists = wanted + [[rng.randrange(size) for _ in range(rng.randint(0, 12))] for _ in range(count)]
    for special in (False, True):
        expected = theirs.decode_batch(lists, skip_special_tokens=not special)
        got = ours.decode(lists, special)
        different = [(i, w, g) for i, w, g in zip(lists, expected, got) if w != g]
        assert not different, f"{len(different)} of {len(lists)} decoded, special={special}: {different[0]!r}"


@pytest.mark.parametrize("name", VARIANTS)
def test_same_as_the_package(base, tmp_path, probe_binary, name):
    compare(variant(base, name), tmp_path, probe_binary, seed=1, count=COUNT if name == "plain" else COUNT // 5)


@pytest.mark.parametrize("model", ["tales-qwen3moe", "tales-llama", "tales-gemma2", "tales-gemma3"])
def test_other_models(models, tmp_path, probe_binary, model):
    compare(qwen(models, model), tmp_path, probe_binary, seed=2, count=COUNT // 5)


@pytest.mark.parametrize("behavior", ["Isolated", "MergedWithPrevious"])
@pytest.mark.parametrize("pattern", ["e", " ", "the", ".", "▁▁", "\\d"])
def test_splits_by_a_string(models, tmp_path, probe_binary, behavior, pattern):
    config = qwen(models, "tales-gemma3")
    config["pre_tokenizer"] |= {"pattern": {"String": pattern}, "behavior": behavior}
    compare(config, tmp_path, probe_binary, seed=3, count=COUNT // 10)
    config["normalizer"] = None
    compare(config, tmp_path, probe_binary, seed=4, count=COUNT // 10)


def test_runs_of_bytes_are_text_as_a_whole(models, tmp_path, probe_binary):
    """Tokens for single bytes in any order: what is no UTF-8 is repaired as the package does it."""
    config = qwen(models, "tales-gemma3")
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(config))
    ours, theirs = Probe(probe_binary, file), tokenizers.Tokenizer.from_file(str(file))
    byte = [config["model"]["vocab"][f"<0x{i:02X}>"] for i in range(256)]
    lists = [[byte[b] for b in text] for text in (b"\xc3\xa9", b"\xc3\xa9\xff", b"\xc3", b"a\xe2\x82\xac", b"\xe2\x82")]
    rng = random.Random(5)
    for _ in range(2000):
        lists.append([rng.choice([byte[rng.choice(b"\xc3\xa9\xe2\x82\xacab")], rng.randrange(2005)]) for _ in range(rng.randint(1, 8))])
    for special in (False, True):
        assert ours.decode(lists, special) == theirs.decode_batch(lists, skip_special_tokens=not special)


def test_each_code_point(base, tmp_path, probe_binary):
    """Each code point beside a letter, a digit, an apostrophe and marks; of the last ones, all alike, a few."""
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(base))
    ours, theirs = Probe(probe_binary, file), tokenizers.Tokenizer.from_file(str(file))
    chars = [chr(c) for c in [*range(0x32400), *range(0x32400, 0x110000, 499)] if not 0xD800 <= c <= 0xDFFF]
    texts = []
    for start in range(0, len(chars), 64):
        block = chars[start : start + 64]
        texts += ["".join(f"{c}a {c}1{c}\n" for c in block), "".join(f"a\u0345{c}\u0301\u0334'{c}" for c in block)]
    theirs.encode_special_tokens = True
    wanted = [e.ids for e in theirs.encode_batch(texts, add_special_tokens=False)]
    got = ours.encode(texts, False)
    assert [t for t, w, g in zip(texts, wanted, got) if w != g] == []


def test_command(base, tmp_path, run):
    """Lines end at LF only; an empty line gives an empty line; the way back."""
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(base))
    theirs = tokenizers.Tokenizer.from_file(str(file))
    lines = ["Once upon a time", "", "a\rb", "tab\tand <|im_end|> \u2028 \x0b\x85", "no line feed"]
    for special in ("off", "on"):
        theirs.encode_special_tokens = special == "off"
        wanted = [theirs.encode(line, add_special_tokens=False).ids for line in lines]
        for model in (file, tmp_path):
            out = run("tokenize", model, "--special", special, input="\n".join(lines).encode(), text=False).stdout.decode()
            assert out == "".join(" ".join(map(str, ids)) + "\n" for ids in wanted)
        back = run("tokenize", file, "--special", special, "--decode", input=out.encode(), text=False).stdout.decode()
        assert [json.loads(line) for line in back.removesuffix("\n").split("\n")] == lines
    assert run("tokenize", file, input=b"", text=False).stdout == b""
    assert run("tokenize", file, input=b"\n", text=False).stdout == b"\n"
    assert run("tokenize", file, "--decode", input=b"4294967295 0\n", text=False).stdout == b'""\n'


@pytest.mark.parametrize(
    "arguments, text, named",
    [
        ([], b"good\nbad \xc3(\n", "line 2: [encode] text: expected UTF-8, got an invalid sequence at byte 4"),
        (["--decode"], b"1 2 x", 'line 1: word 3: expected a token id in decimal, got "x"'),
        (["--decode"], b"4294967296", "line 1"),
        (["--decode"], b"-1", "line 1"),
        (["--special", "maybe"], b"", "--special"),
    ],
)
def test_command_refuses(base, tmp_path, run, arguments, text, named):
    (tmp_path / "tokenizer.json").write_text(json.dumps(base))
    result = run("tokenize", tmp_path, *arguments, input=text, text=False, status=1)
    message = result.stderr.decode()
    assert message.startswith("refrain: error: ") and message.count("\n") == 1 and named in message


def test_command_names_a_missing_file(tmp_path, run):
    result = run("tokenize", tmp_path, input="", status=1)
    assert f"{tmp_path / 'tokenizer.json'}" in result.stderr
