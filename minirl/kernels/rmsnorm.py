"""RMSNorm: one program a row, so that x is read once and its norm never leaves the chip.

    forward    r = 1 / sqrt(mean(x^2) + eps)                 y = x * r * w
    backward   n = x * r,  h = g * w                         dx = r * (h - n * mean(h * n))      dw = sum over rows of g * n

Bytes moved: forward reads x and writes y (2 N D numbers), backward reads x and g and writes dx (3 N D); written out in PyTorch,
the forward alone is seven passes. There is nothing to reuse between rows, so memory bandwidth is the ceiling, and a tile is a
whole row: the mean needs all of it. D is padded to a power of two and the padding masked.

The twin: `minirl.ops.rms_norm`.
"""

import torch
import triton
import triton.language as tl

from minirl.kernels.device import INTERPRETED, as_rows, check_tensors, power_of_two
from minirl.types import Float, Tensor, check_dims, check_knob

PROGRAMS = 4 if INTERPRETED else 512  # of the backward pass: each sums dw over its own rows, in a fixed order


@triton.jit
def forward_kernel(x, weight, y, scale, stride_x, D, eps, BLOCK_D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    numbers = tl.load(x + row * stride_x + d, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(numbers * numbers, 0) / D + eps)
    tl.store(scale + row, r)
    tl.store(y + row * D + d, (numbers * r * w).to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(x, weight, g, scale, dx, dw, N, stride_x, stride_g, D, BLOCK_D: tl.constexpr):
    """Program p takes the rows p, p + programs, p + 2 programs ... and writes row p of dw."""
    first, programs = tl.program_id(0), tl.num_programs(0)
    d = tl.arange(0, BLOCK_D)
    inside = d < D
    w = tl.load(weight + d, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for row in range(first, N, programs):
        row = tl.cast(row, tl.int64)
        r = tl.load(scale + row)
        n = tl.load(x + row * stride_x + d, mask=inside, other=0.0).to(tl.float32) * r
        gradient = tl.load(g + row * stride_g + d, mask=inside, other=0.0).to(tl.float32)
        total += gradient * n
        h = gradient * w
        result = r * (h - n * (tl.sum(h * n, 0) / D))
        tl.store(dx + row * D + d, result.to(dx.dtype.element_ty), mask=inside)
    tl.store(dw + first.to(tl.int64) * D + d, total, mask=inside)


def warps(block: int) -> int:
    """32 threads a warp, and 8 numbers of 16 bits a thread in one load."""
    return min(max(block // 256, 1), 16)


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        rows = as_rows(x)
        N, D = rows.shape
        y = torch.empty((N, D), dtype=x.dtype, device=x.device)
        scale = torch.empty(N, dtype=torch.float32, device=x.device)
        if N > 0:
            block = power_of_two(D)
            forward_kernel[(N,)](rows, weight, y, scale, rows.stride(0), D, eps, BLOCK_D=block, num_warps=warps(block))
        ctx.save_for_backward(rows, weight, scale)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx, g):
        rows, weight, scale = ctx.saved_tensors
        N, D = rows.shape
        gradient = as_rows(g)
        dx = torch.empty((N, D), dtype=rows.dtype, device=rows.device)
        programs = min(N, PROGRAMS)
        dw = torch.empty((programs, D), dtype=torch.float32, device=rows.device)
        if N > 0:
            block = power_of_two(D)
            backward_kernel[(programs,)](
                *(rows, weight, gradient, scale, dx, dw, N, rows.stride(0), gradient.stride(0), D),
                BLOCK_D=block,
                num_warps=warps(block),
            )
        return dx.view(g.shape), dw.sum(0).to(weight.dtype), None


def rms_norm(x: Float[Tensor, "... D"], weight: Float[Tensor, " D"], *, eps: float) -> Float[Tensor, "... D"]:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, eq. 4).

    A row's result and gradient do not depend on the other rows, to the last bit; the weight's gradient is a sum over all
    rows, and its last bit does. ValueError: weight not (D,), D above 65536, a machine without the kernels.
    """
    check_dims(1, weight=weight)
    if x.dim() == 0 or x.shape[-1] != len(weight) or not 0 < len(weight) <= 65536:
        wanted = f"(..., {len(weight)}) to go with weight, at most 65536 numbers a row"
        raise ValueError(f"x: wanted {wanted}, got {tuple(x.shape)}")
    check_knob("eps", eps, 0, open_low=True)
    check_tensors(x=x, weight=weight)
    return RMSNorm.apply(x, weight.contiguous(), eps)
