"""Each rule on a healthy log in which one curve is drawn sick, in our names and in TRL's, and on what only looks sick."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import CLASSIC, TRL_DPO, TRL_GRPO, TRL_PPO, Pencil, dpo, four_updates, one_update, ppo, records

from minirl.doctor import NEEDS, RULES, Diagnosis, diagnose
from minirl.types import STATS

HEALTHY = {"one_update": one_update, "four_updates": four_updates, "ppo": ppo, "dpo": dpo}
VOCABULARIES = {
    "one_update": (None, TRL_GRPO),
    "four_updates": (None, TRL_GRPO),
    "ppo": (None, TRL_PPO, CLASSIC),
    "dpo": (None, TRL_DPO),
}
SICK = [  # (name, in which log, the curves that are drawn anew)
    ("zero_loss_at_start", "one_update", {"reward_mean": (lambda t: 0.3, 0.03)}),
    ("ratio_always_one", "ppo", {"ratio_mean": (lambda t: 1, 0)}),
    ("ratio_always_one", "one_update", {"reward_mean": (lambda t: 0.3, 0.03), "kl": (lambda t: 0, 0)}),
    ("negative_kl", "ppo", {"kl": (lambda t: -0.1 - 2 * t, 0.05)}),
    ("negative_kl", "four_updates", {"kl": (lambda t: -0.4, 0.1)}),
    ("kl_growing", "ppo", {"kl": (lambda t: 0.3 * 140**t, 0)}),
    ("kl_growing", "four_updates", {"kl": (lambda t: 60 * t, 0.5)}),
    ("clip_fraction_zero", "ppo", {"clip_fraction": (lambda t: 0, 0)}),
    ("clip_fraction_high", "ppo", {"clip_fraction": (lambda t: 0.6 + 0.2 * t, 0.03)}),
    ("entropy_collapse", "ppo", {"entropy": (lambda t: 2 * math.exp(-6 * t), 0)}),
    ("dead_groups", "four_updates", {"dead_groups": (lambda t: 0.9, 0.02)}),
    ("falling_chosen_logprobs", "dpo", {"chosen_logprobs": (lambda t: -120 - 80 * t, 3)}),
    ("negative_explained_variance", "ppo", {"explained_variance": (lambda t: -0.5, 0.1)}),
    ("value_loss_exploding", "ppo", {"value_loss": (lambda t: 0.3 * 300**t, 0)}),
    (
        "length_running_away",
        "four_updates",
        {"length_mean": (lambda t: 100 + 400 * t, 5), "finished": (lambda t: 0.97 - 0.9 * t, 0.02)},
    ),
    (
        "reward_on_padding",
        "four_updates",
        {
            "length_mean": (lambda t: 100 + 400 * t, 5),
            "finished": (lambda t: 0.97 - 0.9 * t, 0.02),
            "reward_mean": (lambda t: 0.3, 0.02),
        },
    ),
    ("proxy_up_win_rate_down", "ppo", {"gold_mean": (lambda t: 0.5 - 0.8 * t, 0.05)}),
    ("proxy_up_win_rate_down", "ppo", {"win_rate": (lambda t: 0.5 + 0.6 * t - 1.1 * t * t, 0.02)}),
    ("temperature_mismatch", "ppo", {"ratio_mean": (lambda t: 1.3, 0.02)}),
    ("temperature_mismatch", "four_updates", {"approx_kl": (lambda t: 0.3, 0.02)}),
    ("non_finite", "ppo", {"grad_norm": (lambda t: math.nan if t > 0.7 else 1.0, 0)}),
    ("gradient_exploding", "ppo", {"grad_norm": (lambda t: 0.5 * 500**t, 0)}),
    ("loss_diverging", "dpo", {"loss": (lambda t: 0.69 + 3 * t, 0.05)}),
    ("reward_flat", "four_updates", {"reward_mean": (lambda t: 0.3, 0.03)}),
    ("reward_falling", "ppo", {"reward_mean": (lambda t: 0.5 - 0.4 * t, 0.03)}),
    ("length_collapse", "ppo", {"length_mean": (lambda t: 100 - 95 * t, 1)}),
    ("never_finishes", "four_updates", {"finished": (lambda t: 0, 0), "reward_mean": (lambda t: 0.1, 0.01)}),
    ("learning_rate_zero", "ppo", {"lr": (lambda t: 0, 0)}),
    (
        "accuracy_below_half",
        "dpo",
        {"accuracy": (lambda t: 0.5 - 0.2 * t, 0.02), "margin": (lambda t: -0.5 * t, 0.02)},
    ),
]


def names(log: list[dict]) -> list[str]:
    return [diagnosis.name for diagnosis in diagnose(log)]


def told_in(vocabulary: dict | None, curves: dict) -> bool:
    """TRL logs no gold reward, and its PPO and classic logs lack what their tables here lack."""
    said_in_all = {"step", "loss", "reward_std", "grad_norm", "win_rate", "kl", "entropy", "finished"}
    return vocabulary is None or all(name in vocabulary or name in said_in_all for name in curves)


@pytest.mark.parametrize("n", [20, 40, 120])
@pytest.mark.parametrize("kind", HEALTHY)
def test_nothing_is_found_in_a_healthy_log(kind, n):
    for seed in range(5 if n < 100 else 1):
        for vocabulary in VOCABULARIES[kind]:
            assert diagnose(records(HEALTHY[kind](n, seed), vocabulary)) == [], (seed, vocabulary)


@pytest.mark.parametrize("n", [40])
@pytest.mark.parametrize(("name", "kind", "drawn"), SICK, ids=[f"{name}-{kind}" for name, kind, _ in SICK])
def test_one_sick_curve_in_a_healthy_log_is_named(name, kind, drawn, n):
    for seed in range(2 if n < 100 else 1):
        draw = Pencil(n, 77 + seed)
        curves = HEALTHY[kind](n, seed) | {metric: draw(f, noise) for metric, (f, noise) in drawn.items()}
        for vocabulary in filter(lambda v: told_in(v, drawn), VOCABULARIES[kind]):
            assert name in names(records(curves, vocabulary)), (seed, vocabulary)


def test_every_name_of_the_issue_and_every_rule_is_tried_here():
    assert {name for name, _, _ in SICK} == {"non_finite", *NEEDS}
    assert len(RULES) == len(NEEDS) + 1
    assert [rule.__name__ for rule in RULES] == list(dict.fromkeys(rule.__name__ for rule in RULES))
    assert {rule.__name__ for rule in RULES} == {"non_finite", *NEEDS}


def test_what_a_rule_needs_is_a_metric_of_the_library_or_of_trl():
    ours = set(STATS) | {"sampling_gap", "win_rate", "chosen_rewards"}
    assert {need for needs in NEEDS.values() for need in needs} <= ours


# What only looks sick


def test_ratio_one_is_right_with_one_update_a_batch():
    still = one_update() | {"reward_mean": Pencil(40, 3)(lambda t: 0.3, 0.03)}
    assert "ratio_always_one" in names(records(still))
    assert "ratio_always_one" not in names(records(one_update()))
    assert "ratio_always_one" not in names([{"updates": 1} | row for row in records(still)])
    rising = [{"updates": 4} | row for row in records(one_update())]
    assert names(rising)[0] == "ratio_always_one" and diagnose(rising)[0].confidence > 0.9


def test_ratio_one_beside_a_policy_that_drifts_is_a_contradiction():
    drifting = one_update() | {"approx_kl": [0.01] * 40}
    assert names(records(drifting))[:2] == ["ratio_always_one", "clip_fraction_zero"]


def test_loss_zero_is_told_to_the_one_who_asks_early_and_to_nobody_whose_reward_rises():
    log = records(one_update())
    for n in range(1, 6):
        (found,) = diagnose(log[:n])
        assert found.name == "zero_loss_at_start" and "no bug" in found.advice
    assert diagnose(log) == []
    stopped = records(one_update() | {"grad_norm": [0.0] * 40})
    assert "zero_loss_at_start" not in names(stopped[:5])  # then it is one


def test_a_loss_above_zero_is_not_called_zero():
    flat = {"reward_mean": Pencil(40, 3)(lambda t: 0.3, 0.03)}
    assert "zero_loss_at_start" in names(records(one_update() | flat))
    assert "zero_loss_at_start" not in names(records(one_update() | flat | {"loss": [0.05] * 40}))


def test_all_groups_dead_is_health_where_all_is_solved():
    solved = {
        "dead_groups": Pencil(40, 1)(lambda t: t, 0, 0, 1),
        "reward_mean": Pencil(40, 2)(lambda t: min(1, 0.2 + t)),
    }
    assert diagnose(records(one_update() | solved)) == []
    wrong = solved | {"reward_mean": [0.2] * 40}
    assert "dead_groups" in names(records(one_update() | wrong))


def test_entropy_may_vanish_where_all_is_solved():
    vanishes = {"entropy": Pencil(40, 1)(lambda t: 0.7 * math.exp(-4 * t))}
    solved = {"reward_mean": Pencil(40, 2)(lambda t: min(1, 0.2 + t))}
    assert diagnose(records(four_updates() | vanishes | solved)) == []
    assert "entropy_collapse" in names(records(four_updates() | vanishes | {"reward_mean": [0.3, 0.32] * 20}))


def test_longer_answers_that_end_and_pay_are_health():
    longer = {"length_mean": Pencil(40, 1)(lambda t: 100 + 500 * t, 5)}
    assert diagnose(records(four_updates() | longer)) == []


def test_a_critic_that_is_late_on_a_task_that_gets_solved_is_health():
    solved = {
        "reward_mean": Pencil(40, 2)(lambda t: min(1, 0.2 + 2 * t)),
        "reward_std": Pencil(40, 3)(lambda t: max(0.1, 0.45 - 0.6 * t)),
        "explained_variance": Pencil(40, 4)(lambda t: 0.1 - 0.9 * t, 0.05),
    }
    assert diagnose(records(ppo() | solved)) == []


def test_answers_of_one_length_by_design_are_health_where_they_learn():
    assert diagnose(records(four_updates() | {"finished": [0.0] * 40})) == []


def test_a_first_learning_rate_of_zero_is_a_warm_up():
    assert diagnose(records(ppo() | {"lr": [0.0] + [1e-5] * 39})) == []


def test_a_kl_that_levels_off_is_health_and_its_unit_is_known():
    """0.1 nats a token over 400 tokens: TRL logs the first number, ours would be 40."""
    long = {"length_mean": [400.0] * 40, "kl": Pencil(40, 1)(lambda t: 40 * (1 - math.exp(-4 * t)), 0.5, low=0)}
    for vocabulary in (None, TRL_GRPO):
        assert diagnose(records(four_updates() | long, vocabulary)) == []
    away = long | {"kl": Pencil(40, 1)(lambda t: 1600 * t)}
    for vocabulary in (None, TRL_GRPO):
        assert "kl_growing" in names(records(four_updates() | away, vocabulary))


def test_a_mismatch_of_the_sampler_is_read_from_what_trl_logs_about_it():
    for gap, found in ((0.02, []), (0.4, ["temperature_mismatch"])):
        log = [{"sampling/sampling_logp_difference/mean": gap} | row for row in records(one_update(), TRL_GRPO)]
        assert names(log) == found


def test_too_many_updates_look_like_a_mismatch_and_the_kl_of_step_one_tells():
    """Where the sampler's own log-probabilities give a KL of 0 at step 1, sampler and reference agree."""
    far = four_updates() | {"approx_kl": [0.3] * 40}
    (unsure,) = diagnose(records(far | {"kl": [0.0, *far["kl"][1:]]}))
    (sure,) = diagnose(records({name: curve for name, curve in far.items() if name != "kl"}))
    assert unsure.name == sure.name == "temperature_mismatch" and unsure.confidence < 0.6 < sure.confidence


