#!/usr/bin/env python3
"""Writes tests/golden/data/families.npz: what transformers answers to the models of tests/golden/tiny_models.py.

Usage: PYTHON tools/make_family_goldens.py [OUT], with transformers 5.17, torch and numpy, which the tests need not. For
each model a seed whose greedy continuation is ahead by a margin everywhere, that continuation, and the logits behind
prompts of some lengths; in float32, from one pass without a cache.
"""

import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/golden"))

from model_files import write_npz  # noqa: E402
from tiny_models import GREEDY_TOKENS, MODELS, PROMPT, PROMPTS, depends_on_length, write_model  # noqa: E402

MARGIN = 2e-4
torch.set_num_threads(1)


def answer(model):
    """The logits of the prompt and its greedy continuation, all in one pass, and the ids."""
    ids, cache, new = list(PROMPT), None, list(PROMPT)
    with torch.no_grad():
        for _ in range(GREEDY_TOKENS):
            step = model(torch.tensor([new]), past_key_values=cache, use_cache=True)
            cache, new = step.past_key_values, [int(step.logits[0, -1].argmax())]
            ids += new
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    assert (logits[len(PROMPT) - 1 : -1].argmax(axis=1) == ids[len(PROMPT) :]).all()
    return logits, ids


def logits_behind(model, name, length, logits):
    """Those of the prompt's first ids, alone where it matters; `logits`: of all."""
    if not depends_on_length(name, length):
        return logits[length - 1]
    with torch.no_grad():
        return model(torch.tensor([PROMPT[:length]]), use_cache=False).logits[0, -1].numpy()


def main():
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/golden/data/families.npz"
    arrays = {"versions": np.array([f"transformers {transformers.__version__}", f"torch {torch.__version__}"])}
    for name in MODELS:
        for seed in range(100):
            with tempfile.TemporaryDirectory() as folder:
                write_model(pathlib.Path(folder), name, seed)
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    folder, dtype=torch.float32, attn_implementation="eager"
                ).eval()
                logits, ids = answer(model)
                behind = [logits_behind(model, name, length, logits) for length in PROMPTS]
            two = np.sort(logits[len(PROMPT) - 1 : -1], axis=1)[:, -2:]
            if (two[:, 1] - two[:, 0]).min() >= MARGIN:
                break
        else:
            sys.exit(f"{name}: no seed with a margin of {MARGIN}")
        print(name, seed, len(set(ids[len(PROMPT) :])), "different tokens", flush=True)
        arrays[name + ".seed"] = np.array(seed)
        arrays[name + ".greedy"] = np.array(ids[len(PROMPT) :], np.int16)
        arrays[name + ".logits"] = np.stack(behind)
    write_npz(out, arrays)


if __name__ == "__main__":
    main()
