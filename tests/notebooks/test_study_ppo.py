"""What notebook 09 says of PPO's details, held against the stored rows; nightly remakes one of them."""

import pytest
import torch
from test_claims import rows_of, script

START = -0.4  # gold of the SFT model is below it
SEEDS = {"30", "31", "32"}


def column(variant: str, name: str) -> list[float]:
    rows = [row for row in rows_of("ppo") if row["variant"] == variant]
    assert {row["seed"] for row in rows} == SEEDS
    return [float(row[name]) for row in rows]


def objective(variant: str) -> list[float]:
    return [r - 0.25 * kl for r, kl in zip(column(variant, "proxy"), column(variant, "kl"), strict=True)]


def learned(gold: float, kl: float) -> bool:
    """The headline of the notebook: gold up by more than 0.7 at less than four nats."""
    return gold - START > 0.7 and kl < 4


def test_ppo_learns_on_every_seed():
    assert all(map(learned, column("full", "gold"), column("full", "kl")))


@pytest.mark.parametrize("mistake", ["score on the last column", "KL with the wrong sign", "score on every token"])
def test_a_planted_mistake_turns_the_headline_red(mistake):
    assert not any(map(learned, column(mistake, "gold"), column(mistake, "kl")))


def test_without_kl_the_proxy_is_bought_with_gold():
    assert min(column("beta 0", "proxy")) > max(column("full", "proxy")) + 1
    assert max(column("beta 0", "gold")) < -2 and min(column("beta 0", "kl")) > 30


@pytest.mark.parametrize("mistake", ["sampled at 1.4, scored at 1", "advantages one token late"])
def test_a_silent_mistake_stays_unseen(mistake):
    assert all(map(learned, column(mistake, "gold"), column(mistake, "kl")))


def test_the_clip_decides_at_eight_epochs_only():
    for variant in ("2 epochs, no clip", "2 epochs, no ratio"):
        assert min(column(variant, "gold")) > 0.4
    for variant in ("8 epochs, no clip", "8 epochs, no ratio"):
        assert max(column(variant, "gold")) < -0.7
    assert min(column("8 epochs", "gold")) > 0.4


def test_with_lambda_1_no_critic_and_one_of_its_own_do_better():
    for variant in ("no critic, lambda 1", "critic of its own, lambda 1"):
        assert min(column(variant, "gold")) > max(column("full", "gold"))
        assert min(objective(variant)) > max(objective("lambda 1"))


def test_the_value_clip_never_acts():
    assert [column("no value clip", name) for name in ("gold", "proxy", "kl")] == [
        column("full", name) for name in ("gold", "proxy", "kl")
    ]


@pytest.mark.nightly
def test_a_row_made_again():
    torch.set_num_threads(1)
    study = script("ppo")
    sound = study.row_of("full", 30)
    assert learned(sound["gold"], sound["kl"])
    assert not learned(*(study.row_of("score on the last column", 30)[name] for name in ("gold", "kl")))
