"""GAE as a reverse scan: the whole backward recursion in one launch, one pass over memory.

    A_t = delta_t + gamma * lam * A_{t+1},     delta_t = r_t + gamma * V_next(t) - V_t

The loop over t looks sequential. But a step is a map A -> keep * A + delta, and two such maps in a row are a third one:

    (keep2, delta2) after (keep1, delta1) = (keep2 * keep1, delta2 + keep2 * delta1)

That composition is associative, so T steps take log2(T) rounds of a parallel scan. A gap in the mask is the map that changes
nothing, (1, 0). What the gap hides is the next value: V_next(t) is the first counted value after t, itself a scan ("the latest
one that counts") over values shifted by one.

Bytes moved: reads rewards, values and mask, writes advantages and returns, 17 bytes a token in float32; the eager loop launches
seven kernels in each of T steps, each over a column of B numbers. One program scans a row in tiles
from its end, carrying two numbers to the tile before it. Tiles begin at fixed places: the padding behind a row changes no bit.

The twin: `minirl.advantages.gae`.
"""

import torch
import triton
import triton.language as tl

from minirl.kernels.device import INTERPRETED, check_no_gradient, check_tensors, dense_rows
from minirl.types import (
    Bool,
    Float,
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
def compose(keep1, delta1, keep2, delta2):
    """First step 1 (which is later in time), then step 2."""
    return keep2 * keep1, delta2 + keep2 * delta1


@triton.jit
def latest(value1, found1, value2, found2):
    """The value met last on the way back through time, if any was met."""
    return tl.where(found2 > 0, value2, value1), tl.maximum(found1, found2)


@triton.jit
def gae_kernel(
    rewards,
    values,
    mask,
    last_values,
    advantages,
    returns,
    stride_rewards,
    stride_values,
    stride_mask,
    T,
    gamma,
    gamma_lam,
    HAS_LAST: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    rewards += row * stride_rewards
    values += row * stride_values
    mask += row * stride_mask
    value_behind = 0.0  # the first counted value behind what has been scanned
    if HAS_LAST:
        value_behind = tl.load(last_values + row).to(tl.float32)
    advantage_behind = 0.0
    tiles = tl.cdiv(T, BLOCK_T)
    for tile in range(tiles):
        first = (tiles - 1 - tile) * BLOCK_T
        t = first + tl.arange(0, BLOCK_T)
        counts = tl.load(mask + t, mask=t < T, other=0) > 0
        reward = tl.load(rewards + t, mask=counts, other=0.0).to(tl.float32)  # garbage at padding is never read
        value = tl.load(values + t, mask=counts, other=0.0).to(tl.float32)

        after_counts = tl.load(mask + t + 1, mask=t + 1 < T, other=0) > 0
        after = tl.load(values + t + 1, mask=after_counts, other=0.0).to(tl.float32)
        next_value, found = tl.associative_scan((after, after_counts.to(tl.int32)), 0, latest, reverse=True)
        next_value = tl.where(found > 0, next_value, value_behind)

        keep = tl.where(counts, gamma_lam, 1.0)
        delta = tl.where(counts, reward + gamma * next_value - value, 0.0)
        reach, advantage = tl.associative_scan((keep, delta), 0, compose, reverse=True)
        advantage += reach * advantage_behind

        out = row * T + t
        tl.store(advantages + out, tl.where(counts, advantage, 0.0), mask=t < T)
        tl.store(returns + out, tl.where(counts, advantage + value, 0.0), mask=t < T)
        advantage_behind = tl.sum(tl.where(t == first, advantage, 0.0), 0)
        value_behind = tl.sum(tl.where(t == first, next_value, 0.0), 0)


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Float[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), as (advantages, returns), in float32.

    Rows do not depend on each other, to the last bit. There is no gradient, since both results are targets: ValueError
    where an input requires one, and for all that `minirl.advantages.gae` refuses.
    """
    check_dims(2, rewards=rewards, values=values, mask=mask)
    check_shapes(rewards=rewards, values=values, mask=mask)
    check_mask(mask)
    check_finite(mask, rewards=rewards, values=values)
    check_knob("gamma", gamma, 0, 1)
    check_knob("lam", lam, 0, 1)
    ends = {}
    if last_values is not None:
        check_rows(values, last_values=last_values)
        check_finite(mask.any(1), last_values=last_values)
        ends = {"last_values": last_values}
    check_no_gradient(rewards=rewards, values=values, **ends)
    check_tensors(rewards=rewards, values=values, mask=mask, **ends)
    B, T = rewards.shape
    advantages, returns = torch.empty((2, B, T), dtype=torch.float32, device=rewards.device)
    rewards, values, counts = dense_rows(rewards), dense_rows(values), dense_rows(mask).view(torch.uint8)
    gae_kernel[(B,)](
        *(rewards, values, counts, rewards if last_values is None else last_values.contiguous()),
        *(advantages, returns, rewards.stride(0), values.stride(0), counts.stride(0), T, gamma, gamma * lam),
        HAS_LAST=last_values is not None,
        BLOCK_T=BLOCK_T,
        num_warps=4,
    )
    return advantages, returns
