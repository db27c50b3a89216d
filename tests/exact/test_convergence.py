"""Where every training loop ends in a world whose optimum is known, as total variation to pi*. The study is stored in
data/studies/exact_world.csv, three seeds that no setting was chosen on; CI reads it and runs the first seed of the
claims again, nightly runs all of it."""

import importlib.util

import pytest
import torch

from minirl.show import study
from minirl.tasks import DATA

spec = importlib.util.spec_from_file_location("study_exact_world", DATA / "studies" / "exact_world.py")
exact_world = importlib.util.module_from_spec(spec)
spec.loader.exec_module(exact_world)
SEEDS = exact_world.SEEDS

ENDS = {  # variant: total variation to pi* is above the first and below the second
    "ppo": (0.0, 0.12),  # what divides by a spread keeps its noise: some seeds end at .06 to .08, most at .02
    "rloo": (0.0, 0.08),
    "grpo, KL in reward": (0.0, 0.12),
    "grpo, KL in reward, no std": (0.0, 0.08),
    "rloo, k3 in loss": (0.12, 0.5),
    "rloo, k3 in loss, long": (0.15, 0.5),
    "rloo, k1 in loss": (0.8, 1.0),
    "ppo, long": (0.0, 0.07),
    "ppo, gamma .9, long": (0.08, 0.5),
    "dpo, open": (0.0, 0.05),
    "dpo, averaged, open": (0.3, 1.0),
}

ALSO_STORED = {  # the rest of the table: what imitates pi* finds it, what misses it by design misses it
    **dict.fromkeys(["reinforce", "rwr"], (0.0, 0.08)),
    **dict.fromkeys(["sft on samples of pi*", "pretrain on samples of pi*", "reward model, open"], (0.0, 0.05)),
    **dict.fromkeys(["rloo, k2 in loss", "dr_grpo"], (0.1, 0.5)),
    **dict.fromkeys(["grpo", "gspo"], (0.15, 0.5)),
    **dict.fromkeys(["dapo", "cispo", "rejection"], (0.5, 1.0)),
    **dict.fromkeys(["cdpo, open", "robust, open", "ipo, open"], (0.08, 0.4)),
    **dict.fromkeys(["ipo, summed, open", "simpo, open", "orpo, open", "kto, open"], (0.3, 1.0)),
    "grpo, KL in reward, long": (0.0, 0.25),  # the noise again, on answers of up to six tokens
}


def assert_end(row: dict) -> None:
    above, below = (ENDS | ALSO_STORED)[row["variant"]]
    assert above <= row["tv"] < below, f"{row['variant']}, seed {row['seed']}: total variation {row['tv']:.3f}"


def test_every_variant_is_stored_for_every_seed():
    stored = {(row["variant"], row["seed"]) for row in study("exact_world")}
    assert stored == {(variant, seed) for variant in exact_world.VARIANTS for seed in SEEDS}


@pytest.mark.parametrize("variant", exact_world.VARIANTS)
def test_where_a_loop_ended_in_the_stored_study(variant):
    rows = [row for row in study("exact_world") if row["variant"] == variant]
    assert len(rows) == 3
    for row in rows:
        assert_end(row)


README = {  # what the front page's table calls them
    "PPO, gamma 1": "ppo",
    "GRPO as published, k3 in the loss": "grpo",
    "k1 in the loss: does not restrain at all": "rloo, k1 in loss",
    "GRPO, KL in the reward": "grpo, KL in reward",
    "k3 in the loss, answers of up to six tokens": "rloo, k3 in loss, long",
    "the same without std": "grpo, KL in reward, no std",
    "DPO, pairs of full support": "dpo, open",
    "DPO on length-averaged log-probabilities": "dpo, averaged, open",
    "a reward model's optimum": "reward model, open",
}


@pytest.mark.parametrize("said", README)
def test_the_readme_has_the_numbers_of_the_table(said):
    ends = [f"{row['tv']:.2f}".lstrip("0") for row in study("exact_world") if row["variant"] == README[said]]
    assert f"| {said} | {' / '.join(ends)} |" in (DATA.parent / "README.md").read_text("utf-8")


@pytest.mark.parametrize("variant", ENDS)
def test_where_a_loop_ends(variant):
    assert_end(exact_world.row(variant, SEEDS[0]))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", SEEDS[1:])
@pytest.mark.parametrize("variant", ENDS)
def test_where_a_loop_ends_on_the_other_seeds(variant, seed):
    torch.set_num_threads(1)
    assert_end(exact_world.row(variant, seed))
