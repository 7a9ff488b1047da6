"""The command line as its users are told it works: what goes to stdout, what to stderr, and what the options do."""

import collections
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import termios
import time

import numpy as np
import pytest
from model_files import header_of, read_tensors, write_raw, write_tensors
from tiny_models import config_of, write_weights

pytestmark = pytest.mark.asan

PROMPT = "Once upon a time"
# The figures: load, then prompt and generation speed.
LOAD = re.compile(r"load [\d.]+ ms")
SPEED = re.compile(r"prompt \d+ tokens, [\d.]+ tok/s; generation \d+ tokens, [\d.]+ tok/s")


def spelled_ids(tales):
    data = json.loads((tales / "tokenizer.json").read_text(encoding="utf-8"))
    return set(data["model"]["vocab"].values()) | {token["id"] for token in data["added_tokens"]}


@pytest.fixture
def tell(run, tales):
    """tell("-n", 5) gives what `generate` writes to stdout for PROMPT; nothing goes to stderr."""

    def call(*options, prompt=PROMPT):
        done = run("generate", tales, "-p", prompt, *options)
        assert done.stderr == ""
        return done.stdout

    return call


def encode(run, model, text):
    return [int(word) for word in run("tokenize", model, input=text + "\n").stdout.split()]


# What generate prints


@pytest.mark.tsan
def test_stdout_is_the_continuation_and_nothing_else(tell, run, tales, golden_ids):
    story = tell()
    assert story.startswith(", there was a")
    ids = run("generate", tales, "-p", PROMPT, "--print", "ids").stdout
    decoded = run("tokenize", tales, "--decode", input=ids).stdout
    assert json.loads(decoded) == story
    assert list(map(int, ids.split()))[:64] == golden_ids[: len(ids.split())]


@pytest.fixture
def golden_ids(root):
    """The greedy continuation of PROMPT, from the numpy pass."""
    archive = np.load(root / "tests/golden/data/tales-qwen3-4bit.npz")
    return archive["prompt0_greedy"].tolist()[: story_tokens(archive)]


def story_tokens(archive):
    """Tokens up to the end of the story, or all of them; all are sure."""
    assert archive["prompt0_margin"].min() > 1e-3
    ended = np.flatnonzero(archive["prompt0_greedy"] == 0)
    return int(ended[0]) if len(ended) else len(archive["prompt0_greedy"])


def test_echo_puts_the_prompt_in_front(tell, run, tales, tmp_path):
    assert tell("--echo", "-n", 8) == PROMPT + tell("-n", 8)
    odd = "  Once \n\tupon <|im_end|> caf\u00e9 \U0001f98a"
    assert tell("--echo", "-n", 3, prompt=odd) == odd + tell("-n", 3, prompt=odd)
    prompt = encode(run, tales, PROMPT)
    made = run("generate", tales, "-p", PROMPT, "--print", "ids", "-n", 4).stdout.split()
    echoed = run("generate", tales, "-p", PROMPT, "--print", "ids", "-n", 4, "--echo").stdout
    assert echoed == " ".join([*map(str, prompt), *made]) + "\n"
    (tmp_path / "ids").write_text(" ".join(map(str, prompt)))
    assert run("generate", tales, "--ids", tmp_path / "ids", "-n", 8, "--echo").stdout == PROMPT + tell("-n", 8)


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65])
def test_n_tokens(generate_ids, tales, count):
    assert len(generate_ids(tales, [5, 6, 7], "-n", count, "--ignore-eos")) == count


def test_defaults(tell, generate_ids, tales, run):
    spelled_out = ("-n", 256, "--temp", 0, "--seed", 0, "--top-k", 0, "--top-p", 1, "--device", "auto", "--exact")
    assert tell() == tell(*spelled_out)
    assert len(generate_ids(tales, encode(run, tales, PROMPT), "--ignore-eos")) == 256


