"""Healthy logs drawn with a pencil, one curve a metric: other shapes, lengths and noises than those of the zoo."""

import math
import random

TRL_GRPO = {
    "reward_mean": "reward",
    "dead_groups": "frac_reward_zero_std",
    "length_mean": "completions/mean_length",
    "clip_fraction": "clip_ratio/region_mean",
    "lr": "learning_rate",
}
TRL_PPO = {
    "kl": "objective/kl",
    "entropy": "policy/entropy_avg",
    "reward_mean": "objective/scores",
    "approx_kl": "policy/approxkl_avg",
    "clip_fraction": "policy/clipfrac_avg",
    "value_loss": "loss/value_avg",
    "policy_loss": "loss/policy_avg",
    "ratio_mean": "val/ratio",
}
CLASSIC = {
    "kl": "objective/kl",
    "entropy": "ppo/policy/entropy",
    "reward_mean": "ppo/mean_scores",
    "approx_kl": "ppo/policy/approxkl",
    "clip_fraction": "ppo/policy/clipfrac",
    "explained_variance": "ppo/val/var_explained",
    "value_loss": "ppo/loss/value",
    "loss": "ppo/loss/total",
    "length_mean": "tokens/responses_len_mean",
    "lr": "ppo/learning_rate",
}
TRL_DPO = {
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "chosen_logprobs": "logps/chosen",
    "rejected_logprobs": "logps/rejected",
    "lr": "learning_rate",
}


class Pencil:
    """pencil(f, noise) draws f(t), t from 0 to 1, with noise, over n records."""

    def __init__(self, n: int, seed: int):
        self.n, self.dice = n, random.Random(seed)

    def __call__(self, f, noise: float = 0.0, low: float = -math.inf, high: float = math.inf) -> list[float]:
        drawn = [f(i / max(1, self.n - 1)) + noise * self.dice.gauss(0, 1) for i in range(self.n)]
        return [min(high, max(low, x)) for x in drawn]


def one_update(n: int = 40, seed: int = 0) -> dict[str, list]:
    """GRPO with one update a batch: loss 0, ratio 1, nothing clipped, and a reward that rises."""
    draw = Pencil(n, seed)
    return {
        "step": list(range(1, n + 1)),
        "loss": [0.0] * n,
        "ratio_mean": [1.0] * n,
        "clip_fraction": [0.0] * n,
        "approx_kl": [0.0] * n,
        "reward_mean": draw(lambda t: 0.2 + 0.5 * t, 0.03),
        "reward_std": draw(lambda t: 0.45 - 0.1 * t, 0.01),
        "kl": draw(lambda t: 3 * (1 - math.exp(-3 * t)), 0.05, low=0),
        "entropy": draw(lambda t: 1.5 - 0.7 * t, 0.03),
        "dead_groups": draw(lambda t: 0.1 + 0.2 * t, 0.05, 0, 1),
        "length_mean": draw(lambda t: 100 + 40 * t, 3),
        "finished": draw(lambda t: 0.97, 0.01, 0, 1),
        "grad_norm": draw(lambda t: 0.8, 0.1),
        "lr": [1e-5] * n,
    }


def four_updates(n: int = 40, seed: int = 0) -> dict[str, list]:
    draw = Pencil(n, seed + 1000)
    return one_update(n, seed) | {
        "loss": draw(lambda t: 0, 0.02),
        "ratio_mean": draw(lambda t: 1, 0.004),
        "clip_fraction": draw(lambda t: 0.05, 0.02, low=0.001),
        "approx_kl": draw(lambda t: 0.01, 0.003, low=0.001),
    }


def ppo(n: int = 40, seed: int = 0) -> dict[str, list]:
    draw, curves = Pencil(n, seed + 2000), four_updates(n, seed)
    del curves["dead_groups"]
    return curves | {
        "value_loss": draw(lambda t: 0.3 - 0.1 * t, 0.03),
        "policy_loss": draw(lambda t: 0, 0.02),
        "explained_variance": draw(lambda t: 0.1 + 0.5 * t, 0.05),
    }


def dpo(n: int = 40, seed: int = 0) -> dict[str, list]:
    draw = Pencil(n, seed + 3000)
    return {
        "step": list(range(1, n + 1)),
        "loss": draw(lambda t: 0.69 - 0.2 * t, 0.01),
        "accuracy": draw(lambda t: 0.5 + 0.25 * t, 0.03),
        "margin": draw(lambda t: 0.8 * t, 0.03),
        "chosen_logprobs": draw(lambda t: -120 - 5 * t, 1.5),
        "rejected_logprobs": draw(lambda t: -125 - 15 * t, 1.5),
        "grad_norm": draw(lambda t: 2, 0.2),
        "lr": [1e-6] * n,
    }


def records(curves: dict[str, list], names: dict[str, str] | None = None) -> list[dict]:
    """One dict a step; with `names`, under TRL's. `finished` is then the clipped ratio, and GRPO's KL a mean over tokens."""
    rows = [{name: curve[i] for name, curve in curves.items()} for i in range(len(curves["step"]))]
    if names is None:
        return rows
    found = []
    for row in rows:
        trl = {names.get(name, name): value for name, value in row.items() if name != "finished"}
        if names is TRL_GRPO:
            trl["kl"] = row["kl"] / row["length_mean"]
            trl["completions/clipped_ratio"] = 1 - row["finished"]
        found.append(trl)
    return found
