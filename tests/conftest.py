"""Fixtures of the Python tests: where the program and the models lie, and how the program is run.

REFRAIN_BUILD names the folder of the programs (default build/release/bin), REFRAIN_MODELS the folder of the larger
models, which may be missing: then their tests skip and say so.
"""

import os
import pathlib
import signal
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) is signal.SIG_IGN:  # the programs that tests start are to heed it all the same
        signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session")
def root():
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def binaries():
    """The folder of the programs and test tools."""
    return pathlib.Path(os.environ.get("REFRAIN_BUILD") or ROOT / "build/release/bin").resolve()


@pytest.fixture(scope="session")
def refrain(binaries):
    """The command line program."""
    path = binaries / "refrain"
    if not path.is_file():
        pytest.fail(f"{path}: the program has not been built")
    return path


@pytest.fixture(scope="session")
def tales(root):
    """The embedded story model, 4 bits."""
    return root / "models/tales-qwen3-4bit"


@pytest.fixture(scope="session")
def models(root):
    """The folder of the larger test models; skips the test where there is none."""
    folder = pathlib.Path(os.environ.get("REFRAIN_MODELS") or root / "../shared/models").resolve()
    if not folder.is_dir():
        pytest.skip(f"no folder of larger models (REFRAIN_MODELS): {folder}")
    return folder


@pytest.fixture
def run(refrain):
    """run("generate", model, "-p", "Once") runs the program and gives the completed process.

    Text goes in and out as UTF-8 (text=False: bytes). `status` is the exit status that is expected; None: any.
    """

    def call(*arguments, input=None, status=0, text=True, timeout=300, env=None):
        result = subprocess.run(
            [refrain, *map(str, arguments)],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            encoding="utf-8" if text else None,
            timeout=timeout,
            env={**os.environ, **(env or {})},
            check=False,
        )
        if status is not None and result.returncode != status:
            pytest.fail(
                f"refrain {' '.join(map(str, arguments))}: expected exit status {status}, "
                f"got {result.returncode}\nstdout: {result.stdout!r}\nstderr: {result.stderr!r}"
            )
        return result

    return call