def test_the_score_in_the_last_column_shows_in_the_first_advantages():
    """lambda 0.95 over 24 tokens leaves 0.63 of a score's spread; a tenth of it is too little."""
    flat = ppo() | {"length_mean": [24.0] * 40, "reward_mean": Pencil(40, 2)(lambda t: 0.3, 0.03)}
    for std, found in ((0.45 * 0.63, False), (0.05, True)):
        assert ("reward_on_padding" in names(records(flat | {"advantage_std": [std] * 40}))) is found
    assert "reward_on_padding" not in names(records(ppo() | {"advantage_std": [0.05] * 40}))  # and it learns


def test_returns_of_zero_beside_rewards_that_are_not():
    flat = ppo() | {"reward_mean": Pencil(40, 2)(lambda t: 2.0, 0.05), "kl_coef": [0.0] * 40}
    for level, found in ((1.9, False), (0.01, True)):
        assert ("reward_on_padding" in names(records(flat | {"return_mean": [level] * 40}))) is found


def test_implicit_rewards_alone_show_chosen_answers_that_fall():
    falls = [{"step": i, "rewards/chosen": -0.1 * i, "rewards/margins": 0.04 * i} for i in range(40)]
    assert names(falls) == ["falling_chosen_logprobs"]
    mild = [{"step": i, "rewards/chosen": -0.02 * i, "rewards/margins": 0.06 * i} for i in range(40)]
    assert diagnose(mild) == []


