"""Random configurations of every family, against the logits of what transformers reads of them (tools/make_config_goldens.py)."""

import concurrent.futures
import pathlib
import subprocess

import numpy as np
import pytest
from tiny_models import CONFIG_PROMPT, CONFIG_SIZES, FAMILIES, SHOWN_LOGITS, write_weights

RELATIVE = 5e-5  # of logits: |a - b| / |b|


@pytest.fixture(scope="module")
def answers():
    return np.load(pathlib.Path(__file__).parent / "data/configs.npz")


def test_no_family_is_left_out(root):
    """tools/make_config_goldens.py has to know a new one."""
    lines = (root / "refrain/model/families.inc").read_text().splitlines()
    assert len(FAMILIES) == sum(line.startswith("FAMILY(") for line in lines)


@pytest.mark.parametrize("family", FAMILIES)
def test_configurations_mean_what_transformers_reads(refrain, tmp_path, found_within, answers, family):
    configs = bytes(answers[family + ".configs"]).decode().split("\n")
    assert len(configs) == 200
    (tmp_path / "ids").write_text(" ".join(map(str, CONFIG_PROMPT)))

    def read(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(configs[number])
        sizes = dict(zip(CONFIG_SIZES, answers[family + ".sizes"][number].tolist(), strict=True))
        write_weights(folder / "model.safetensors", sizes | {"model_type": family}, np.random.default_rng(0), even=True)
        command = [refrain, "logits", folder, "--ids", tmp_path / "ids", "-o", folder / "out.npy", "--threads", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), configs[number]
        (folder / "model.safetensors").unlink()
        return np.load(folder / "out.npy")[-1, :SHOWN_LOGITS]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for config, found, expected in zip(configs, pool.map(read, range(200)), answers[family + ".logits"], strict=True):
            difference = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            assert difference <= RELATIVE, config
            found_within("configurations, logits, transformers", difference, RELATIVE)
