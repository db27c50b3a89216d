"""Rules about the numbers every loop has: loss, gradient, learning rate."""

import statistics

from minirl.doctor.diagnosis import Diagnosis
from minirl.doctor.log import Log, short

NO_LOSS = 1e-3  # GRPO's loss is 0 up to rounding on policy; with k3 in it the first ones are some 1e-4
HANDFUL = 8  # records of a person who asks early
EXPLODED = 10.0  # times the early median: the healthy runs stay below 3, sick ones reach 300
LOUD = 10.0  # and above 10, since a run that starts at 0.05 may grow twentyfold in health
DIVERGED = 1.25  # times the first loss: supervised losses fall in health, and no healthy one ends above 1.02


def non_finite(log: Log) -> Diagnosis | None:
    if not log.bad:
        return None
    step, name, value = log.bad[0]
    names = list(dict.fromkeys(name for _, name, _ in log.bad))
    return Diagnosis(
        "non_finite",
        1.0,
        f"{name} is {value} at step {step}, the first of {len(log.bad)} numbers that are not finite: "
        f"{', '.join(names[:4])}.",
        f"Every later step is worthless: go back to a checkpoint before step {step}. Then look at grad_norm and the KL just "
        "before, lower the learning rate, check that the clip on the gradient acts, and that no log-ratio passes exp "
        "unclamped (notebook 06). In half precision, compute losses in float32.",
    )


def learning_rate_zero(log: Log) -> Diagnosis | None:
    lr = log["lr"]
    if len(lr) < 2 or any(lr.values):
        return None
    return Diagnosis(
        "learning_rate_zero",
        0.97,
        f"The learning rate is 0 in all {len(lr)} records, steps {lr.steps[0]} to {lr.steps[-1]}.",
        "Look at the schedule: a warm-up longer than the run, or a decay whose number of steps is counted in other units "
        "(batches, minibatches, episodes). A single 0 at the first step is a normal warm-up.",
    )


def zero_loss_at_start(log: Log) -> Diagnosis | None:
    loss, reward, gradient = log["loss"], log["reward_mean"], log["grad_norm"]
    start = loss.values[:5]
    if not start or max(map(abs, start)) > NO_LOSS or ("accuracy" in log and not reward):
        return None
    early, still = len(loss) <= HANDFUL, max(map(abs, loss.values)) <= NO_LOSS
    if (log.learning and len(loss) > 5) or (gradient and max(gradient.values[:5]) == 0):
        return None
    if not early and not still and reward.direction != "":
        return None
    alive = (
        f"grad_norm is {short(gradient.early)}, so it learns"
        if gradient
        else "grad_norm, which would show it, is not logged"
    )
    return Diagnosis(
        "zero_loss_at_start",
        0.9 if early else 0.5,
        f"The loss is {short(max(map(abs, start)))} at most in size over the first {len(start)} records; {alive}.",
        "This is no bug. Advantages of a group sum to 0 and the ratio is 1 before the first update, so the value of the loss "
        "cancels; its gradient does not. Watch reward_mean and grad_norm instead (notebook 12). If grad_norm is 0 as well, "
        "look at dead_groups.",
    )


def gradient_exploding(log: Log) -> Diagnosis | None:
    gradient = log["grad_norm"]
    if len(gradient) < 5:
        return None
    before = statistics.median(gradient.values[: max(1, len(gradient) // 3)])
    if gradient.late < max(EXPLODED * before, LOUD):
        return None
    return Diagnosis(
        "gradient_exploding",
        0.6,
        f"grad_norm {gradient.said('rose')}, {short(gradient.late / max(before, 1e-9))} times its median in the first third.",
        "A growing gradient is a symptom: look which part of the loss grows (value_loss, KL, policy_loss) at the step where it "
        "starts. max_grad_norm hides it and Adam rescales it; a lower learning rate delays it. Notebook 09.",
    )


def loss_diverging(log: Log) -> Diagnosis | None:
    """Where the loss is a likelihood or a classification, it has to fall. A policy's loss means nothing."""
    loss = log["loss"]
    if (
        len(loss) < 5
        or loss.first <= 0
        or any(name in log for name in ("reward_mean", "ratio_mean", "clip_fraction", "kl"))
    ):
        return None
    if loss.late < DIVERGED * loss.first:
        return None
    worst = max(loss.values)
    return Diagnosis(
        "loss_diverging",
        0.9,
        f"The loss {loss.said()}; its largest value is {short(worst)} at step {loss.steps[loss.values.index(worst)]}.",
        "Lower the learning rate by a factor of ten and lengthen the warm-up; then check that inputs and labels are shifted "
        "once and not twice, and that padding is masked (notebook 04).",
    )