# Where each threshold lies


def then(before: float, after: float, at: float = 0.6):
    return lambda t: before if t < at else after


FLAT = {"reward_mean": (lambda t: 0.3, 0.03)}
LIMITS = [  # (name, in which log, metric, a curve that is not named, one that is, other curves)
    ("ratio_always_one", ppo, "ratio_mean", lambda t: 1 + 2e-5, lambda t: 1 + 5e-6, {}),
    ("ratio_always_one", one_update, "approx_kl", lambda t: 5e-7, lambda t: 2e-6, {}),
    ("clip_fraction_zero", ppo, "approx_kl", lambda t: 0.0015, lambda t: 0.003, {"clip_fraction": (lambda t: 0, 0)}),
    ("clip_fraction_high", ppo, "clip_fraction", lambda t: 0.18, lambda t: 0.22, {}),
    ("negative_kl", ppo, "kl", lambda t: -0.008, lambda t: -0.012, {}),
    ("kl_growing", ppo, "kl", then(0.1, 9.0, 0.75), then(0.1, 16.0, 0.75), {}),
    ("entropy_collapse", ppo, "entropy", then(1.5, 0.18), then(1.5, 0.12), FLAT),
    ("temperature_mismatch", ppo, "approx_kl", lambda t: 0.08, lambda t: 0.12, {}),
    ("temperature_mismatch", ppo, "ratio_mean", lambda t: 1.04, lambda t: 1.06, {}),
    ("temperature_mismatch", ppo, "sampling_gap", lambda t: 0.09, lambda t: 0.11, {}),
    ("negative_explained_variance", ppo, "explained_variance", lambda t: -0.08, lambda t: -0.5, {}),
    ("value_loss_exploding", ppo, "value_loss", then(0.3, 1.7), then(0.3, 1.9), {}),
    ("gradient_exploding", ppo, "grad_norm", then(2, 19), then(2, 21), {}),
    ("gradient_exploding", ppo, "grad_norm", then(0.5, 9), then(0.5, 11), {}),
    ("zero_loss_at_start", one_update, "loss", lambda t: 0.0012, lambda t: 0.0008, FLAT),
    ("dead_groups", four_updates, "dead_groups", lambda t: 0.67, lambda t: 0.73, {}),
    ("length_running_away", ppo, "finished", then(1, 0.55), then(1, 0.45), {"length_mean": (then(100, 150), 0)}),
    ("length_running_away", ppo, "length_mean", then(100, 122), then(100, 128), {"finished": (then(1, 0.2), 0)}),
    ("length_collapse", ppo, "length_mean", then(100, 43), then(100, 37), {}),
    ("never_finishes", ppo, "finished", lambda t: 0.12, lambda t: 0.08, FLAT),
    (
        "falling_chosen_logprobs",
        dpo,
        "chosen_logprobs",
        then(-100, -123),
        then(-100, -127),
        {"rejected_logprobs": (then(-100, -300), 0)},
    ),
    (
        "falling_chosen_logprobs",
        dpo,
        "chosen_logprobs",
        then(-100, -116),
        then(-100, -120),
        {"rejected_logprobs": (then(-100, -121), 0)},
    ),
    ("accuracy_below_half", dpo, "accuracy", lambda t: 0.48, lambda t: 0.46, {"margin": (lambda t: -t, 0)}),
    ("loss_diverging", dpo, "loss", then(0.7, 0.85), then(0.7, 0.9), {}),
]


