#!/usr/bin/env python3
"""Mutation tests: plants small bugs one at a time, in copies of the tree, and reports those that no test notices.

Usage: mutants.py [--seconds N] [--count N] [--jobs N] [--seed N] [--base REV] [--test-seconds N] [--replay FILE] [PATH ...]
Mutates the sources and headers below the paths (files or folders); without paths the sources that changed since REV, which
is the merge base with `main`, or HEAD~ on `main` itself. Which tests guard a folder says tools/mutants_tests.txt; mutants
that change nothing, and why, tools/mutants_equivalent.txt. Needs the packages of tools/mutants_requirements.txt.

Every worker has a copy of the tree in build/mutants, with a build of its own: the library is a shared one, so that a
mutant costs one object (of a header all that include it), one link and the tests. One that does not compile, or gives the
same programs, does not count. A test that takes much longer than on the unchanged tree has noticed. The same seed gives the
same mutants. --test-seconds leaves out the tests that take longer on the unchanged tree; --replay tries those again that a
report names, wherever their lines are now: what survived the quick tests, with all of them, or with a new one.

Prints a line for each survivor, `file:line: before -> after`, and a score for each folder, and writes both to
build/mutants/report.txt, every mutant that was tried to build/mutants/tried.txt. Exit status 1: the unchanged tree does not
build or pass, or an entry of the list of equivalent mutants matches nothing; 130: interrupted, with a report so far.
"""

import argparse
import collections
import hashlib
import itertools
import json
import math
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import mutants_cpp
from source_files import source_files

ROOTS = ("refrain", "cli")
OF_TESTS = re.compile("^test_|^testing$|^benching$|_test$|_bench$")  # names of what is no part of the library
FLAGS = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG",
    "-DCMAKE_LINK_DEPENDS_NO_SHARED=ON",
    "-DREFRAIN_SHARED=ON",
    "-DREFRAIN_TESTS=ON",
    "-DREFRAIN_BENCH=OFF",
    "-DREFRAIN_EXAMPLES=OFF",
    "-DREFRAIN_INSTALL=OFF",
]
BUILD_SECONDS = 1800  # then a mutant counts as one that does not compile
WAIT_SECONDS = 0.5
GIB = 1 << 30
LIMITS = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: GIB, resource.RLIMIT_DATA: 6 * GIB}


class Failure(Exception):
    """The campaign cannot go on; the text says why."""


class Processes:
    """Runs commands in process groups of their own, so that a timeout or an interrupt ends all that they started."""

    def __init__(self):
        self.running = set()
        self.lock = threading.Lock()
        self.stopped = False

    def run(self, command, timeout=None, log=None, **options):
        """The exit status, or None after a timeout."""
        with open(log or os.devnull, "wb") as output:
            with self.lock:
                if self.stopped:
                    raise KeyboardInterrupt
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **options
                )
                self.running.add(process)
            try:
                return self.wait(process, timeout)
            finally:
                self.end(process)
                with self.lock:
                    self.running.discard(process)
                if self.stopped:
                    raise KeyboardInterrupt

    @staticmethod
    def wait(process, timeout):
        """Counts its own waits, not the clock: a machine that was suspended makes no test hang."""
        waits = itertools.count() if timeout is None else range(int(timeout / WAIT_SECONDS) + 1)
        for _ in waits:
            try:
                return process.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        return None

    @staticmethod
    def signal(process, number):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass

    def end(self, process):
        """Ninja ends its compilers, which are no part of its group, when it is asked to."""
        try:
            if process.poll() is None:
                self.signal(process, signal.SIGTERM)
                process.wait(5)
        except subprocess.TimeoutExpired:
            pass
        self.signal(process, signal.SIGKILL)
        process.wait()

    def stop(self):
        with self.lock:
            self.stopped = True
            for process in self.running:
                self.signal(process, signal.SIGTERM)


