#!/usr/bin/env python3
"""Checks what the sources of the library may not do: read or change the environment, print, end the process; and
that ops and models reach a device through the recorder alone, not through its backend.

Tests are exempt. Comments and strings are not looked at.
Usage: check_laws.py [ROOT]. Prints one line per violation; exit status 1 if there is any.
"""

import pathlib
import re
import sys

from check_includes import is_test
from source_files import source_files

# Comments, and literals of strings and characters; the apostrophe between digits is no literal.
SKIPPED = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|(?<!\w)\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)
FORBIDDEN = [
    (re.compile(r"\b(secure_getenv|getenv|setenv|unsetenv|putenv|environ)\b"), "the environment"),
    (re.compile(r"\b(v?f?printf|f?puts|putchar|perror|cout|cerr|clog)\b|<iostream>"), "prints"),
    (re.compile(r"\b(abort|exit|_exit|_Exit|quick_exit|terminate)\s*\("), "ends the process"),
]
# What records work, above the devices: an op is commands, whatever runs them.
RECORDING = re.compile(r"^refrain/(ops|model)/")
BACKEND = (re.compile(r"\bBackend\b"), "a backend")


def blank(match):
    """As many lines as were there, so that line numbers stay."""
    return "\n" * match.group(0).count("\n") or " "


def violations_of(path, text):
    rules = FORBIDDEN + ([BACKEND] if RECORDING.search(path.as_posix()) else [])
    for number, line in enumerate(SKIPPED.sub(blank, text).split("\n"), 1):
        for pattern, what in rules:
            match = pattern.search(line)
            if match:
                yield number, f"{match.group(0).strip('( ')}: {what}"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    count = 0
    for path in source_files(root, {".h", ".cpp", ".cu", ".cuh", ".inc"}):
        if path.parts[0] != "refrain" or is_test(path) or path.name.startswith("test_"):
            continue
        for line, message in violations_of(path, (root / path).read_text(encoding="utf-8")):
            print(f"{path}:{line}: {message}", file=sys.stderr)
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