@pytest.mark.parametrize(
    ("name", "kind", "metric", "quiet", "loud", "beside"), LIMITS, ids=[f"{limit[0]}-{limit[2]}" for limit in LIMITS]
)
def test_a_threshold_lies_where_it_is_said_to(name, kind, metric, quiet, loud, beside):
    draw = Pencil(40, 5)
    curves = kind() | {other: draw(f, noise) for other, (f, noise) in beside.items()}
    assert name not in names(records(curves | {metric: draw(quiet)}))
    assert name in names(records(curves | {metric: draw(loud)}))


# The contract


def test_a_diagnosis_is_frozen_strings_and_a_number():
    (found, *_) = diagnose(records(ppo() | {"kl": [-1.0 - i for i in range(40)]}))
    assert isinstance(found, Diagnosis) and found.name == "negative_kl"
    assert all(isinstance(text, str) and text for text in (found.name, found.evidence, found.advice))
    assert isinstance(found.confidence, float) and any(character.isdigit() for character in found.evidence)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.name = "healthy"


def test_the_most_probable_comes_first():
    many = ppo() | {"kl": [-1.0 - i for i in range(40)], "lr": [0.0] * 40, "entropy": [0.9**i for i in range(40)]}
    confidences = [diagnosis.confidence for diagnosis in diagnose(records(many))]
    assert len(confidences) > 2 and confidences == sorted(confidences, reverse=True)
    assert all(0 < confidence <= 1 for confidence in confidences)