def write(path, data):
    """Anew, never in place: copies may share a file."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


class Table:
    """tools/mutants_tests.txt: the tests of a folder and the programs that a test needs."""

    def __init__(self, path):
        self.tests, self.needs = {}, {}
        for line in path.read_text(encoding="utf-8").splitlines():
            name, colon, rest = line.partition(":")
            test, needs, programs = line.partition(" needs ")
            if needs:
                self.needs[test] = programs.split()
            elif colon and not line.startswith("#"):
                self.tests[name] = rest.split()

    def folder(self, path):
        """The longest folder of the table that holds the path; None without one, or if it has no tests."""
        found = next((str(folder) for folder in path.parents if str(folder) in self.tests), None)
        return found if self.tests.get(found) else None

    def programs(self, tests):
        return sorted({program for test in tests for program in self.needs.get(test, [test])})


def read_equivalent(path):
    """Entries (file, before, after) to the reason; `after: *` stands for every mutant of the line."""
    entries = {}
    if not path.exists():
        return entries
    for number, block in enumerate(path.read_text(encoding="utf-8").split("\n\n"), 1):
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
        if not lines:
            continue
        fields = dict(line.strip().partition(": ")[::2] for line in lines)
        if set(fields) != {"file", "before", "after", "why"}:
            raise Failure(f"{path}: block {number}: expected file, before, after and why, got {', '.join(fields)}")
        entries[fields["file"], fields["before"], fields["after"]] = fields["why"]
    return entries


def key_of(path, mutant, entries):
    """The entry that says that this mutant changes nothing, or None."""
    keys = [(str(path), mutant.before, mutant.after), (str(path), mutant.before, "*")]
    return next((key for key in keys if key in entries), None)


def git(root, *arguments):
    done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.split() if done.returncode == 0 else []


def changed_files(root, base):
    if not base:
        head = git(root, "rev-parse", "HEAD")
        base = git(root, "merge-base", "HEAD", "main")
        base = base[0] if base and base != head else "HEAD~"
    changed = git(root, "diff", "--name-only", base) + git(root, "ls-files", "--others", "--exclude-standard")
    return {pathlib.PurePosixPath(name) for name in changed}


def sources_to_mutate(root, paths, base):
    """Those below the paths, headers too. Of what has changed no headers: each costs all that includes it."""
    files = [path for path in source_files(root, {".cpp", ".h"}) if path.parts[0] in ROOTS and not OF_TESTS.search(path.stem)]
    wanted = {pathlib.PurePosixPath(os.path.relpath(root / path, root)) for path in paths}
    if not paths:
        wanted = {path for path in changed_files(root, base) if path.suffix == ".cpp"}
    return [path for path in files if path in wanted or wanted.intersection(path.parents)]


def named_by(report):
    """Pairs (file, rest of the line) of a report's survivors, or of those that a list of what was tried calls so."""
    lines = re.findall(r"^(?:survived: )?([^\s:]+):\d+: (.* -> .*)$", report.read_text(encoding="utf-8"), re.MULTILINE)
    if not lines:
        raise Failure(f"{report}: no line `file:line: before -> after`")
    return set(lines)


def sample(sources, seed):
    """All mutants in the order in which they are tried: files take turns by their lines, lines within a file equally."""
    random_state = random.Random(seed)
    order = []
    for path, mutants in sorted(sources.items()):
        lines = collections.defaultdict(list)
        for mutant in mutants:
            lines[mutant.line].append(mutant)
        for of_line in lines.values():
            random_state.shuffle(of_line)
            for turn, mutant in enumerate(of_line):
                order.append((turn + random_state.random(), str(path), mutant))
    return [(pathlib.PurePosixPath(path), mutant) for _, path, mutant in sorted(order, key=lambda entry: entry[:2])]


class Worker:
    """A copy of the tree and its build."""

    def __init__(self, root, folder, processes, flags):
        self.root, self.processes, self.flags = root, processes, flags
        self.source = folder / "tree"
        self.build = self.source / "build" / "mutants"
        self.temporary = folder / "tmp"
        self.log = folder / "log.txt"
        self.digests = {}  # of what was linked, with the time at which it was

    def copy_tree(self):
        """What differs is written anew; so is a source that an interrupted campaign has left mutated."""
        wanted = set(source_files(self.root, None))
        for path in self.source.rglob("*"):
            relative = path.relative_to(self.source)
            if relative.parts[0] != "build" and not path.is_dir() and pathlib.PurePosixPath(relative) not in wanted:
                path.unlink()
        for path in wanted:
            data = (self.root / path).read_bytes()
            copy = self.source / path
            if not copy.exists() or copy.read_bytes() != data:
                copy.parent.mkdir(parents=True, exist_ok=True)
                write(copy, data)
                shutil.copymode(self.root / path, copy)

    def prepare(self, programs, jobs):
        self.copy_tree()
        if self.processes.run(["cmake", "-S", self.source, "-B", self.build, "-G", "Ninja", *self.flags], log=self.log) != 0:
            raise Failure(f"the unchanged tree cannot be configured, see {self.log}")
        self.programs = programs
        if not self.make(jobs):
            raise Failure(f"the unchanged tree does not build, see {self.log}")
        self.original = self.results()
        listing = subprocess.run(
            ["ctest", "--test-dir", self.build, "--show-only=json-v1"], capture_output=True, text=True, check=True
        )
        self.commands = {test["name"]: test for test in json.loads(listing.stdout)["tests"]}

    def make(self, jobs=1, timeout=None):
        command = ["ninja", "-C", self.build, f"-j{jobs}", *self.programs]
        return self.processes.run(command, timeout, self.log) == 0

    def results(self):
        """Digests of all that was linked, without symbols."""
        for path in [*(self.build / "bin").glob("*"), *(self.build / "lib").glob("*.so")]:
            linked = path.stat().st_mtime_ns
            if self.digests.get(path, (0,))[0] != linked:
                stripped = self.temporary.with_name("stripped")
                subprocess.run(["strip", "--strip-all", "-R", ".note.gnu.build-id", "-o", stripped, path], check=True)
                self.digests[path] = linked, hashlib.sha256(stripped.read_bytes()).digest()
        return {path: digest for path, (_, digest) in self.digests.items()}

    def test(self, name, timeout=None):
        """True: passed. None: took too long."""
        if name not in self.commands:
            raise Failure(f"tools/mutants_tests.txt names {name}, which ctest does not know (no Python environment?)")
        properties = {entry["name"]: entry["value"] for entry in self.commands[name].get("properties", [])}
        environment = dict(entry.split("=", 1) for entry in properties.get("ENVIRONMENT", []))
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir()
        status = self.processes.run(
            self.commands[name]["command"],
            timeout,
            self.log,
            cwd=properties.get("WORKING_DIRECTORY", self.build),
            env=os.environ
            | {"TMPDIR": str(self.temporary), "GTEST_FAIL_FAST": "1", "PYTEST_ADDOPTS": "-x"}
            | environment,
        )
        return None if status is None else status in (0, properties.get("SKIP_RETURN_CODE", 0))


