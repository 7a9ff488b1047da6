"""Every family as tiny models of random numbers, against what transformers answers to them (tools/make_family_goldens.py)."""

import pathlib

import numpy as np
import pytest
from tiny_models import GREEDY_TOKENS, MODELS, PROMPT, PROMPTS, depends_on_length, write_model

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
        alone = logits(model, PROMPT[:length])[-1]
        difference = np.linalg.norm(alone - expected) / np.linalg.norm(expected)
        found_within("tiny models, logits, transformers", difference, RELATIVE)
        same = (alone == found[length - 1]).all()
        assert same != depends_on_length(name, length), f"a prompt of {length}"
