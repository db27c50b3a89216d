"""When the engine that samples and the engine that trains disagree about the same weights.

A fast sampler (vLLM, other kernels, bfloat16, a quantised copy) gives a token another probability than the trainer does,
and the trainer's own number is then not the probability the token was drawn with: an update that looks on-policy is not.
Both are known here, so the loss of a token can be weighed:

    weight = min(pi_trainer(a_t | s_t) / pi_sampler(a_t | s_t), cap)

The cap bounds the noise and leaves a little bias (truncated importance sampling: Ionides 2008; between the two engines:
Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"; also in verl and TRL). It weighs
the token it stands at and not what came before, so for one token it is exact, and for a response of many it is not.
"""

import torch

from minirl.kl import clamp_log_ratio
from minirl.masking import blank, masked_mean
from minirl.types import Bool, Float, Reducer, Tensor, check_dims, check_finite, check_knob, check_mask, check_shapes


@torch.no_grad()
def truncated_importance_weights(
    logprobs: Float[Tensor, "B T"],
    sampler_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    cap: float = 2.0,
) -> Float[Tensor, "B T"]:
    """min(exp(logprobs - sampler_logprobs), cap) at counted tokens, 0 elsewhere; data, without a gradient.

    `logprobs` are the trainer's, of the policy that sampled and not of the one that is being updated. ValueError for cap < 1,
    which would shrink even the tokens the engines agree on.
    """
    check_dims(2, logprobs=logprobs, sampler_logprobs=sampler_logprobs, mask=mask)
    check_shapes(mask=mask, logprobs=logprobs, sampler_logprobs=sampler_logprobs)
    check_mask(mask)
    check_finite(mask, logprobs=logprobs, sampler_logprobs=sampler_logprobs)
    check_knob("cap", cap, 1)
    ratio = clamp_log_ratio(blank(logprobs, mask) - blank(sampler_logprobs, mask)).exp()
    return blank(ratio.clamp(max=cap), mask)


def weighted(reduce: Reducer, weights: Float[Tensor, "B T"]) -> Reducer:
    """A reducer: reduce(weights * x, mask). It divides by the number of tokens, as without weights, and not by their sum."""

    def weighted(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
        check_shapes(x=x, weights=weights)
        return reduce(x * weights.detach(), mask)

    return weighted


def sampling_gap(
    logprobs: Float[Tensor, "B T"], sampler_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Mean |logprobs - sampler_logprobs| over counted tokens, in nats: 0 where both engines compute the same numbers."""
    check_dims(2, logprobs=logprobs, sampler_logprobs=sampler_logprobs, mask=mask)
    check_shapes(mask=mask, logprobs=logprobs, sampler_logprobs=sampler_logprobs)
    check_mask(mask)
    check_finite(mask, logprobs=logprobs, sampler_logprobs=sampler_logprobs)
    return masked_mean((blank(logprobs, mask) - blank(sampler_logprobs, mask)).abs(), mask)
