#!/usr/bin/env python3
"""Checks the length of files: headers up to 300 lines, sources up to 500, kernels and tests up to 800.

Usage: check_sizes.py [ROOT]. Prints one line per violation; exit status 1 if there is any.
"""

import pathlib
import re
import sys

from source_files import source_files

HEADER_LINES = 300
SOURCE_LINES = 500
KERNEL_OR_TEST_LINES = 800
SUFFIXES = {".h", ".cuh", ".cpp", ".cu", ".py", ".sh", ".cmake"}
KERNEL = re.compile(r"^refrain/ops/.*(_cpu(_[a-z0-9]+)?\.cpp|\.cu)$")
TEST = re.compile(r"(^tests/|_test\.(cpp|cu|py)$)")


def limit_lines(path):
    name = path.as_posix()
    if path.suffix in (".h", ".cuh"):
        return HEADER_LINES
    if KERNEL.search(name) or TEST.search(name):
        return KERNEL_OR_TEST_LINES
    return SOURCE_LINES


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    count = 0
    for path in source_files(root, SUFFIXES):
        with open(root / path, "rb") as file:
            lines = sum(1 for _ in file)
        if lines > limit_lines(path):
            print(f"{path}: {lines} lines, at most {limit_lines(path)}", file=sys.stderr)
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
