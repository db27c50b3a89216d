"""Rules about learning from pairs."""

from minirl.doctor.diagnosis import Diagnosis
from minirl.doctor.log import NOISE, Log, short

FELL = 0.25  # of where it started: the healthy DPO, IPO and KTO runs lose 12% at most
SOME = 0.18  # of where it started, when the gap to the rejected ones grows by less than the chosen ones fell
BACKWARDS = 0.47  # share of pairs in the right order, late in a run


def falling_chosen_logprobs(log: Log) -> Diagnosis | None:
    chosen, rejected = log["chosen_logprobs"], log["rejected_logprobs"]
    if not chosen:
        return _falling_chosen_rewards(log)
    fall = chosen.early - chosen.late
    if chosen.direction != "fell":
        return None
    gain = (chosen.late - rejected.late) - (chosen.early - rejected.early) if rejected else 0.0
    deep, blind = fall > FELL * abs(chosen.early), fall > SOME * abs(chosen.early) and bool(rejected) and fall > gain
    if not deep and not blind:
        return None
    beside = f" The gap to the rejected ones grew by {short(gain)} nats only." if blind else ""
    return Diagnosis(
        "falling_chosen_logprobs",
        0.9 if deep and fall > gain else 0.7,
        f"chosen_logprobs {chosen.said('fell')}: the answers you want have become {short(fall)} nats less likely.{beside}",
        "A DPO loss asks for a difference only, and pushing both down satisfies it. Some fall is normal. Raise beta, lower the "
        "learning rate, stop earlier; look at the KL and at samples; add an SFT term, as ORPO has. "
        "Pairs that differ little make it worse. Notebook 11.",
    )


def _falling_chosen_rewards(log: Log) -> Diagnosis | None:
    chosen, margin = log["chosen_rewards"], log["margin"]
    if chosen.direction != "fell" or not margin or -chosen.late < max(1.0, margin.late):
        return None
    return Diagnosis(
        "falling_chosen_logprobs",
        0.6,
        f"The implicit reward of the chosen answers {chosen.said('fell')}, more than the margin of {short(margin.late)} that was "
        "won: both sides are pushed down.",
        "Log the chosen log-probabilities themselves. Raise beta, lower the learning rate, stop earlier, add an SFT term. "
        "Notebook 11.",
    )


def accuracy_below_half(log: Log) -> Diagnosis | None:
    """Pairs only: an accuracy beside a margin, and no reward."""
    accuracy, margin = log["accuracy"], log["margin"]
    if len(accuracy) < 5 or not margin or "reward_mean" in log:
        return None
    half = accuracy.second_half
    level = sum(half.values) / len(half)
    if level > BACKWARDS or level + NOISE * accuracy.error > 0.5 or margin.late >= 0:
        return None
    return Diagnosis(
        "accuracy_below_half",
        0.92,
        f"{level:.0%} of the pairs are in the right order in the second half, and the margin {margin.said()}: the policy prefers "
        "what the labeller rejected, more than the reference does.",
        "Check the sign of the loss and which column is chosen; print one pair with both log-ratios. Labels swapped in the data "
        "do not show like this: they are learned, and the accuracy rises. Notebook 11.",
    )
