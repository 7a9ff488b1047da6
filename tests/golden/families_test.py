"""Every family as tiny models of random numbers, against what transformers answers to them (tools/make_family_goldens.py)."""

import pathlib

import numpy as np
import pytest
from tiny_models import GREEDY_TOKENS, MODELS, PROMPT, PROMPTS, write_model

RELATIVE = 1e-4  # of logits: |a - b| / |b|


@pytest.fixture(scope="module")
def answers():
    return np.load(pathlib.Path(__file__).parent / "data/families.npz")


@pytest.mark.parametrize("name", MODELS)
def test_answers_as_transformers_does(logits, tmp_path, found_within, answers, name):
    model = write_model(tmp_path / "model", name, int(answers[name + ".seed"]))
    greedy = answers[name + ".greedy"].tolist()
    found = logits(model, PROMPT + greedy, len(PROMPT) + GREEDY_TOKENS)
    np.testing.assert_array_equal(found[len(PROMPT) - 1 : -1].argmax(axis=1), greedy)
    for length, expected in zip(PROMPTS, answers[name + ".logits"], strict=True):
        difference = np.linalg.norm(found[length - 1] - expected) / np.linalg.norm(expected)
        found_within("tiny models, logits, transformers", difference, RELATIVE)
        alone = logits(model, PROMPT[:length])
        np.testing.assert_array_equal(alone[-1], found[length - 1], err_msg=f"a prompt of {length}")
