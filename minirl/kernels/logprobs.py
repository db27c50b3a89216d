"""log pi(token) and entropy straight from hidden states and the head's matrix: the (N, V) table of logits is never held.

Work: 2 N D V operations forward, and 6 N D V backward (the logits again, then two products). The logits themselves would be
2 N V numbers written and read again: 10 GB at N = 16384 and V = 151936 in bfloat16, and the softmax in float32 twice that.

The backward pass goes over slabs of the vocabulary, of at most SLAB_BYTES: a kernel writes d loss / d logits for all rows, and
two products (cuBLAS) turn them into gradients. Each slab of the weight's gradient is final when written.

The twin: `minirl.ops.hidden_logprobs`. (It rounds logits to bfloat16 where the weights are; here they stay in float32.)
The kernels: `minirl.kernels.online_softmax`.
"""

import torch

from minirl.kernels.device import INTERPRETED, as_rows, blocks, check_tensors, dense_rows
from minirl.kernels.matmul import multiply, multiply_add, padded
from minirl.kernels.online_softmax import backward_kernel, forward_kernel, merge_kernel
from minirl.ops import check_head
from minirl.types import Float, Int, Tensor, check_knob, looks_at_values

SPLIT = 96 if INTERPRETED else 8192  # columns of the vocabulary a program walks along
SLAB_BYTES = 3000 if INTERPRETED else 1_200_000_000


def tiles(x: Tensor) -> dict:
    """Block sizes. Fixed and not autotuned: another block adds in another order, and changes the last bit."""
    if INTERPRETED:
        return {"BLOCK_N": 16, "BLOCK_V": 32, "BLOCK_D": 16, "UPCAST": True}
    launch = {"UPCAST": False, "num_warps": 8, "num_stages": 3}
    if x.dtype == torch.float32:
        return launch | {"BLOCK_N": 64, "BLOCK_V": 128, "BLOCK_D": 32}
    roomy = torch.cuda.get_device_properties(x.device).shared_memory_per_block_optin > 200_000  # H100, B200: 227 KB
    return launch | {"BLOCK_N": 128, "BLOCK_V": 256 if roomy else 128, "BLOCK_D": 64}


class HiddenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, tokens, scale, entropy_gradient):
        (N, D), V = hidden.shape, len(weight)
        splits = blocks(V, SPLIT)
        parts = torch.empty((4, splits, N), dtype=torch.float32, device=hidden.device)
        results = torch.empty((3, N), dtype=torch.float32, device=hidden.device)
        shape = tiles(hidden)
        forward_kernel[(blocks(N, shape["BLOCK_N"]), splits)](
            *(hidden, weight, tokens, parts, N, V, D, hidden.stride(0), weight.stride(0), scale),
            SPLIT=SPLIT,
            **shape,
        )
        merge_kernel[(blocks(N, 128),)](parts, tokens, results, splits, N, V, BLOCK=128)
        ctx.save_for_backward(hidden, weight, tokens, results)
        ctx.scale, ctx.entropy_gradient = scale, entropy_gradient
        logprobs, entropies, _ = results.clone().unbind()
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx, g, g_entropy):
        hidden, weight, tokens, (_, entropies, log_sums) = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        (N, D), V = hidden.shape, len(weight)
        shape = tiles(hidden)
        width = min(V, max(SLAB_BYTES // (N * hidden.element_size()) // shape["BLOCK_V"], 1) * shape["BLOCK_V"])
        slab = padded(N, width, hidden.dtype, hidden.device)
        d_hidden = torch.zeros((N, D), dtype=torch.float32, device=hidden.device)
        d_weight = torch.empty((V, D), dtype=weight.dtype, device=weight.device) if wants_weight else None
        slopes = g.contiguous(), g_entropy.contiguous()
        for first in range(0, V, width):
            part = slice(first, min(first + width, V))
            dlogits = slab[:, : part.stop - first]
            grid = (blocks(N, shape["BLOCK_N"]), blocks(dlogits.shape[1], shape["BLOCK_V"]))
            backward_kernel[grid](
                *(hidden, weight, tokens, log_sums, entropies, *slopes, dlogits, N, V, D),
                *(first, dlogits.shape[1], hidden.stride(0), weight.stride(0), dlogits.stride(0), ctx.scale),
                ENTROPY=ctx.entropy_gradient,
                **shape,
            )
            if wants_weight:
                multiply(dlogits.t(), hidden, out=d_weight[part])
            if wants_hidden:
                multiply_add(d_hidden, dlogits, weight[part])
        return d_hidden.to(hidden.dtype) if wants_hidden else None, d_weight, None, None, None


def check_tokens(tokens: Tensor, vocabulary: int) -> None:
    if tokens.is_floating_point():
        raise ValueError(f"tokens: wanted whole numbers, got {tokens.dtype}")
    if looks_at_values(tokens):
        bad = (tokens < 0) | (tokens >= vocabulary)
        if bad.any():
            raise ValueError(f"tokens: wanted ids in [0, {vocabulary}), got {tokens[bad][0].item()}")


def check_head_tensors(hidden: Tensor, weight: Tensor, tokens: Tensor) -> None:
    check_head(hidden, weight, tokens)
    check_tokens(tokens, len(weight))
    if hidden.dtype != weight.dtype:
        raise ValueError(f"weight: wanted {hidden.dtype} like hidden, got {weight.dtype}")
    check_tensors(hidden=hidden, weight=weight, tokens=tokens)


def hidden_logprobs(
    hidden: Float[Tensor, "B T D"],
    weight: Float[Tensor, "V D"],
    tokens: Int[Tensor, "B T"],
    *,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """(logprobs, entropies) of softmax(hidden @ weight.T / temperature), both float32.

    The forward results of a row do not depend on the other rows, to the last bit; its gradients do in their last bits
    (cuBLAS chooses by shape). A token outside the vocabulary is a ValueError where values are looked at, else NaN.
    """
    check_knob("temperature", temperature, 0, open_low=True)
    check_head_tensors(hidden, weight, tokens)
    rows, ids = as_rows(hidden), tokens.reshape(-1).contiguous()
    logprobs, entropies = HiddenLogprobs.apply(rows, dense_rows(weight), ids, 1 / temperature, entropy_gradient)
    return logprobs.view(tokens.shape), entropies.view(tokens.shape)
