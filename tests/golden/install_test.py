"""The installed tree: a program that sees nothing else builds with it and runs, and nothing lies there that it lacks."""

import pathlib
import re
import subprocess

import pytest

USER = """
cmake_minimum_required(VERSION 3.25)
project(User LANGUAGES CXX)
find_package(Refrain 0.1 REQUIRED)
foreach(program custom_op generate_text record_and_replay)
  add_executable(${program} "${REFRAIN_DOCUMENTS}/examples/${program}.cpp")
  target_link_libraries(${program} PRIVATE refrain::refrain)
endforeach()
"""


def done(*command, **options):
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, check=False, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def prefix(binaries, tmp_path_factory):
    """Where this build has been installed."""
    prefix = tmp_path_factory.mktemp("installed")
    done("cmake", "--install", binaries.parent, "--prefix", prefix)
    return prefix


def test_a_program_builds_with_the_installed_tree_alone_and_uses_all_of_it(prefix, binaries, tales, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(USER)
    documents = prefix / "share/doc/Refrain"
    compiler = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.*)", (binaries.parent / "CMakeCache.txt").read_text(), re.M)[1]
    settings = [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_PREFIX_PATH={prefix}", f"-DREFRAIN_DOCUMENTS={documents}"]
    done("cmake", "-G", "Ninja", "-S", tmp_path, "-B", tmp_path / "build", *settings)
    done("cmake", "--build", tmp_path / "build")
    assert "1 commands" in done(tmp_path / "build/record_and_replay")
    assert done(tmp_path / "build/generate_text", tales, "Once").startswith(" upon a time")

    include = prefix / "include"
    dependencies = done("ninja", "-C", tmp_path / "build", "-t", "deps")
    read = {path for path in map(pathlib.Path, re.findall(r"^    (.*)", dependencies, re.M)) if include in path.parents}
    installed = {path for path in include.rglob("*") if path.is_file()}
    assert len(read) > 30
    assert installed == read, "the headers that refrain/refrain.h reaches, and no other"


def test_the_installed_program_runs(prefix, tales):
    assert done(prefix / "bin/refrain", "generate", tales, "-p", "Once upon a time", "-n", 3) == ", there was"


def test_licence_and_documents_come_along(prefix, root):
    documents = prefix / "share/doc/Refrain"
    assert (documents / "LICENSE").read_text() == (root / "LICENSE").read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)", (documents / "README.md").read_text(encoding="utf-8"))
    kept = [link for link in links if link.startswith(("docs/", "examples/"))]
    assert len(kept) >= 3
    for link in kept:
        assert (documents / link).is_file(), link


def test_make_install_builds_what_it_installs_and_no_more(root, tmp_path):
    commands = done("make", "--dry-run", "install", f"PREFIX={tmp_path}", cwd=root)
    assert "setup.sh" not in commands and "apt" not in commands
    builds = re.findall(r"cmake --build .*", commands)
    assert len(builds) == 1 and "--target refrain refrain_cli" in builds[0]
