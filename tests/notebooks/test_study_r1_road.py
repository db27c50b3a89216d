"""What notebook 14 claims of data/studies/r1_road.csv, on the stored rows, and the road's two claims made again."""

from functools import cache

import pytest
import torch
from test_claims import rows_of, script

SEEDS = ("30", "31", "32")


@cache
def rows() -> list[dict]:
    return rows_of("r1_road")


def of(kind: str, variant: str, column: str, step: str | None = None) -> list[float]:
    """A column of the stored rows, in the order of the seeds."""
    found = [r for r in rows() if (r["kind"], r["variant"]) == (kind, variant) and (step is None or r["step"] == step)]
    assert {r["seed"] for r in found} == set(SEEDS)
    return [float(r[column]) for seed in SEEDS for r in found if r["seed"] == seed]


def test_cold_start_and_rl_gain_and_the_detour_gains_nothing():
    base, cold, rl, again, second, longer = (
        of("road", name, "accuracy") for name in ("base", "cold start", "RL", "rejection", "second RL", "longer RL")
    )
    for i in range(3):
        assert base[i] < 0.15 and cold[i] - base[i] > 0.2 and rl[i] - cold[i] > 0.2
        assert min(rl[i], again[i], second[i], longer[i]) > 0.9
        assert again[i] < rl[i] and second[i] > again[i] and abs(second[i] - longer[i]) < 0.03


@pytest.mark.parametrize("size", ["16", "64"])
def test_enough_examples_open_the_door(size):
    assert min(of("sizes", size, "accuracy", "55")) > 0.9


def test_without_a_cold_start_nothing_is_learned():
    assert max(of("sizes", "0", "accuracy")) < 0.2 and max(of("size", "0", "works", "before")) < 0.02


def test_four_examples_give_the_form_and_leave_the_rest_to_chance():
    worked, right = of("size", "4", "works", "before"), of("size", "4", "right_worked", "before")
    assert min(worked) > 0.7 and max(right) < 0.25
    assert min(of("size", "4", "accuracy", "after")) < 0.2 < 0.9 < max(of("size", "4", "accuracy", "after"))


def test_keeping_right_answers_again_and_again_learns_without_rl():
    assert min(of("rounds", "sound", "accuracy", "3")) > 0.9


def test_each_mistake_in_the_loop_is_told_from_the_others():
    assert max(of("rounds", "all", "accuracy", "3")) < 0.75 and min(of("rounds", "all", "works", "3")) > 0.9
    assert max(of("rounds", "base", "works", "3")) < 0.1
    assert min(of("rounds", "prompt", "accuracy", "3")) > 0.85


def test_teaching_wins_on_price_and_not_on_reach():
    taught, alone, longer, explorer = (
        of("distillation", name, "accuracy", step)
        for name, step in (("distilled", "160"), ("cold start + RL", "60"), ("cold start + RL", "240"), ("RL", ""))
    )
    price, asked = (
        of("distillation", "distilled", "seconds", "160"),
        of("distillation", "cold start + RL", "seconds", "60"),
    )
    for i in range(3):
        assert taught[i] > 0.95 and explorer[i] < 0.15 and alone[i] < taught[i] < alone[i] + 0.2
        assert abs(taught[i] - longer[i]) < 0.01 and price[i] < 1.2 * asked[i]


def test_self_correction_is_imitated_and_then_unlearned():
    assert min(of("correction", "", "works", "before")) > 0.3 and max(of("correction", "", "noticed", "before")) < 0.15
    assert max(of("correction", "", "works", "after")) < 0.01 < 0.9 < min(of("correction", "", "accuracy", "after"))


def test_votes_level_off_where_one_greedy_answer_stands():
    first = [r for r in rows() if (r["kind"], r["variant"], r["k"]) == ("votes", "cold start", "1")]
    greedy, one, many = (
        [float(r["greedy"]) for r in first],
        *(
            [float(r["majority"]) for r in rows() if (r["kind"], r["variant"], r["k"]) == ("votes", "cold start", k)]
            for k in ("1", "15")
        ),
    )
    for i in range(3):
        assert many[i] > one[i] + 0.05 and abs(many[i] - greedy[i]) < 0.06
        assert of("road", "RL", "accuracy")[i] > many[i] + 0.15


def test_examples_help_before_rl_and_never_after():
    for name in ("1 worked", "2 worked"):
        assert min(of("shots", name, "accuracy", "before")) > max(of("shots", "0", "accuracy", "before")) + 0.1
    none = of("shots", "0", "accuracy", "after")
    for name, harm in (("1 worked", -0.01), ("2 worked", 0.0), ("1 direct", 0.01), ("2 direct", 0.02)):
        assert all(a - b > harm for a, b in zip(none, of("shots", name, "accuracy", "after"), strict=True))


def test_the_bonus_settles_the_language():
    digits = of("language", "bonus", "works", "after"), of("language", "outcome", "works", "after")
    assert min(digits[0]) > 0.9 and max(digits[1]) < 0.6
    right = of("language", "bonus", "accuracy", "after"), of("language", "outcome", "accuracy", "after")
    assert max(abs(a - b) for a, b in zip(*right, strict=True)) < 0.04


def test_fair_steps_teach_no_faster_and_careless_ones_ruin():
    fair, outcome = of("process", "process", "accuracy", "10"), of("sizes", "16", "accuracy", "10")
    assert max(abs(a - b) for a, b in zip(fair, outcome, strict=True)) < 0.1
    assert min(of("process", "process", "accuracy", "after")) > 0.9
    assert (
        max(of("process", "careless", "accuracy", "after")) < 0.1
        and min(of("process", "careless", "paid", "after")) > 6
    )


@pytest.mark.nightly
def test_the_road_made_again():
    torch.set_num_threads(1)
    study = script("r1_road")
    found = {r["variant"]: r["accuracy"] for r in study.road_rows(30) if r["kind"] == "road"}
    assert found["cold start"] - found["base"] > 0.15 and found["RL"] - found["cold start"] > 0.2
    assert min(found["RL"], found["rejection"], found["second RL"]) > 0.9
    stuck = [r["accuracy"] for r in study.size_rows(30, 0) if r["kind"] == "sizes"]
    assert max(stuck) < 0.2


@pytest.mark.nightly
def test_the_student_taught_again():
    torch.set_num_threads(1)
    found = {(r["variant"], r.get("step")): r["accuracy"] for r in script("r1_road").distillation_rows(31)}
    assert found["distilled", 160] > 0.95 and found["RL", None] < 0.15
    assert abs(found["distilled", 160] - found["cold start + RL", 240]) < 0.03
