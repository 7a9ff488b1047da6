"""What the README shows is what the project does: its story, and its piece of C++."""

import re


def words(text):
    return " ".join(text.split())


def test_story(run, tales, root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    quoted = words(" ".join(line.removeprefix("> ") for line in readme.splitlines() if line.startswith("> ")))
    story = run("generate", tales, "-p", "Once upon a time", "--echo").stdout
    assert quoted == words(story)


def test_code(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    example = words((root / "examples" / "record_and_replay.cpp").read_text(encoding="utf-8"))
    code = re.search(r"```cpp\n(.*?)```", readme, re.DOTALL).group(1)
    statements = [words(line) for line in code.splitlines() if line.strip() and not line.lstrip().startswith("//")]
    assert len(statements) > 10
    for statement in statements:
        assert statement.split("  //")[0] in example, statement
