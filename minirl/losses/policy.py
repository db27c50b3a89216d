"""Losses that train a policy (and its critic) on responses it sampled itself.

Only `logprobs` (or `values`) carries a gradient; everything else is data and is detached here. Advantages are per token,
(B, T), where a critic made them, and per response, (B,), where a group did.
"""

import torch

from minirl.kl import clamp_log_ratio, kl_k3
from minirl.masking import blank, masked_mean, sequence_mean, token_mean
from minirl.types import (
    Bool,
    Float,
    Reducer,
    Stats,
    Tensor,
    check_dims,
    check_finite,
    check_knob,
    check_mask,
    check_rows,
    check_shapes,
    upcast,
)


def reinforce_loss(
    logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    reduce: Reducer = token_mean,
) -> tuple[Float[Tensor, ""], Stats]:
    """-A_t log pi(a_t | s_t): the policy gradient as a loss (Williams 1992).

    Its value means nothing; its gradient is minus the policy gradient, if `reduce` is `fixed_length_mean(1)` and the
    advantages are unbiased. Where all responses are equally long, token and sequence means only rescale it. Elsewhere
    a sequence mean turns it towards what short responses want, and so does a token mean over few of them; over many,
    its divisor is nearly constant and it only rescales.
    """
    logprobs, advantages = _per_token(mask, logprobs=logprobs, advantages=advantages)
    loss = reduce(-advantages.detach() * logprobs, mask)
    return loss, {"loss": loss.detach()}


def ppo_clip_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
    reduce: Reducer = token_mean,
) -> tuple[Float[Tensor, ""], Stats]:
    """The clipped surrogate (PPO, Schulman et al. 2017, eq. 7), negated so that it is minimised.

        ratio = exp(logprobs - old_logprobs)
        loss  = -min(ratio * A, clip(ratio, 1 - clip_eps, 1 + clip_eps_high) * A)

    The minimum is taken for both signs of A: the objective never gains by leaving the interval, and always feels a loss.
    At ratio 1 the gradient is the policy gradient. `old_logprobs` are those of the policy that sampled, at the sampling
    temperature. clip_eps_high (None = clip_eps) is DAPO's "clip-higher".
    """
    low, high = _clip_range(clip_eps, clip_eps_high)
    logprobs, old_logprobs, advantages = _per_token(
        mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages
    )
    terms, ratio, clipped = _clipped_terms(logprobs - old_logprobs.detach(), advantages.detach(), low, high)
    loss = reduce(terms, mask)
    return loss, _ratio_stats(loss, logprobs, old_logprobs, ratio, clipped, mask)


def value_loss(
    values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    reduce: Reducer = token_mean,
) -> tuple[Float[Tensor, ""], Stats]:
    """(values - returns)^2 / 2: the critic's regression onto the returns (`returns` = advantages + values, from `gae`)."""
    values, returns = _per_token(mask, values=values, returns=returns)
    loss = reduce((values - returns.detach()) ** 2 / 2, mask)
    return loss, {"loss": loss.detach(), "explained_variance": _explained_variance(values, returns, mask)}


def value_clip_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_eps: float = 0.2,
    reduce: Reducer = token_mean,
) -> tuple[Float[Tensor, ""], Stats]:
    """max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2) / 2, as in OpenAI's PPO code (the PPO paper lacks it;
    Engstrom et al. 2020, "Implementation Matters in Deep Policy Gradients", wrote it down).

    The larger of the two is kept: a value that already ran further than clip_eps towards its return gets no gradient.
    clip_eps is in units of the values, not a ratio.
    """
    check_knob("clip_eps", clip_eps, 0, open_low=True)
    values, old_values, returns = _per_token(mask, values=values, old_values=old_values, returns=returns)
    old_values, returns = old_values.detach(), returns.detach()
    near = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    free_error, near_error = (values - returns) ** 2, (near - returns) ** 2
    loss = reduce(torch.maximum(free_error, near_error) / 2, mask)
    return loss, {
        "loss": loss.detach(),
        "explained_variance": _explained_variance(values, returns, mask),
        "clip_fraction": masked_mean((near_error > free_error).to(values.dtype), mask),
    }


