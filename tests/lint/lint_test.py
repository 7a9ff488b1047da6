"""The checks of tools/ accept what they should and refuse planted violations."""

import pathlib
import subprocess
import sys

import pytest

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools"


def check(script, root):
    return subprocess.run([sys.executable, TOOLS / script, root], capture_output=True, text=True, check=False)


def plant(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


HOUSE = {
    f"refrain/{name}": "#pragma once\n"
    for name in (
        "refrain.h",
        "core/a.h",
        "backend/backend.h",
        "backend/cpu/team.h",
        "backend/null/null.h",
        "graph/a.h",
        "device/a.h",
        "ops/a.h",
        "format/a.h",
        "text/a.h",
        "model/a.h",
        "ops/add/testing.h",
    )
}


def include(name):
    return f'#pragma once\n#include "{name}"\n'


@pytest.mark.parametrize(
    "path, target",
    [
        ("refrain/backend/b.h", "refrain/core/a.h"),
        ("refrain/backend/cpu/b.h", "refrain/backend/cpu/team.h"),
        ("refrain/backend/cpu/b.cpp", "refrain/backend/backend.h"),
        ("refrain/device/b.cpp", "refrain/graph/a.h"),
        ("refrain/ops/add/add.cpp", "refrain/format/a.h"),
        ("refrain/model/b.cpp", "refrain/text/a.h"),
        ("refrain/open.cpp", "refrain/backend/cpu/team.h"),
        ("cli/main.cpp", "refrain/refrain.h"),
        ("refrain/core/a_test.cpp", "refrain/refrain.h"),
        ("refrain/ops/add/add_test.cpp", "refrain/ops/add/testing.h"),
        ("tests/null/b.cpp", "refrain/backend/null/null.h"),
        ("bench/b.cpp", "refrain/backend/cpu/team.h"),
        ("bench/b.cpp", "refrain/ops/add/testing.h"),
        ("refrain/ops/add/add_bench.cpp", "refrain/ops/add/testing.h"),
        ("refrain/refrain.h", "refrain/ops/ops.h"),
    ],
)
def test_allowed_include(tmp_path, path, target):
    plant(tmp_path, HOUSE | {path: include(target)})
    result = check("check_includes.py", tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "path, target",
    [
        ("refrain/core/b.h", "refrain/backend/backend.h"),
        ("refrain/backend/b.h", "refrain/graph/a.h"),
        ("refrain/backend/b.h", "refrain/backend/cpu/team.h"),
        ("refrain/backend/null/b.h", "refrain/backend/cpu/team.h"),
        ("refrain/backend/cpu/b.cpp", "refrain/ops/a.h"),
        ("refrain/graph/b.h", "refrain/device/a.h"),
        ("refrain/graph/b.h", "refrain/backend/cpu/team.h"),
        ("refrain/device/b.h", "refrain/ops/a.h"),
        ("refrain/device/b.h", "refrain/format/a.h"),
        ("refrain/ops/b.h", "refrain/model/a.h"),
        ("refrain/ops/b.h", "refrain/text/a.h"),
        ("refrain/ops/add/add.cpp", "refrain/ops/add/testing.h"),
        ("refrain/format/b.h", "refrain/text/a.h"),
        ("refrain/text/b.h", "refrain/model/a.h"),
        ("refrain/model/b.h", "refrain/backend/cpu/team.h"),
        ("refrain/model/b.h", "refrain/refrain.h"),
        ("cli/main.cpp", "refrain/backend/cpu/team.h"),
        ("examples/main.cpp", "refrain/ops/add/testing.h"),
        ("refrain/core/b.h", "a.h"),
        ("refrain/core/b.h", "refrain/core/absent.h"),
    ],
)
def test_forbidden_include(tmp_path, path, target):
    plant(tmp_path, HOUSE | {path: include(target)})
    result = check("check_includes.py", tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"{path}:2: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "path, text",
    [
        ("refrain/core/b.h", "#pragma once\n#include <fmt/format.h>\n"),
        ("refrain/core/b.h", "int x;\n"),
        ("refrain/elsewhere/b.cpp", "int x;\n"),
        ("refrain/model/b.cpp", "#include <CLI/CLI.hpp>\n"),
    ],
)
def test_forbidden_text(tmp_path, path, text):
    plant(tmp_path, HOUSE | {path: text})
    assert check("check_includes.py", tmp_path).returncode == 1


@pytest.mark.parametrize(
    "path, limit",
    [
        ("refrain/core/a.h", 300),
        ("refrain/core/a.cpp", 500),
        ("refrain/core/a_test.cpp", 800),
        ("refrain/ops/add/add.cpp", 500),
        ("refrain/ops/add/add_cpu.cpp", 800),
        ("refrain/ops/add/add_cpu_avx2.cpp", 800),
        ("tests/golden/logits_test.py", 800),
        ("tools/a.py", 500),
    ],
)
def test_size_limit(tmp_path, path, limit):
    plant(tmp_path, {path: "//\n" * limit})
    assert check("check_sizes.py", tmp_path).returncode == 0
    plant(tmp_path, {path: "//\n" * (limit + 1)})
    result = check("check_sizes.py", tmp_path)
    assert result.returncode == 1 and result.stderr == f"{path}: {limit + 1} lines, at most {limit}\n"


@pytest.mark.parametrize(
    "path, line",
    [
        ("refrain/core/b.cpp", 'const char* home = std::getenv("HOME");'),
        ("refrain/backend/cpu/b.h", 'inline auto x = secure_getenv("X");'),
        ("refrain/open.cpp", "extern char** environ;"),
        ("refrain/text/b.inc", 'setenv("X", "", 1);'),
        ("refrain/device/b.cpp", 'std::fprintf(stderr, "lost");'),
        ("refrain/device/b.cpp", "#include <iostream>"),
        ("refrain/device/b.cpp", "std::cerr << 1'000;"),
        ("refrain/graph/b.cpp", "std::abort();"),
        ("refrain/graph/b.cpp", "exit(1);"),
        ("refrain/ops/b.cpp", "void run(backend::Backend& backend);"),
        ("refrain/model/b.h", "std::shared_ptr<backend::Backend> backend;"),
    ],
)
def test_laws(tmp_path, path, line):
    plant(tmp_path, {path: f"// a\n{line}\n"})
    result = check("check_laws.py", tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"{path}:2: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "path, line",
    [
        ("refrain/core/b.cpp", "// getenv is not read\nint environment = 1'000; /* std::abort()\n exit(1) */"),
        ("refrain/core/b.cpp", 'auto s = "printf(\\"getenv\\")"; char c = \'"\'; auto r = R"(abort())";'),
        ("refrain/core/b_test.cpp", 'setenv("X", "", 1);'),
        ("refrain/device/b.cpp", "std::shared_ptr<backend::Backend> backend;"),
        ("cli/main.cpp", 'std::printf("%s", std::getenv("HOME"));'),
    ],
)
def test_within_the_laws(tmp_path, path, line):
    plant(tmp_path, {path: f"{line}\n"})
    result = check("check_laws.py", tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("script", ["check_includes.py", "check_sizes.py", "check_laws.py"])
def test_this_repository(script):
    result = check(script, TOOLS.parent)
    assert result.returncode == 0, result.stderr


def op_files(op, doc="/// Adds.\n"):
    return {
        "refrain/ops/ops.inc": f"OP({op})\n",
        f"refrain/ops/{op}/{op}.h": f"// {op}: a sum.\n#pragma once\nstruct Add {{\n  int a;\n}};\n\n{doc}"
        f"void {op}(CommandEncoder& encoder, const Add& args);\n",
        f"refrain/ops/{op}/{op}_cpu.cpp": "",
        f"refrain/ops/{op}/{op}_cuda.cu": "",
    }


def test_the_page_of_ops_is_what_the_headers_say(tmp_path):
    script = [sys.executable, TOOLS / "make_ops_page.py"]
    plant(tmp_path, op_files("add") | {"docs/a.md": ""})
    assert check("make_ops_page.py", tmp_path).returncode == 0
    page = (tmp_path / "docs/ops.md").read_text()
    assert "## add\n\nA sum.\n" in page and "/// Adds.\nvoid add(" in page and "Kernels: portable, CUDA." in page
    assert subprocess.run([*script, "--check", tmp_path], check=False).returncode == 0
    plant(tmp_path, op_files("add", "/// Adds two.\n"))
    done = subprocess.run([*script, "--check", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "make ops-page" in done.stderr
    plant(tmp_path, op_files("add", ""))
    assert "add/add.h: expected a docstring" in check("make_ops_page.py", tmp_path).stderr


SYMBOLS = {
    "int counter;": "refrain::counter: can be written (.bss)",
    "static int hidden = 3; int f() { return hidden++; }": "refrain::hidden: can be written (.data)",
    "thread_local int depth;": "refrain::depth: can be written (.tbss)",
    "std::vector<int>& all() { static std::vector<int> list; return list; }": "refrain::all()::list: can be written (.bss)",
    'bool f() { return std::getenv("A") != nullptr; }': "getenv: the environment",
    'void f() { std::printf("a\\n"); }': "puts: prints",
    "void f() { std::cout << 1; }": "std::cout: prints",
    "void f() { exit(2); }": "exit: ends the process",
}


def library_of(tmp_path, code):
    head = "#include <cstdio>\n#include <cstdlib>\n#include <iostream>\n#include <vector>\n"
    (tmp_path / "a.cpp").write_text(f"{head}namespace refrain {{\n{code}\n}}\n")
    subprocess.run(["c++", "-O1", "-std=c++20", "-c", "a.cpp"], cwd=tmp_path, check=True)
    subprocess.run(["ar", "rc", "liba.a", "a.o"], cwd=tmp_path, check=True)
    return check("check_symbols.py", tmp_path / "liba.a")


@pytest.mark.parametrize("code, message", SYMBOLS.items())
def test_symbols(tmp_path, code, message):
    done = library_of(tmp_path, code)
    assert done.returncode == 1 and f"a.o: {message}\n" in done.stderr


def test_constants_are_no_globals_that_can_be_written(tmp_path):
    code = "const std::vector<int>& k() { static const std::vector<int> kTable{1}; return kTable; }\nconst char* const kName = \"a\";"
    assert "kTable" not in library_of(tmp_path, code).stderr
