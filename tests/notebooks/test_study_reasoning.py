"""What notebook 13 claims of data/studies/reasoning.csv, on the stored rows, and one row of each short kind made again."""

from itertools import combinations

import pytest
import torch
from test_claims import rows_of, script

SHORT, LONG = ["30", "31", "32"], ["30", "31", "32", "33", "34"]


def of(kind: str, world: str = "digits", variant: str | None = None, digits: str | None = None) -> list[dict]:
    wanted = {"kind": kind, "world": world, "variant": variant, "digits": digits}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    return [r for r in rows_of("reasoning") if all(r[name] == value for name, value in wanted.items())]


def ends(kind: str, variant: str, column: str, digits: str = "6") -> list[float]:
    """A column at the end of the short runs, one number a seed."""
    rows = [r for r in of(kind, variant=variant, digits=digits) if r["sample"]]
    assert [r["seed"] for r in rows] == SHORT
    return [float(r[column]) for r in rows]


def both(world: str, column: str) -> tuple[list[float], list[float]]:
    """A column before and after GRPO, one number a seed."""
    before, after = of("r1", world, "before"), of("r1", world, "after")
    assert [r["seed"] for r in before] == [r["seed"] for r in after]
    return [float(r[column]) for r in before], [float(r[column]) for r in after]


def test_every_base_learns_to_be_right_by_working():
    before, after = both("digits", "accuracy")
    assert len(before) == 5 and max(before) < 0.3 and min(after) > 0.9
    for world, gain in (("addition", 0.6), ("countdown", 0.3)):
        before, after = both(world, "accuracy")
        assert len(before) == 5
        assert all(b - a > gain for a, b in zip(before, after, strict=True))
    for world, most in (("digits", 0.9), ("addition", 0.9), ("countdown", 0.7)):
        before, after = both(world, "works")
        assert max(before) < 0.3 and min(after) > most


@pytest.mark.parametrize("world", ["digits", "addition", "countdown"])
def test_accuracy_is_the_mixture_of_the_two_kinds(world):
    for r in of("r1", world):
        works = float(r["works"])
        parts = [(works, r["right_worked"]), (1 - works, r["right_direct"])]
        mixed = sum(share * float(right) for share, right in parts if share and right)
        assert abs(mixed - float(r["accuracy"])) < 2e-3
        curve = [float(r[f"pass_{k}"]) for k in (1, 2, 4, 8, 16, 32, 64)]
        assert curve == sorted(curve) and abs(curve[0] - float(r["accuracy"])) < 1e-3


def test_most_of_the_gain_is_choice():
    for world in ("digits", "addition"):
        for a, b in zip(of("r1", world, "before"), of("r1", world, "after"), strict=True):
            choice = (float(b["works"]) - float(a["works"])) * (float(a["right_worked"]) - float(a["right_direct"]))
            gain = float(b["accuracy"]) - float(a["accuracy"])
            assert choice > 0.75 * gain


@pytest.mark.parametrize("world", ["digits", "addition", "countdown"])
def test_at_64_tries_the_base_has_caught_up(world):
    before, after = both(world, "pass_64")
    assert max(abs(b - a) for a, b in zip(before, after, strict=True)) < 0.05
    assert min(both(world, "accuracy")[0]) > 1 - 0.05 ** (1 / 64)  # were it rarer right, there would be room for a lead


def test_thinking_stops_above_its_break_even_price():
    for price in ("0.05", "0.1"):
        assert min(ends("price", price, "works")) > 0.9
    for price in ("0.2", "0.3"):
        assert max(ends("price", price, "works")) < 0.1 and max(ends("price", price, "accuracy")) < 0.2


def test_a_bonus_above_what_truth_pays_buys_neat_wrong_answers():
    for bonus in ("0.25", "0.5"):
        assert min(ends("bonus", bonus, "works")) > 0.9
    assert max(ends("bonus", "1", "works")) < 0.1 and max(ends("bonus", "1", "accuracy")) < 0.2


def test_judges_are_hacked_and_the_rule_is_not():
    assert min(ends("judge", "rule", "accuracy")) > 0.9
    for pool in ("last", "sum"):
        for seed, end in zip(SHORT, ends("judge", pool, "accuracy"), strict=True):
            path = [r for r in of("judge", variant=pool) if r["seed"] == seed and not r["sample"]]
            best = max(float(r["accuracy"]) for r in path)
            assert end < 0.5 * best and float(path[-1]["reward"]) > float(path[0]["reward"]) + 0.5


def test_the_careless_checker_pays_and_nothing_is_right():
    assert min(ends("riddle", "lax", "reward", "10")) > 0.45 and max(ends("riddle", "lax", "accuracy", "10")) < 0.1
    assert all(abs(x - 0.1) < 0.06 for x in ends("riddle", "strict", "reward", "10"))


def test_a_skill_that_is_not_there_is_not_found():
    assert max(ends("unseen", "strict", "accuracy", "7")) < 0.2 and max(ends("unseen", "strict", "works", "7")) < 0.15


def test_pass_at_k_is_the_share_of_sets_with_a_right_one():
    pass_at_k = script("reasoning").pass_at_k
    for n in range(1, 7):
        for right in range(n + 1):
            for k in range(1, n + 1):
                sets = list(combinations([True] * right + [False] * (n - right), k))
                assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, sets)) / len(sets))


@pytest.mark.nightly
def test_one_row_of_each_kind_made_again():
    torch.set_num_threads(1)
    study = script("reasoning")
    before, after = study.r1_rows("digits", 30)[:2]
    assert before["accuracy"] < 0.3 and after["accuracy"] > 0.9 and before["works"] < 0.3 and after["works"] > 0.9
    assert study.short("price", 0.1, 30)[-1]["works"] > 0.9 and study.short("price", 0.2, 30)[-1]["works"] < 0.1
    assert study.short("bonus", 1.0, 30)[-1]["works"] < 0.1
    careless = study.short("riddle", ("lax", 10), 30)[-1]
    assert careless["reward"] > 0.45 and careless["accuracy"] < 0.1
    assert study.short("unseen", 7, 30)[-1]["accuracy"] < 0.2
    judged = study.short("judge", "sum", 30)
    assert judged[-1]["accuracy"] < 0.5 * max(r["accuracy"] for r in judged)
