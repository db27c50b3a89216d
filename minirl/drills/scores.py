"""Wrong versions of what a response is worth: the last token's score, a careful ensemble, the price of length."""

import torch

from minirl.drills.bank import Case, Drill, masked_cases, numbers, right, wrong
from minirl.drills.by_hand import ensemble_reward
from minirl.model import last_token
from minirl.rewards import length_penalty

# Where a reward model reads its score


@right(last_token)
def right_last(scores, mask):
    index = mask.sum(1) - 1
    return scores[torch.arange(len(scores)), index]


@wrong(last_token, "This is the last column, padding in a short row: read the last counted token, at mask.sum(1) - 1.")
def last_column(scores, mask):
    return scores[:, -1]


@wrong(last_token, "One too late: the last counted token has the index mask.sum(1) - 1.")
def token_after_the_last(scores, mask):
    index = mask.sum(1).clamp(max=mask.shape[1] - 1)
    return scores[torch.arange(len(scores)), index]


@wrong(last_token, "One too early: the end token counts, and it has seen the whole answer.")
def token_before_the_last(scores, mask):
    index = (mask.sum(1) - 2).clamp(min=0)
    return scores[torch.arange(len(scores)), index]


@wrong(
    last_token,
    "One too early, and in a row of one token from the right end: the last counted token is mask.sum(1) - 1.",
)
def token_two_before_the_count(scores, mask):
    return scores[torch.arange(len(scores)), mask.sum(1) - 2]


@wrong(last_token, "This is the first token's score: it has not seen the answer.")
def first_token_score(scores, mask):
    return scores[:, 0]


@wrong(last_token, "The scores are averaged: the answer's score is the one read at its last token.")
def mean_score(scores, mask):
    return (scores * mask).sum(1) / mask.sum(1)


@wrong(last_token, "The scores are added up (that is the pool `summed`): read the one at the last token.")
def summed_score(scores, mask):
    return (scores * mask).sum(1)


@wrong(last_token, "The best token's score stands for the answer: read the one at the last token.")
def best_score(scores, mask):
    return scores.masked_fill(~mask, -torch.inf).max(1).values


# An ensemble


@right(ensemble_reward)
def right_ensemble(scores, *, caution=1.0):
    return scores.mean(0) - caution * scores.std(0)


@wrong(ensemble_reward, "The spread is added: where the members disagree, pay less.")
def daring_ensemble(scores, *, caution=1.0):
    return scores.mean(0) + caution * scores.std(0)


@wrong(ensemble_reward, "Only the mean is paid: where the members disagree, subtract caution times their spread.")
def plain_mean_of_members(scores, *, caution=1.0):
    return scores.mean(0)


@wrong(ensemble_reward, "Mean and spread run over the responses: over the members, axis 0.")
def spread_over_responses(scores, *, caution=1.0):
    return (scores.mean(1) - caution * scores.std(1))[: scores.shape[1]]


@wrong(
    ensemble_reward,
    "The variance is subtracted: its root has the unit of a score.",
    seen="Coste et al. 2024, who choose it",
)
def variance_subtracted(scores, *, caution=1.0):
    return scores.mean(0) - caution * scores.var(0)


@wrong(
    ensemble_reward, "This is the worst member's score: another careful choice, which grows harsher with every member."
)
def worst_member(scores, *, caution=1.0):
    return scores.min(0).values


@wrong(ensemble_reward, "The deviation divides by M: M members are a small sample, so divide by M - 1.")
def spread_of_the_population(scores, *, caution=1.0):
    return scores.mean(0) - caution * scores.std(0, correction=0)


@wrong(ensemble_reward, "caution is not used: mean - caution * standard deviation.")
def caution_ignored(scores, *, caution=1.0):
    return scores.mean(0) - scores.std(0)


# The price of length


@right(length_penalty)
def right_length(scores, mask, *, coef, free_length=0):
    return scores - coef * (mask.sum(1) - free_length).clamp(min=0)


@wrong(length_penalty, "The sign is wrong: a positive coef makes tokens cost, so it is subtracted.")
def length_paid(scores, mask, *, coef, free_length=0):
    return scores + coef * (mask.sum(1) - free_length).clamp(min=0)


@wrong(length_penalty, "The padded length is charged: count the True entries of each row.")
def width_charged(scores, mask, *, coef, free_length=0):
    return scores - coef * max(mask.shape[1] - free_length, 0)


@wrong(length_penalty, "Shorter answers get a bonus: below free_length nothing is charged, so clamp at 0.")
def bonus_for_brevity(scores, mask, *, coef, free_length=0):
    return scores - coef * (mask.sum(1) - free_length)


@wrong(length_penalty, "free_length is not used: the first free_length tokens cost nothing.")
def nothing_is_free(scores, mask, *, coef, free_length=0):
    return scores - coef * mask.sum(1)


@wrong(length_penalty, "Whoever is too long pays for all tokens: only those beyond free_length cost.")
def all_tokens_charged(scores, mask, *, coef, free_length=0):
    return scores - coef * mask.sum(1) * (mask.sum(1) > free_length)


@wrong(length_penalty, "The charge is one for all: each response pays for its own length.")
def mean_length_charged(scores, mask, *, coef, free_length=0):
    return scores - coef * (mask.sum(1) - free_length).clamp(min=0).double().mean()


# The drills


def _judged(seed, mask):
    return {"scores": numbers(seed, *mask.shape), "mask": mask}


def _charged(seed, mask):
    return {"scores": numbers(seed, len(mask)), "mask": mask}


DRILLS = [
    Drill(
        last_token,
        masked_cases(_judged),
        (
            "Which token has seen the whole answer and no padding?",
            "Its index is one less than the number of counted tokens of the row.",
            "scores[torch.arange(B), mask.sum(1) - 1].",
        ),
        ["scores"],
        ["score"],
    ),
    Drill(
        ensemble_reward,
        [
            Case({"scores": numbers(80 + i, *shape)}, {"caution": caution})
            for i, (shape, caution) in enumerate([((2, 2), 1.0), ((3, 2), 0.5), ((3, 3), 1.0), ((4, 3), 2.0)])
        ],
        (
            "Agreement is paid, disagreement costs.",
            "Mean and standard deviation over the members, axis 0.",
            "scores.mean(0) - caution * scores.std(0).",
        ),
        outputs=["reward"],
    ),
    Drill(
        length_penalty,
        masked_cases(_charged, {"coef": 0.5, "free_length": 0}, {"coef": 0.2, "free_length": 2}),
        (
            "The length of a row is the number of its counted tokens.",
            "Only what lies beyond free_length costs, and nothing pays for being short.",
            "scores - coef * (mask.sum(1) - free_length).clamp(min=0).",
        ),
        outputs=["scores"],
    ),
]
