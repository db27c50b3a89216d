"""Wrong versions of Bradley-Terry and of DPO with its two kinds of smoothing."""

import torch
import torch.nn.functional as F

from minirl.drills.bank import Case, Drill, logprobs_like, numbers, reported, right, wrong
from minirl.losses.preference import bradley_terry_loss, dpo_loss, robust_dpo_loss

# Bradley-Terry


@right(bradley_terry_loss)
def right_bradley_terry(chosen, rejected, *, margin=0.0):
    return reported(-F.logsigmoid(chosen - rejected - margin).mean())


@wrong(bradley_terry_loss, "The pair is swapped: this teaches to score the rejected response higher.")
def swapped_bradley_terry(chosen, rejected, *, margin=0.0):
    return reported(-F.logsigmoid(rejected - chosen - margin).mean())


@wrong(bradley_terry_loss, "The minus is missing: a log-likelihood is to be maximised, and an optimiser minimises.")
def unnegated_bradley_terry(chosen, rejected, *, margin=0.0):
    return reported(F.logsigmoid(chosen - rejected - margin).mean())


@wrong(bradley_terry_loss, "The logarithm is missing: -log sigmoid, or a pair that is very wrong gets no gradient.")
def bradley_terry_without_log(chosen, rejected, *, margin=0.0):
    return reported(-torch.sigmoid(chosen - rejected - margin).mean())


@wrong(
    bradley_terry_loss, "This is a hinge: it stops at a distance of 1. Bradley-Terry is -log sigmoid of the difference."
)
def hinge(chosen, rejected, *, margin=0.0):
    return reported(F.relu(1 - (chosen - rejected - margin)).mean())


@wrong(
    bradley_terry_loss,
    "The scores are averaged before the sigmoid: each pair has its own -log sigmoid, and then the mean.",
)
def mean_difference_first(chosen, rejected, *, margin=0.0):
    return reported(-F.logsigmoid((chosen - rejected - margin).mean()))


@wrong(bradley_terry_loss, "The pairs are summed: take their mean, so that the loss does not grow with the batch.")
def summed_pairs(chosen, rejected, *, margin=0.0):
    return reported(-F.logsigmoid(chosen - rejected - margin).sum())


@wrong(bradley_terry_loss, "The sigmoid is missing: a plain difference grows without end by pushing the scores apart.")
def plain_difference(chosen, rejected, *, margin=0.0):
    return reported(-(chosen - rejected - margin).mean())


@wrong(
    bradley_terry_loss,
    "Each score is judged on its own, as right or wrong: only the difference of a pair means something.",
)
def scores_judged_alone(chosen, rejected, *, margin=0.0):
    return reported((-F.logsigmoid(chosen - margin) - F.logsigmoid(-rejected)).mean())


# DPO


def _smoothed(logits, e):
    return -((1 - e) * F.logsigmoid(logits) + e * F.logsigmoid(-logits)).mean()


@right(dpo_loss)
def right_dpo(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing=0.0):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(_smoothed(beta * h, label_smoothing))


@wrong(dpo_loss, "The pair is swapped: this teaches to prefer the rejected response.")
def swapped_dpo(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing=0.0):
    h = (rejected - ref_rejected) - (chosen - ref_chosen)
    return reported(_smoothed(beta * h, label_smoothing))


@wrong(dpo_loss, "The minus is missing: a log-likelihood is to be maximised, and an optimiser minimises.")
def unnegated_dpo(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing=0.0):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(-_smoothed(beta * h, label_smoothing))


@wrong(dpo_loss, "The reference is missing: h is the difference of log(pi / pi_ref), or nothing ties the policy to it.")
def dpo_without_reference(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing=0.0):
    return reported(_smoothed(beta * (chosen - rejected), label_smoothing))


@wrong(
    dpo_loss,
    "The reference has the wrong sign, or stands with the other answer: (chosen - ref_chosen) - (rejected - ref_rejected).",
)
def reference_added(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing=0.0):
    h = (chosen + ref_chosen) - (rejected + ref_rejected)
    return reported(_smoothed(beta * h, label_smoothing))


@wrong(dpo_loss, "beta is missing: log sigmoid(beta * h).")
def dpo_without_beta(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing=0.0):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(_smoothed(h, label_smoothing))


@wrong(dpo_loss, "beta stands outside the sigmoid, where it only scales the loss: log sigmoid(beta * h).")
def beta_outside(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing=0.0):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(beta * _smoothed(h, label_smoothing))


@wrong(dpo_loss, "h is divided by beta: the implicit reward is beta * log(pi / pi_ref).")
def divided_by_beta(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing=0.0):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(_smoothed(h / beta, label_smoothing))


@wrong(dpo_loss, "beta reaches the policy only: it multiplies the reference too, beta * (log pi - log pi_ref).")
def beta_on_the_policy_only(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing=0.0):
    h = beta * (chosen - rejected) - (ref_chosen - ref_rejected)
    return reported(_smoothed(h, label_smoothing))


@wrong(dpo_loss, "The logarithm is missing: -log sigmoid, or a pair that is very wrong gets no gradient.")
def dpo_without_log(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing=0.0):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(-torch.sigmoid(beta * h).mean())


@wrong(dpo_loss, "The pairs are summed: take their mean, so that the loss does not grow with the batch.")
def summed_dpo(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing=0.0):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(len(h) * _smoothed(beta * h, label_smoothing))


