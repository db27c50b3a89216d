"""SwiGLU: the feed-forward gate in one pass over memory.

    forward    y = gate * s * up                     s = sigmoid(gate)
    backward   dgate = g * up * s * (1 + gate * (1 - s))      dup = g * gate * s

Bytes moved: forward 3 N F numbers (gate, up, y), backward 5 N F (gate, up, g, dgate, dup). s is computed again in the backward
pass: an exp costs less than reading a number back. Nothing is reused, so any tile would do; a row is cut into pieces so that
gate and up may be two halves of one matrix, which lie a row apart in memory.

The twin: `minirl.ops.swiglu`.
"""

import torch
import triton
import triton.language as tl

from minirl.kernels.device import INTERPRETED, as_rows, blocks, check_tensors
from minirl.types import Float, Tensor, check_shapes

BLOCK = 64 if INTERPRETED else 1024


@triton.jit
def piece(F, BLOCK: tl.constexpr):
    """(row, columns): all programs stand on axis 0, the one that may have more than 65,535."""
    pieces = tl.cdiv(F, BLOCK)
    program = tl.program_id(0)
    return (program // pieces).to(tl.int64), (program % pieces) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def forward_kernel(gate, up, y, stride_gate, stride_up, F, BLOCK: tl.constexpr):
    row, f = piece(F, BLOCK)
    inside = f < F
    a = tl.load(gate + row * stride_gate + f, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(up + row * stride_up + f, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * F + f, (a * tl.sigmoid(a) * b).to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(gate, up, g, dgate, dup, stride_gate, stride_up, stride_g, F, BLOCK: tl.constexpr):
    row, f = piece(F, BLOCK)
    inside = f < F
    a = tl.load(gate + row * stride_gate + f, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(up + row * stride_up + f, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.load(g + row * stride_g + f, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(a)
    tl.store(dgate + row * F + f, (gradient * b * s * (1.0 + a * (1.0 - s))).to(dgate.dtype.element_ty), mask=inside)
    tl.store(dup + row * F + f, (gradient * a * s).to(dup.dtype.element_ty), mask=inside)


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up):
        gates, ups = as_rows(gate), as_rows(up)
        N, F = gates.shape
        y = torch.empty((N, F), dtype=gate.dtype, device=gate.device)
        if y.numel() > 0:
            grid = (N * blocks(F, BLOCK),)
            forward_kernel[grid](gates, ups, y, gates.stride(0), ups.stride(0), F, BLOCK=BLOCK)
        ctx.save_for_backward(gates, ups)
        return y.view(gate.shape)

    @staticmethod
    def backward(ctx, g):
        gates, ups = ctx.saved_tensors
        N, F = gates.shape
        gradient = as_rows(g)
        dgate, dup = (torch.empty((N, F), dtype=x.dtype, device=x.device) for x in (gates, ups))
        if dgate.numel() > 0:
            backward_kernel[(N * blocks(F, BLOCK),)](
                *(gates, ups, gradient, dgate, dup, gates.stride(0), ups.stride(0), gradient.stride(0), F), BLOCK=BLOCK
            )
        return dgate.view(g.shape), dup.view(g.shape)


def swiglu(gate: Float[Tensor, "... F"], up: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
    """silu(gate) * up, with silu(x) = x * sigmoid(x) (Shazeer 2020, eq. 5). No number depends on another."""
    check_shapes(gate=gate, up=up)
    if gate.dim() == 0 or gate.dtype != up.dtype:
        raise ValueError(f"up: wanted {gate.dtype} like gate, in at least one dimension, got {up.dtype}")
    check_tensors(gate=gate, up=up)
    return SwiGLU.apply(gate, up)
