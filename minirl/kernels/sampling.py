"""The next token from its logits in one launch: a program a row, two passes over the vocabulary.

    m = max z,  s = sum exp(z - m)                         first pass, online: see `online_softmax`
    token = the first v with  sum_{w <= v} exp(z_w - m) > uniform * s            second pass, a running sum over tiles
    logprob = z[token] - m - log s                         not above 0, since z[token] <= m and s >= 1

Bytes: the logits twice, the second time mostly from the L2 cache. PyTorch's way (softmax, cumsum, searchsorted, two gathers, a
log) reads or writes a table of their size seven times. Nothing waits for the CPU, so the launch can be part of a CUDA graph.

The twin: `minirl.sampling.sample`. The running sums are rounded differently: where `uniform` falls within a rounding error of
the edge between two tokens, the kernel may give the neighbour.
"""

import torch
import triton
import triton.language as tl

from minirl import sampling
from minirl.kernels.device import INTERPRETED, check_tensors, dense_rows, power_of_two
from minirl.types import Float, Int, Tensor, check_dims, check_knob, check_rows

BLOCK = 64 if INTERPRETED else 4096


@triton.jit
def sample_kernel(logits, uniform, tokens, logprobs, V, stride, scale, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = logits + row * stride
    m = tl.full((), -1e30, tl.float32)  # finite: -inf minus -inf is NaN
    s = tl.zeros((), tl.float32)
    for first in range(0, V, BLOCK):
        v = first + tl.arange(0, BLOCK)
        z = tl.load(place + v, mask=v < V, other=-float("inf")).to(tl.float32) * scale
        higher = tl.maximum(m, tl.max(z, 0))
        s = s * tl.exp(m - higher) + tl.sum(tl.exp(z - higher), 0)
        m = higher
    target = tl.load(uniform + row) * s
    before = tl.zeros((), tl.float32)
    token = tl.full((), -1, tl.int32)
    last = tl.zeros((), tl.int32)  # the last token that is possible, for a target that rounding puts above every sum
    for first in range(0, V, BLOCK):
        v = first + tl.arange(0, BLOCK)
        z = tl.load(place + v, mask=v < V, other=-float("inf")).to(tl.float32) * scale
        p = tl.exp(z - m)
        exceeds = (before + tl.cumsum(p, 0) > target) & (p > 0)
        found = tl.min(tl.where(exceeds, v, V), 0)
        token = tl.where((token < 0) & (found < V), found, token)
        last = tl.maximum(last, tl.max(tl.where(p > 0, v, 0), 0))
        before += tl.sum(p, 0)
    token = tl.where(token < 0, last, token)
    chosen = tl.load(place + token).to(tl.float32) * scale
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(logprobs + row, (chosen - m) - tl.log(s))


def sample(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, " B"], *, temperature: float = 1.0, top_p: float = 1.0
) -> tuple[Int[Tensor, " B"], Float[Tensor, " B"]]:
    """(tokens, logprobs), see `minirl.sampling.sample`. With top_p < 1, which needs a sort, PyTorch's version runs.

    ValueError: a knob out of range, uniform not one a row, a machine without the kernels.
    """
    check_knob("temperature", temperature, 0, open_low=True)
    if top_p != 1:
        return sampling.sample(logits, uniform, temperature=temperature, top_p=top_p)
    check_dims(2, logits=logits)
    check_rows(logits, uniform=uniform)
    check_tensors(logits=logits, uniform=uniform)
    logits = dense_rows(logits.detach())
    B, V = logits.shape
    tokens = torch.empty(B, dtype=torch.long, device=logits.device)
    logprobs = torch.empty(B, dtype=torch.float32, device=logits.device)
    if B > 0:
        block = min(BLOCK, power_of_two(V))
        sample_kernel[(B,)](
            *(logits, uniform.contiguous(), tokens, logprobs, V, logits.stride(0), 1 / temperature), BLOCK=block
        )
    return tokens, logprobs
