"""Rotary positions: every pair of channels (e, e + E/2) of a head turned by its position's angle, in one pass.

    forward    y[e] = x[e] * cos[e] + x[e'] * sin[e]          e' = the partner, E/2 further round the head
    backward   dx[e] = g[e] * cos[e] + g[e'] * sin[e']        the turn back: the partner's own sine, which has the other sign

Bytes moved: 2 B H S E numbers either way, and the table of angles. PyTorch writes x.roll(...) out first, then two products, and
their sum: nine passes. A program takes one position of one row with all its heads, so that the angles of the position are
read once and serve H heads. x may be the transposed view that attention works on: strides are followed, nothing is copied.

The twin: `minirl.rotary.rotate`.
"""

import torch
import triton
import triton.language as tl

from minirl.kernels.device import check_no_gradient, check_tensors, power_of_two
from minirl.types import Float, Tensor, check_dims


@triton.jit
def rotate_kernel(
    x,  # (B, H, S, E) with the strides x_b, x_h, x_s, x_e
    x_b,
    x_h,
    x_s,
    x_e,
    y,
    y_b,
    y_h,
    y_s,
    y_e,
    rope,  # (2, B, 1, S, E): cosines, then signed sines; the stride r_b is 0 where all rows share their positions
    r_two,
    r_b,
    r_s,
    r_e,
    H,
    S,
    E,
    BACKWARD: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    b, s = (tl.program_id(0) // S).to(tl.int64), (tl.program_id(0) % S).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    partner = (e + E // 2) % E
    angles = rope + b * r_b + s * r_s
    cos = tl.load(angles + e * r_e, mask=e < E, other=0.0).to(tl.float32)
    sin = tl.load(angles + r_two + (partner if BACKWARD else e) * r_e, mask=e < E, other=0.0).to(tl.float32)
    for first in range(0, H, BLOCK_H):
        h = (first + tl.arange(0, BLOCK_H)).to(tl.int64)[:, None]
        inside = (h < H) & (e < E)[None, :]
        head = x + b * x_b + h * x_h + s * x_s
        own = tl.load(head + (e * x_e)[None, :], mask=inside, other=0.0).to(tl.float32)
        other = tl.load(head + (partner * x_e)[None, :], mask=inside, other=0.0).to(tl.float32)
        turned = own * cos[None, :] + other * sin[None, :]
        to = y + b * y_b + h * y_h + s * y_s + (e * y_e)[None, :]
        tl.store(to, turned.to(y.dtype.element_ty), mask=inside)


def turn(x: Tensor, rope: Tensor, backward: bool) -> Tensor:
    B, H, S, E = x.shape
    y = torch.empty_like(x)  # in the order of x: what follows finds its usual layout
    two, rows, _, along, channel = rope.stride()
    if y.numel() > 0:
        rotate_kernel[(B * S,)](
            *(x, *x.stride(), y, *y.stride(), rope, two, rows if rope.shape[1] > 1 else 0, along, channel, H, S, E),
            BACKWARD=backward,
            BLOCK_H=min(power_of_two(H), 32),
            BLOCK_E=power_of_two(E),
        )
    return y


class Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rope):
        ctx.save_for_backward(rope)
        return turn(x, rope, backward=False)

    @staticmethod
    def backward(ctx, g):
        (rope,) = ctx.saved_tensors
        return turn(g, rope, backward=True), None


def rotate(x: Float[Tensor, "B H S E"], rope: Float[Tensor, "2 R 1 S E"]) -> Float[Tensor, "B H S E"]:
    """(a, b) -> (a cos - b sin, b cos + a sin) for the halves a, b of each head (RoFormer, Su et al. 2021, section 3.4.2).

    `rope` holds the cosines and the signed sines of each position, for each row (R = B) or for all of them (R = 1). Computed
    in float32, where PyTorch's twin rounds between its steps. ValueError: other shapes, an odd E, a table with a gradient.
    """
    check_dims(4, x=x)
    B, _, S, E = x.shape
    if rope.dim() != 5 or (rope.shape[0], *rope.shape[2:]) != (2, 1, S, E) or rope.shape[1] not in (1, B):
        raise ValueError(f"rope: wanted (2, 1 or {B}, 1, {S}, {E}) to go with x, got {tuple(rope.shape)}")
    if E % 2:
        raise ValueError(f"x: rotary positions turn pairs and want an even number of channels, got {E}")
    check_no_gradient(rope=rope)
    check_tensors(x=x, rope=rope)
    return Rotate.apply(x, rope)
