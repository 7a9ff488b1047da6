"""tools/mutants.py on a toy: what is caught, survives, hangs, does not compile, or changes nothing."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = ROOT / "build" / "venv_mutants" / "bin" / "python"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason=f"{PYTHON.relative_to(ROOT)} does not exist (make setup-test)")

CMAKE = """cmake_minimum_required(VERSION 3.25)
project(Toy LANGUAGES CXX)
enable_testing()
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/lib")
add_library(toy SHARED refrain/text/toy.cpp refrain/text/other.cpp)
add_executable(toy_test toy_test.cpp)
target_link_libraries(toy_test PRIVATE toy)
add_test(NAME toy_test COMMAND toy_test)
"""
SOURCE = """#include <string>
// one < two in a comment
int caught(int a) { return a + 0x10; }
bool survives(int a) { return a < 0xff; }
int hangs(int n) {
  volatile int i = 3;
  while (i > n)
    i -= 0x1;
  return i;
}
std::string does_not_compile(std::string a) { return a + "1 < 2"; }
int same_code(int a) {
  int unused = 0;
  return a;
}
int equivalent(int a, int b) {
  if (a >= b) return a;
  return b;
}
int refuses(int a) {
  if (a < 0x0) throw std::to_string(a + 1);
  return a;
}
#include "inline.h"
bool below(int a) { return low(a); }
"""
HEADER = "inline bool low(int a) { return a < 0xff; }\n"
OTHER = "int other(int a) { return a + 0x3; }\n"
TEST = """#include <string>
int caught(int), hangs(int), same_code(int), equivalent(int, int), refuses(int), other(int);
bool survives(int), below(int);
std::string does_not_compile(std::string);
bool refused(int a) try { return refuses(a) != a; } catch (const std::string&) { return true; }
int main() {
  const bool right = caught(1) == 17 && survives(1) && !survives(1000) && hangs(2) == 2 && hangs(5) == 3 && same_code(3) == 3 &&
    does_not_compile("3 + ") == "3 + 1 < 2" && equivalent(1, 2) == 2 && equivalent(2, 1) == 2 && other(1) == 4 &&
    refused(-1) && !refused(0) && !refused(1) && below(1) && !below(1000);
  return right ? 0 : 1;
}
"""
EQUIVALENT = """# the greater one of two equal ones

file: refrain/text/toy.cpp
before: if (a >= b) return a;
after: if (a > b) return a;
why: of two equal ones either may be returned
"""
SURVIVORS = [
    "refrain/text/inline.h:1: inline bool low(int a) { return a < 0xff; } -> inline bool low(int a) { return a < (0xff + 1); }",
    "refrain/text/inline.h:1: inline bool low(int a) { return a < 0xff; } -> inline bool low(int a) { return a <= 0xff; }",
    "refrain/text/toy.cpp:4: bool survives(int a) { return a < 0xff; } -> bool survives(int a) { return a < (0xff + 1); }",
    "refrain/text/toy.cpp:4: bool survives(int a) { return a < 0xff; } -> bool survives(int a) { return a <= 0xff; }",
]


@pytest.fixture
def toy(tmp_path):
    """Files of the toy by name; writing them again changes it."""
    files = {
        "CMakeLists.txt": CMAKE,
        "refrain/text/toy.cpp": SOURCE,
        "refrain/text/inline.h": HEADER,
        "refrain/text/test_toy.h": HEADER,  # of tests
        "refrain/text/other.cpp": OTHER,
        "toy_test.cpp": TEST,
        "tools/mutants_tests.txt": "refrain/text: toy_test\n",
        "tools/mutants_equivalent.txt": EQUIVALENT,
        ".gitignore": "/build/\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def mutants(root, *arguments):
    command = [PYTHON, ROOT / "tools" / "mutants.py", "--root", root, "--jobs", "2", "--grace", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def counts(line):
    """Noticed, counted, by time, do not compile, same code, listed."""
    return [int(number) for number in re.findall(r"\d+", line.split(" % (")[1])]


@pytest.mark.slow
def test_all_kinds(toy):
    sources = {path: path.read_bytes() for path in toy.rglob("*") if path.is_file()}
    done = mutants(toy, "refrain")
    assert done.returncode == 0, done.stderr
    report = (toy / "build" / "mutants" / "report.txt").read_text().splitlines()
    assert report[:-1] == SURVIVORS
    assert sorted(done.stdout.splitlines()) == sorted(report)
    noticed, counted, by_time, no_compile, same_code, listed = counts(report[-1])
    assert counted == noticed + len(SURVIVORS)
    assert by_time >= 1  # `i -= 1` deleted
    assert (no_compile, same_code, listed) == (1, 1, 1)
    assert {path: path.read_bytes() for path in sources} == sources

    # A new test kills all, though lines have moved; without tests they survive.
    saved = toy / "saved.txt"
    saved.write_text("\n".join(report) + "\n")
    (toy / "refrain/text/toy.cpp").write_text("\n" + SOURCE)
    (toy / "toy_test.cpp").write_text(TEST.replace("1000", "255"))
    done = mutants(toy, "--replay", saved)
    assert done.stderr.startswith("4 mutants of 2 files") and counts(done.stdout)[:2] == [4, 4]
    done = mutants(toy, "--replay", saved, "--test-seconds", "0")
    assert counts(done.stdout.splitlines()[-1])[:2] == [0, 4]


@pytest.mark.slow
def test_changed_files_a_stale_entry_and_a_seed(toy):
    git = ["git", "-C", toy, "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    (toy / "refrain/text/other.cpp").write_text("\n" + OTHER)
    (toy / "tools/mutants_equivalent.txt").write_text(EQUIVALENT.replace("a > b", "a == b"))
    done = mutants(toy, "--base", "HEAD", "--count", "1")
    assert done.returncode == 1
    assert done.stderr.startswith("2 mutants of 1 files")
    score, stale = done.stdout.splitlines()
    assert counts(score)[:2] == [1, 1]
    assert stale == "tools/mutants_equivalent.txt: no such mutant: refrain/text/toy.cpp: if (a >= b) return a; -> if (a == b) return a;"


def test_the_unchanged_tree_must_pass(toy):
    (toy / "toy_test.cpp").write_text(TEST.replace("== 17", "== 18"))
    done = mutants(toy, "refrain")
    assert done.returncode == 1 and "toy_test fails on the unchanged tree" in done.stderr
    assert done.stdout == ""


def test_this_repository_names_tests_that_exist():
    """Each program of the table is added in some CMakeLists.txt; Python tests are files of tests/golden."""
    cmake = "".join(path.read_text() for folder in ("refrain", "tests", "cli") for path in (ROOT / folder).rglob("CMakeLists.txt"))
    for line in (ROOT / "tools" / "mutants_tests.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        _, needs, programs = line.partition(" needs ")
        for program in programs.split():
            assert (ROOT / "tests" / "tools" / f"{program}.cpp").exists() or program in ("refrain_cli", "ops_test"), program
        if needs:
            continue
        folder, tests = line.split(":")
        assert (ROOT / folder).is_dir(), folder
        for test in tests.split():
            golden = ROOT / "tests" / "golden" / f"{test.removeprefix('golden_')}_test.py"
            assert f"refrain_add_test({test.removesuffix('_remote')} " in cmake or golden.exists(), test
