#!/usr/bin/env bash
# Installs Debian packages: setup.sh [build] [test] [lint] [ci] [tidy] [bench]. Does nothing, and needs no network, when
# all are there.
# Not a package list for other systems: where dpkg is missing it says what is needed and leaves the rest to CMake.
set -euo pipefail

build=(g++ cmake ninja-build libfmt-dev libsimdjson-dev libpcre2-dev libutf8proc-dev libcli11-dev)
test=(libgtest-dev python3-venv)
lint=(clang-format-16 python3 python3-venv)
ci=(clang-16 libclang-rt-16-dev)
tidy=(clang-16 clang-tidy-16)
bench=(libtbb-dev libbenchmark-dev)

wanted=()
for mode in "${@:-build}"; do
  case "$mode" in
    build) wanted+=("${build[@]}") ;;
    test) wanted+=("${test[@]}") ;;
    lint) wanted+=("${lint[@]}") ;;
    ci) wanted+=("${ci[@]}") ;;
    tidy) wanted+=("${tidy[@]}") ;;
    bench) wanted+=("${bench[@]}") ;;
    *) echo "setup.sh: expected build, test, lint, ci, tidy or bench, got '$mode'" >&2; exit 2 ;;
  esac
done

if ! command -v dpkg-query >/dev/null; then
  echo "setup.sh: no dpkg here; needed are: ${wanted[*]}" >&2
  exit 0
fi

installed=" $(dpkg-query -W -f='${db:Status-Status}:${Package} ' "${wanted[@]}" 2>/dev/null || true)"
missing=()
for package in "${wanted[@]}"; do
  [[ "$installed" == *" installed:$package "* ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

as_root=()
if [[ $(id -u) -ne 0 ]]; then
  if ! command -v sudo >/dev/null; then
    echo "setup.sh: not root and no sudo; please install: ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "setup.sh: installing ${missing[*]}" >&2
"${as_root[@]}" apt-get update -qq >&2
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
