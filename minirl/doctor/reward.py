"""Rules about what the policy is paid for: rewards, groups, lengths."""

import math
import statistics

from minirl.doctor.diagnosis import Diagnosis
from minirl.doctor.log import NOISE, Log, short

DEAD = 0.7  # share of dead groups; healthy runs pass it only when they are solved
ENOUGH = 10  # records before a reward may be called flat
TREND = 0.6  # correlation with the step: white noise of ten records passes it once in fifteen times
LOST = 0.5  # of what the reward had gained
ROUNDING = 1e-6  # of a reward: what a mean of equal numbers may differ from them
LAM = 0.95  # the usual lambda: credit for a score fades by it, token by token
UNPAID = 0.5  # of the spread that advantages should have at the first steps: healthy 1.0 to 1.6, sick .1 to .3
GAINED = 0.5  # of reward_std: a policy that gains as much is paid; lambda 0 makes advantages small too
UNRETURNED = 0.1  # of the reward
CUT = 0.5  # share of responses that still end
LONGER, SHORTER = 1.25, 0.4  # healthy stories shrink to .8, and worked answers are 2.2 times as long as direct ones


def dead_groups(log: Log) -> Diagnosis | None:
    dead, spread = log["dead_groups"], log["reward_std"]
    if len(dead) > 2:
        level, what = dead.second_half.median, "dead_groups has a median of {} in the second half"
        if level < DEAD or (log.solved and dead.early < DEAD):
            return None
        from_the_start = 0.95 if dead.early >= DEAD else 0.9 if dead.early >= 0.5 else 0.0
        confidence = from_the_start or (0.6 if log["reward_mean"].direction == "rose" else 0.75)
    else:
        if len(spread) < 3 or max(spread.values) > 0 or log.solved:
            return None
        level, what, confidence = 0.0, "reward_std is {} in every record", 0.8
    reward = log["reward_mean"]
    ends = f", and reward_mean {reward.said()}" if reward else ""
    return Diagnosis(
        "dead_groups",
        confidence,
        what.format(short(level)) + ends + ": all answers of such a group score the same, and it teaches nothing.",
        "All 0 or all 1? If all 0, try the checker on an answer you know to be right, then easier prompts, more answers a "
        "prompt, temperature 1. If all 1, harder prompts. DAPO samples other groups in place of dead ones. Notebooks 12 and 13.",
    )


def reward_flat(log: Log) -> Diagnosis | None:
    reward, approx, gradient = log["reward_mean"], log["approx_kl"], log["grad_norm"]
    if len(reward) < ENOUGH or reward.direction or abs(reward.trend) > TREND or log.solved:
        return None
    tiny = bool(approx) and 1e-11 < approx.median < 1e-6
    more = f"; approx_kl has a median of {short(approx.median)}, so the policy hardly moves" if tiny else ""
    return Diagnosis(
        "reward_flat",
        0.8 if tiny else 0.4,
        f"reward_mean {reward.said()}, which is within its noise ({short(NOISE * math.sqrt(2) * reward.error)}){more}.",
        "Is the learning rate right (one that is a thousand times too low looks like this)? "
        + (f"grad_norm is {short(gradient.median)}. " if gradient else "Log grad_norm. ")
        + "Do scores differ within a batch (reward_std, dead_groups)? Does the score reach the tokens (advantage_std)? Is "
        "kl_coef so high that nothing may move? Notebooks 09 and 12.",
    )


def reward_falling(log: Log) -> Diagnosis | None:
    reward = log["reward_mean"]
    if len(reward) < 8 or log.solved:
        return None
    smooth = reward.smooth
    peak = max(smooth.values)
    gained, lost = peak - reward.early, peak - reward.late
    noise = max(NOISE * math.sqrt(2) * reward.error, ROUNDING * max(abs(peak), 1.0))
    if reward.direction == "fell":
        confidence, why = 0.87, f"reward_mean {reward.said('fell')}"
    elif gained > noise and lost > max(LOST * gained, noise):
        at = smooth.steps[smooth.values.index(peak)]
        confidence, why = (
            0.55,
            f"reward_mean rose to {short(peak)} around step {at} and is at {short(reward.late)} at the end",
        )
    else:
        return None
    return Diagnosis(
        "reward_falling",
        confidence,
        f"{why}.",
        "If it fell from the start, check the sign of the advantages and of the loss. If it rose before, the learning rate is "
        "too high or a batch is used too often: look at approx_kl, entropy and KL at the step where it turned, and go back to "
        "a checkpoint before it. Notebooks 06 and 09.",
    )


