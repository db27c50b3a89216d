"""The clipped surrogate of PPO and GRPO with its KL penalty: value, statistics and gradient in one launch.

    ratio = exp(logprobs - old_logprobs)                                  log-ratios held within +-20
    term  = -min(ratio * A, clip(ratio, low, high) * A) + kl_coef * k3    k3 = exp(d) - 1 - d,  d = ref - logprobs
    slope = d term / d logprobs = -ratio * A where the clip did not act (0 where it did) - kl_coef * (exp(d) - 1)

In PyTorch this is about a hundred small operations, forward and backward, each of them mostly latency. Here a program takes a
row, reads every number once (17 to 21 bytes a token in float32), and writes the gradient beside the loss: the backward pass
multiplies it once. What is left to PyTorch is tiny: the reducer's weights, and the averages.

Reducers stay what they are. Each is linear in the terms, reduce(x, mask) = sum of w * x, so autograd is asked for w once and the
kernel multiplies by it. A program leaves its row's sums; adding them up, in a fixed order, is left to PyTorch.

The twins: `minirl.losses.policy.grpo_loss` and `ppo_clip_loss`.
"""

import torch
import triton
import triton.language as tl

from minirl.kernels.device import INTERPRETED, check_tensors, dense_rows
from minirl.masking import sequence_mean, token_mean
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
)

BLOCK_T = 16 if INTERPRETED else 1024


@triton.jit
def k3_of(d):
    """exp(d) - 1 - d. Near 0, where the difference would cancel, its series."""
    inner = 1.0 / 720 + d * (1.0 / 5040 + d * (1.0 / 40320))
    series = d * d * (0.5 + d * (1.0 / 6 + d * (1.0 / 24 + d * (1.0 / 120 + d * inner))))
    return tl.where(tl.abs(d) < 0.5, series, tl.exp(d) - 1.0 - d)


@triton.jit
def held(x, low, high):
    """x within [low, high]. NaN stays NaN, which tl.clamp would hide."""
    return tl.where(x > high, high, tl.where(x < low, low, x))


@triton.jit
def surrogate(logprob, old, ref, advantage, low, high, kl_coef):
    """(term, slope, ratio, whether the clip took the gradient, k3 against ref) of tokens, or of one."""
    log_ratio = logprob - old
    ratio = tl.exp(held(log_ratio, -20.0, 20.0))
    free, clipped = ratio * advantage, held(ratio, low, high) * advantage
    acts = clipped < free
    slope = tl.where(acts | (tl.abs(log_ratio) > 20.0), 0.0, -free)
    d = held(ref - logprob, -20.0, 20.0)
    k3 = k3_of(d)
    slope -= kl_coef * tl.where(tl.abs(ref - logprob) > 20.0, 0.0, k3 + d)
    return kl_coef * k3 - tl.where(acts, clipped, free), slope, ratio, acts, k3


