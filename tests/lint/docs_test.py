"""The tests that docs/from-mlx-native.md names are there, in the files that it names."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_named_tests_exist():
    table = (ROOT / "docs" / "from-mlx-native.md").read_text(encoding="utf-8").split("\n## 2. ")[1]
    named = 0
    for cell in (line.rsplit(" | ", 1)[-1] for line in table.splitlines() if re.match(r"\| [A-I]\d+ \|", line)):
        text = ""
        for word in re.findall(r"`([^`]+)`", cell):
            if "/" in word:
                path = ROOT / word if word.startswith(("refrain/", "bench/")) else ROOT / "tests" / word
                text = path.read_text(encoding="utf-8")
            elif "." in word:
                suite, name = word.split(".")
                assert re.search(rf"TEST(_F|_P)?\({suite}, {name}\)", text), f"{word} is not where the table says"
                named += 1
            elif word.startswith("test_"):
                assert f"def {word}(" in text, f"{word} is not where the table says"
                named += 1
    assert named > 150
