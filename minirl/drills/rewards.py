"""Wrong versions of KL-shaped rewards and of the price for not ending."""

import torch

from minirl.drills.bank import Case, Drill, masked_cases, numbers, right, wrong
from minirl.rewards import kl_shaped_rewards, missing_eos_penalty

# KL-shaped rewards


def _last(mask):
    """True on the last counted token of each row: counted, and the only one from there on."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)


@right(kl_shaped_rewards)
def right_shaped(scores, kl, mask, *, kl_coef):
    return -kl_coef * kl * mask + scores.unsqueeze(1) * _last(mask)


@wrong(
    kl_shaped_rewards,
    "The sign of the KL is wrong: leaving the reference costs, r = -kl_coef * kl.",
    seen="a common tutorial, and Logic-RL (issue 58)",
)
def kl_rewarded(scores, kl, mask, *, kl_coef):
    return kl_coef * kl * mask + scores.unsqueeze(1) * _last(mask)


@wrong(kl_shaped_rewards, "The sign of the score is wrong: it is what the response earns.")
def score_subtracted(scores, kl, mask, *, kl_coef):
    return -kl_coef * kl * mask - scores.unsqueeze(1) * _last(mask)


@wrong(
    kl_shaped_rewards,
    "The score sits on the last column, which is padding in a short row: put it on the last counted token.",
    seen="a common tutorial",
)
def score_on_the_last_column(scores, kl, mask, *, kl_coef):
    rewards = -kl_coef * kl * mask
    rewards[:, -1] += scores
    return rewards


@wrong(
    kl_shaped_rewards,
    "The mask is not used: pads are charged for their KL, and the last column, often a pad, takes the score.",
)
def shaped_without_mask(scores, kl, mask, *, kl_coef):
    rewards = -kl_coef * kl
    rewards[:, -1] += scores
    return rewards


@wrong(kl_shaped_rewards, "The score vanishes with the padding: it was put on the last column and masked afterwards.")
def score_masked_away(scores, kl, mask, *, kl_coef):
    rewards = -kl_coef * kl
    rewards[:, -1] += scores
    return rewards * mask


@wrong(kl_shaped_rewards, "One too late: the last counted token has the index mask.sum(1) - 1.")
def score_after_the_end(scores, kl, mask, *, kl_coef):
    rewards = -kl_coef * kl * mask
    rewards[:, 1:] += scores.unsqueeze(1) * _last(mask)[:, :-1]
    return rewards


@wrong(kl_shaped_rewards, "One too early: the end token counts and takes the score.")
def score_before_the_end(scores, kl, mask, *, kl_coef):
    rewards = -kl_coef * kl * mask
    rewards[:, :-1] += scores.unsqueeze(1) * _last(mask)[:, 1:]
    return rewards


@wrong(
    kl_shaped_rewards,
    "One too early, and counted from the right in a row of one token: the last counted token is mask.sum(1) - 1.",
)
def score_two_before_the_count(scores, kl, mask, *, kl_coef):
    rewards = -kl_coef * kl * mask
    rewards[torch.arange(len(rewards)), mask.sum(1) - 2] += scores
    return rewards


@wrong(
    kl_shaped_rewards,
    "Every row gets every score: rewards[:, index] picks columns. rewards[torch.arange(B), index] picks one entry a row.",
)
def scores_in_every_row(scores, kl, mask, *, kl_coef):
    rewards = -kl_coef * kl * mask
    rewards[:, mask.sum(1) - 1] += scores
    return rewards


@wrong(
    kl_shaped_rewards,
    "The score is paid on every token: a longer answer would earn it more often. Pay it once, at the end.",
)
def score_on_every_token(scores, kl, mask, *, kl_coef):
    return (scores.unsqueeze(1) - kl_coef * kl) * mask


@wrong(kl_shaped_rewards, "The score sits on the first token: pay it on the last counted one.")
def score_on_the_first_token(scores, kl, mask, *, kl_coef):
    rewards = -kl_coef * kl * mask
    rewards[:, 0] += scores
    return rewards


@wrong(kl_shaped_rewards, "The score replaces the KL of the last token: add it to the charge.")
def score_replaces_kl(scores, kl, mask, *, kl_coef):
    return torch.where(_last(mask), scores.unsqueeze(1), -kl_coef * kl * mask)


@wrong(kl_shaped_rewards, "The KL is charged in the padding too: rewards are 0 there.")
def kl_of_the_padding(scores, kl, mask, *, kl_coef):
    return -kl_coef * kl + scores.unsqueeze(1) * _last(mask)


@wrong(
    kl_shaped_rewards, "The whole KL is charged at the end: charge each token its own, so that credit finds the token."
)
def kl_at_the_end(scores, kl, mask, *, kl_coef):
    return (scores - kl_coef * (kl * mask).sum(1)).unsqueeze(1) * _last(mask)


@wrong(kl_shaped_rewards, "Each token is charged the row's mean KL: charge it its own.")
def mean_kl_everywhere(scores, kl, mask, *, kl_coef):
    mean = (kl * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return -kl_coef * mean * mask + scores.unsqueeze(1) * _last(mask)


@wrong(kl_shaped_rewards, "kl_coef multiplies the score as well: it is the price of the KL only.")
def score_times_kl_coef(scores, kl, mask, *, kl_coef):
    return kl_coef * (scores.unsqueeze(1) * _last(mask) - kl * mask)


@wrong(kl_shaped_rewards, "kl_coef is missing.")
def kl_without_coefficient(scores, kl, mask, *, kl_coef):
    return -kl * mask + scores.unsqueeze(1) * _last(mask)


# The price for not ending


@right(missing_eos_penalty)
def right_penalty(scores, finished, *, penalty):
    return torch.where(finished, scores, scores - penalty)


@wrong(missing_eos_penalty, "The condition is upside down: the penalty falls on responses that did NOT finish.")
def finished_punished(scores, finished, *, penalty):
    return torch.where(finished, scores - penalty, scores)


@wrong(missing_eos_penalty, "The sign is wrong: the penalty is subtracted, or running on would pay.")
def penalty_added(scores, finished, *, penalty):
    return torch.where(finished, scores, scores + penalty)


@wrong(
    missing_eos_penalty,
    "The penalty replaces the score: subtract it, so that a good truncated answer still beats a bad one.",
)
def score_replaced(scores, finished, *, penalty):
    return torch.where(finished, scores, torch.full_like(scores, -penalty))


@wrong(missing_eos_penalty, "Every response pays: only those that never ended should.")
def everyone_punished(scores, finished, *, penalty):
    return scores - penalty


@wrong(
    missing_eos_penalty,
    "The score of an unfinished response is multiplied: a negative score would be reduced, a reward.",
)
def score_multiplied(scores, finished, *, penalty):
    return torch.where(finished, scores, scores * penalty)


# The drills


def _paid(seed, mask):
    return {"scores": numbers(seed, len(mask)), "kl": numbers(seed + 1, *mask.shape, low=-1, high=2), "mask": mask}


def _ended(seed: int, finished: list[bool], penalty: float) -> Case:
    return Case({"scores": numbers(seed, len(finished)), "finished": torch.tensor(finished)}, {"penalty": penalty})


DRILLS = [
    Drill(
        kl_shaped_rewards,
        masked_cases(_paid, {"kl_coef": 0.1}, {"kl_coef": 0.5}),
        (
            "Two parts: a charge at every counted token, and one payment.",
            "The payment goes to the last counted token of each row: mask.sum(1) - 1, not the last column.",
            "rewards = -kl_coef * kl * mask; rewards[torch.arange(B), mask.sum(1) - 1] += scores.",
        ),
        outputs=["rewards"],
    ),
    Drill(
        missing_eos_penalty,
        [
            _ended(1, [False], 1.0),
            _ended(2, [True], 1.0),
            _ended(3, [False, True, False], 0.5),
            _ended(4, [True, False, False, True], 2.0),
        ],
        ("Who pays, and how much?", "torch.where on finished.", "torch.where(finished, scores, scores - penalty)."),
        outputs=["scores"],
    ),
]