class Campaign:
    """What workers share: the mutants to try and what became of them."""

    def __init__(self, table, workers, options, tried):
        self.table, self.workers, self.tried = table, workers, tried
        self.grace, self.longest = options.grace, options.test_seconds
        self.lock = threading.Lock()
        self.seconds = {}  # of a test on the unchanged tree
        self.runs, self.kills = collections.Counter(), collections.Counter()
        self.found = []  # (path, mutant, result)

    def measure(self, tests):
        for test in tests:
            begin = time.monotonic()
            passed = self.workers[0].test(test, None if self.longest == math.inf else self.longest)
            if passed is False:
                raise Failure(f"{test} fails on the unchanged tree, see {self.workers[0].log}")
            self.seconds[test] = time.monotonic() - begin if passed else math.inf

    def in_order(self, path):
        """What has caught most per second comes first: in this file, and at all."""

        def rate(test):
            return -(self.kills[path, test] * 10 + self.kills[test] + 1) / (self.runs[test] + 1) / (self.seconds[test] + 0.1)

        tests = self.table.tests[self.table.folder(path)]
        return sorted((test for test in tests if self.seconds[test] <= self.longest), key=rate)

    def judge(self, worker, path, mutant):
        if not worker.make(timeout=BUILD_SECONDS):
            return "does not compile"
        if worker.results() == worker.original:
            return "same code"
        for test in self.in_order(path):
            passed = worker.test(test, timeout=self.grace + 5 * self.seconds[test])
            with self.lock:
                self.runs[test] += 1
                if not passed:
                    self.kills[test] += 1
                    self.kills[path, test] += 1
            if not passed:
                return "too slow" if passed is None else "caught"
        return "survived"

    def work(self, worker, queue, until):
        while True:
            with self.lock:
                if not queue or time.monotonic() >= until:
                    return
                path, mutant = queue.popleft()
            original = (worker.root / path).read_bytes()
            try:
                write(worker.source / path, mutant.apply(original))
                result = self.judge(worker, path, mutant)
            finally:
                write(worker.source / path, original)
            with self.lock:
                self.found.append((path, mutant, result))
                print(f"{result}: {line_of(path, mutant)}", file=self.tried, flush=True)
                if result == "survived":
                    print(line_of(path, mutant), flush=True)

    def run(self, order, seconds):
        queue, until, errors = collections.deque(order), time.monotonic() + seconds, []

        def guarded(worker):
            try:
                self.work(worker, queue, until)
            except KeyboardInterrupt:
                pass
            except Exception as error:  # a thread's error belongs to the campaign
                errors.append(error)
                queue.clear()

        threads = [threading.Thread(target=guarded, args=(worker,)) for worker in self.workers]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            self.workers[0].processes.stop()
            for thread in threads:
                thread.join()
            print("mutants.py: interrupted", file=sys.stderr)
        if errors:
            raise errors[0]


def line_of(path, mutant):
    return f"{path}:{mutant.line}: {mutant.before} -> {mutant.after}"