def grpo_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"] | None,
    advantages: Float[Tensor, " B"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
    kl_coef: float = 0.04,
    reduce: Reducer = sequence_mean,
) -> tuple[Float[Tensor, ""], Stats]:
    """PPO's clipped surrogate with one advantage a response, and k3 in the loss (GRPO, DeepSeekMath eq. 3 and 4).

        loss = -min(ratio * A, clip(ratio, 1 - clip_eps, 1 + clip_eps_high) * A) + kl_coef * k3(logprobs, ref_logprobs)

    `ref_logprobs` may be None when kl_coef is 0. On policy with centred advantages the loss starts at 0 under
    `sequence_mean`; its gradient does not. `token_mean` is DAPO's division, taken over the batch, `fixed_length_mean` Dr. GRPO's.
    k3 in the loss is not the gradient of the KL: trained to the end it stops short of the optimum that
    `kl_shaped_rewards` reaches.
    """
    low, high = _clip_range(clip_eps, clip_eps_high)
    check_knob("kl_coef", kl_coef, 0)
    advantages = _per_row(mask, advantages=advantages)
    if ref_logprobs is None and kl_coef > 0:
        raise ValueError(f"ref_logprobs: wanted (B, T) log-probabilities since kl_coef = {kl_coef}, got None")
    logprobs, old_logprobs = _per_token(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    terms, ratio, clipped = _clipped_terms(logprobs - old_logprobs.detach(), advantages.unsqueeze(1), low, high)
    stats = {}
    if ref_logprobs is not None:
        check_shapes(logprobs=logprobs, ref_logprobs=ref_logprobs)
        (ref_logprobs,) = _per_token(mask, ref_logprobs=ref_logprobs)
        k3 = kl_k3(logprobs, ref_logprobs.detach())
        stats["kl"] = (blank(k3.detach(), mask).sum(1).sum() / mask.any(1).sum()).detach()
        if kl_coef > 0:
            terms = terms + kl_coef * k3
    loss = reduce(terms, mask)
    return loss, stats | _ratio_stats(loss, logprobs, old_logprobs, ratio, clipped, mask)


def gspo_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_eps: float = 3e-4,
    clip_eps_high: float | None = None,
) -> tuple[Float[Tensor, ""], Stats]:
    """One ratio a response: the geometric mean of its token ratios, clipped as a whole (GSPO, Zheng et al. 2025, eq. 5-7).

        ratio_i = exp(mean_t(logprobs - old_logprobs))
        loss    = -mean_i min(ratio_i * A_i, clip(ratio_i, 1 - clip_eps, 1 + clip_eps_high) * A_i)

    A mean of log-ratios moves far less than one token's, hence the small clip_eps. The loss holds no KL: with k3 added to
    it, as in GRPO, it stops short of the KL-regularised optimum.
    """
    low, high = _clip_range(clip_eps, clip_eps_high)
    advantages = _per_row(mask, advantages=advantages)
    logprobs, old_logprobs = _per_token(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    counted = mask.any(1)
    log_ratio = (logprobs - old_logprobs.detach()).sum(1) / mask.sum(1).clamp(min=1)
    terms, ratio, clipped = _clipped_terms(log_ratio, advantages, low, high)
    loss = masked_mean(terms, counted)
    stats = _ratio_stats(loss, logprobs, old_logprobs, ratio.unsqueeze(1), clipped.unsqueeze(1), counted.unsqueeze(1))
    return loss, stats | {"approx_kl": masked_mean(kl_k3(old_logprobs, logprobs).detach(), mask)}


def cispo_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_eps_high: float = 0.2,
    reduce: Reducer = token_mean,
) -> tuple[Float[Tensor, ""], Stats]:
    """-sg(min(ratio, 1 + clip_eps_high)) * A * logprobs (CISPO, MiniMax-M1 2025, eq. 4-5; sg stops the gradient).

    The importance weight is clipped and not the objective, so no token loses its gradient. The ceiling stands around 1
    here; TRL's epsilon_high is the ceiling itself. There is no KL in it: left alone it ends at the best-scored response.
    """
    check_knob("clip_eps_high", clip_eps_high, 0, open_low=True)
    advantages = _per_row(mask, advantages=advantages)
    logprobs, old_logprobs = _per_token(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    ratio = clamp_log_ratio(logprobs - old_logprobs).exp().detach()
    weight = ratio.clamp(max=1 + clip_eps_high)
    loss = reduce(-weight * advantages.unsqueeze(1) * logprobs, mask)
    return loss, _ratio_stats(loss, logprobs, old_logprobs, ratio, ratio > 1 + clip_eps_high, mask)


def weighted_logprob_loss(
    logprobs: Float[Tensor, "B T"],
    weights: Float[Tensor, " B"],
    mask: Bool[Tensor, "B T"],
    *,
    reduce: Reducer = token_mean,
) -> tuple[Float[Tensor, ""], Stats]:
    """-w log pi(y|x): weight 1 is SFT, 0 or 1 rejection sampling, `exponential_weights` RWR and AWR, an advantage REINFORCE.

    Rejection sampling repeated has no resting place before the best-scored response: nothing in it prices the KL.
    """
    weights = _per_row(mask, weights=weights)
    (logprobs,) = _per_token(mask, logprobs=logprobs)
    loss = reduce(-weights.unsqueeze(1) * logprobs, mask)
    return loss, {"loss": loss.detach()}


def _per_token(mask: Tensor, **tensors: Tensor) -> list[Tensor]:
    """Each tensor checked to be (B, T) and finite where it counts, in its computing precision, 0 outside the mask."""
    check_dims(2, **tensors, mask=mask)
    check_shapes(**tensors, mask=mask)
    check_mask(mask)
    check_finite(mask, **tensors)
    return [blank(x, mask) for x in tensors.values()]


def _per_row(mask: Tensor, **tensor: Tensor) -> Tensor:
    """One (B,) tensor, checked, detached, in its computing precision, 0 for a row with nothing counted."""
    (x,) = tensor.values()
    check_dims(2, mask=mask)
    check_rows(mask, **tensor)
    check_mask(mask)
    check_finite(mask.any(1), **tensor)
    return blank(x.detach(), mask.any(1))


def _clip_range(clip_eps: float, clip_eps_high: float | None) -> tuple[float, float]:
    check_knob("clip_eps", clip_eps, 0, 1, open_low=True)
    if clip_eps_high is not None:
        check_knob("clip_eps_high", clip_eps_high, 0, open_low=True)
    return 1 - clip_eps, 1 + (clip_eps if clip_eps_high is None else clip_eps_high)


def _clipped_terms(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """-min(ratio A, clip(ratio) A), the ratio, and where the clip took the gradient away."""
    ratio = clamp_log_ratio(log_ratio).exp()
    free, held = ratio * advantages, ratio.clamp(low, high) * advantages
    return -torch.minimum(free, held), ratio.detach(), (held < free).detach()


def _ratio_stats(
    loss: Tensor, logprobs: Tensor, old_logprobs: Tensor, ratio: Tensor, clipped: Tensor, mask: Tensor
) -> Stats:
    stats = {
        "loss": loss.detach(),
        "ratio_mean": masked_mean(ratio, mask),
        "clip_fraction": masked_mean(clipped.to(ratio.dtype), mask),
    }
    if logprobs.shape == mask.shape:
        stats["approx_kl"] = masked_mean(kl_k3(old_logprobs, logprobs).detach(), mask)
    return stats


def _explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask)) ** 2, mask)

    values, returns = values.detach(), returns.detach()
    return 1 - variance(upcast(returns - values)) / variance(returns).clamp(min=1e-12)
