"""Wrong versions of REINFORCE and PPO: one advantage a token."""

import torch

from minirl.drills.bank import Drill, logprobs_like, masked_cases, numbers, reported, right, wrong
from minirl.losses.policy import ppo_clip_loss, reinforce_loss
from minirl.masking import masked_whiten, sequence_mean, token_mean

# REINFORCE


@right(reinforce_loss)
def right_reinforce(logprobs, advantages, mask, *, reduce=token_mean):
    return reported(reduce(-advantages * logprobs, mask))


@wrong(
    reinforce_loss,
    "The minus is missing: an optimiser minimises, so this teaches to score worse.",
    seen="a common tutorial",
)
def unnegated_reinforce(logprobs, advantages, mask, *, reduce=token_mean):
    return reported(reduce(advantages * logprobs, mask))


@wrong(reinforce_loss, "Padding is averaged too: sum over the counted tokens and divide by how many they are.")
def reinforce_over_padding(logprobs, advantages, mask, *, reduce=token_mean):
    return reported((-advantages * logprobs).mean())


@wrong(
    reinforce_loss,
    "Padded terms are set to 0, but still divided by: divide by mask.sum(), not by the size of the table.",
)
def reinforce_divided_by_padding(logprobs, advantages, mask, *, reduce=token_mean):
    return reported((-advantages * logprobs).masked_fill(~mask, 0).mean())


@wrong(reinforce_loss, "The mask is upside down: True means that a token counts.")
def reinforce_on_the_padding(logprobs, advantages, mask, *, reduce=token_mean):
    return reported((-advantages * logprobs)[~mask].sum() / mask.sum())


@wrong(reinforce_loss, "This sums over the tokens; token_mean divides by the number of counted ones.")
def summed_reinforce(logprobs, advantages, mask, *, reduce=token_mean):
    return reported((-advantages * logprobs).masked_fill(~mask, 0).sum())


@wrong(
    reinforce_loss, "This is A * pi, not A * log pi: the sampling has already weighted each token by its probability."
)
def reinforce_on_probabilities(logprobs, advantages, mask, *, reduce=token_mean):
    return reported(reduce(-advantages * logprobs.exp(), mask))


@wrong(reinforce_loss, "Each row is averaged on its own; the default here is the mean over all counted tokens.")
def reinforce_by_rows(logprobs, advantages, mask, *, reduce=sequence_mean):
    return reported(reduce(-advantages * logprobs, mask))


# PPO


@right(ppo_clip_loss)
def right_ppo(logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean):
    ratio = (logprobs - old_logprobs).exp()
    held = ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return reported(reduce(-torch.minimum(ratio * advantages, held * advantages), mask))


@wrong(
    ppo_clip_loss,
    "The minus is missing: the surrogate is to be maximised, and an optimiser minimises.",
    seen="a common tutorial",
)
def unnegated_ppo(logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean):
    ratio = (logprobs - old_logprobs).exp()
    held = ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return reported(reduce(torch.minimum(ratio * advantages, held * advantages), mask))


@wrong(
    ppo_clip_loss, "This takes the larger of the two: the surrogate is the minimum (of the negated terms, the maximum)."
)
def max_for_min(logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean):
    ratio = (logprobs - old_logprobs).exp()
    held = ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return reported(reduce(-torch.maximum(ratio * advantages, held * advantages), mask))


@wrong(
    ppo_clip_loss,
    "The minimum is taken for both signs of the advantage: with max for negative ones, a bad token that grew likelier "
    "(A = -1, ratio 1.5) gets no gradient, just where it is needed.",
    seen="one book",
)
def max_for_negative_advantages(
    logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean
):
    ratio = (logprobs - old_logprobs).exp()
    free = ratio * advantages
    held = ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps)) * advantages
    return reported(reduce(-torch.where(advantages < 0, torch.maximum(free, held), torch.minimum(free, held)), mask))


@wrong(ppo_clip_loss, "The clip is missing: nothing keeps the policy near the one that sampled.")
def ppo_without_clip(logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean):
    return reported(reduce(-(logprobs - old_logprobs).exp() * advantages, mask))


@wrong(
    ppo_clip_loss, "The minimum is missing: a clipped ratio alone gives no gradient to a token that went the wrong way."
)
def clipped_ratio_only(
    logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean
):
    ratio = (logprobs - old_logprobs).exp().clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return reported(reduce(-ratio * advantages, mask))