@triton.jit
def loss_kernel(
    logprobs,
    old_logprobs,
    ref_logprobs,
    advantages,
    weights,  # what the reducer multiplies each term by
    mask,
    slopes,
    sums,  # (B, 5): loss, ratio, clipped, k3 against old, k3 against ref
    stride_logprobs,
    stride_old,
    stride_ref,
    stride_advantages,
    stride_weights,
    stride_mask,
    T,
    low,
    high,
    kl_coef,
    HAS_REF: tl.constexpr,
    PER_TOKEN: tl.constexpr,  # advantages are (B, T), else (B,)
    BLOCK_T: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    zero = tl.zeros((BLOCK_T,), tl.float32)
    loss, ratios, clips, drift, kl = zero, zero, zero, zero, zero
    for first in range(0, T, BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        counts = tl.load(mask + row * stride_mask + t, mask=t < T, other=0) > 0
        logprob = tl.load(logprobs + row * stride_logprobs + t, mask=counts, other=0.0).to(tl.float32)
        old = tl.load(old_logprobs + row * stride_old + t, mask=counts, other=0.0).to(tl.float32)
        ref = logprob
        if HAS_REF:
            ref = tl.load(ref_logprobs + row * stride_ref + t, mask=counts, other=0.0).to(tl.float32)
        if PER_TOKEN:
            place = advantages + row * stride_advantages + t
        else:
            place = advantages + row * stride_advantages + 0 * t
        advantage = tl.load(place, mask=counts, other=0.0).to(tl.float32)
        weight = tl.load(weights + row * stride_weights + t, mask=counts, other=0.0)
        term, slope, ratio, acts, k3 = surrogate(logprob, old, ref, advantage, low, high, kl_coef)
        tl.store(slopes + row * T + t, weight * slope, mask=t < T)
        loss += weight * term
        ratios += tl.where(counts, ratio, 0.0)
        clips += tl.where(counts & acts, 1.0, 0.0)
        drift += k3_of(held(logprob - old, -20.0, 20.0))
        kl += k3
    tl.store(sums + row * 5, tl.sum(loss, 0))
    tl.store(sums + row * 5 + 1, tl.sum(ratios, 0))
    tl.store(sums + row * 5 + 2, tl.sum(clips, 0))
    tl.store(sums + row * 5 + 3, tl.sum(drift, 0))
    tl.store(sums + row * 5 + 4, tl.sum(kl, 0))


class ClippedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logprobs, old_logprobs, ref_logprobs, advantages, weights, mask, low, high, kl_coef):
        B, T = logprobs.shape
        ref = logprobs if ref_logprobs is None else ref_logprobs
        per_token = advantages.dim() == 2
        tables = [dense_rows(x) for x in (logprobs, old_logprobs, ref)]
        tables += [dense_rows(advantages) if per_token else advantages, dense_rows(weights)]
        tables.append(dense_rows(mask).view(torch.uint8))
        slopes = torch.empty((B, T), dtype=torch.float32, device=logprobs.device)
        sums = torch.empty((B, 5), dtype=torch.float32, device=logprobs.device)
        loss_kernel[(B,)](
            *(*tables, slopes, sums, *(x.stride(0) for x in tables), T, low, high, kl_coef),
            HAS_REF=ref_logprobs is not None,
            PER_TOKEN=per_token,
            BLOCK_T=BLOCK_T,
        )
        ctx.save_for_backward(slopes)
        ctx.dtype = logprobs.dtype
        totals = sums.sum(0)
        ctx.mark_non_differentiable(totals)
        return totals[0].clone(), totals

    @staticmethod
    def backward(ctx, g, _):
        (slopes,) = ctx.saved_tensors
        return (slopes * g).to(ctx.dtype), *[None] * 8


def reducer_weights(reduce: Reducer, mask: Tensor) -> Tensor:
    """w with reduce(x, mask) = sum(w * x) for every x: the gradient of a reducer, which is linear."""
    with torch.enable_grad():
        x = torch.zeros(mask.shape, device=mask.device, requires_grad=True)
        return torch.autograd.grad(reduce(x, mask), x)[0]


def check_clipped(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, clip_eps_high, kl_coef):
    """What the twins refuse, in their words; gives back the ends of the clip interval."""
    check_knob("clip_eps", clip_eps, 0, 1, open_low=True)
    if clip_eps_high is not None:
        check_knob("clip_eps_high", clip_eps_high, 0, open_low=True)
    check_knob("kl_coef", kl_coef, 0)
    if ref_logprobs is None and kl_coef > 0:
        raise ValueError(f"ref_logprobs: wanted (B, T) log-probabilities since kl_coef = {kl_coef}, got None")
    per_token = {"logprobs": logprobs, "old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs}
    per_token = {name: x for name, x in per_token.items() if x is not None}
    check_dims(2, **per_token, mask=mask)
    check_shapes(**per_token, mask=mask)
    check_mask(mask)
    check_finite(mask, **per_token)
    if advantages.dim() == 1:
        check_rows(mask, advantages=advantages)
    else:
        check_shapes(mask=mask, advantages=advantages)
    check_finite(mask.any(1) if advantages.dim() == 1 else mask, advantages=advantages)
    check_tensors(**per_token, advantages=advantages, mask=mask)
    return 1 - clip_eps, 1 + (clip_eps if clip_eps_high is None else clip_eps_high)


def clipped_loss(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, clip_eps_high, kl_coef, reduce):
    low, high = check_clipped(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, clip_eps_high, kl_coef)
    weights = reducer_weights(reduce, mask)
    data = [None if x is None else x.detach() for x in (old_logprobs, ref_logprobs, advantages)]
    loss, totals = ClippedLoss.apply(logprobs, *data, weights, mask, low, high, kl_coef)
    tokens = mask.sum()
    stats = {
        "loss": loss.detach(),
        "ratio_mean": totals[1] / tokens,
        "clip_fraction": totals[2] / tokens,
        "approx_kl": totals[3] / tokens,
    }
    return loss, stats | ({} if ref_logprobs is None else {"kl": totals[4] / mask.any(1).sum()})


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

    `reduce` has to be linear in its first argument, as all of `minirl.masking` are. Errors as the twin's.
    """
    check_dims(1, advantages=advantages)
    return clipped_loss(
        logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, clip_eps_high, kl_coef, reduce
    )


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
    """The clipped surrogate (PPO, Schulman et al. 2017, eq. 7), negated so that it is minimised. Errors as the twin's."""
    check_dims(2, advantages=advantages)
    return clipped_loss(logprobs, old_logprobs, None, advantages, mask, clip_eps, clip_eps_high, 0.0, reduce)
