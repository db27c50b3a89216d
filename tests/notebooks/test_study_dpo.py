"""The DPO study: what its stored rows claim, on seeds that no setting was chosen on, and one row of each kind remade."""

import pytest
import torch
from test_claims import rows_of, script

ROWS = rows_of("dpo")
EXACT, TOLD = [str(seed) for seed in range(30, 38)], ["30", "31", "32"]


def stored(seed: str, variant: str, column: str = "tv", **where) -> float:
    where = {"world": "exact", "seed": seed, "variant": variant} | where
    (row,) = (row for row in ROWS if all(row[key] == value for key, value in where.items()))
    return float(row[column])


def of_stories(seed: str, variant: str, column: str) -> float:
    return stored(seed, variant, column, world="stories")


@pytest.mark.parametrize("seed", EXACT)
def test_only_sums_with_a_reference_reach_the_optimum(seed):
    assert stored(seed, "dpo", labels="") < 0.01
    assert stored(seed, "averaged", times="1") > 0.2
    assert min(stored(seed, "averaged", times=times) for times in ("1", "2", "3", "4", "6")) > 0.02
    assert stored(seed, "no reference") > 0.1
    assert stored(seed, "swapped") > 0.8
    assert stored(seed, "imitate the chosen") > 0.2


@pytest.mark.parametrize("seed", EXACT)
def test_robust_dpo_wants_flips_and_cdpo_adds_to_them(seed):
    assert stored(seed, "robust", labels="flipped") < 0.01 < stored(seed, "robust", labels="clean") - 0.05
    assert stored(seed, "cdpo", labels="clean") == pytest.approx(stored(seed, "dpo", labels="flipped"), abs=5e-3)
    assert stored(seed, "cdpo", labels="flipped") > stored(seed, "dpo", labels="flipped")


@pytest.mark.parametrize("seed", EXACT)
def test_larger_beta_is_closer_at_the_optimum_and_under_adam_and_not_in_a_few_steps_of_sgd(seed):
    betas = ["0.01", "0.03", "0.1", "0.3", "1", "2"]
    at_optimum = [stored(seed, "at the optimum", "kl", beta=beta) for beta in betas]
    assert at_optimum == sorted(at_optimum, reverse=True)
    assert stored(seed, "Adam, few steps", "kl", beta="2") < 0.4 * stored(seed, "Adam, few steps", "kl", beta="0.01")
    assert stored(seed, "SGD, few steps", "kl", beta="0.3") > 100 * stored(seed, "SGD, few steps", "kl", beta="0.01")


@pytest.mark.parametrize("seed", EXACT)
def test_chosen_answers_fall_at_the_optimum_unless_beta_is_large(seed):
    assert all(stored(seed, "at the optimum", "chosen", beta=beta) < 0 for beta in ("0.01", "0.03", "0.1", "0.3"))
    assert stored(seed, "at the optimum", "chosen", beta="2") > 0


@pytest.mark.parametrize("seed", EXACT)
def test_sure_labels_drive_dpo_away_and_not_ipo(seed):
    dpo, ipo = (
        [stored(seed, v, "kl", labels="sure", steps=steps) for steps in ("100", "1000")] for v in ("dpo", "ipo")
    )
    assert dpo[1] > dpo[0] + 0.4
    assert abs(ipo[1] - ipo[0]) < 0.05
    assert ipo[1] < 0.5


def test_unseen_answers_fade_from_a_table_and_do_anything_in_a_network():
    def rise(learner: str) -> list[float]:
        variant = f"half unseen, {learner}"
        return [stored(seed, variant, "unseen_after") - stored(seed, variant, "unseen_before") for seed in EXACT]

    assert max(rise("table")) < 0
    assert min(rise("network")) < -0.1
    assert max(rise("network")) > 0.05


@pytest.mark.parametrize("seed", TOLD)
def test_dpo_pleases_the_reader_of_stories(seed):
    start = of_stories(seed, "SFT", "gold")
    assert of_stories(seed, "beta 0.2", "gold") > start + 0.5
    assert of_stories(seed, "beta 0.2", "chosen") < 0
    assert of_stories(seed, "beta 1", "kl") < of_stories(seed, "beta 0.2", "kl") < of_stories(seed, "beta 0.05", "kl")
    assert of_stories(seed, "swapped", "gold") < start - 0.5
    assert abs(of_stories(seed, "no reference", "first_loss") - 0.6931) > 2e-3
    assert of_stories(seed, "beta 0.2", "first_loss") == pytest.approx(0.693, abs=1e-3)


def test_exact_rows_are_what_the_script_makes():
    """Two runs of descent, so that stored numbers and code cannot part."""
    torch.set_num_threads(1)
    study = script("dpo")
    s = study.Setting(31)
    pairs = s.pairs(s.true)
    sums = study.descend(s.logits, s.ref, pairs, study.sigmoid_term(study.BETA))
    averages = study.descend(s.logits, s.ref, pairs, study.sigmoid_term(study.BETA), averaged=True)
    assert s.distances(sums)["tv"] < 0.01
    assert s.distances(averages)["tv"] == pytest.approx(stored("31", "averaged", times="1"), abs=0.02)


@pytest.mark.nightly
def test_stories_made_again():
    torch.set_num_threads(1)
    row = script("dpo").story_row("beta 0.2", 30)
    assert row["gold"] > of_stories("30", "SFT", "gold") + 0.5
    assert row["gold"] == pytest.approx(of_stories("30", "beta 0.2", "gold"), abs=0.3)
    assert row["chosen"] < 0