def report_of(campaign, listed, stale, table):
    counts = collections.defaultdict(collections.Counter)
    for path, _, result in campaign.found:
        counts[table.folder(path)][result] += 1
    for path in listed:
        counts[table.folder(path)]["equivalent"] += 1
    survivors = [(str(path), mutant.line, line_of(path, mutant)) for path, mutant, result in campaign.found if result == "survived"]
    yield from (line for _, _, line in sorted(survivors))
    for folder, count in sorted(counts.items()):
        noticed = count["caught"] + count["too slow"]
        all_counted = noticed + count["survived"]
        score = f"{100 * noticed / all_counted:.0f} %" if all_counted else "nothing tried"
        yield (
            f"{folder}: {score} ({noticed} of {all_counted} noticed, {count['too slow']} of them by time; not counted: "
            f"{count['does not compile']} that do not compile, {count['same code']} with the same code, "
            f"{count['equivalent']} listed as equivalent)"
        )
    for name, before, after in stale:
        yield f"tools/mutants_equivalent.txt: no such mutant: {name}: {before} -> {after}"


def stale_entries(root, entries):
    """Entries that no mutant of their file has."""
    unused = set(entries)
    for name in {key[0] for key in entries}:
        if (root / name).is_file():
            for mutant in mutants_cpp.mutants_of((root / name).read_bytes()):
                unused.discard(key_of(name, mutant, entries))
    return sorted(unused)


def campaign_of(options):
    root = options.root.resolve()
    table = Table(root / "tools" / "mutants_tests.txt")
    entries = read_equivalent(root / "tools" / "mutants_equivalent.txt")
    stale = stale_entries(root, entries)
    replayed = named_by(options.replay) if options.replay else None
    named = options.paths or sorted({name for name, _ in replayed or ()})
    paths = [path for path in sources_to_mutate(root, named, options.base) if table.folder(path)]
    order = sample({path: mutants_cpp.mutants_of((root / path).read_bytes()) for path in paths}, options.seed)
    if replayed:
        order = [(path, mutant) for path, mutant in order if (str(path), f"{mutant.before} -> {mutant.after}") in replayed]
    print(f"{len(order)} mutants of {len(paths)} files", file=sys.stderr, flush=True)

    results = root / "build" / "mutants"
    results.mkdir(parents=True, exist_ok=True)
    if shutil.which("ccache"):
        os.environ.setdefault("CMAKE_CXX_COMPILER_LAUNCHER", "ccache")
        os.environ.setdefault("CCACHE_BASEDIR", str(results))
        os.environ.setdefault("CCACHE_NOHASHDIR", "1")
        os.environ.setdefault("CCACHE_DEPEND", "1")  # a mutant is never found: no preprocessing to see that
    processes = Processes()
    workers = []
    for number in range(min(options.jobs, max(1, len(order)))):
        folder = results / f"worker{number}"
        folder.mkdir(exist_ok=True)
        workers.append(Worker(root, folder, processes, FLAGS + options.cmake))

    tried = open(results / "tried.txt", "w", encoding="utf-8")
    campaign = Campaign(table, workers, options, tried)
    listed = []
    if order:
        tests = sorted({test for path in paths for test in table.tests[table.folder(path)]})
        for worker in workers:  # one after another: with ccache the later ones find what the first has compiled
            worker.prepare(table.programs(tests), options.jobs)
        campaign.measure(tests)
        tried = order[: options.count] if options.count else order
        listed = [path for path, mutant in tried if key_of(path, mutant, entries)]
        campaign.run([entry for entry in tried if not key_of(*entry, entries)], options.seconds)

    report = list(report_of(campaign, listed, stale, table))
    (results / "report.txt").write_text("".join(line + "\n" for line in report), encoding="utf-8")
    known = sum(result == "survived" for _, _, result in campaign.found)
    print("\n".join(report[known:]))  # survivors were printed when they were found
    return 130 if processes.stopped else 1 if stale else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("paths", nargs="*", metavar="PATH")
    parser.add_argument("--seconds", type=float, default=600, help="for the mutants, after the build of the unchanged tree")
    parser.add_argument("--count", type=int, help="mutants at most")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--grace", type=float, default=10, help="seconds that a test may take beyond 5 times the usual")
    parser.add_argument("--test-seconds", type=float, default=math.inf, help="leaves out tests that take longer")
    parser.add_argument("--replay", type=pathlib.Path, metavar="FILE", help="only the survivors that a report names")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--base", help="revision that changed files are compared with")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent)
    parser.add_argument("--cmake", action="append", default=[], metavar="FLAG", help="further flag of cmake")
    options = parser.parse_args()
    for limit, value in LIMITS.items():  # a mutant must not fill the machine
        resource.setrlimit(limit, (min(value, *[v for v in resource.getrlimit(limit) if v >= 0] or [value]),) * 2)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return campaign_of(options)
    except KeyboardInterrupt:  # before the first mutant
        return 130
    except Failure as failure:
        print(f"mutants.py: {failure}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
