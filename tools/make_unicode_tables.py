#!/usr/bin/env python3
"""Writes refrain/text/unicode_tables.inc by asking the Python package `tokenizers` about every code point.

The tables follow that package and not one version of Unicode, because its regular expressions know a newer Unicode
than its normalizer does. Run with Python 3.11, whose `unicodedata` is Unicode 14 as Debian 12's PCRE2 is:

    python tools/make_unicode_tables.py > refrain/text/unicode_tables.inc
"""

import ctypes
import ctypes.util
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers

CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cn".split()
SURROGATES = range(0xD800, 0xE000)
CODE_POINTS = [c for c in range(0x110000) if c not in SURROGATES]
TEXT = "".join(map(chr, CODE_POINTS))


def members(regex):
    """The code points that `regex`, a class, matches in the package."""
    return {ord(c) for c in normalizers.Replace(Regex(f"[^{regex}]+"), "").normalize_str(TEXT)}


def runs(values):
    """(first, last) of each run of consecutive numbers."""
    out = []
    for value in sorted(values):
        if out and out[-1][1] + 1 == value:
            out[-1][1] = value
        else:
            out.append([value, value])
    return out


def categories():
    table = [CATEGORIES.index("Cn")] * 0x110000
    for index, name in enumerate(CATEGORIES):
        for code_point in members(rf"\p{{{name}}}"):
            table[code_point] = index
    return table


def recategorized(table):
    """(code point -> category in Unicode 14) where the package differs from Unicode 14."""
    assert unicodedata.unidata_version == "14.0.0", "needs Python 3.11"
    out = {}
    for code_point in CODE_POINTS:
        old = CATEGORIES.index(unicodedata.category(chr(code_point)))
        if old != table[code_point]:
            out[code_point] = old
    return out


def inert():
    """Code points that utf8proc composes or reorders and the package's normalizer does not know."""
    library = ctypes.CDLL(ctypes.util.find_library("utf8proc"))

    class Property(ctypes.Structure):
        _fields_ = [("category", ctypes.c_short), ("combining_class", ctypes.c_short)]

    library.utf8proc_get_property.restype = ctypes.POINTER(Property)
    nfd = normalizers.NFD()
    out = set()
    for code_point in CODE_POINTS:
        char = chr(code_point)
        if unicodedata.normalize("NFD", char) != nfd.normalize_str(char):
            out |= {code_point} | {ord(c) for c in unicodedata.normalize("NFD", char)}
        elif len(nfd.normalize_str(char)) == 1 and library.utf8proc_get_property(code_point).contents.combining_class:
            # The class of U+0345 is 240, the greatest, that of U+0334 is 1: only a starter keeps them apart.
            if nfd.normalize_str("a\u0345" + char + "\u0334") == "a\u0345" + char + "\u0334":
                out.add(code_point)
    return out


def print_array(kind, name, rows, columns):
    print(f"constexpr {kind} {name}[] = {{")
    for start in range(0, len(rows), columns):
        print("    " + " ".join(row + "," for row in rows[start : start + columns]))
    print("};")


def main():
    table = categories()
    print("// clang-format off")
    print("// Written by tools/make_unicode_tables.py from the Python package tokenizers", tokenizers.__version__)
    print()
    print("// The first code point of each run of one category, shifted left by 5, plus the category.")
    starts = [c for c in range(0x110000) if c == 0 or table[c] != table[c - 1]]
    print_array("uint32_t", "kCategoryRuns", [f"0x{c << 5 | table[c]:X}" for c in starts], 10)
    print()
    print("// Code points whose category was another one in Unicode 14: first, last, category then.")
    old = recategorized(table)
    rows = [
        f"{{0x{first:X}, 0x{last:X}, {category}}}"
        for category in sorted(set(old.values()))
        for first, last in runs(c for c in old if old[c] == category)
    ]
    print_array("Recategorized", "kRecategorized", rows, 4)
    print()
    print("// White space: what \\s matches.")
    rows = [f"{{0x{a:X}, 0x{b:X}}}" for a, b in runs(members(r"\s"))]
    print_array("CodePointRange", "kWhiteSpace", rows, 5)
    print()
    print("// Code points that the package's older normalizer leaves where they are, first and last.")
    rows = [f"{{0x{a:X}, 0x{b:X}}}" for a, b in runs(inert())]
    print_array("CodePointRange", "kNfcInert", rows, 5)


main()
