"""What the documents name and quote is there: files, tests, code."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(ROOT.glob("docs/*.md")) + [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PATH = re.compile(r"`((?:refrain|cli|bench|tests|tools|docs|examples|models|cmake|\.ci)/[\w./-]+)`")
# Some are inside refrain/, some inside tests/.
INSIDE = re.compile(r"`((?:core|backend|graph|device|ops|format|text|model)/[\w./-]+\.(?:h|cpp|cu|cuh|inc))`")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
# Made by the build; what a reader would write.
NOT_THERE = {"refrain/ops/ops.h", "refrain/ops/name/", "refrain/format/name"}
ADDING_AN_OP = ROOT / "docs" / "adding-an-op.md"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document):
    text = document.read_text(encoding="utf-8")
    named = set(PATH.findall(text)) - NOT_THERE
    missing = [path for path in sorted(named) if not (ROOT / path).exists()]
    for path in INSIDE.findall(text):
        missing += [path] * (not (ROOT / "refrain" / path).exists() and not (ROOT / "tests" / path).exists())
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    missing += [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    assert not missing


def test_the_tour_has_as_many_files_as_it_says():
    text = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    stops = re.findall(r"^(\d+)\. `(refrain/[\w./]+)`", text, re.MULTILINE)
    assert [int(number) for number, _ in stops] == list(range(1, 13))
    assert "Twelve files" in text


def test_adding_an_op_quotes_its_files():
    text = ADDING_AN_OP.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(refrain/ops/softcap/\S+)` \| .* \| (\d+) \|$", text, re.MULTILINE)
    sources = {name: (ROOT / name).read_text(encoding="utf-8") for name, _ in rows}
    assert {name: source.count("\n") for name, source in sources.items()} == {name: int(lines) for name, lines in rows}
    assert len(rows) == 6 and sum(int(lines) for _, lines in rows) <= 200
    everything = "\n".join([*sources.values(), (ROOT / "refrain/ops/ops.inc").read_text(encoding="utf-8")])
    quoted = re.findall(r"```cpp\n(.*?)```", text, re.DOTALL)
    assert len(quoted) >= 6
    for code in quoted:
        assert code in everything, code


def test_named_tests_exist():
    """docs/from-mlx-native.md names tests, in the files that it names."""
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