def test_text_comes_as_it_is_made(refrain, tales):
    """The first words are there long before the last."""
    command = [refrain, "generate", tales, "-p", PROMPT, "-n", "1000", "--ignore-eos"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        pieces = 0
        while os.read(process.stdout.fileno(), 1 << 16):
            pieces += 1
        assert process.wait() == 0
    assert pieces > 20


def test_characters_are_never_cut(refrain, tales):
    """Sampled at random, tokens hold parts of characters: every piece that is written is UTF-8 of its own."""
    command = [refrain, "generate", tales, "-p", PROMPT, "-n", "300", "--ignore-eos", "--temp", "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        text = b""
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            piece.decode()
            text += piece
        assert process.wait() == 0
    assert "\ufffd" in text.decode(), "the run has no incomplete character: this test shows nothing"


# Sampling


def test_a_seed_gives_the_same_text_and_another_seed_another(tell):
    options = ("--temp", 1, "-n", 40, "--ignore-eos")
    first = tell(*options, "--seed", 1)
    assert tell(*options, "--seed", 1) == first
    assert tell(*options, "--seed", 1, "--threads", 1) == first
    others = {tell(*options, "--seed", seed) for seed in (2, 3, 2**32 + 1, 2**64 - 1)}
    assert len(others) == 4 and first not in others
    assert tell(*options) == tell(*options, "--seed", 0)


def test_temperature_zero_ignores_the_seed(tell):
    assert tell("-n", 20, "--seed", 7) == tell("-n", 20)
    assert tell("-n", 20, "--temp", 1e-6) == tell("-n", 20)


def test_top_k(tell, logits, generate_ids, tales, run):
    assert tell("-n", 30, "--temp", 50, "--top-k", 1) == tell("-n", 30)
    prompt = encode(run, tales, PROMPT)
    made = generate_ids(tales, prompt, "-n", 60, "--temp", 50, "--top-k", 5, "--ignore-eos")
    rows = logits(tales, prompt + made[:-1], len(made))
    ranks = [(row > row[token]).sum() for row, token in zip(rows, made)]
    assert max(ranks) == 4, "each of the five most probable, and no other"


def test_top_p(tell, logits, generate_ids, tales, run):
    assert tell("-n", 30, "--temp", 2, "--top-p", 0) == tell("-n", 30)
    prompt, p, temperature = encode(run, tales, PROMPT), 0.7, 2.0
    made = generate_ids(tales, prompt, "-n", 60, "--temp", temperature, "--top-p", p, "--ignore-eos")
    spelled = np.isin(np.arange(1472), sorted(spelled_ids(tales)))
    ahead = []
    for row, token in zip(logits(tales, prompt + made[:-1], len(made)).astype(np.float64), made):
        weight = np.where(spelled, np.exp((row - row.max()) / temperature), 0)
        ahead.append(weight[row > row[token]].sum() / weight.sum())
    assert max(ahead) < p, "a token is drawn only if those before it make up less than p"
    assert max(ahead) > 0.3, "and not the first one only"


def test_draws_follow_the_probabilities(logits, generate_ids, tales, run):
    """The first token over many seeds, with its probabilities from the logits."""
    prompt = encode(run, tales, PROMPT + ", there was a")
    row = logits(tales, prompt, 1)[0].astype(np.float64)
    probability = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
    draws = 60
    ask = ("-n", 1, "--temp", 1, "--ignore-eos", "--seed")
    drawn = [generate_ids(tales, prompt, *ask, seed)[0] for seed in range(draws)]
    assert all(probability[token] > 1e-5 for token in drawn)
    likely = np.flatnonzero(probability > 0.5 / draws)
    # Wide on purpose (5 standard deviations of a binomial): a wrong draw is off by far more.
    for token in likely:
        expected = draws * probability[token]
        assert abs(drawn.count(token) - expected) <= 5 * np.sqrt(expected * (1 - probability[token])) + 1


def test_ids_without_a_spelling(generate_ids, tales, run):
    spelled = spelled_ids(tales)
    unspelled = sorted(set(range(1472)) - spelled)
    assert len(unspelled) == 25
    made = generate_ids(tales, [5], "-n", 800, "--temp", 1e30, "--ignore-eos")
    assert len(made) == 800 and set(made) <= spelled
    assert len(set(made)) > 400, "drawn evenly from all"
    line = " ".join(map(str, [unspelled[0], *encode(run, tales, PROMPT), *unspelled]))
    assert json.loads(run("tokenize", tales, "--decode", input=line).stdout) == PROMPT


# Where it stops


def test_stops_at_the_end_of_a_story(tell, generate_ids, tales, run):
    prompt = encode(run, tales, PROMPT)
    made = generate_ids(tales, prompt)
    assert 0 not in made and 20 < len(made) < 256
    on = generate_ids(tales, prompt, "--ignore-eos")
    assert on[: len(made) + 1] == [*made, 0] and len(on) == 256
    assert "<|endoftext|>" not in tell("--ignore-eos"), "a special token decodes to nothing"


def test_any_of_several_eos_ids_and_where_they_stand(broken, generate_ids):
    whole = generate_ids(broken, [5], "-n", 50, "--ignore-eos")
    stop = whole[10]
    short = whole[: whole.index(stop)]
    broken.edit_json("generation_config.json", {"eos_token_id": [1471, stop]})
    assert generate_ids(broken, [5], "-n", 50) == short
    assert generate_ids(broken, [5], "-n", 50, "--ignore-eos") == whole
    broken.edit_json("generation_config.json", {}, drop=["eos_token_id"])
    broken.config(eos_token_id=stop)
    assert generate_ids(broken, [5], "-n", 50) == short
    (broken / "generation_config.json").unlink()
    assert generate_ids(broken, [5], "-n", 50) == short
    broken.config(drop=["eos_token_id"])
    assert generate_ids(broken, [5], "-n", 50) == whole


def test_the_end_of_the_context(run, tales, tmp_path):
    ids = [5 + i % 300 for i in range(1020)]
    (tmp_path / "ids").write_text(" ".join(map(str, ids)))
    ask = ("generate", tales, "--ids", tmp_path / "ids", "--print", "ids", "--ignore-eos")
    done = run(*ask, "-n", 50)
    # One more than there is room for: the last token is drawn, but never fed.
    assert len(done.stdout.split()) == 5
    assert done.stderr.startswith("refrain: note: ") and "context, 1024 tokens" in done.stderr
    assert done.stderr.count("\n") == 1
    done = run(*ask, "-n", 4)
    assert len(done.stdout.split()) == 4 and done.stderr == ""
    (tmp_path / "ids").write_text(" ".join(map(str, ids + ids[:4])))
    done = run(*ask)
    assert len(done.stdout.split()) == 1 and "context" in done.stderr


def test_interrupt(refrain, tales, tell):
    command = [refrain, "generate", tales, "-p", PROMPT, "-n", "1000", "--ignore-eos"]
    whole = tell("-n", 1000, "--ignore-eos").encode()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        text = os.read(process.stdout.fileno(), 64)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert process.returncode == 130
    text += rest
    text.decode()
    assert errors == b""
    assert whole.startswith(text) and 0 < len(text) < len(whole)


def test_a_second_interrupt_ends_it_wherever_it_is(refrain, tales):
    """Here in a write to a pipe that is full and that nobody reads."""
    command = [refrain, "generate", tales, "-p", PROMPT, "-n", "1000", "--ignore-eos", "--print", "ids"]
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    filled = os.write(write_end, b" " * 4090)

    def held():
        return int.from_bytes(fcntl.ioctl(read_end, termios.FIONREAD, bytes(4)), "little")

    process = subprocess.Popen(command, stdout=write_end, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while held() == filled and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.5)  # the next tokens find no room
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == -signal.SIGINT
    finally:
        process.kill()
        process.wait()
        os.close(read_end)
        os.close(write_end)


# Ids and text


def test_ids_in_and_ids_out_need_no_tokenizer(broken, generate_ids, logits, tell, run, tales, fails):
    prompt = encode(run, tales, PROMPT)
    expected = generate_ids(tales, prompt, "-n", 20)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).unlink()
    assert generate_ids(broken, prompt, "-n", 20) == expected
    np.testing.assert_array_equal(logits(broken, prompt, 4), logits(tales, prompt, 4))
    fails("generate", broken, "-p", PROMPT, says=broken / "tokenizer.json")


def test_ids_are_separated_by_any_white_space(run, tales, tmp_path):
    (tmp_path / "a").write_text("5 6 7")
    (tmp_path / "b").write_text("\n5\t6\r\n\n 07 ")
    a, b = (run("generate", tales, "--ids", tmp_path / name, "-n", 9).stdout for name in "ab")
    assert a == b != ""


def test_prompt_may_begin_with_a_dash(tell):
    assert tell("--echo", "-n", 1, prompt="--n").startswith("--n")


def test_special_tokens_of_a_prompt(run, tales):
    def prompt_ids(*options):
        return run("generate", tales, "-p", "<|im_end|>A", "-n", 0, "--echo", "--print", "ids", *options).stdout

    plain = run("tokenize", tales, input="<|im_end|>A\n").stdout
    assert prompt_ids() == prompt_ids("--special", "off") == plain
    assert prompt_ids("--special", "on") == run("tokenize", tales, "--special", "on", input="<|im_end|>A\n").stdout
    assert prompt_ids("--special", "on").split()[0] == "2" and plain.split()[0] != "2"


def test_bos_once_if_the_tokenizer_says_so(broken, run, tmp_path):
    def prompt_ids(text, *options):
        return run("generate", broken, "-p", text, "-n", 0, "--echo", "--print", "ids", *options).stdout.split()

    plain = [str(id) for id in encode(run, broken, PROMPT)]
    assert prompt_ids(PROMPT) == plain
    broken.edit_json("tokenizer_config.json", {"add_bos_token": True, "bos_token": "<|im_start|>"})
    assert prompt_ids(PROMPT) == ["1", *plain]
    assert prompt_ids("") == ["1"], "an empty prompt will do where there is a BOS"
    assert encode(run, broken, PROMPT) == [int(word) for word in plain], "tokenize adds none"
    (tmp_path / "ids").write_text(" ".join(plain))
    from_ids = run("generate", broken, "--ids", tmp_path / "ids", "-n", 0, "--echo", "--print", "ids").stdout
    assert from_ids.split() == plain, "ids are taken as they are"
    assert "begins with id 1" in run("info", broken).stdout
    # The post-processor says the same once more: still one.
    name = "<|im_start|>"
    single = [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {name: {"id": name, "ids": [1], "tokens": [name]}}
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    broken.edit_json("tokenizer.json", {"post_processor": template})
    assert prompt_ids(PROMPT) == ["1", *plain]
    broken.edit_json("tokenizer_config.json", {"add_bos_token": False, "bos_token": None})
    assert prompt_ids(PROMPT) == ["1", *plain]
    # A prompt that spells it out has it already, if that spelling is the token.
    assert prompt_ids(name + PROMPT, "--special", "on") == ["1", *plain]
    spelled = [str(id) for id in encode(run, broken, name + PROMPT)]
    assert spelled[0] != "1" and prompt_ids(name + PROMPT) == ["1", *spelled]
    assert prompt_ids(PROMPT + name, "--special", "on") == ["1", *plain, "1"]


# Progress


def test_figures_only_when_asked_for(run, tales):
    done = run("generate", tales, "-p", PROMPT, "-n", 5, "-v")
    assert LOAD.search(done.stderr) and SPEED.search(done.stderr)
    assert "prompt 4 tokens" in done.stderr and "generation 5 tokens" in done.stderr
    assert done.stdout == run("generate", tales, "-p", PROMPT, "-n", 5).stdout


def test_loading_tells_each_quarter(run, tales):
    *shown, figures = run("generate", tales, "-p", PROMPT, "-n", 1, "-v").stderr.splitlines()
    percents = [int(re.fullmatch(r"loading ([ \d]{3}) %", line).group(1)) for line in shown]
    assert [percent // 25 for percent in percents] == [1, 2, 3, 4] and percents[-1] == 100
    assert LOAD.match(figures)


def test_figures_of_the_cache(run, tales):
    config = json.loads((tales / "config.json").read_text())
    elements = 2 * 64 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    for options, says in (
        ((), f"cache {4 * elements} bytes of f32"),
        (("--cache", "f16"), f"cache {2 * elements} bytes of f16"),
        (("--fast",), f"cache {2 * elements} bytes of f16"),
        (("--fast", "--cache", "f32"), f"cache {4 * elements} bytes of f32"),
    ):
        assert f"; {says}; " in run("generate", tales, "-p", PROMPT, "-n", 5, "-v", *options).stderr


def on_terminal(command, streams, status=0):
    """Runs with the named streams on a terminal; gives what went to it, and what to stdout otherwise."""
    master, slave = pty.openpty()
    try:
        pipes = {name: slave if name in streams else subprocess.PIPE for name in ("stdout", "stderr")}
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, **pipes) as process:
            os.close(slave)
            seen = b""
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                if not select.select([master], [], [], 0.1)[0]:
                    continue
                try:
                    piece = os.read(master, 4096)
                except OSError:  # the other side is closed
                    break
                if not piece:
                    break
                seen += piece
            other = process.stdout.read().decode() if process.stdout else None
            assert process.wait() == status
        return seen.decode(), other
    finally:
        os.close(master)


def test_figures_on_a_terminal(refrain, tales, tell):
    command = [refrain, "generate", tales, "-p", PROMPT, "-n", "5"]
    seen, text = on_terminal(command, {"stderr"})
    assert LOAD.search(seen) and SPEED.search(seen)
    assert text == tell("-n", 5)
    seen, _ = on_terminal(command, {"stdout"})
    assert seen == tell("-n", 5)
    # On one terminal the figures have a line of their own.
    seen, _ = on_terminal(command, {"stdout", "stderr"})
    assert text + "\r\nload " in seen
    seen, _ = on_terminal([*command, "--print", "ids"], {"stdout", "stderr"})
    assert re.search(r"\d\r\nload ", seen)


def test_loading_on_a_terminal(refrain, tales):
    seen, _ = on_terminal([refrain, "generate", tales, "-p", PROMPT, "-n", "1"], {"stderr"})
    begin, *shown, end = seen.replace("\r\n", "\n").split("\r")
    percents = [int(re.fullmatch(r"loading ([ \d]{3}) %", line).group(1)) for line in shown]
    assert begin == "" and percents == sorted(set(percents)) and percents[-1] == 100
    assert len(percents) > 20
    assert end.startswith("\x1b[Kload "), "where the line was"


def test_quantizing_on_a_terminal(refrain, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/config.json").write_text('{"model_type": "llama"}')
    values = np.ones((512, 512), np.float32)
    tensors = {f"{name}.weight": ("F32", [512, 512], values.tobytes()) for name in "abc"}
    write_tensors(tmp_path / "in/model.safetensors", tensors)
    seen, _ = on_terminal([refrain, "quantize", tmp_path / "in", tmp_path / "out"], {"stderr"})
    begin, *shown, end = seen.replace("\r\n", "\n").split("\r")
    assert begin == "" and shown == [f"quantizing {percent:3}%" for percent in (33, 66, 100)]
    size = (tmp_path / "out/model.safetensors").stat().st_size / 1e6
    assert end == f"3 tensors packed, 0 kept, 0 dropped; 3.1 MB -> {size:.1f} MB\n"

    values[5, 7] = np.nan
    write_tensors(tmp_path / "in/model.safetensors", tensors | {"c.weight": ("F32", [512, 512], values.tobytes())})
    seen, _ = on_terminal([refrain, "quantize", tmp_path / "in", tmp_path / "bad"], {"stderr"}, status=1)
    assert re.fullmatch("\rquantizing  33%\rquantizing  66%\r\nrefrain: error: [^\r\n]*finite[^\r\n]*\r\n", seen)


def test_the_other_commands_say_nothing_on_stderr(run, tales, logits, tmp_path):
    assert run("info", tales).stderr == ""
    assert run("tokenize", tales, input="a\n").stderr == ""
    (tmp_path / "ids").write_text("5")
    done = run("logits", tales, "--ids", tmp_path / "ids", "-o", tmp_path / "a.npy")
    assert done.stdout == done.stderr == ""


# Devices and modes


@pytest.mark.parametrize("command", [("generate", "-p", "a"), ("logits", "--ids", "ids", "-o", "out.npy")])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--device", "nonsense"), ["device", "auto", "cpu", "cuda:N", "nonsense"]),
        (("--device", "null"), ["device", "auto", "cpu", "null"]),
        (("--device", ""), ["device"]),
        (("--device", "cuda:99"), ["cuda:99"]),
        (("--fast", "--exact"), ["--fast", "--exact"]),
        (("--cache", "q8"), ["--cache", "q8", "f32", "f16"]),
        (("--cache", ""), ["--cache", "f32", "f16"]),
        (("--threads", "-1"), ["threads"]),
        (("--threads", "1000000"), ["threads"]),
        (("--threads", "two"), ["threads"]),
    ],
)
def test_devices_and_modes_that_there_are_not(fails, tales, tmp_path, monkeypatch, command, options, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ids").write_text("5")
    name, *rest = command
    fails(name, tales, *rest, *options, says=says)


def test_devices_and_threads(tell):
    story = tell("-n", 20)
    for options in (("--device", "cpu"), ("--device", "auto"), ("--threads", 1), ("--threads", 2), ("--exact",)):
        assert tell("-n", 20, *options) == story


def test_a_cpu_is_exact_when_it_is_to_be_fast(run, tell, tales):
    done = run("generate", tales, "-p", PROMPT, "-n", 20, "--fast")
    assert done.stderr == "refrain: warning: --fast: the kernels of a CPU are exact, its cache is f16\n"
    assert done.stdout == tell("-n", 20, "--cache", "f16")
    done = run("generate", tales, "-p", PROMPT, "-n", 20, "--fast", "--cache", "f32")
    assert done.stderr == "refrain: warning: --fast: the kernels of a CPU are exact, its cache is f32\n"
    assert done.stdout == tell("-n", 20)


def test_the_cache_is_f32_unless_told(logits, tales):
    ids = [5, 6, 7, 8]
    by_default, f32, f16 = (logits(tales, ids, 4, *options) for options in ((), ("--cache", "f32"), ("--cache", "f16")))
    np.testing.assert_array_equal(by_default, f32)
    # The first position attends to its own value alone, so that all that a cache in f16 can do is 2^-11 of it.
    difference = np.linalg.norm(f16 - f32, axis=-1) / np.linalg.norm(f32, axis=-1)
    assert (difference > 1e-6).all() and (difference < 2**-11).all()


def test_portable_kernels(logits, tales):
    """They sum in another order than vector kernels, so that the bits tell which ones ran."""
    words = pathlib.Path("/proc/cpuinfo").read_text().split()
    has_vector_kernels = "avx2" in words and "fma" in words
    machine, portable = (logits(tales, [5, 6, 7, 8], 4, *options, raw=True) for options in ((), ("--portable",)))
    assert (machine != portable) == has_vector_kernels


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("-n", "-1"), "tokens"),
        (("-n", "many"), "tokens"),
        (("--temp", "-0.5"), "temperature"),
        (("--temp", "nan"), "temperature"),
        (("--temp", "inf"), "temperature"),
        (("--temp", "0x1p3"), ["temp", "decimal"]),
        (("--temp", "1,5"), ["temp", "decimal"]),
        (("--temp", "1e39"), ["temp", "1e39"]),
        (("--top-p", "+1"), ["top-p", "decimal"]),
        (("--top-p", "1.5"), "top-p"),
        (("--top-p", "-1"), "top-p"),
        (("--top-p", "nan"), "top-p"),
        (("--top-k", "-1"), "top-k"),
        (("--seed", "-1"), "seed"),
        (("--seed", "x"), "seed"),
        (("--seed", 2**64), ["seed", 2**64 - 1]),
        (("-n", 2**32), ["tokens", 2**32 - 1]),
        (("-n", "0x10"), "tokens"),
        (("-n", "1e3"), "tokens"),
        (("-n", "5.0"), "tokens"),
        (("-n", "+5"), "tokens"),
        (("-n", " 5"), "tokens"),
        (("-n", ""), "tokens"),
        (("--top-k", 2**32), "top-k"),
        (("--threads", 2**32), "threads"),
        (("--print", "json"), "print"),
        (("--special", "maybe"), "special"),
        (("--wrong",), "--wrong"),
        (("surplus",), "surplus"),
    ],
)
def test_options_out_of_range(fails, tales, options, says):
    fails("generate", tales, "-p", "a", "--echo", *options, says=says)