def test_the_evidence_holds_the_numbers_and_their_steps():
    falling = ppo() | {"kl": [-float(i) for i in range(40)]}
    (found,) = diagnose(records(falling))
    assert "from -3.5 (steps 1-8) to -35.5 (steps 33-40)" in found.evidence


def test_no_records_no_diagnosis():
    assert diagnose([]) == [] and diagnose([{}]) == [] and diagnose([{"step": 1}]) == []


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(-(10**30), 10**30),
    st.sampled_from(["", "nan", "1e3", "-inf", "text", [], {}]),
)
KEYS = [
    *STATS,
    *TRL_GRPO.values(),
    *TRL_PPO.values(),
    *CLASSIC.values(),
    "step",
    "global_step",
    "completions/clipped_ratio",
]


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=12), max_size=14))
def test_no_record_is_too_strange(log):
    for diagnosis in diagnose(log):
        assert 0 < diagnosis.confidence <= 1 and diagnosis.evidence and diagnosis.advice


@given(st.lists(st.fixed_dictionaries({key: st.floats() for key in sorted(STATS)}), max_size=12))
def test_no_size_is_too_strange(log):
    for diagnosis in diagnose(log):
        assert 0 < diagnosis.confidence <= 1 and diagnosis.evidence and diagnosis.advice


@given(
    st.lists(
        st.fixed_dictionaries({key: st.sampled_from([0.0, 1e-300, -1e99, 1e99, 1.0]) for key in sorted(STATS)}),
        max_size=9,
    )
)
def test_no_range_is_too_strange(log):
    assert all(math.isfinite(diagnosis.confidence) for diagnosis in diagnose(log))


def test_a_reward_too_large_to_be_one_is_no_number_and_does_not_stop_the_other_rules():
    row = {"step": 1, "reward_mean": 1.1e100, "reward_std": 0.0, "advantage_std": 0.0, "length_mean": 0.0}
    assert names([row])[0] == "non_finite"


def test_an_entropy_whose_first_records_cancel_is_no_division_by_zero():
    assert "entropy_collapse" not in names([{"step": i, "entropy": (1.0, -1.0)[i % 2]} for i in range(10)])


def test_gaps_texts_and_none_are_passed_over():
    sick = records(ppo() | {"kl": [-1.0 - i for i in range(40)]})
    holes = [{name: value for name, value in row.items() if (i + len(name)) % 5} for i, row in enumerate(sick)]
    for row in holes[::3]:
        row |= {"note": "warm", "kl": None, "entropy": "unknown"}
    assert names(holes)[0] == "negative_kl"
