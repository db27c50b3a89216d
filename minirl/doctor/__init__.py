"""The doctor: reads the metrics of a run, ours or TRL's, and says what is probably wrong, how sure it is, and what to look
at next. A rule looks at a few curves and knows nothing else; its thresholds come from the runs of data/zoo."""

from minirl.doctor import critic, numbers, pairs, policy, reward
from minirl.doctor.diagnosis import Diagnosis
from minirl.doctor.log import Log
from minirl.doctor.reading import read_metrics

__all__ = ["NEEDS", "RULES", "Diagnosis", "diagnose", "read_metrics"]

RULES = (
    numbers.non_finite,
    numbers.learning_rate_zero,
    numbers.zero_loss_at_start,
    numbers.gradient_exploding,
    numbers.loss_diverging,
    policy.ratio_always_one,
    policy.clip_fraction_zero,
    policy.clip_fraction_high,
    policy.negative_kl,
    policy.kl_growing,
    policy.entropy_collapse,
    policy.temperature_mismatch,
    critic.negative_explained_variance,
    critic.value_loss_exploding,
    reward.dead_groups,
    reward.reward_flat,
    reward.reward_falling,
    reward.proxy_up_win_rate_down,
    reward.reward_on_padding,
    reward.length_running_away,
    reward.length_collapse,
    reward.never_finishes,
    pairs.falling_chosen_logprobs,
    pairs.accuracy_below_half,
)

# Any one of these metrics lets a rule see something.
NEEDS = {
    "learning_rate_zero": ("lr",),
    "zero_loss_at_start": ("loss",),
    "gradient_exploding": ("grad_norm",),
    "loss_diverging": ("loss",),
    "ratio_always_one": ("ratio_mean",),
    "clip_fraction_zero": ("clip_fraction",),
    "clip_fraction_high": ("clip_fraction",),
    "negative_kl": ("kl",),
    "kl_growing": ("kl",),
    "entropy_collapse": ("entropy",),
    "temperature_mismatch": ("approx_kl", "ratio_mean", "sampling_gap"),
    "negative_explained_variance": ("explained_variance",),
    "value_loss_exploding": ("value_loss",),
    "dead_groups": ("dead_groups", "reward_std"),
    "reward_flat": ("reward_mean",),
    "reward_falling": ("reward_mean",),
    "proxy_up_win_rate_down": ("gold_mean", "win_rate"),
    "reward_on_padding": ("advantage_std", "return_mean", "finished"),
    "length_running_away": ("length_mean",),
    "length_collapse": ("length_mean",),
    "never_finishes": ("finished",),
    "falling_chosen_logprobs": ("chosen_logprobs", "chosen_rewards"),
    "accuracy_below_half": ("margin",),
}


def diagnose(records: list[dict]) -> list[Diagnosis]:
    """What is probably wrong with a run, most probable first; [] for a healthy one. `records` in our names or in TRL's."""
    if not isinstance(records, list | tuple):
        raise ValueError(f"records: wanted a list of dicts, one a step, got {type(records).__name__}")
    log = Log(records)
    found = [diagnosis for rule in RULES if (diagnosis := rule(log)) is not None]
    return sorted(found, key=lambda diagnosis: -diagnosis.confidence)
