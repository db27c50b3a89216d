"""What notebook 12 claims of data/studies/grpo.csv, on the stored rows, and one row of each kind made again."""

from statistics import median

import pytest
import torch
from test_claims import rows_of, script


def of(kind: str, variant: str, column: str, group_size: str = "") -> list[float]:
    """A column of the stored rows, one number a seed."""
    wanted = (kind, variant, group_size)
    return [float(r[column]) for r in rows_of("grpo") if (r["kind"], r["variant"], r["group_size"]) == wanted]


WORLDS = [("table", "2"), ("table", "8"), ("table", "32"), ("network", "")]


def gaps(kind: str, division: str, group_size: str) -> list[float]:
    """How much longer wrong answers end than right ones, in tokens."""
    long, short = (of(kind, division, side, group_size) for side in ("wrong", "right"))
    return [a - b for a, b in zip(long, short, strict=True)]


@pytest.mark.parametrize(("kind", "group_size"), WORLDS)
def test_only_the_sequence_mean_drives_the_lengths_apart(kind, group_size):
    apart = gaps(kind, "sequence", group_size)
    assert len(apart) == {"table": 8, "network": 3}[kind] and min(apart) > 3
    for division in ("token", "fixed"):
        assert abs(median(gaps(kind, division, group_size))) < 1.2


@pytest.mark.parametrize(("kind", "group_size"), WORLDS)
def test_every_run_learned_to_be_right(kind, group_size):
    assert all(min(of(kind, name, "score", group_size)) > 0.95 for name in ("sequence", "token", "fixed"))


def test_dead_groups_on_the_digits():
    for variant in ("grpo", "no std", "token mean", "fixed", "live groups"):
        assert len(of("digits", variant, "score")) == 3 and min(of("digits", variant, "score")) > 0.95
        assert max(of("digits", variant, "dead_early")) < 0.1 and min(of("digits", variant, "dead_late")) > 0.7
    assert min(of("digits", "live groups", "answers")) > 2.5 * max(of("digits", "grpo", "answers"))


def test_each_leash_is_told_from_the_others_once_nothing_is_paid():
    assert max(of("leash", "to the old policy", "moved")) == 0 < 0.01 < min(of("leash", "k1", "moved"))
    assert max(of("leash", "k1", "moved")) < 0.3 < min(of("leash", "subtracted", "moved"))
    for paid, end in zip(of("leash", "sound", "kl_paid"), of("leash", "sound", "kl_end"), strict=True):
        assert end < 0.25 * paid
    assert of("leash", "to the old policy", "kl_paid") == of("leash", "none", "kl_paid")


@pytest.mark.nightly
def test_one_row_of_each_kind_made_again():
    torch.set_num_threads(1)
    study = script("grpo")
    length = study.row("table", "sequence", 30, 8)
    assert length["wrong"] - length["right"] > 3 and length["score"] > 0.95
    assert abs(study.row("table", "fixed", 30, 8)["wrong"] - study.row("table", "fixed", 30, 8)["right"]) < 1.5
    network = study.row("network", "sequence", 30)
    assert network["wrong"] - network["right"] > 3
    digits = study.row("digits", "grpo", 30)
    assert digits["score"] > 0.9 and digits["dead_early"] < 0.2 and digits["dead_late"] > 0.5
    assert study.row("leash", "to the old policy", 30)["moved"] == 0 < study.row("leash", "k1", 30)["moved"]
