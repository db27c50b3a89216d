"""Wrong versions of GRPO and of GSPO: one advantage a response."""

import torch

from minirl.drills.bank import Drill, logprobs_like, masked_cases, numbers, reported, right, wrong
from minirl.kl import kl_k1, kl_k2, kl_k3
from minirl.losses.policy import grpo_loss, gspo_loss
from minirl.masking import sequence_mean, token_mean


def surrogate(log_ratio, advantages, clip_eps, clip_eps_high=None):
    """PPO's terms, the right ones: what is wrong below is something else."""
    ratio = log_ratio.exp()
    held = ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return -torch.minimum(ratio * advantages, held * advantages)


def _penalty(estimate, logprobs, ref_logprobs, kl_coef):
    return 0.0 if ref_logprobs is None else kl_coef * estimate(logprobs, ref_logprobs)


# GRPO

# fmt: off


@right(grpo_loss)
def right_grpo(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=sequence_mean
):
    terms = surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps, clip_eps_high)
    return reported(reduce(terms + _penalty(kl_k3, logprobs, ref_logprobs, kl_coef), mask))


@wrong(
    grpo_loss,
    "The sign of the KL is wrong: leaving the reference has to cost something, so it is added to the loss.",
    seen="Logic-RL (issue 58) and a common tutorial",
)
def kl_subtracted(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=sequence_mean
):
    terms = surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps, clip_eps_high)
    return reported(reduce(terms - _penalty(kl_k3, logprobs, ref_logprobs, kl_coef), mask))


@wrong(
    grpo_loss,
    "The surrogate is not negated: it is to be maximised, and an optimiser minimises. Only the KL is added as it is.",
)
def unnegated_grpo(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=sequence_mean
):
    terms = -surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps, clip_eps_high)
    return reported(reduce(terms + _penalty(kl_k3, logprobs, ref_logprobs, kl_coef), mask))


@wrong(grpo_loss, "The KL is missing: + kl_coef * k3(logprobs, ref_logprobs), inside the mean over tokens.")
def grpo_without_kl(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=sequence_mean
):
    return reported(reduce(surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps, clip_eps_high), mask))


@wrong(
    grpo_loss,
    "This penalty is k1: as a term of a loss its expected gradient is zero, so it holds nothing back. The paper has k3.",
)
def k1_in_the_loss(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=sequence_mean
):
    terms = surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps, clip_eps_high)
    return reported(reduce(terms + _penalty(kl_k1, logprobs, ref_logprobs, kl_coef), mask))


@wrong(grpo_loss, "This penalty is k2; the paper's, and ours, is k3.")
def k2_in_the_loss(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=sequence_mean
):
    terms = surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps, clip_eps_high)
    return reported(reduce(terms + _penalty(kl_k2, logprobs, ref_logprobs, kl_coef), mask))


@wrong(grpo_loss, "The arguments of k3 are swapped: (logprobs, ref_logprobs), the reference on top of its ratio.")
def swapped_k3_in_the_loss(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=sequence_mean
):
    terms, penalty = surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps, clip_eps_high), 0.0
    if ref_logprobs is not None:
        penalty = kl_coef * kl_k3(ref_logprobs, logprobs)
    return reported(reduce(terms + penalty, mask))


@wrong(grpo_loss, "The KL is measured to the policy that sampled: measure it to the frozen reference.")
def kl_to_the_old_policy(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=sequence_mean
):
    terms = surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps, clip_eps_high)
    return reported(reduce(terms + _penalty(kl_k3, logprobs, old_logprobs, kl_coef), mask))


@wrong(
    grpo_loss,
    "All tokens are averaged at once (DAPO's division): the paper averages each response first, then the responses.",
    seen="TRL, whose default it is",
)
def grpo_by_tokens(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=token_mean
):
    terms = surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps, clip_eps_high)
    return reported(reduce(terms + _penalty(kl_k3, logprobs, ref_logprobs, kl_coef), mask))


@wrong(grpo_loss, "The clip is missing: min(ratio * A, clip(ratio) * A), as in PPO.")
def grpo_without_clip(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=sequence_mean
):
    terms = -(logprobs - old_logprobs).exp() * advantages.unsqueeze(1)
    return reported(reduce(terms + _penalty(kl_k3, logprobs, ref_logprobs, kl_coef), mask))


@wrong(
    grpo_loss,
    "This takes the larger of the two: the surrogate is the minimum (of the negated terms, the maximum).",
)
def grpo_max_for_min(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=sequence_mean
):
    terms = -surrogate(logprobs - old_logprobs, -advantages.unsqueeze(1), clip_eps, clip_eps_high)
    return reported(reduce(terms + _penalty(kl_k3, logprobs, ref_logprobs, kl_coef), mask))


@wrong(grpo_loss, "Padding is averaged too: divide each row by its own number of counted tokens.")
def grpo_over_padding(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=sequence_mean
):
    clipped = surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps, clip_eps_high)
    terms = clipped + _penalty(kl_k3, logprobs, ref_logprobs, kl_coef)
    return reported(terms.mean())


@wrong(
    grpo_loss,
    "Padded terms are set to 0, but still divided by: divide each row by its own number of counted tokens.",
)
def grpo_divided_by_padding(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=sequence_mean
):
    clipped = surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps, clip_eps_high)
    terms = clipped + _penalty(kl_k3, logprobs, ref_logprobs, kl_coef)
    return reported(terms.masked_fill(~mask, 0).mean())


