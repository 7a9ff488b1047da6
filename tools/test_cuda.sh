#!/usr/bin/env bash
# Tests on a GPU what cuda_carry.sh put together: test_cuda.sh FOLDER [--device cuda:N] [--sanitize] [--only NAME].
# Runs in the repository's root; logs go to $OUT or FOLDER/logs. Ends with a table; the exit status is 1 if anything failed.
set -uo pipefail
folder=$(cd "$1" && pwd)
shift
device=cuda:0
sanitize=0
only=
while [[ $# -gt 0 ]]; do
  case "$1" in
    --device) device=$2; shift 2 ;;
    --sanitize) sanitize=1; shift ;;
    --only) only=$2; shift 2 ;;
    *) echo "test_cuda.sh: expected --device, --sanitize or --only, got '$1'" >&2; exit 2 ;;
  esac
done
logs=${OUT:-$folder/logs}
mkdir -p "$logs"
export LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} REFRAIN_TEST_DEVICE=$device
lines=()
failed=0

# step NAME SECONDS COMMAND ...: runs it within a time, keeps its output, shows what failed.
step() {
  local name=$1 limit=$2 start status result counts
  shift 2
  [[ -z "$only" || "$name" == $only ]] || return 0
  start=${EPOCHREALTIME//[!0-9]/}
  timeout "$limit" "$@" >"$logs/$name.log" 2>&1
  status=$?
  result=passed
  if [[ $status -ne 0 ]]; then
    result="FAILED ($status)"
    failed=1
    grep -E 'Failure|error:|FAILED|ERROR|=========|what\(\)|terminate' -A6 "$logs/$name.log" | head -40
  fi
  counts=$(grep -E '^\[  (PASSED|SKIPPED|FAILED)  \] [0-9]+ test|ERROR SUMMARY' "$logs/$name.log" |
    sed 's/^\[ *//; s/ *\] / /; s/=========//' | tr '\n' ' ')
  lines+=("$(printf '%-14s %-13s %4d.%d s  %s' "$name" "$result" $(((${EPOCHREALTIME//[!0-9]/} - start) / 1000000)) \
    $(((${EPOCHREALTIME//[!0-9]/} - start) / 100000 % 10)) "$counts")")
}

gtest=(--gtest_brief=1)
step conformance 120 "$folder/conformance_test" "${gtest[@]}" --gtest_filter='*cuda*:Cuda*'
step ops 240 "$folder/ops_test" "${gtest[@]}"
step lost 60 "$folder/cuda_lost_test" "${gtest[@]}"
for test in same_bits families replay step; do
  step "$test" 120 "$folder/${test}_test" "${gtest[@]}"
done
for test in same_bits replay step; do
  step "${test}_fast" 120 env REFRAIN_TEST_MODE=fast "$folder/${test}_test" "${gtest[@]}"
done
if [[ $sanitize -eq 1 ]]; then
  for tool in memcheck racecheck initcheck "synccheck --num-cuda-barriers 65536"; do
    # shellcheck disable=SC2086  # a tool and its options
    step "${tool%% *}" 300 compute-sanitizer --tool $tool --error-exitcode 9 "$folder/ops_test" "${gtest[@]}"
  done
fi

printf '\n=== %s\n' "$device"
printf '%s\n' "${lines[@]}"
[[ $failed -eq 0 ]] && echo "CUDA TESTS PASSED" || echo "CUDA TESTS FAILED"
exit $failed
