#!/usr/bin/env python3
"""Checks that includes go one way: top -> model -> ops -> device -> graph -> backend -> core.

Top is cli, python, examples, bench, refrain/refrain.h and refrain/open.cpp; `format` and `text` use core only. A
backend's folder (backend/NAME) is included by itself, by refrain/open.cpp, by tests and by benchmarks; that of CUDA also
by the CUDA kernels of ops, which its plugin holds. Tests and benchmarks may include all of it, test headers too.
Usage: check_includes.py [ROOT]. Prints one line per violation; exit status 1 if there is any.
"""

import pathlib
import re
import sys

from source_files import source_files

# What a layer may include besides itself.
ALLOWED = {
    "core": set(),
    "backend": {"core"},
    "graph": {"backend", "core"},
    "device": {"graph", "backend", "core"},
    "ops": {"device", "graph", "backend", "core", "format"},
    "format": {"core"},
    "text": {"core"},
    "model": {"ops", "device", "graph", "backend", "core", "format", "text"},
    "top": {"model", "ops", "device", "graph", "backend", "core", "format", "text"},
}
TOP_FOLDERS = ("cli", "python", "examples", "bench")
TEST_FILE = re.compile(r"(_bench\.cpp$|_test\.(cpp|cu|h)|^test_.*\.(cpp|h)|^(testing|benching)\.h)$")
CUDA_KERNEL = re.compile(r"^refrain/ops/.*(_cuda\.(cu|cpp|h)|\.cuh)$")
# Headers that the build makes.
GENERATED = ("refrain/ops/ops.h",)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
# Other people's libraries: whoever includes an installed header must not need them.
PRIVATE_HEADER = re.compile(r"^(fmt/|simdjson|pcre2|utf8proc|CLI/)")


def is_test(path):
    return path.parts[0] == "tests" or TEST_FILE.search(path.name) is not None


def may_include_all(path):
    """Tests, and benchmarks, which measure single parts and share the harness of the tests."""
    return is_test(path) or path.parts[0] == "bench"


def layer(path):
    """The layer of a file and, inside refrain/backend, the backend that it belongs to (else None)."""
    parts = path.parts
    if parts[0] in TOP_FOLDERS or (parts[0] == "refrain" and len(parts) == 2):
        return "top", None
    if parts[0] == "refrain" and parts[1] in ALLOWED and parts[1] != "top":
        return parts[1], parts[2] if parts[1] == "backend" and len(parts) > 3 else None
    if parts[0] == "tests":
        return "tests", None
    return None, None


def violations_of(path, text, exists):
    """Yields (line, message) for each include in `text` that `path` may not have."""
    own_layer, own_backend = layer(path)
    if own_layer is None:
        yield 1, "lies in no folder of the house"
        return
    if path.suffix == ".h" and not re.search(r"^#pragma once$", text, re.MULTILINE):
        yield 1, "has no #pragma once"
    for number, line in enumerate(text.split("\n"), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        bracket, name = match.groups()
        ours = name.startswith(("refrain/", "tests/", *(f"{folder}/" for folder in TOP_FOLDERS)))
        if not ours:
            if bracket == '"':
                yield number, f'"{name}": a path of our own starts at the root of the repository'
            elif path.suffix == ".h" and path.parts[0] == "refrain" and PRIVATE_HEADER.match(name):
                yield number, f"<{name}> in a header of the library"
            elif name.startswith("CLI/") and path.parts[0] != "cli":
                yield number, f"<{name}> outside cli"
            continue
        target = pathlib.PurePosixPath(name)
        if not exists(target):
            yield number, f'"{name}" does not exist'
            continue
        if may_include_all(path):
            continue
        target_layer, target_backend = layer(target)
        if is_test(target):
            yield number, f'"{name}" belongs to tests'
        elif target_layer != own_layer and target_layer not in ALLOWED[own_layer]:
            yield number, f'{own_layer} may not include "{name}" ({target_layer})'
        elif target_backend == "cuda" and CUDA_KERNEL.search(path.as_posix()):
            pass
        elif target_backend not in (None, own_backend) and path.as_posix() != "refrain/open.cpp":
            yield number, f'"{name}" belongs to the backend {target_backend}'


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    count = 0
    for path in source_files(root, {".h", ".cpp", ".cu", ".cuh", ".inc"}):
        text = (root / path).read_text(encoding="utf-8")
        for line, message in violations_of(path, text, lambda target: target.as_posix() in GENERATED or (root / target).is_file()):
            print(f"{path}:{line}: {message}", file=sys.stderr)
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