def proxy_up_win_rate_down(log: Log) -> Diagnosis | None:
    paid = log["reward_mean"]
    meant = next((log[name] for name in ("gold_mean", "win_rate") if log[name]), None)
    name = "gold_mean" if log["gold_mean"] else "win_rate"
    if meant is None or len(meant) < 4 or paid.direction != "rose":
        return None
    smooth = meant.smooth
    peak = max(smooth.values)
    noise = NOISE * math.sqrt(2) * meant.error
    fell = meant.direction == "fell"
    turned = peak - meant.late > max(1.5 * noise, LOST * (peak - min(meant.early, meant.late)))
    if not fell and not turned:
        return None
    at = smooth.steps[smooth.values.index(peak)]
    return Diagnosis(
        "proxy_up_win_rate_down",
        0.95,
        f"reward_mean {paid.said('rose')}, while {name} had its best, {short(peak)}, around step {at} and is {short(meant.late)} "
        "at the end: over-optimisation.",
        f"Take a checkpoint from around step {at}. Then read samples, raise kl_coef or stop at a KL; fresh labels on its "
        "own text and an ensemble help, a longer run does not. If the logged KL is small all the same, check that the reference "
        "is frozen. Notebook 10.",
    )


def reward_on_padding(log: Log) -> Diagnosis | None:
    """Three signs: advantages too small for such scores at the first steps, returns of 0 beside rewards that are not, and
    lengths that run away while the reward does not rise."""
    reward, spread, found = log["reward_mean"], log["reward_std"], log["advantage_std"]
    length, kl, back = log["length_mean"], log["kl"], log["return_mean"]
    if found and spread and length and log.first_step <= 1:
        n = max(1.0, length.first)
        fades = (1 - LAM ** (2 * n)) / (n * (1 - LAM**2))  # the mean of LAM^(2 t) over n tokens
        share = statistics.fmean(found.values[:3]) / max(statistics.fmean(spread.values[:3]) * math.sqrt(fades), 1e-9)
        gained = reward.late - reward.early if reward else 0.0
        if share > UNPAID or gained > GAINED * spread.early:
            return None
        confidence = 0.9
        why = f"advantage_std is {short(found.first)} at step {found.steps[0]} beside a reward_std of {short(spread.first)}"
    elif back and reward and len(back) > 4:
        price = log["kl_coef"].late if log["kl_coef"] else 0.0
        due = reward.second_half.median - price * (kl.late if kl else 0.0)
        if abs(due) < 0.2 * (spread.late if spread else 1.0) or abs(back.second_half.median) > UNRETURNED * abs(due):
            return None
        if reward.direction == "rose":
            return None
        confidence, why = 0.6, f"return_mean stays at {short(back.late)} while reward_mean is {short(reward.late)}"
    elif not found and not back and _runs_away(log) and reward and not log.learning:
        confidence, why = 0.4, f"length_mean {length.said('rose')}, while reward_mean {reward.said()}"
    else:
        return None
    return Diagnosis(
        "reward_on_padding",
        confidence,
        f"{why}: the scores do not arrive at the tokens they are meant for.",
        "Print the rewards of one short response beside its mask: the score belongs on the last counted token, not in the last "
        "column; what lies beyond the mask is dropped, and only the longest responses are paid. Look whether the reward model "
        "reads the padding. Notebook 09.",
    )


def _runs_away(log: Log) -> bool:
    length, finished = log["length_mean"], log["finished"]
    if length.direction != "rose" or length.late < LONGER * length.early:
        return False
    return bool(finished) and finished.early > CUT and finished.late < CUT


def length_running_away(log: Log) -> Diagnosis | None:
    length, finished = log["length_mean"], log["finished"]
    blind = not finished and length.direction == "rose" and length.late > 3 * length.early and not log.learning
    if len(length) < 5 or not (_runs_away(log) or blind):
        return None
    ends = f", and finished {finished.said('fell')}" if finished else "; how many responses ended is not logged"
    return Diagnosis(
        "length_running_away",
        0.6 if not finished else 0.92 if finished.late < 0.1 else 0.85,
        f"length_mean {length.said('rose')}{ends}.",
        "Does the score grow with length: a bonus a token, a summed reward model, padding that is paid? Plot scores against "
        "lengths. Then sequence_mean, which makes long wrong answers cheap, against token_mean or a fixed length; a "
        "missing_eos_penalty; a length penalty. Longer answers that are finished and better are no sickness. Notebooks 12, 13.",
    )


def length_collapse(log: Log) -> Diagnosis | None:
    length = log["length_mean"]
    if len(length) < 5 or length.direction != "fell" or length.late > SHORTER * length.early:
        return None
    return Diagnosis(
        "length_collapse",
        0.88,
        f"length_mean {length.said('fell')}.",
        "What ends early costs nothing: is every token charged (a length penalty, KL at each token with a high kl_coef, a "
        "negative score a token)? Read samples: empty answers? Then the sign of the score of unfinished ones. Notebooks 10, 12.",
    )


def never_finishes(log: Log) -> Diagnosis | None:
    finished = log["finished"]
    if len(finished) < 3 or max(finished.early, finished.median, finished.late) > 0.1 or log.learning:
        return None  # where every answer has the same length by design, and it learns, nothing is wrong
    length = log["length_mean"]
    return Diagnosis(
        "never_finishes",
        0.93 if log["reward_mean"] else 0.6,
        f"finished is {short(finished.median)} in the median, {short(max(finished.values))} at most"
        + (f", at a length_mean of {short(length.median)}." if length else "."),
        "Every response is cut off, and its score is that of a fragment. Raise max_new_tokens, check that eos is the token the "
        "model was taught to end with, and that prompts do not leave the context full. Notebooks 04 and 12.",
    )
