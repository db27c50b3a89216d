"""Wrong versions of CISPO and of weighted log-probabilities."""

from minirl.drills.bank import Drill, logprobs_like, masked_cases, numbers, reported, right, wrong
from minirl.drills.grpo import answered, surrogate
from minirl.losses.policy import cispo_loss, weighted_logprob_loss
from minirl.masking import sequence_mean, token_mean

# CISPO


@right(cispo_loss)
def right_cispo(logprobs, old_logprobs, advantages, mask, *, clip_eps_high=0.2, reduce=token_mean):
    weight = (logprobs - old_logprobs).exp().clamp(max=1 + clip_eps_high).detach()
    return reported(reduce(-weight * advantages.unsqueeze(1) * logprobs, mask))


@wrong(
    cispo_loss,
    "The weight lets a gradient through: it is a number that stands in front of the log-probability. detach() it.",
)
def weight_not_detached(logprobs, old_logprobs, advantages, mask, *, clip_eps_high=0.2, reduce=token_mean):
    weight = (logprobs - old_logprobs).exp().clamp(max=1 + clip_eps_high)
    return reported(reduce(-weight * advantages.unsqueeze(1) * logprobs, mask))


@wrong(cispo_loss, "The ceiling is missing: one unlikely token that grew likely would rule the batch.")
def weight_without_ceiling(logprobs, old_logprobs, advantages, mask, *, clip_eps_high=0.2, reduce=token_mean):
    weight = (logprobs - old_logprobs).exp().detach()
    return reported(reduce(-weight * advantages.unsqueeze(1) * logprobs, mask))


@wrong(cispo_loss, "The weight has a floor too: CISPO clips it from above only.")
def weight_with_floor(logprobs, old_logprobs, advantages, mask, *, clip_eps_high=0.2, reduce=token_mean):
    weight = (logprobs - old_logprobs).exp().clamp(1 - clip_eps_high, 1 + clip_eps_high).detach()
    return reported(reduce(-weight * advantages.unsqueeze(1) * logprobs, mask))


@wrong(
    cispo_loss,
    "The ceiling is clip_eps_high itself: here it stands around 1, at 1 + clip_eps_high.",
    seen="TRL, whose epsilon_high means that",
)
def absolute_ceiling(logprobs, old_logprobs, advantages, mask, *, clip_eps_high=0.2, reduce=token_mean):
    weight = (logprobs - old_logprobs).exp().clamp(max=clip_eps_high).detach()
    return reported(reduce(-weight * advantages.unsqueeze(1) * logprobs, mask))


@wrong(
    cispo_loss,
    "This is PPO's surrogate, whose clip takes the gradient away: CISPO clips a weight in front of logprobs.",
)
def ppo_for_cispo(logprobs, old_logprobs, advantages, mask, *, clip_eps_high=0.2, reduce=token_mean):
    return reported(reduce(surrogate(logprobs - old_logprobs, advantages.unsqueeze(1), clip_eps_high), mask))


@wrong(cispo_loss, "The weight is missing: this is REINFORCE, as if the sampling policy were the present one.")
def cispo_without_weight(logprobs, old_logprobs, advantages, mask, *, clip_eps_high=0.2, reduce=token_mean):
    return reported(reduce(-advantages.unsqueeze(1) * logprobs, mask))


@wrong(cispo_loss, "The minus is missing: an optimiser minimises, so this teaches to score worse.")
def unnegated_cispo(logprobs, old_logprobs, advantages, mask, *, clip_eps_high=0.2, reduce=token_mean):
    weight = (logprobs - old_logprobs).exp().clamp(max=1 + clip_eps_high).detach()
    return reported(reduce(weight * advantages.unsqueeze(1) * logprobs, mask))


@wrong(cispo_loss, "Each row is averaged on its own; CISPO's mean is over all counted tokens.")
def cispo_by_rows(logprobs, old_logprobs, advantages, mask, *, clip_eps_high=0.2, reduce=sequence_mean):
    weight = (logprobs - old_logprobs).exp().clamp(max=1 + clip_eps_high).detach()
    return reported(reduce(-weight * advantages.unsqueeze(1) * logprobs, mask))


