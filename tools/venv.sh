#!/usr/bin/env bash
# Makes the virtual environment of the tests: venv.sh FOLDER REQUIREMENTS. Reuses it while the requirements are the
# same; a half-made one is made anew.
set -euo pipefail
folder=$1
requirements=$2

if cmp -s "$requirements" "$folder/requirements.txt"; then exit 0; fi
echo "venv.sh: making $folder from $requirements" >&2
rm -rf "$folder"
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
cp "$requirements" "$folder/requirements.txt"
