"""Rules about the critic."""

import statistics

from minirl.doctor.diagnosis import Diagnosis
from minirl.doctor.log import Log, short

USELESS = -0.1  # healthy critics of the stories go down to -.07 when they know nothing
LATE = 0.85  # of the variance at the start: .7 at most where the digits get solved, far above 1 in the sick runs
EXPLODED = 6.0  # times the median of the first third; healthy runs stay below 3


def negative_explained_variance(log: Log) -> Diagnosis | None:
    explained = log["explained_variance"]
    if len(explained) < 5 or (low := explained.second_half.median) >= USELESS:
        return None
    # As a task gets solved the returns lose their variance, and a critic that is late looks bad without being so: what counts
    # is the error that is left, in units of the variance at the start.
    spread = log["reward_std"]
    shrunk = spread.second_half.median / spread.early if spread and spread.early > 0 else 1.0
    left = (1 - low) * shrunk * shrunk
    if left < LATE:
        return None
    return Diagnosis(
        "negative_explained_variance",
        0.92 if low < -1 else 0.75,
        f"explained_variance has a median of {short(low)} in the second half; at step {explained.steps[-1]} it is "
        f"{short(explained.values[-1])}. Below 0 the critic is worse than a constant.",
        "Check that values and returns stand at the same tokens (off by one?), that the value loss reaches the optimiser "
        "(value_coef, the head's parameters), and that the head starts at 0. Then value_clip_eps in the units of the "
        "returns. With lambda = 1 and no critic you lose little in the meantime. Notebooks 08 and 09.",
    )


def value_loss_exploding(log: Log) -> Diagnosis | None:
    loss, spread = log["value_loss"], log["reward_std"]
    if len(loss) < 5:
        return None
    before = statistics.median(loss.values[: max(1, len(loss) // 3)])
    scale = (
        spread.late * spread.late if spread else 0.1
    )  # half the variance of the scores is what a constant would cost
    after = statistics.median(loss.values[-max(1, len(loss) // 4) :])
    if after < EXPLODED * before or after < scale:
        return None
    return Diagnosis(
        "value_loss_exploding",
        0.88,
        f"value_loss {loss.said('rose')}, {short(after / max(before, 1e-9))} times its median in the first third.",
        "Compare value_mean with return_mean. If both run away, look at the targets: returns = advantages + values, once, with "
        "the values of the rollout, and gamma at most 1. If the returns alone grow, look at the KL and the scale of the scores. "
        "A high explained_variance does not clear it: the critic then follows a target that runs away. Notebook 08.",
    )