@wrong(dpo_loss, "The mean is taken before the sigmoid: each pair has its own -log sigmoid, and then the mean.")
def dpo_mean_first(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing=0.0):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(_smoothed(beta * h.mean(), label_smoothing))


# Robust DPO


@right(robust_dpo_loss)
def right_robust(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing):
    h, e = beta * ((chosen - ref_chosen) - (rejected - ref_rejected)), label_smoothing
    return reported((-(1 - e) * F.logsigmoid(h) + e * F.logsigmoid(-h)).mean() / (1 - 2 * e))


@wrong(robust_dpo_loss, "This is label smoothing (cDPO): in robust DPO the second sign is a minus, and 1 - 2e divides.")
def label_smoothing_for_robust(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(_smoothed(beta * h, label_smoothing))


@wrong(
    robust_dpo_loss,
    "The second sign is wrong: (1 - e) l(h) - e l(-h), where the subtraction undoes the flipped labels.",
)
def robust_second_sign(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(_smoothed(beta * h, label_smoothing) / (1 - 2 * label_smoothing))


@wrong(robust_dpo_loss, "The division by 1 - 2e is missing: it makes the average over flips the clean loss.")
def robust_not_divided(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing):
    h, e = beta * ((chosen - ref_chosen) - (rejected - ref_rejected)), label_smoothing
    return reported((-(1 - e) * F.logsigmoid(h) + e * F.logsigmoid(-h)).mean())


@wrong(robust_dpo_loss, "The pair is swapped: this teaches to prefer the rejected response.")
def swapped_robust(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing):
    h, e = beta * ((rejected - ref_rejected) - (chosen - ref_chosen)), label_smoothing
    return reported((-(1 - e) * F.logsigmoid(h) + e * F.logsigmoid(-h)).mean() / (1 - 2 * e))


@wrong(robust_dpo_loss, "The minus of -log sigmoid is missing: a log-likelihood is to be maximised.")
def unnegated_robust(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing):
    h, e = beta * ((chosen - ref_chosen) - (rejected - ref_rejected)), label_smoothing
    return reported(((1 - e) * F.logsigmoid(h) - e * F.logsigmoid(-h)).mean() / (1 - 2 * e))


@wrong(robust_dpo_loss, "e and 1 - e are swapped: most labels are right, so 1 - e goes with l(h).")
def swapped_shares(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing):
    h, e = beta * ((chosen - ref_chosen) - (rejected - ref_rejected)), label_smoothing
    return reported((-e * F.logsigmoid(h) + (1 - e) * F.logsigmoid(-h)).mean() / (1 - 2 * e))


@wrong(robust_dpo_loss, "label_smoothing is not used: this is plain DPO.")
def plain_dpo_for_robust(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1, label_smoothing):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(-F.logsigmoid(beta * h).mean())


# The drills

SIZES = [1, 2, 3, 5]


def scored_pairs(seed: int, n: int) -> dict:
    return {"chosen": numbers(seed, n), "rejected": numbers(seed + 4, n)}  # no pair on the kink of a hinge


def likely_pairs(seed: int, n: int) -> dict:
    return {"chosen": logprobs_like(seed, n), "rejected": logprobs_like(seed + 1, n)}


def referenced_pairs(seed: int, n: int) -> dict:
    reference = {"ref_chosen": logprobs_like(seed + 2, n), "ref_rejected": logprobs_like(seed + 3, n)}
    return likely_pairs(seed, n) | reference


def pair_cases(inputs, *knobs: dict) -> list[Case]:
    """inputs(seed, n) for one pair and more, with the knobs taken in turn."""
    return [Case(inputs(100 * n, n), knobs[i % len(knobs)] if knobs else {}) for i, n in enumerate(SIZES)]


H_HINT = "h = (chosen - ref_chosen) - (rejected - ref_rejected): how much more the policy moved towards the chosen one."

DRILLS = [
    Drill(
        bradley_terry_loss,
        pair_cases(scored_pairs),
        (
            "The probability that the chosen one wins is a sigmoid of something.",
            "Of the difference of the two scores. The loss is the negative log-likelihood, averaged over pairs.",
            "-F.logsigmoid(chosen - rejected).mean(): logsigmoid, since log(sigmoid) is -inf far away.",
        ),
        ["chosen", "rejected"],
        outputs=["loss"],
    ),
    Drill(
        dpo_loss,
        pair_cases(referenced_pairs, {"beta": 0.1}, {"beta": 0.7}),
        (
            "Bradley-Terry, with beta * log(pi / pi_ref) as the score of a response.",
            H_HINT,
            "-F.logsigmoid(beta * h).mean().",
        ),
        ["chosen", "rejected"],
        outputs=["loss"],
    ),
    Drill(
        robust_dpo_loss,
        pair_cases(referenced_pairs, {"beta": 0.1, "label_smoothing": 0.1}, {"beta": 0.7, "label_smoothing": 0.3}),
        (
            H_HINT,
            "l(h) = -log sigmoid(beta h). If a share e of the labels is flipped, which mix of l(h) and l(-h) averages to the "
            "clean l(h)?",
            "((1 - e) * l(h) - e * l(-h)) / (1 - 2 * e), and the mean over pairs.",
        ),
        ["chosen", "rejected"],
        outputs=["loss"],
    ),
]
