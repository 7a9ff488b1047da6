#!/usr/bin/env python3
"""Prints the mean loss (-ln p a token) of a model on the texts of a file, one a line, each alone.

Usage: build/venv/bin/python tools/heldout_loss.py MODEL TEXTS [REFRAIN [OPTION ...]]. Uses `refrain tokenize` and
`refrain logits`, the latter with the options, such as --device cuda:0 --fast (REFRAIN: default
build/release/bin/refrain). For models without a beginning-of-text token; the first token of a text is not scored.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    model, texts = sys.argv[1:3]
    refrain = sys.argv[3] if len(sys.argv) > 3 else ROOT / "build/release/bin/refrain"
    with open(texts, "rb") as file:
        lines = subprocess.run([refrain, "tokenize", model], stdin=file, capture_output=True, check=True).stdout
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        ids_file, out = pathlib.Path(folder) / "ids", pathlib.Path(folder) / "logits.npy"
        for line in lines.splitlines():
            ids = np.array(line.split(), np.int64)
            if len(ids) < 2:
                continue
            ids_file.write_bytes(line)
            command = [refrain, "logits", model, "--ids", ids_file, "--last", str(len(ids)), "-o", out, *sys.argv[4:]]
            subprocess.run(command, check=True)
            x = np.load(out).astype(np.float64)[:-1]
            x -= x.max(axis=1, keepdims=True)
            losses.append(np.log(np.exp(x).sum(axis=1)) - x[np.arange(len(x)), ids[1:]])
    print(f"{np.concatenate(losses).mean():.6f} over {sum(map(len, losses))} tokens of {len(losses)} texts")


if __name__ == "__main__":
    main()
