#!/usr/bin/env python3
"""Writes tests/golden/data/tales-qwen3-4bit.npz: what the embedded model answers, by the numpy pass of the tests.

Usage: build/venv/bin/python tools/make_goldens.py [OUT]. Needs the packages of tests/requirements.txt and nothing of
the program itself. Prompts and stories are the lines of prompts.txt and stories.txt in that folder. The versions that
the file was made with are in its entry `versions`. Another machine gives the same up to the last bits of float32.
"""

import json
import os
import pathlib
import platform
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one order of the sums, whatever the machine

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
import tokenizers  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "tests/golden/data"
MODEL = ROOT / "models/tales-qwen3-4bit"
sys.path.insert(0, str(ROOT / "tests/golden"))

from model_files import write_npz  # noqa: E402
from models_numpy import Qwen3, token_losses  # noqa: E402

LAST_POSITIONS = 4
GREEDY_TOKENS = 64


def greedy(model, prompt):
    """The most probable continuation and the margin by which each token is ahead of the next."""
    ids, margins = list(prompt), []
    for _ in range(GREEDY_TOKENS):
        logits = model.logits(ids)[-1]
        second, first = np.argsort(logits, kind="stable")[-2:]
        margins.append(logits[first] - logits[second])
        ids.append(int(first))
    return np.array(ids[len(prompt) :], np.int32), np.array(margins, np.float32)


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "tales-qwen3-4bit.npz"
    tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    model = Qwen3(MODEL)
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "mlx": mx.__version__,
        "tokenizers": tokenizers.__version__,
    }
    arrays = {"versions": np.array(json.dumps(versions))}

    def encode(text):
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    for i, text in enumerate((DATA / "prompts.txt").read_text(encoding="utf-8").splitlines()):
        ids = encode(text)
        arrays[f"prompt{i}_ids"] = ids
        arrays[f"prompt{i}_logits"] = model.logits(ids)[-LAST_POSITIONS:]
        arrays[f"prompt{i}_greedy"], arrays[f"prompt{i}_margin"] = greedy(model, ids)
    stories = [encode(text) for text in (DATA / "stories.txt").read_text(encoding="utf-8").splitlines()]
    losses = [token_losses(model.logits(ids), ids) for ids in stories]
    arrays["story_ids"] = np.concatenate(stories)
    arrays["story_offsets"] = np.cumsum([0, *map(len, stories)], dtype=np.int32)
    arrays["story_token_nll"] = np.concatenate(losses).astype(np.float32)
    arrays["story_nll"] = np.concatenate(losses).mean()
    write_npz(out, arrays)
    print(f"{out}: {out.stat().st_size} bytes; loss of the stories {arrays['story_nll']:.6f}; {versions}")


if __name__ == "__main__":
    main()