def test_numbers_are_decimal(generate_ids, tell, tales, logits):
    assert len(generate_ids(tales, [5], "-n", "010", "--ignore-eos")) == 10
    sampled = ("-n", 10, "--temp", 1)
    assert tell(*sampled, "--seed", "010") == tell(*sampled, "--seed", 10) != tell(*sampled, "--seed", 8)
    assert tell(*sampled, "--top-k", "0100") == tell(*sampled, "--top-k", 100)
    assert tell("-n", 10, "--temp", "010") == tell("-n", 10, "--temp", "1e1") == tell("-n", 10, "--temp", "10.")
    assert len(logits(tales, range(5, 30), "010")) == 10


CACHE = re.compile(r"cache (\d+) bytes")


@pytest.mark.parametrize("tokens", [10**6, 2**32 - 1])
def test_room_for_many_tokens_is_made_as_they_come(broken, run, tell, tokens):
    """More than any memory holds, in a model that stops long before."""
    broken.config(max_position_embeddings=2**28)
    done = run("generate", broken, "-p", PROMPT, "-n", tokens, "-v")
    assert done.stdout == tell("-n", 1000)
    (cached,) = map(int, CACHE.findall(done.stderr))
    assert cached < 2**26


def test_room_that_has_grown_holds_what_was_there(generate_ids, tmp_path):
    """The same tokens as from prompts that already hold those before."""
    model = tmp_path / "model"
    model.mkdir()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    config = config_of("llama") | sizes | {"num_hidden_layers": 1, "max_position_embeddings": 8300}
    (model / "config.json").write_text(json.dumps(config))
    write_weights(model / "model.safetensors", config, np.random.default_rng(1), even=True)
    ask = ("--temp", 1, "--seed", 3)
    whole = generate_ids(model, [5], "-n", 2**32 - 1, *ask)
    assert len(whole) == 8300
    assert len(set(whole)) > 100
    for begin in (4000, 8000):
        assert generate_ids(model, [5, *whole[:begin]], "-n", 300, *ask) == whole[begin : begin + 300]


