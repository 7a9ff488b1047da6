"""Files, pipes, devices and signals as they come: what is written where, what is read whole, and what is left behind."""

import contextlib
import fcntl
import json
import os
import pty
import signal
import stat
import subprocess
import termios
import threading
import time
import tty

import numpy as np
import pytest
from model_files import write_tensors

pytestmark = pytest.mark.asan

PROMPT = "Once upon a time"
IDS = "5 6 7 8"


def until(condition):
    """Waits for it, a minute at most."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def set_nonblocking(fd):
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)


@contextlib.contextmanager
def started(command, **options):
    """The process, which ends with the block at the latest."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


class Reader(threading.Thread):
    """Reads what comes from a descriptor, or from a file that is opened first, up to the end or `size` bytes."""

    def __init__(self, source, size=2**62):
        super().__init__(daemon=True)
        self.source, self.size, self.data = source, size, b""
        self.start()

    def run(self):
        fd = self.source if isinstance(self.source, int) else os.open(self.source, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a terminal's end
            while len(self.data) < self.size and (part := os.read(fd, 1 << 16)):
                self.data += part

    def result(self):
        self.join(60)
        assert not self.is_alive()
        return self.data


# Where -o writes


@pytest.fixture
def ids(tmp_path_factory):
    """A file of ids that lies elsewhere."""
    path = tmp_path_factory.mktemp("ids") / "ids"
    path.write_text(IDS)
    return path


@pytest.fixture
def write_logits(run, tales, tmp_path, ids):
    """write_logits(path) runs `refrain logits -o path`; write_logits.expected is what has to come."""

    def call(path, **options):
        return run("logits", tales, "--ids", ids, "--last", 4, "-o", path, **options)

    call(tmp_path / "expected.npy")
    call.expected = (tmp_path / "expected.npy").read_bytes()
    assert np.load(tmp_path / "expected.npy").shape == (4, 1472)
    (tmp_path / "expected.npy").unlink()
    return call


def test_links_are_followed_and_stay(write_logits, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/real.npy").write_bytes(b"old")
    (tmp_path / "far/real.npy").chmod(0o640)
    (tmp_path / "far/middle").symlink_to("real.npy")
    (tmp_path / "first").symlink_to("far/middle")
    (tmp_path / "new").symlink_to("far/fresh.npy")
    held = open(tmp_path / "far/real.npy", "rb")
    for link, file in (("first", "real.npy"), ("new", "fresh.npy")):
        write_logits(tmp_path / link)
        assert (tmp_path / link).is_symlink() and (tmp_path / "far" / file).read_bytes() == write_logits.expected
    with held:
        assert held.read() == b"old", "replaced, not overwritten"
    assert (tmp_path / "far/middle").is_symlink()
    assert stat.S_IMODE((tmp_path / "far/real.npy").stat().st_mode) == 0o640
    assert names(tmp_path) == ["far", "first", "new"]
    assert names(tmp_path / "far") == ["fresh.npy", "middle", "real.npy"]


@pytest.mark.parametrize("length", [101, 255])
def test_names_as_long_as_there_are(write_logits, tmp_path, length):
    (tmp_path / ("x" * length)).write_bytes(b"old")
    write_logits(tmp_path / ("x" * length))
    assert (tmp_path / ("x" * length)).read_bytes() == write_logits.expected
    assert names(tmp_path) == ["x" * length]


def test_links_without_an_end(fails, tales, ids, tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    fails("logits", tales, "--ids", ids, "-o", tmp_path / "a", says=[tmp_path / "a", "link"])
    assert (tmp_path / "a").is_symlink() and (tmp_path / "b").is_symlink()


@pytest.mark.parametrize("linked", [False, True])
def test_a_named_pipe_is_written_to(write_logits, tmp_path, linked):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    reader = Reader(tmp_path / "pipe")
    write_logits(tmp_path / ("link" if linked else "pipe"), timeout=60)
    assert reader.result() == write_logits.expected
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["link", "pipe"]


def test_a_device_is_written_to(write_logits, tmp_path):
    master, slave = pty.openpty()
    tty.setraw(slave)
    reader = Reader(master, len(write_logits.expected))
    write_logits(os.ttyname(slave), timeout=60)
    assert reader.result() == write_logits.expected
    (tmp_path / "null").symlink_to("/dev/null")
    write_logits(tmp_path / "null")
    assert (tmp_path / "null").is_symlink()
    for fd in (master, slave):
        os.close(fd)


def test_a_device_node_stays_one(write_logits, tmp_path):
    node = tmp_path / "node"
    try:
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        open(node, "wb").close()
    except OSError as error:
        pytest.skip(f"no device nodes here: {error}")
    write_logits(node)
    assert node.is_char_device() and names(tmp_path) == ["node"]


def test_open_descriptors_are_written_to(refrain, tales, write_logits, ids, tmp_path):
    (tmp_path / "out").symlink_to("/proc/self/fd/1")
    for path in ("/proc/self/fd/1", tmp_path / "out"):
        command = [refrain, "logits", tales, "--ids", ids, "--last", "4", "-o", path]
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
        assert done.stdout == write_logits.expected
        (tmp_path / "log").write_bytes(b"before")
        with open(tmp_path / "log", "ab") as log:
            subprocess.run(command, stdout=log, timeout=60, check=True)
        assert (tmp_path / "log").read_bytes() == b"before" + write_logits.expected
    assert names(tmp_path) == ["log", "out"]


def test_a_pipe_that_is_full_for_now(refrain, tales, write_logits, ids):
    """Its end does not block: what finds no room comes later."""
    read_end, write_end = os.pipe()
    set_nonblocking(write_end)
    command = [refrain, "logits", tales, "--ids", ids, "--last", "4", "-o", f"/proc/self/fd/{write_end}"]
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    with started(command, pass_fds=[write_end]) as process:
        os.close(write_end)
        time.sleep(0.5)
        assert process.poll() is None
        assert Reader(read_end).result() == write_logits.expected
        assert process.wait() == 0
    os.close(read_end)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_part_of_a_file(refrain, tales, ids, tmp_path, number):
    ids.write_text("5 " * 1024)
    (tmp_path / "out.npy").write_bytes(b"old")
    command = [refrain, "logits", tales, "--ids", ids, "--last", "1024", "-o", tmp_path / "out.npy"]
    with started([*command, "--portable", "--threads", "1"]) as process:
        until(lambda: len(names(tmp_path)) == 2)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert names(tmp_path) == ["out.npy"] and (tmp_path / "out.npy").read_bytes() == b"old"


def test_a_signal_ends_what_waits_for_the_reader_of_a_pipe(refrain, tales, ids, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with started([refrain, "logits", tales, "--ids", ids, "-o", tmp_path / "pipe"]) as process:
        time.sleep(1)
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
    assert names(tmp_path) == ["pipe"]


# What quantize replaces


@pytest.fixture
def dense(tmp_path):
    """A folder to be quantized: three matrices, so that the work has parts."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    values = np.ones((512, 512), np.float32)
    write_tensors(folder / "model.safetensors", {f"{name}.weight": ("F32", [512, 512], values.tobytes()) for name in "abc"})
    return folder


def content(folder):
    """None: there is no such folder."""
    if not folder.exists():
        return None
    return {path.name: path.read_bytes() for path in folder.iterdir()}


OUTPUT = ["config.json", "model.safetensors"]
BLOCK = {"group_size": 64, "bits": 4, "mode": "affine"}


DECODED = '{"quantized_by": "refrain"}'


@pytest.mark.parametrize("config", ["{}", "[", '{"quantized_by": null}', json.dumps({"quantization": BLOCK}), DECODED, None])
def test_a_folder_of_others_is_never_replaced(fails, dense, tmp_path, config):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_bytes(b"theirs")
    if config is not None:
        (out / "config.json").write_text(config)
    before = content(out)
    for options in ((), ("--force",)):
        fails("quantize", dense, out, *options, says=out)
        assert content(out) == before


def test_what_has_been_written_says_so(run, dense, tmp_path):
    run("quantize", dense, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["quantized_by"] == "refrain"


def test_what_was_quantized_here_and_decoded_can_be_again(run, dense, tmp_path):
    (dense / "config.json").write_text(DECODED)
    run("quantize", dense, tmp_path / "out")
    run("quantize", dense, tmp_path / "out", "--force")
    block = json.loads((tmp_path / "out/config.json").read_text(), object_pairs_hook=lambda pairs: pairs)
    assert [key for key, _ in block] == ["quantized_by", "quantization", "quantization_config"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_is_replaced_whole(run, fails, dense, tmp_path, linked):
    out, given = tmp_path / "out", tmp_path / ("link" if linked else "out")
    (tmp_path / "link").symlink_to("out")
    (dense / "chat_template.jinja").write_text("old")
    run("quantize", dense, given)
    old = content(out)
    fails("quantize", dense, given, says="--force")
    assert content(out) == old
    (dense / "chat_template.jinja").unlink()
    run("quantize", dense, given, "--force", "--bits", 8)
    assert names(out) == OUTPUT, "nothing of the old one is left"
    assert json.loads((out / "config.json").read_text())["quantization"]["bits"] == 8
    assert (tmp_path / "link").is_symlink() and not out.is_symlink()


def test_what_is_copied_is_what_it_is_called(run, fails, dense, tmp_path):
    (dense / "chat_template.jinja").write_text("<s>{{ messages }}</s>")
    (dense / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    fails("quantize", dense, tmp_path / "out", says=[dense / "tokenizer.json", "a Git LFS pointer"])
    assert content(tmp_path / "out") is None
    (dense / "tokenizer.json").unlink()
    run("quantize", dense, tmp_path / "out")


def test_a_failure_keeps_the_old_folder(run, fails, dense, tmp_path):
    out = tmp_path / "out"
    run("quantize", dense, out)
    old = content(out)
    values = np.full((512, 512), np.nan, np.float32)
    write_tensors(dense / "model.safetensors", {"c.weight": ("F32", [512, 512], values.tobytes())})
    fails("quantize", dense, out, "--force", says="finite")
    assert content(out) == old


@pytest.fixture
def held_quantize(refrain, dense, tmp_path):
    """held_quantize() starts a run into `out` on a terminal that takes nothing, so that it waits in its first message, and
    gives the process and what lets it go on."""
    master, slave = pty.openpty()
    termios.tcflow(slave, termios.TCOOFF)
    started = []

    def call(*options):
        before = names(tmp_path / "out") if (tmp_path / "out").exists() else []
        command = [refrain, "quantize", dense, tmp_path / "out", *options]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=slave)
        started.append(process)
        until(lambda: (tmp_path / "out").exists() and names(tmp_path / "out") != before)
        time.sleep(0.3)
        assert process.poll() is None
        Reader(master)
        return process, lambda: termios.tcflow(slave, termios.TCOON)

    yield call
    for process in started:
        process.kill()
        process.wait()
    for fd in (slave, master):
        os.close(fd)


@pytest.mark.parametrize("old", [False, True])
def test_a_run_that_was_killed_is_in_no_later_ones_way(run, held_quantize, dense, tmp_path, old):
    out, options = tmp_path / "out", ["--force"] if old else []
    if old:
        run("quantize", dense, out, "--bits", 8)
        before = content(out)
    process, _ = held_quantize(*options)
    process.kill()
    process.wait()
    if old:
        assert {name: (out / name).read_bytes() for name in before} == before
    run("quantize", dense, out, *options)
    assert names(out) == OUTPUT
    assert json.loads((out / "config.json").read_text())["quantization"] == BLOCK


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("old", [False, True])
def test_a_signal_leaves_no_part_of_a_folder(run, held_quantize, dense, tmp_path, old, number):
    out, options = tmp_path / "out", ["--force"] if old else []
    if old:
        run("quantize", dense, out, "--bits", 8)
    before = content(out)
    process, go_on = held_quantize(*options)
    process.send_signal(number)
    time.sleep(0.2)
    go_on()
    assert process.wait(60) == 128 + number
    assert content(out) == before
    run("quantize", dense, out, *options)


def test_a_run_that_was_killed_while_it_replaced_files(run, fails, dense, tmp_path):
    out = tmp_path / "out"
    run("quantize", dense, out)
    expected = content(out)
    (out / ".refrain-quantize.tmp").mkdir()
    (out / "config.json").rename(out / ".refrain-quantize.tmp/config.json")
    (out / "mine.txt").write_text("")
    fails("quantize", dense, out, says="mine.txt")
    assert (out / "mine.txt").exists() and (out / "model.safetensors").exists()
    (out / "mine.txt").unlink()
    run("quantize", dense, out)
    assert content(out) == expected


@pytest.mark.parametrize("replaced", [False, True])
def test_weights_that_are_cut_while_they_are_read(held_quantize, dense, tmp_path, replaced):
    """By then the first matrix has been read. A file that takes the other's name is not read."""
    process, go_on = held_quantize()
    weights = dense / "model.safetensors"
    if replaced:
        weights.unlink()
        weights.write_bytes(b"cut")
    else:
        os.truncate(weights, weights.stat().st_size // 2)
    go_on()
    assert process.wait(60) == (0 if replaced else 1)
    assert sorted(content(tmp_path / "out") or []) == (OUTPUT if replaced else [])


def test_two_runs_into_one_folder(fails, held_quantize, dense, tmp_path):
    process, go_on = held_quantize()
    fails("quantize", dense, tmp_path / "out", "--force", says=[tmp_path / "out", "another"])
    go_on()
    assert process.wait(60) == 0
    assert names(tmp_path / "out") == OUTPUT


# Messages that nobody takes


def without_stderr(kind, command, **options):
    """Runs with stderr closed, full, or a pipe that has no reader or no room."""
    if kind == "closed":
        return subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *command], timeout=60, check=False, **options)
    if kind == "full":
        with open("/dev/full", "wb") as full:
            return subprocess.run(command, stderr=full, timeout=60, check=False, **options)
    read_end, write_end = os.pipe()
    if kind == "no reader":
        os.close(read_end)
    else:
        set_nonblocking(write_end)
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
        os.write(write_end, bytes(4096))
    try:
        return subprocess.run(command, stderr=write_end, timeout=60, check=False, **options)
    finally:
        os.close(write_end)
        if kind != "no reader":
            os.close(read_end)


@pytest.mark.parametrize("kind", ["closed", "full", "no reader", "no room"])
def test_messages_that_nobody_takes_change_nothing(refrain, run, dense, tales, tmp_path, kind):
    story = run("generate", tales, "-p", PROMPT, "-n", 8, "--fast").stdout.encode()
    for options in (["--fast"], ["--fast", "-v"]):
        command = [refrain, "generate", tales, "-p", PROMPT, "-n", "8", *options]
        done = without_stderr(kind, command, stdout=subprocess.PIPE)
        assert (done.returncode, done.stdout) == (0, story)
    assert without_stderr(kind, [refrain, "quantize", dense, tmp_path / "out", "-v"]).returncode == 0
    assert names(tmp_path / "out") == OUTPUT
    for wrong in (["generate", tmp_path, "-p", PROMPT], ["sing"], ["generate", tales]):
        done = without_stderr(kind, [refrain, *wrong], stdout=subprocess.PIPE)
        assert (done.returncode, done.stdout) == (1, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_closed_streams_are_said(refrain, tales, closed):
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", refrain, "tokenize", tales]
    done = subprocess.run(command, input=b"Once\n", capture_output=True, timeout=60, check=False)
    name = "stdin" if closed == "<&-" else "stdout"
    assert done.returncode == 1 and done.stderr.startswith(f"refrain: error: {name}: ".encode())
    assert done.stderr.count(b"\n") == 1


def test_no_file_gets_the_number_of_a_closed_stream(refrain, tales):
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", refrain, "tokenize", tales]
    with started(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"Once\n")
        process.stdin.flush()
        assert process.stdout.readline()
        assert os.readlink(f"/proc/{process.pid}/fd/2") == "/dev/null"


def test_help_that_cannot_be_written_is_an_error(refrain):
    with open("/dev/full", "wb") as full:
        for option in ("--help", "--version"):
            done = subprocess.run([refrain, option], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
            assert done.returncode == 1 and done.stderr.startswith(b"refrain: error: stdout: ")


# Streams that pause


def test_tokenize_answers_each_line_at_once(refrain, run, tales):
    lines = ["Once", "", "upon a time", "fox"]
    expected = [run("tokenize", tales, input=line + "\n").stdout for line in lines]
    with started([refrain, "tokenize", tales], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        seen = Reader(process.stdout.fileno())
        for count, line in enumerate(lines, 1):
            for part in (line[:2], line[2:] + "\n"):
                process.stdin.write(part.encode())
                process.stdin.flush()
                time.sleep(0.05)
            so_far = "".join(expected[:count]).encode()
            until(lambda so_far=so_far: seen.data == so_far)
        process.stdin.close()
        assert process.wait(60) == 0
        assert seen.result() == "".join(expected).encode()


def test_streams_that_do_not_block(refrain, run, tales):
    text = "Once upon a time there was a fox.\n" * 4000
    expected = run("tokenize", tales, input=text).stdout.encode()
    assert len(expected) > 2**16
    (stdin, feed), (drain, stdout) = os.pipe(), os.pipe()
    for fd in (stdin, stdout):
        set_nonblocking(fd)
    with started([refrain, "tokenize", tales], stdin=stdin, stdout=stdout) as process:
        os.close(stdin)
        os.close(stdout)
        time.sleep(0.3)  # nothing to read yet
        writer = threading.Thread(target=lambda: (open(feed, "wb").write(text.encode()), None), daemon=True)
        writer.start()
        time.sleep(0.5)  # no room to write
        assert Reader(drain).result() == expected
        assert process.wait(60) == 0
    os.close(drain)


def test_text_to_a_pipe_that_does_not_block(refrain, run, tales):
    ask = ["generate", tales, "-p", PROMPT, "-n", "1000", "--ignore-eos", "--print", "ids"]
    drain, stdout = os.pipe()
    set_nonblocking(stdout)
    fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, 4096)
    os.write(stdout, bytes(4000))
    with started([refrain, *ask], stdout=stdout) as process:
        os.close(stdout)
        time.sleep(0.5)
        assert Reader(drain).result()[4000:] == run(*ask).stdout.encode()
        assert process.wait(60) == 0
    os.close(drain)


# Prompts and ids from anywhere


def sources(tmp_path, data):
    """Options' values that give `data`, each with what goes to stdin: a file, a named pipe, stdin by its names."""
    (tmp_path / "data").write_bytes(data)
    yield tmp_path / "data", None
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=[data], daemon=True).start()
    yield pipe, None
    yield "-", data
    yield "/dev/stdin", data


@pytest.mark.parametrize("text", ["Once upon a time\n\n", "\n", "Once\r\nupon\n a time", "-", "a fox\n" * 200])
def test_prompts_are_read_whole(run, tales, tmp_path, text):
    ids = run("tokenize", tales, "--whole", input=text.encode(), text=False).stdout
    assert json.loads(run("tokenize", tales, "--decode", input=ids, text=False).stdout) == text
    ask = ["generate", tales, "-n", 0, "--echo"]
    for source, data in [*sources(tmp_path, text.encode()), ("-p", text.encode())]:
        options = ["-p", "-"] if source == "-p" else ["-f", source]
        if source == tmp_path / "pipe":  # each writes once
            assert run(*ask, *options, text=False).stdout == text.encode()
            continue
        assert run(*ask, *options, input=data, text=False).stdout == text.encode()
        assert run(*ask, *options, "--print", "ids", input=data, text=False).stdout == ids


def test_prompts_of_any_length(run, fails, tales, tmp_path):
    text = "Once upon a time there was a fox.\n" * 20_000  # more than an argument may have
    tokens = len(run("tokenize", tales, "--whole", input=text).stdout.split())
    (tmp_path / "text").write_text(text)
    fails("generate", tales, "-f", tmp_path / "text", says=["prompt", "1024", tokens])
    fails("generate", tales, "-p", "-", input=text, says=["prompt", "1024", tokens])


def test_prompts_that_are_none(fails, tales, tmp_path):
    for source in (tmp_path / "none", tmp_path):
        fails("generate", tales, "-f", source, says=source)
    fails("generate", tales, "-f", "", says="No such file")
    for both in (["-p", "a"], ["--ids", "b"]):
        fails("generate", tales, "-f", "c", *both, says=["--file", both[0].replace("-p", "--prompt")])
    fails("generate", tales, "-p", "-", input=b"a\xff", text=False, says="UTF-8")


def test_ids_from_anywhere(run, fails, tales, tmp_path):
    expected = None
    for source, data in sources(tmp_path, IDS.encode() + b"\n"):
        found = run("generate", tales, "--ids", source, "-n", 9, "--print", "ids", input=data, text=False).stdout
        expected = expected or found
        assert found == expected != b""
    for source, data in (("-", IDS), ("/dev/stdin", IDS)):
        run("logits", tales, "--ids", source, "-o", tmp_path / "out.npy", input=data)
        assert np.load(tmp_path / "out.npy").shape == (1, 1472)
        (tmp_path / "out.npy").unlink()
    fails("generate", tales, "--ids", "-", input="5 x", says=["stdin", "word 2"])


def test_a_whole_input_is_one_line(run, fails, tales):
    def tokens(text, *options):
        return run("tokenize", tales, "--whole", *options, input=text, text=False).stdout

    line = run("tokenize", tales, input="Once upon a time\n").stdout.encode()
    assert tokens(b"Once upon a time") == line
    assert tokens(b"Once upon a time\n") != line
    assert tokens(b"") == b"\n"
    for text in ("Once\nupon\n", "\n\n\n", "caf\u00e9\r\n\t\U0001f98a\n" * 20_000):
        ids = tokens(text.encode())
        assert ids.count(b"\n") == 1
        assert json.loads(tokens(ids.replace(b" ", b"\n", 5), "--decode")) == text
    assert tokens(b"<|im_end|>\n", "--special", "on").split()[0] == b"2"
    fails("tokenize", tales, "--whole", input=b"a\n\xff", text=False, says=["stdin: ", "byte 2"])
