#!/usr/bin/env bash
# Runs the tests of one build folder: run_tests.sh FOLDER [ctest arguments]. Ends with what was skipped, and why, and
# one line of summary; the exit status is ctest's.
set -uo pipefail
folder=$1
shift

ctest --test-dir "$folder" --output-on-failure --no-tests=error -j "$(nproc)" "$@"
status=$?

# pytest names the reason on the line itself, GoogleTest on the next one.
skipped=$(awk '/^SKIPPED \[/ { print } /: Skipped$/ { place = $1; getline; print place, $0 }' \
  "$folder/Testing/Temporary/LastTest.log" 2>/dev/null | sort -u)
if [[ -n "$skipped" ]]; then
  printf '\nSkipped:\n%s\n' "$skipped"
fi
echo
if [[ $status -eq 0 ]]; then
  echo "TESTS PASSED ($folder)"
else
  echo "TESTS FAILED ($folder)"
fi
exit $status