# The other commands


def test_version_help_and_unknown_commands(run, fails, tales):
    assert re.fullmatch(r"refrain \d+\.\d+\.\d+\n", run("--version").stdout)
    commands = run("--help").stdout
    for name in ("generate", "info", "tokenize", "logits", "quantize"):
        assert name in commands
        assert "--" in run(name, "--help").stdout
    fails("sing", says="sing")
    fails(says="subcommand")
    fails("generate", says="MODEL")
    fails("generate", tales, says=["-p", "--ids"])
    fails("generate", tales, "-p", "a", "--ids", "b", says=["--prompt", "--ids"])
    fails("logits", tales, says="--ids")


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200, 1023, 1024])
def test_shape_of_logits(logits, tales, length):
    ids = [(7 * i) % 1447 for i in range(length)]
    for last in (1, 3, length, length + 1, 2**32 - 1):
        found = logits(tales, ids, last)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        assert found.shape == (min(last, length), 1472)
        assert np.isfinite(found).all()
    if length > 3:
        np.testing.assert_array_equal(logits(tales, ids, 3), found[-3:])


def test_logits_take_the_last_position_unless_told(run, tales, tmp_path):
    (tmp_path / "ids").write_text("5 6 7")
    run("logits", tales, "--ids", tmp_path / "ids", "-o", tmp_path / "a.npy")
    assert np.load(tmp_path / "a.npy").shape == (1, 1472)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("ids", "a.npy")] == []