@wrong(ppo_clip_loss, "The ratio is upside down: exp(logprobs - old_logprobs), the new policy on top.")
def old_over_new(logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean):
    ratio = (old_logprobs - logprobs).exp()
    held = ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return reported(reduce(-torch.minimum(ratio * advantages, held * advantages), mask))


@wrong(ppo_clip_loss, "The exp is missing: the ratio is exp(logprobs - old_logprobs); the difference is its logarithm.")
def ratio_without_exp(logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean):
    ratio = logprobs - old_logprobs
    held = ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return reported(reduce(-torch.minimum(ratio * advantages, held * advantages), mask))


@wrong(ppo_clip_loss, "The ratio of log-probabilities is not the ratio of probabilities: exp(logprobs - old_logprobs).")
def ratio_of_logprobs(logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean):
    ratio = logprobs / old_logprobs.masked_fill(~mask, -1)
    held = ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return reported(reduce(-torch.minimum(ratio * advantages, held * advantages), mask))


@wrong(ppo_clip_loss, "The clip is around ratio * A: clip the ratio first, then multiply by the advantage.")
def product_clipped(logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean):
    free = (logprobs - old_logprobs).exp() * advantages
    held = free.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return reported(reduce(-torch.minimum(free, held), mask))


@wrong(ppo_clip_loss, "Padding is averaged too: sum over the counted tokens and divide by how many they are.")
def ppo_over_padding(logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean):
    ratio = (logprobs - old_logprobs).exp()
    held = ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return reported(-torch.minimum(ratio * advantages, held * advantages).mean())


@wrong(
    ppo_clip_loss,
    "Padded terms are set to 0, but still divided by: divide by mask.sum(), not by the size of the table.",
)
def ppo_divided_by_padding(
    logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean
):
    ratio = (logprobs - old_logprobs).exp()
    held = ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return reported((-torch.minimum(ratio * advantages, held * advantages) * mask).mean())


@wrong(
    ppo_clip_loss,
    "Each row is averaged on its own (GRPO's division); PPO's default is the mean over all counted tokens.",
)
def ppo_by_rows(logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=sequence_mean):
    ratio = (logprobs - old_logprobs).exp()
    held = ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return reported(reduce(-torch.minimum(ratio * advantages, held * advantages), mask))


@wrong(ppo_clip_loss, "The mask is upside down: True means that a token counts.")
def ppo_on_the_padding(
    logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean
):
    ratio = (logprobs - old_logprobs).exp()
    held = ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return reported(-torch.minimum(ratio * advantages, held * advantages)[~mask].sum() / mask.sum())


@wrong(
    ppo_clip_loss,
    "The advantages are whitened inside: the loss takes them as they come, the loop whitens once a batch.",
)
def whitened_inside(logprobs, old_logprobs, advantages, mask, *, clip_eps=0.2, clip_eps_high=None, reduce=token_mean):
    ratio = (logprobs - old_logprobs).exp()
    held = ratio.clamp(1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    advantages = masked_whiten(advantages, mask)
    return reported(reduce(-torch.minimum(ratio * advantages, held * advantages), mask))


# The drills


def _reinforced(seed, mask):
    return {"logprobs": logprobs_like(seed, *mask.shape), "advantages": numbers(seed + 2, *mask.shape), "mask": mask}


def _sampled(seed, mask):
    old = {"old_logprobs": logprobs_like(seed + 1, *mask.shape)}
    return {"logprobs": logprobs_like(seed, *mask.shape)} | old | _reinforced(seed, mask)


DRILLS = [
    Drill(
        reinforce_loss,
        masked_cases(_reinforced),
        (
            "An optimiser makes things small. What should become large?",
            "One product a token, then the mean over the tokens that count.",
            "token_mean(-advantages * logprobs, mask).",
        ),
        ["logprobs"],
        outputs=["loss"],
    ),
    Drill(
        ppo_clip_loss,
        masked_cases(_sampled, {"clip_eps": 0.2}, {"clip_eps": 0.3}),
        (
            "First the ratio of the sampled token's probabilities, new over old: you have their logarithms.",
            "Two candidates: ratio * A, and the ratio held in [1 - clip_eps, 1 + clip_eps] times A. Which one counts?",
            "The smaller, for both signs of A; negated; then the mean over the counted tokens.",
        ),
        ["logprobs"],
        outputs=["loss"],
    ),
]
