#!/usr/bin/env bash
# Runs the tests of one build folder: run_tests.sh FOLDER [ctest arguments]. Ends with the figures that were
# found, what was skipped, and why, and one line of summary; the exit status is ctest's.
set -uo pipefail
folder=$1
shift

# A campaign has no limit of its own; here it is short, and in `make fuzz` the arguments say another.
ctest --test-dir "$folder" --output-on-failure --no-tests=error -j "$(nproc)" --timeout 600 "$@"
status=$?

found=$(sed -n 's/^FOUND /  /p' "$folder/Testing/Temporary/LastTest.log" 2>/dev/null)
if [[ -n "$found" ]]; then
  printf '\nFound, greatest over all cases:\n%s\n' "$found"
fi

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