def test_logits_replace_a_file_and_ids_may_be_unspelled(run, tales, tmp_path, logits):
    (tmp_path / "logits.npy").write_bytes(b"old")
    assert logits(tales, [1471, 1450, 0], 3).shape == (3, 1472)


def test_info(run, tales, broken):
    def found(model):
        lines = [re.split(r"\s{2,}", line, maxsplit=1) for line in run("info", model).stdout.splitlines()]
        assert len(dict(lines)) == len(lines)
        return dict(lines)

    config = json.loads((tales / "config.json").read_text())
    tensors = read_tensors(tales / "model.safetensors")
    types = collections.Counter(dtype for dtype, _, _ in tensors.values())
    heads, kv_heads, head_dim = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    cache_elements = 2 * config["num_hidden_layers"] * kv_heads * head_dim
    expected = {
        "architecture": "qwen3",
        "layers": str(config["num_hidden_layers"]),
        "hidden": f"{config['hidden_size']}, MLP {config['intermediate_size']}",
        "heads": f"{heads} of {head_dim} for queries, {kv_heads} for keys and values",
        "head": "the embedding" if config["tie_word_embeddings"] else "of its own",
        "vocabulary": str(config["vocab_size"]),
        "context": f"{config['max_position_embeddings']} tokens",
        "cache": f"{4 * cache_elements} bytes a token in f32, {2 * cache_elements} in f16, "
        f"for {config['num_hidden_layers']} layers",
        "quantization": "affine 4 bits, groups of 64",
        "tensors": f"{len(tensors)} in 1 file: " + ", ".join(f"{types[name]} {name}" for name in sorted(types)),
        "bytes": str(sum(len(data) for _, _, data in tensors.values())),
        "alignment": f"{len(tensors)} tensors usable where they lie, 0 to be copied",
        "end of text": str(config["eos_token_id"]),
        "tokenizer": f"{len(spelled_ids(tales))} tokens, nothing in front of a prompt",
    }
    assert found(tales) == expected
    text = json.dumps(header_of(tensors)).encode()
    data = b"".join(part for _, _, part in tensors.values())
    write_raw(broken.weights, text + b" " * ((4 - len(text)) % 8), data)
    aligned = sum((at["data_offsets"][0] + 4) % 8 == 0 for at in header_of(tensors).values())
    changes = {"alignment": f"{aligned} tensors usable where they lie, {len(tensors) - aligned} to be copied"}
    assert found(broken) == expected | changes
    broken.shard(3)
    broken.edit_json("generation_config.json", {"eos_token_id": [0, 5]})
    (broken / "tokenizer.json").unlink()
    changed = found(broken)
    assert changed["tensors"] == expected["tensors"].replace("in 1 file", "in 3 files")
    assert (changed["end of text"], changed["tokenizer"]) == ("0 5", "none")


