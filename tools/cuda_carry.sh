#!/usr/bin/env bash
# Puts what tests need on a machine with a GPU into one folder: cuda_carry.sh BUILD FOLDER. Programs, plugins and the shared
# libraries that such a machine may lack, without debug information; not the system's own C and C++ libraries.
set -euo pipefail
build=$1
folder=$2
programs=(ops_test conformance_test cuda_lost_test same_bits_test families_test replay_test step_test refrain)
plugins=(librefrain_cuda.so librefrain_cuda_test.so)
system='^(linux-vdso|ld-linux.*|libc|libm|libstdc\+\+|libgcc_s|libpthread|libdl|librt)\.so'

rm -rf "$folder"
mkdir -p "$folder"
for file in "${programs[@]}" "${plugins[@]}"; do
  [[ -e "$build/bin/$file" ]] || { echo "cuda_carry.sh: $build/bin/$file was not built" >&2; exit 1; }
  cp "$build/bin/$file" "$folder/"
done
ldd "$folder"/* 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }' | sort -u | while read -r name path; do
  [[ "$name" =~ $system ]] || cp -L "$path" "$folder/$name"
done
strip --strip-unneeded "$folder"/*
du -sh "$folder" | awk '{ print "carried: " $1 }'
