"""Fixtures of the tests against other people's arithmetic: running the program on ids, and damaged models."""

import os
import shutil

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its spinning threads and the program's slow each other down

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from model_files import ModelCopy  # noqa: E402

FOUND = {}  # what was measured: the greatest value and the bound that it was held against


@pytest.fixture
def found_within():
    """found_within(what, value, bound) asserts value <= bound and lists the greatest value at the end of the run."""

    def call(what, value, bound):
        FOUND[what] = max(FOUND.get(what, (0.0, bound)), (float(value), bound))
        assert value <= bound, what

    return call


def pytest_terminal_summary(terminalreporter):
    for what, (value, bound) in FOUND.items():
        terminalreporter.write_line(f"FOUND {what}: {value:.2g} (bound {bound:.2g})")


@pytest.fixture
def logits(run, tmp_path):
    """logits(model, ids, last) gives the array of `refrain logits`; raw=True: the bytes of the file."""

    def call(model, ids, last=1, *options, raw=False):
        (tmp_path / "ids.txt").write_text(" ".join(map(str, ids)))
        out = tmp_path / "logits.npy"
        done = run("logits", model, "--ids", tmp_path / "ids.txt", "--last", last, "-o", out, *options)
        assert done.stdout == ""
        return out.read_bytes() if raw else np.load(out)

    return call


@pytest.fixture
def generate_ids(run, tmp_path):
    """generate_ids(model, ids, ...) gives the ids that `refrain generate` prints."""

    def call(model, ids, *options):
        (tmp_path / "ids.txt").write_text(" ".join(map(str, ids)))
        done = run("generate", model, "--ids", tmp_path / "ids.txt", "--print", "ids", *options)
        return [int(word) for word in done.stdout.split()]

    return call


@pytest.fixture
def fails(run):
    """fails(..., says=[...]) runs the program, which must refuse: status 1, one line that holds each of `says`,
    nothing on stdout. warnings=True: lines of warning may come first."""

    def call(*arguments, says, warnings=False, **options):
        done = run(*arguments, status=1, **options)
        assert done.stdout in ("", b"")
        text = done.stderr if isinstance(done.stderr, str) else done.stderr.decode()
        assert text.endswith("\n")
        *before, last = text.splitlines()
        if warnings:
            assert all(line.startswith("refrain: warning: ") for line in before), text
        else:
            assert not before, text
        assert last.startswith("refrain: error: "), text
        for part in says if isinstance(says, list) else [says]:
            assert str(part) in last, text
        return last

    return call


@pytest.fixture
def broken(tales, tmp_path):
    """A copy of the embedded model, to be damaged."""
    folder = tmp_path / "model"
    shutil.copytree(tales, folder, copy_function=shutil.copyfile)
    return ModelCopy(folder)