def test_info_of_layers_that_attend_to_a_window(run, models):
    gemma3 = models / "tales-gemma3"
    if not gemma3.is_dir():
        pytest.skip(f"{gemma3} is not there")
    config = json.loads((gemma3 / "config.json").read_text())
    windows = config["layer_types"].count("sliding_attention")
    elements = 2 * config["num_key_value_heads"] * config["head_dim"]
    caches = re.findall(r"^cache +(.*)$", run("info", gemma3).stdout, re.MULTILINE)
    assert sorted(caches) == sorted(
        f"{4 * elements * count} bytes a token in f32, {2 * elements * count} in f16, for {count} layers{says}"
        for count, says in (
            (windows, f" that attend to the last {config['sliding_window']}"),
            (config["num_hidden_layers"] - windows, ""),
        )
        if count
    )


def test_info_of_a_folder_that_is_not_quantized(run, models):
    dense = models / "tales-qwen3"
    if not dense.is_dir():
        pytest.skip(f"{dense} is not there")
    text = run("info", dense).stdout
    assert "quantization" not in text and "BF16" in text and "U32" not in text


def test_tokenize_lines(run, tales, fails):
    def tokens(text, *options):
        return run("tokenize", tales, *options, input=text, text=False).stdout

    word = tokens(b"Once\n")
    assert tokens(b"Once") == word, "a last line needs no LF"
    assert tokens(b"") == b""
    assert tokens(b"\n") == b"\n"
    assert tokens(b"Once\n\n\nOnce\n") == word + b"\n\n" + word
    for separator in ("\r\n", "\r", "\u2028", "\x85", "\x0b", "\x0c"):
        text = f"Once{separator}Once"
        lines = tokens(text.encode() + b"\n").splitlines()
        assert len(lines) == text.count("\n") + 1, "lines end at LF only"
        back = [json.loads(line) for line in tokens(b"\n".join(lines), "--decode").decode().split("\n")[:-1]]
        assert "\n".join(back) == text
    assert tokens(b"<|im_end|>\n", "--special", "on") == b"2\n"
    assert tokens(b"<|im_end|>\n") == tokens(b"<|im_end|>\n", "--special", "off") != b"2\n"
    fails("tokenize", tales, input=b"\xffa\n", text=False, says=["line 1", "byte 0"])


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1, 3 * 2**16 + 5])
def test_lines_that_are_read_in_parts(run, tales, size):
    """stdin is read 64 KiB at a time; lines that go on behind that end where they end."""
    lines = [("a fox " * size)[:size], "Once", ("owl " * size)[:size], "", "upon a time"]
    expected = [run("tokenize", tales, input=line + "\n").stdout for line in lines]
    assert len(set(expected)) == len(lines)
    assert run("tokenize", tales, input="\n".join(lines) + "\n").stdout == "".join(expected)
    assert run("tokenize", tales, input="\n".join(lines)).stdout == "".join(expected)