@wrong(grpo_loss, "The rows are summed, not averaged over their tokens: divide each by its own length.")
def grpo_row_sums(
    logprobs, old_logprobs, ref_logprobs, advantages, mask, *,
    clip_eps=0.2, clip_eps_high=None, kl_coef=0.04, reduce=sequence_mean
):
    clipped = surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps, clip_eps_high)
    terms = clipped + _penalty(kl_k3, logprobs, ref_logprobs, kl_coef)
    return reported(terms.masked_fill(~mask, 0).sum(1).mean())


# fmt: on

# GSPO


@right(gspo_loss)
def right_gspo(logprobs, old_logprobs, advantages, mask, *, clip_eps=3e-4, clip_eps_high=None):
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)
    return reported(surrogate(log_ratio, advantages, clip_eps, clip_eps_high)[mask.any(1)].mean())


@wrong(
    gspo_loss,
    "The ratio is the product over all tokens: divide the summed log-ratio by the length, the geometric mean.",
)
def product_ratio(logprobs, old_logprobs, advantages, mask, *, clip_eps=3e-4, clip_eps_high=None):
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0).sum(1)
    return reported(surrogate(log_ratio, advantages, clip_eps, clip_eps_high)[mask.any(1)].mean())


@wrong(gspo_loss, "The ratios are averaged: average their logarithms and take exp afterwards, the geometric mean.")
def arithmetic_mean_of_ratios(logprobs, old_logprobs, advantages, mask, *, clip_eps=3e-4, clip_eps_high=None):
    ratios = (logprobs - old_logprobs).masked_fill(~mask, 0).exp() * mask
    log_ratio = (ratios.sum(1) / mask.sum(1).clamp(min=1)).clamp(min=1e-9).log()
    return reported(surrogate(log_ratio, advantages, clip_eps, clip_eps_high)[mask.any(1)].mean())


@wrong(
    gspo_loss,
    "Each token has a ratio of its own: that is GRPO. Here one ratio, and one clip, serves the whole response.",
)
def ratio_per_token(logprobs, old_logprobs, advantages, mask, *, clip_eps=3e-4, clip_eps_high=None):
    terms = surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps, clip_eps_high)
    return reported(sequence_mean(terms, mask))


@wrong(gspo_loss, "Long responses weigh more: every response counts once in the mean.")
def responses_weighted_by_length(logprobs, old_logprobs, advantages, mask, *, clip_eps=3e-4, clip_eps_high=None):
    lengths = mask.sum(1)
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0).sum(1) / lengths.clamp(min=1)
    terms = surrogate(log_ratio, advantages, clip_eps, clip_eps_high)
    return reported((terms * lengths).sum() / lengths.sum())


@wrong(gspo_loss, "The length is that of the padded row: divide by mask.sum(1).")
def divided_by_padded_length(logprobs, old_logprobs, advantages, mask, *, clip_eps=3e-4, clip_eps_high=None):
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0).mean(1)
    return reported(surrogate(log_ratio, advantages, clip_eps, clip_eps_high)[mask.any(1)].mean())


@wrong(gspo_loss, "The minus is missing: the surrogate is to be maximised, and an optimiser minimises.")
def unnegated_gspo(logprobs, old_logprobs, advantages, mask, *, clip_eps=3e-4, clip_eps_high=None):
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)
    return reported(-surrogate(log_ratio, advantages, clip_eps, clip_eps_high)[mask.any(1)].mean())


@wrong(gspo_loss, "The clip is missing: min(ratio * A, clip(ratio) * A), with one ratio a response.")
def gspo_without_clip(logprobs, old_logprobs, advantages, mask, *, clip_eps=3e-4, clip_eps_high=None):
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)
    return reported((-log_ratio.exp() * advantages)[mask.any(1)].mean())


# The drills


def answered(seed, mask):
    return {
        "logprobs": logprobs_like(seed, *mask.shape),
        "old_logprobs": logprobs_like(seed + 1, *mask.shape),
        "advantages": numbers(seed + 2, len(mask)),
        "mask": mask,
    }


def _answered_with_reference(seed, mask):
    inputs = answered(seed, mask)
    logprobs, old_logprobs = inputs.pop("logprobs"), inputs.pop("old_logprobs")
    policies = {
        "logprobs": logprobs,
        "old_logprobs": old_logprobs,
        "ref_logprobs": logprobs_like(seed + 3, *mask.shape),
    }
    return policies | inputs


DRILLS = [
    Drill(
        grpo_loss,
        masked_cases(_answered_with_reference, {"clip_eps": 0.2, "kl_coef": 0.04}, {"clip_eps": 0.3, "kl_coef": 0.5}),
        (
            "PPO's clipped terms, with one advantage for all tokens of a response: advantages.unsqueeze(1).",
            "Add kl_coef * k3 to each term: d = ref_logprobs - logprobs, exp(d) - 1 - d.",
            "Each row's mean over its own counted tokens, then the mean over rows.",
        ),
        ["logprobs"],
        outputs=["loss"],
    ),
    Drill(
        gspo_loss,
        masked_cases(answered, {"clip_eps": 3e-4}, {"clip_eps": 0.2}),
        (
            "One ratio a response. It is made from the mean of the log-ratios of its counted tokens.",
            "Sum the log-ratios where the mask is True, divide by mask.sum(1), and only then exp: (B,).",
            "PPO's minimum with that ratio and the (B,) advantages, negated, and the mean over responses.",
        ),
        ["logprobs"],
        outputs=["loss"],
    ),
]