@wrong(cispo_loss, "The ratio is upside down: exp(logprobs - old_logprobs), the new policy on top.")
def cispo_old_over_new(logprobs, old_logprobs, advantages, mask, *, clip_eps_high=0.2, reduce=token_mean):
    weight = (old_logprobs - logprobs).exp().clamp(max=1 + clip_eps_high).detach()
    return reported(reduce(-weight * advantages.unsqueeze(1) * logprobs, mask))


# Weighted log-probabilities


@right(weighted_logprob_loss)
def right_weighted(logprobs, weights, mask, *, reduce=token_mean):
    return reported(reduce(-weights.unsqueeze(1) * logprobs, mask))


@wrong(
    weighted_logprob_loss, "The minus is missing: a good response is to become likelier, and an optimiser minimises."
)
def unnegated_weighted(logprobs, weights, mask, *, reduce=token_mean):
    return reported(reduce(weights.unsqueeze(1) * logprobs, mask))


@wrong(weighted_logprob_loss, "The weights are missing: this is SFT on good and bad responses alike.")
def weights_ignored(logprobs, weights, mask, *, reduce=token_mean):
    return reported(reduce(-logprobs, mask))


@wrong(
    weighted_logprob_loss,
    "Padding is averaged too (labels of SFT have the same trap): mean over the counted tokens only.",
)
def weighted_over_padding(logprobs, weights, mask, *, reduce=token_mean):
    return reported((-weights.unsqueeze(1) * logprobs).mean())


@wrong(weighted_logprob_loss, "Padded terms are set to 0, but still divided by: divide by mask.sum().")
def weighted_divided_by_padding(logprobs, weights, mask, *, reduce=token_mean):
    return reported((-weights.unsqueeze(1) * logprobs * mask).mean())


@wrong(
    weighted_logprob_loss,
    "This divides by the weights' sum: they are used as they are, and may be negative or all zero.",
)
def divided_by_the_weights(logprobs, weights, mask, *, reduce=token_mean):
    table = weights.unsqueeze(1).expand_as(logprobs)
    return reported(-(table * logprobs)[mask].sum() / table[mask].sum())


@wrong(weighted_logprob_loss, "Each row is averaged on its own; the default here is the mean over all counted tokens.")
def weighted_by_rows(logprobs, weights, mask, *, reduce=sequence_mean):
    return reported(reduce(-weights.unsqueeze(1) * logprobs, mask))


@wrong(weighted_logprob_loss, "The mask is upside down: True means that a token counts.")
def weighted_on_the_padding(logprobs, weights, mask, *, reduce=token_mean):
    return reported(-(weights.unsqueeze(1) * logprobs)[~mask].sum() / mask.sum())


# The drills


def _weighted(seed, mask):
    return {"logprobs": logprobs_like(seed, *mask.shape), "weights": numbers(seed + 1, len(mask)), "mask": mask}


DRILLS = [
    Drill(
        cispo_loss,
        masked_cases(answered, {"clip_eps_high": 0.2}, {"clip_eps_high": 0.5}),
        (
            "REINFORCE with an importance weight in front, and the weight is a mere number.",
            "The weight is the ratio, at most 1 + clip_eps_high, and it carries no gradient.",
            "weight = ratio.clamp(max=1 + clip_eps_high).detach(); token_mean(-weight * A * logprobs, mask).",
        ),
        ["logprobs"],
        outputs=["loss"],
    ),
    Drill(
        weighted_logprob_loss,
        masked_cases(_weighted),
        (
            "SFT, with a weight a response.",
            "weights is (B,) and logprobs (B, T): unsqueeze(1).",
            "token_mean(-weights.unsqueeze(1) * logprobs, mask).",
        ),
        ["logprobs"],
        outputs=["loss"],
    ),
]