def test_lines_before_a_bad_one_are_written(run, tales):
    good = run("tokenize", tales, input="Once\n").stdout
    done = run("tokenize", tales, input=b"Once\nOnce\n\xff\nOnce\n", text=False, status=1)
    assert done.stdout.decode() == 2 * good
    assert b"line 3" in done.stderr and done.stderr.count(b"\n") == 1


def test_decode_prints_json_strings(run, tales, fails):
    text = 'say "hi" \\ \t \x01 \x1f \x7f caf\u00e9 \U0001f98a'
    ids = run("tokenize", tales, input=text + "\n").stdout
    assert json.loads(run("tokenize", tales, "--decode", input=ids).stdout) == text
    assert run("tokenize", tales, "--decode", input="\n1471\n0 2\n").stdout == '""\n""\n""\n'
    kept = run("tokenize", tales, "--decode", "--special", "on", input="0 2\n").stdout
    assert kept == '"<|endoftext|><|im_end|>"\n'
    for bad in ("x", "-1", "4294967296", "1.5"):
        fails("tokenize", tales, "--decode", input=bad + "\n", says="line 1")


def test_closed_stdout_is_an_error(refrain, tales):
    with open("/dev/full", "wb") as full:
        for command in (["generate", tales, "-p", PROMPT], ["info", tales]):
            done = subprocess.run([refrain, *command], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
            assert done.returncode == 1 and done.stderr.startswith(b"refrain: error: stdout: ")
