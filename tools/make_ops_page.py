#!/usr/bin/env python3
"""Writes docs/ops.md: what the headers of the ops in ops.inc say of them, and which kernels they have.

Usage: make_ops_page.py [--check] [ROOT]. --check writes nothing and says, with exit status 1, that the page is not current.
"""

import pathlib
import re
import sys

KERNELS = {"cpu": "portable", "cpu_avx2": "AVX2", "cpu_avx512": "AVX-512", "cpu_amx": "AMX", "cuda": "CUDA"}
HEAD = """# Ops

Made by `make ops-page` from the headers in `refrain/ops`; `make lint` fails when it is not current. An op is recorded into an
encoder with a struct of its arguments, `ops::add(encoder, {.a = x, .b = y, .output = z})`. R counts rows, of which those below
the live count are computed; f32 arguments may be temps of `DType::activation`, where the plan's mode makes that f32.
"""


def section(folder):
    """The text of one op; raises ValueError, naming the file, where its header lacks what the page needs."""
    op = folder.name
    text = (folder / f"{op}.h").read_text(encoding="utf-8")
    file_comment = re.match(r"((?://.*\n)+)#pragma once\n", text)
    type_name = "".join(word.capitalize() for word in op.split("_"))
    arguments = re.search(rf"^struct {type_name} \{{\n(?:.*\n)*?\}};\n", text, re.MULTILINE)
    recorded = re.search(rf"^(?:///.*\n)+void {op}\(CommandEncoder& encoder, const {type_name}& args\);\n", text, re.MULTILINE)
    for found, what in (
        (file_comment, "a comment before #pragma once"),
        (arguments, f"struct {type_name}"),
        (recorded, f"a docstring of void {op}(CommandEncoder& encoder, const {type_name}& args)"),
    ):
        if not found:
            raise ValueError(f"{folder.name}/{op}.h: expected {what}, found none")
    summary = " ".join(line.removeprefix("//").strip() for line in file_comment[1].splitlines())
    summary = re.sub(rf"^{op}: (.)", lambda match: match[1].upper(), summary)
    kernels = [name for suffix, name in KERNELS.items() if list(folder.glob(f"{op}_{suffix}.c*"))]
    return f"\n## {op}\n\n{summary}\n\n```cpp\n{arguments[0]}\n{recorded[0]}```\n\nKernels: {', '.join(kernels)}.\n"


def page(root):
    ops = root / "refrain" / "ops"
    names = re.findall(r"^OP\((\w+)\)$", (ops / "ops.inc").read_text(encoding="utf-8"), re.MULTILINE)
    return HEAD + "".join(section(ops / name) for name in names)


def main():
    arguments = sys.argv[1:]
    check = "--check" in arguments
    roots = [argument for argument in arguments if argument != "--check"]
    root = pathlib.Path(roots[0] if roots else pathlib.Path(__file__).parent.parent).resolve()
    path = root / "docs" / "ops.md"
    try:
        text = page(root)
    except (OSError, ValueError) as error:
        print(f"docs/ops.md: {error}", file=sys.stderr)
        return 1
    if not check:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        print("docs/ops.md is not what refrain/ops says: make ops-page", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
