"""Logs drawn with a ruler, as an outsider would write them down: one thing wrong, everything else calm."""

import math

import pytest

from minirl.doctor import diagnose

CALM = {
    "reward_mean": lambda i: 0.2 + 0.6 * i / 50,
    "reward_std": lambda i: 0.4,
    "kl": lambda i: 0.05 * i,
    "entropy": lambda i: 2 - 0.01 * i,
    "clip_fraction": lambda i: 0.08,
    "ratio_mean": lambda i: 1 + 0.001 * (i % 3),
    "approx_kl": lambda i: 0.01,
    "loss": lambda i: -0.01 * (i % 5) - 0.001,
    "grad_norm": lambda i: 0.5 + 0.01 * (i % 7),
    "length_mean": lambda i: 40 + 0.1 * i,
    "finished": lambda i: 0.95,
    "dead_groups": lambda i: 0.1,
    "explained_variance": lambda i: 0.1 + 0.01 * i,
    "value_loss": lambda i: 0.5 / (1 + i / 10),
}
DRAWN = {
    "zero_loss_at_start": {"loss": lambda i: 0.0, "reward_mean": lambda i: 0.2, "grad_norm": lambda i: 0.3},
    "ratio_always_one": CALM
    | dict.fromkeys(["clip_fraction", "approx_kl", "kl"], lambda i: 0.0)
    | {"ratio_mean": lambda i: 1.0, "reward_mean": lambda i: 0.2 + 0.01 * (i % 3)},
    "negative_kl": CALM | {"kl": lambda i: -0.5 - 0.02 * i},
    "kl_growing": CALM | {"kl": lambda i: 0.1 * math.exp(i / 6)},
    "clip_fraction_zero": CALM | {"clip_fraction": lambda i: 0.0},
    "clip_fraction_high": CALM | {"clip_fraction": lambda i: 0.7},
    "entropy_collapse": CALM | {"entropy": lambda i: 2 * math.exp(-i / 6)},
    "dead_groups": CALM | {"dead_groups": lambda i: 0.9},
    "falling_chosen_logprobs": {
        "loss": lambda i: 0.69 - 0.01 * i,
        "accuracy": lambda i: 0.5 + 0.008 * i,
        "margin": lambda i: 0.1 * i,
        "chosen_logprobs": lambda i: -40 - 2 * i,
        "rejected_logprobs": lambda i: -42 - 3 * i,
    },
    "negative_explained_variance": CALM | {"explained_variance": lambda i: -0.8},
    "value_loss_exploding": CALM | {"value_loss": lambda i: 0.5 * math.exp(i / 8)},
    "length_running_away": CALM | {"length_mean": lambda i: 40 + 6 * i, "finished": lambda i: max(0, 0.95 - 0.02 * i)},
    "proxy_up_win_rate_down": CALM | {"win_rate": lambda i: 0.6 - 0.006 * i},
    "temperature_mismatch": CALM
    | {"ratio_mean": lambda i: 1.6, "approx_kl": lambda i: 0.5, "clip_fraction": lambda i: 0.4},
    "non_finite": CALM | {"loss": lambda i: math.nan if i > 30 else -0.01},
}


def drawn(curves: dict, steps: int = 50) -> list[dict]:
    return [{"step": i + 1} | {name: curve(i) for name, curve in curves.items()} for i in range(steps)]


def test_a_calm_log_is_healthy():
    assert diagnose(drawn(CALM)) == []


@pytest.mark.parametrize("name", DRAWN)
def test_the_one_thing_that_is_wrong_is_named_first(name):
    assert diagnose(drawn(DRAWN[name]))[0].name == name


def test_a_reward_that_never_moves_does_not_fall():
    """A mean of equal numbers differs from them by rounding."""
    for level in (0.1, 0.2, 0.3, 1 / 3):
        names = [found.name for found in diagnose(drawn(CALM | {"reward_mean": lambda i, level=level: level}))]
        assert "reward_falling" not in names


def test_ratios_that_are_off_from_the_start_make_a_mismatch_surer():
    """With the policy still on its reference, a large approx_kl alone may be the updates' work."""
    curves = DRAWN["temperature_mismatch"]
    sure = {found.name: found.confidence for found in diagnose(drawn(curves))}
    unsure = {
        found.name: found.confidence
        for found in diagnose(drawn(curves | {"ratio_mean": lambda i: 1.0 + 0.001 * (i % 3)}))
    }
    assert sure["temperature_mismatch"] > 0.8 > unsure["temperature_mismatch"]
