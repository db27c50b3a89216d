"""What the main job claims, on seeds that no setting was chosen on. CI reads the stored study; nightly runs it again."""

import csv
import importlib.util
from collections import defaultdict

import pytest
import torch

from minirl.tasks import DATA

STUDY = DATA / "studies" / "road.csv"


def make_studies():
    spec = importlib.util.spec_from_file_location("make_studies", DATA / "make_studies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def by_method(rows) -> dict:
    """{(world, method): {column: number}} of one seed."""
    return {
        (row["world"], row["method"]): {
            name: float(value)
            for name, value in row.items()
            if name not in ("world", "method") and value not in ("", None)
        }
        for row in rows
    }


def stored() -> dict[int, dict]:
    lines = [line for line in STUDY.read_text().splitlines() if not line.startswith("#")]
    seeds = defaultdict(list)
    for row in csv.DictReader(lines):
        seeds[int(row["seed"])].append(row)
    return {seed: by_method(rows) for seed, rows in seeds.items()}


def assert_claims(rows: dict) -> None:
    base = rows["stories", "SFT"]
    assert rows["stories", "PPO"]["gold"] - base["gold"] > 1.0
    assert rows["stories", "PPO"]["kl"] < 4
    assert rows["stories", "PPO, no KL"]["proxy"] - base["proxy"] > 4
    assert rows["stories", "PPO, no KL"]["gold"] < base["gold"]
    assert rows["stories", "DPO"]["gold"] - base["gold"] > 0.5
    assert rows["stories", "best of 16"]["gold"] - base["gold"] > 0.8
    assert rows["stories", "reward model"]["accuracy"] > 0.62
    before, after = rows["digit_sum", "SFT"], rows["digit_sum", "GRPO"]
    assert before["accuracy"] < 0.3 and after["accuracy"] > 0.9
    assert before["worked"] < 0.25 and after["worked"] > 0.9


def test_the_stored_study_is_of_these_settings():
    assert f"# settings: {make_studies().settings_hash()}\n" in STUDY.read_text()


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_the_claims_hold_in_the_stored_study(seed):
    assert_claims(stored()[seed])


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_the_claims_hold_when_run_again(seed):
    torch.set_num_threads(1)
    assert_claims(by_method(make_studies().road_rows(seed)))
