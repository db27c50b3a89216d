"""The head and the loss in one: three matrix products where four are usual, because gradients are written over the logits.

Training on a response takes  logits -> log-probability -> loss  and back. Without the (N, V) table the backward pass has to
compute the logits a second time: 2 NDV forward, 2 again, 2 for the hidden states' gradient and 2 for the weight's, 8 NDV in all.
But in GRPO and PPO a token's gradient needs nothing from the other tokens. As soon as its row of logits is done,

    d loss / d z_v = c * (1[v = token] - p_v) / temperature          c = weight * slope(logprob), see `minirl.kernels.policy`

is known and is written where the logits were. Both products follow while the tile is at hand: 6 NDV.

A tile is TILE_BYTES of float32 logits by cuBLAS. One program takes a row of it: first pass, online softmax; then c; second pass,
gradients. In half precision they are half as wide as the logits they replace: a row's gradients fill the front half of its bytes,
which has been read by then, and a barrier keeps the threads of a program from overtaking each other.
Bytes: a logit is written once and read twice, a gradient written once and read twice, and the weight's gradient, in float32, is
read and written once a tile: few large tiles are cheaper than many.

DPO's coefficient is known when both responses of a pair are done: its tiles hold whole pairs, and the two passes are two
launches.

In float16 small coefficients vanish (below 6e-8), as they do in PyTorch: scale the loss.

`minirl.kernels.head_losses` says what the row passes are, and names the twins.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from minirl.kernels.device import INTERPRETED, as_rows, dense_rows
from minirl.kernels.matmul import multiply, multiply_add, padded
from minirl.kernels.policy import surrogate
from minirl.types import Tensor

TILE_BYTES = 4000 if INTERPRETED else 1_245_000_000
ROW = {"BLOCK_V": 32} if INTERPRETED else {"BLOCK_V": 4096, "num_warps": 8}  # how a program reads a row


@triton.jit
def read_row(logits, token, V, scale, BLOCK_V: tl.constexpr):
    """(logprob, entropy, log sum exp z) of one row as in `minirl.kernels.online_softmax`."""
    m, s, e = -1e30, 0.0, 0.0
    for first in range(0, V, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        z = tl.load(logits + v, mask=v < V, other=-1e30).to(tl.float32) * scale
        higher = tl.maximum(m, tl.max(z, 0))
        p = tl.where(v < V, tl.exp(z - higher), 0.0)
        a = tl.exp(m - higher)
        e = a * (e + s * (m - higher)) + tl.sum(p * (z - higher), 0)
        s = a * s + tl.sum(p, 0)
        m = higher
    known = (token >= 0) & (token < V)
    chosen = tl.load(logits + token, mask=known, other=float("nan")).to(tl.float32) * scale
    return (chosen - m) - tl.log(s), tl.log(s) - e / s, m + tl.log(s)


@triton.jit
def write_row(logits, dlogits, token, coefficient, log_sum, V, scale, BLOCK_V: tl.constexpr):
    """coefficient * (1[v = token] - p_v) * scale. dlogits may be the same memory, at most as wide a number."""
    for first in range(0, V, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        z = tl.load(logits + v, mask=v < V, other=0.0).to(tl.float32) * scale
        dz = coefficient * (tl.where(v == token, 1.0, 0.0) - tl.exp(z - log_sum)) * scale
        tl.debug_barrier()  # every thread has read its logits before one of them writes over its neighbour's
        tl.store(dlogits + v, dz.to(dlogits.dtype.element_ty), mask=v < V)


@triton.jit
def clipped_kernel(
    logits,
    dlogits,
    results,  # (3, N): log-probability, entropy, log sum exp z
    per_token,  # (4, N): old, reference, advantage, weight
    tokens,
    first_row,
    N,
    V,
    stride_logits,
    stride_dlogits,
    scale,
    low,
    high,
    kl_coef,
    BLOCK_V: tl.constexpr,
):
    """A row of the tile: logits in, results and gradients out."""
    row = tl.program_id(0).to(tl.int64)
    n, wide = first_row + row, tl.cast(N, tl.int64)
    token = tl.load(tokens + n)
    logits += row * stride_logits
    dlogits += row * stride_dlogits
    logprob, entropy, log_sum = read_row(logits, token, V, scale, BLOCK_V)
    tl.store(results + n, logprob)
    tl.store(results + wide + n, entropy)
    old, ref = tl.load(per_token + n), tl.load(per_token + wide + n)
    advantage, weight = tl.load(per_token + 2 * wide + n), tl.load(per_token + 3 * wide + n)
    _, slope, _, _, _ = surrogate(logprob, old, ref, advantage, low, high, kl_coef)
    coefficient = tl.where(weight == 0.0, 0.0, weight * slope)
    write_row(logits, dlogits, token, coefficient, log_sum, V, scale, BLOCK_V)


@triton.jit
def read_kernel(logits, results, tokens, first_row, N, V, stride_logits, scale, BLOCK_V: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    n, wide = first_row + row, tl.cast(N, tl.int64)
    logprob, entropy, log_sum = read_row(logits + row * stride_logits, tl.load(tokens + n), V, scale, BLOCK_V)
    tl.store(results + n, logprob)
    tl.store(results + wide + n, entropy)
    tl.store(results + 2 * wide + n, log_sum)


@triton.jit
def write_kernel(
    logits,
    dlogits,
    results,
    coefficients,
    tokens,
    first_row,
    N,
    V,
    stride_logits,
    stride_dlogits,
    scale,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    n, wide = first_row + row, tl.cast(N, tl.int64)
    token, coefficient = tl.load(tokens + n), tl.load(coefficients + row)
    log_sum = tl.load(results + 2 * wide + n)
    logits += row * stride_logits
    dlogits += row * stride_dlogits
    write_row(logits, dlogits, token, coefficient, log_sum, V, scale, BLOCK_V)


# (first row, logits of the tile, dlogits over them, results): leaves the results, and the gradients where dlogits is given
RowPass = Callable[[int, Tensor, Tensor | None, Tensor], None]


class Head(torch.autograd.Function):
    """The gradients are computed on the way forward, of `row_pass`'s loss; backward multiplies them by the loss's own."""

    @staticmethod
    def forward(ctx, hidden, weight, mask, row_pass: RowPass, rows_at_once: int):
        (N, D), V = hidden.shape, len(weight)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        results = torch.empty((3, N), dtype=torch.float32, device=hidden.device)
        tile = padded(min(rows_at_once, N), V, torch.float32, hidden.device)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros((V, D), dtype=torch.float32, device=weight.device) if wants_weight else None
        for first in range(0, N, rows_at_once):
            part = slice(first, min(first + rows_at_once, N))
            counted = hidden[part].masked_fill(~mask[part, None], 0.0)  # NaN at padding would reach the weight: 0 * NaN
            logits = tile[: len(counted)]
            multiply(counted, weight.t(), out=logits)
            dlogits = over(logits, hidden.dtype) if wants_hidden or wants_weight else None
            row_pass(first, logits, dlogits, results)
            if wants_hidden:
                multiply(dlogits, weight, out=d_hidden[part])
            if wants_weight:
                multiply_add(d_weight, dlogits.t(), counted)
        ctx.gradients, ctx.dtype = [d_hidden, d_weight], weight.dtype
        logprobs, entropies, _ = results.unbind()
        ctx.mark_non_differentiable(logprobs, entropies)
        return hidden.new_zeros((), dtype=torch.float32), logprobs, entropies

    @staticmethod
    def backward(ctx, g, *_):
        if ctx.gradients is None:
            raise RuntimeError("a fused head keeps its gradients for one backward pass; compute the loss again")
        (d_hidden, d_weight), ctx.gradients = ctx.gradients, None
        d_hidden = None if d_hidden is None else d_hidden.mul_(g)
        return d_hidden, None if d_weight is None else d_weight.mul_(g).to(ctx.dtype), None, None, None


def over(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """The memory of float32 logits as (rows, V) of `dtype`: each row at the front of the row it replaces."""
    rows, V = logits.shape
    wide = logits.as_strided((rows, logits.stride(0)), logits.stride())
    return wide.view(dtype)[:, :V]


def run_head(hidden, weight, mask, row_pass: RowPass, rows_at_once: int) -> tuple[Tensor, Tensor, Tensor]:
    """(a zero that carries the gradient, logprobs, entropies), the last two (B, T)."""
    if not torch.is_grad_enabled():  # autograd asks the tensors alone, and would have gradients computed for nobody
        hidden, weight = hidden.detach(), weight.detach()
    carrier, logprobs, entropies = Head.apply(
        as_rows(hidden), dense_rows(weight), mask.reshape(-1), row_pass, rows_at_once
    )
    return carrier, logprobs.view(mask.shape), entropies.view(mask.shape)


def rows_in_a_tile(vocabulary: int) -> int:
    return max(TILE_BYTES // (4 * vocabulary), 1)
