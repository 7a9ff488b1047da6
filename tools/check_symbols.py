#!/usr/bin/env python3
"""Checks what the built library refers to: no globals that can be written, no environment, nothing printed, no end of the process.

What check_laws.py cannot see in sources: macros, and what others' headers put into the library. Constants that are made at their
first use (kName, with a guard) and what the compiler and the standard library keep for themselves are no globals of ours.
Usage: check_symbols.py LIBRARY, a static library. Prints one line per violation; exit status 1 if there is any.
"""

import re
import subprocess
import sys

FORBIDDEN = {
    "the environment": r"(secure_)?getenv|(un)?setenv|putenv|environ|__environ",
    "prints": r"v?f?printf|f?put[cs]|putchar|perror|fwrite|stdout|stderr|std::(cout|cerr|clog)|std::ostream::.*",
    "ends the process": r"_?exit|_Exit|quick_exit|abort|raise|kill",
}
# Of sections: constants with addresses in them are written by the loader alone; DW.ref is the compiler's.
WRITABLE = re.compile(r"\.(data|bss|tdata|tbss)(?!\.rel\.ro|\.rel\.local\.DW)")
CONSTANT = re.compile(r"::k[A-Z]\w*$|^(guard variable for )?std::")


def symbols(library):
    """(file, name, class, section) of each symbol."""
    done = subprocess.run(["nm", "--demangle", "--format=sysv", library], capture_output=True, text=True, check=True)
    member = ""
    for line in done.stdout.splitlines():
        if match := re.match(r"Symbols from .*\[(.*)\]:$", line):
            member = match[1]
        parts = line.rsplit("|", 6)
        if len(parts) == 7 and parts[2].strip():
            yield member, parts[0].strip(), parts[2].strip(), parts[6].strip()


def violations(library):
    for member, name, kind, section in symbols(library):
        if kind == "U":
            plain = re.sub(r"\[abi:\w+\]|@.*", "", name)
            for what, pattern in FORBIDDEN.items():
                if re.fullmatch(pattern, plain):
                    yield f"{member}: {plain}: {what}"
        elif WRITABLE.match(section) and not CONSTANT.search(name):
            yield f"{member}: {name}: can be written ({section})"


def main():
    count = 0
    for message in violations(sys.argv[1]):
        print(message, file=sys.stderr)
        count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
