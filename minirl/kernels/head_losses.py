"""The losses that are fused with the head: what `minirl.kernels.heads` does with each row of logits, for GRPO, PPO and DPO.

The kernel gives log-probabilities and gradients. The loss itself and its statistics come from the plain loss on those
log-probabilities, (B, T) numbers, so that there is one definition of them.

The twins: `grpo_head_loss`, `ppo_head_loss` and `dpo_head_loss` of `minirl.ops`.
"""

import torch

from minirl.kernels.device import check_no_gradient
from minirl.kernels.heads import ROW, clipped_kernel, read_kernel, rows_in_a_tile, run_head, write_kernel
from minirl.kernels.logprobs import check_head_tensors
from minirl.kernels.policy import check_clipped, clipped_loss, reducer_weights
from minirl.losses.preference import dpo_loss
from minirl.masking import blank, masked_mean, sequence_mean, token_mean
from minirl.ops import check_pairs
from minirl.types import Bool, Float, Int, Reducer, Stats, Tensor, check_knob, check_mask, check_shapes


def clipped_head_loss(hidden, weight, tokens, old, ref, advantages, mask, temperature, clip, kl_coef, reduce):
    check_knob("temperature", temperature, 0, open_low=True)
    check_head_tensors(hidden, weight, tokens)
    check_shapes(tokens=tokens, mask=mask)
    low, high = check_clipped(old, old, ref, advantages, mask, *clip, kl_coef)
    check_no_gradient(old_logprobs=old, advantages=advantages, **({} if ref is None else {"ref_logprobs": ref}))
    ids, N, V = tokens.reshape(-1).contiguous(), tokens.numel(), len(weight)
    each = (advantages if advantages.dim() == 2 else advantages.unsqueeze(1)).expand(mask.shape)
    # without a reference any number serves, times kl_coef = 0
    columns = (old, old if ref is None else ref, each, reducer_weights(reduce, mask))
    per_token = torch.stack([x.float().masked_fill(~mask, 0.0).reshape(-1) for x in columns])

    def row_pass(first: int, logits: Tensor, dlogits: Tensor | None, results: Tensor) -> None:
        if dlogits is None:
            read_kernel[(len(logits),)](
                *(logits, results, ids, first, N, V, logits.stride(0), 1 / temperature),
                **ROW,
            )
        else:
            clipped_kernel[(len(logits),)](
                *(logits, dlogits, results, per_token, ids, first, N, V, logits.stride(0), dlogits.stride(0)),
                *(1 / temperature, low, high, kl_coef),
                **ROW,
            )

    carrier, logprobs, entropies = run_head(hidden, weight, mask, row_pass, rows_in_a_tile(V))
    loss, stats = clipped_loss(logprobs, old, ref, advantages, mask, *clip, kl_coef, reduce)
    return loss + carrier, stats | {"entropy": masked_mean(entropies, mask)}


def grpo_head_loss(
    hidden: Float[Tensor, "B T D"],
    weight: Float[Tensor, "V D"],
    tokens: Int[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"] | None,
    advantages: Float[Tensor, " B"],
    mask: Bool[Tensor, "B T"],
    *,
    temperature: float = 1.0,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
    kl_coef: float = 0.04,
    reduce: Reducer = sequence_mean,
) -> tuple[Float[Tensor, ""], Stats]:
    """`grpo_loss` of the log-probabilities that the head gives to `tokens`; "entropy" joins its stats.

    `reduce` has to be linear. One backward pass a loss. A row's log-probability depends on the other rows only as far as
    cuBLAS chooses its algorithm by shape: in the last bits.
    """
    knobs = (temperature, (clip_eps, clip_eps_high), kl_coef, reduce)
    return clipped_head_loss(hidden, weight, tokens, old_logprobs, ref_logprobs, advantages, mask, *knobs)


def ppo_head_loss(
    hidden: Float[Tensor, "B T D"],
    weight: Float[Tensor, "V D"],
    tokens: Int[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    temperature: float = 1.0,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
    reduce: Reducer = token_mean,
) -> tuple[Float[Tensor, ""], Stats]:
    """`ppo_clip_loss` of the log-probabilities that the head gives to `tokens`; as `grpo_head_loss` otherwise."""
    knobs = (temperature, (clip_eps, clip_eps_high), 0.0, reduce)
    return clipped_head_loss(hidden, weight, tokens, old_logprobs, None, advantages, mask, *knobs)


def dpo_head_loss(
    hidden: Float[Tensor, "B T D"],
    weight: Float[Tensor, "V D"],
    tokens: Int[Tensor, "B T"],
    ref_chosen: Float[Tensor, " N"],
    ref_rejected: Float[Tensor, " N"],
    mask: Bool[Tensor, "B T"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], Stats]:
    """`dpo_loss` of N pairs whose responses lie next to each other: row 2i is the chosen one, row 2i + 1 the rejected.

    A tile holds whole pairs, at least one, whatever TILE_BYTES says: 2 T V numbers. One backward pass a loss.
    """
    check_head_tensors(hidden, weight, tokens)
    check_shapes(tokens=tokens, mask=mask)
    check_mask(mask)
    check_pairs(hidden, ref_chosen, ref_rejected)
    check_no_gradient(ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    ids, N, (B, T), V = tokens.reshape(-1).contiguous(), tokens.numel(), tokens.shape, len(weight)
    pairs_at_once = max(rows_in_a_tile(V) // (2 * T), 1)

    def loss_of(logprobs: Tensor, rows: slice) -> tuple[Tensor, Stats]:
        summed = blank(logprobs, mask[rows]).sum(1)
        ref = slice(rows.start // 2, rows.stop // 2)
        knobs = {"beta": beta, "label_smoothing": label_smoothing}
        return dpo_loss(summed[::2], summed[1::2], ref_chosen[ref], ref_rejected[ref], **knobs)

    def row_pass(first: int, logits: Tensor, dlogits: Tensor | None, results: Tensor) -> None:
        read_kernel[(len(logits),)](*(logits, results, ids, first, N, V, logits.stride(0), 1.0), **ROW)
        if dlogits is not None:
            rows = slice(first // T, (first + len(logits)) // T)
            with torch.enable_grad():
                logprobs = results[0, first : first + len(logits)].view(-1, T).clone().requires_grad_()
                pairs = (rows.stop - rows.start) // 2
                share = loss_of(logprobs, rows)[0] * (2 * pairs / B)  # a mean over pairs, of which these are some
                (coefficients,) = torch.autograd.grad(share, logprobs)
            write_kernel[(len(logits),)](
                *(logits, dlogits, results, coefficients, ids, first, N, V, logits.stride(0), dlogits.stride(0), 1.0),
                **ROW,
            )

    carrier, logprobs, _ = run_head(hidden, weight, mask, row_pass, pairs_at_once * 2 * T)
    loss, stats = loss_of(logprobs, slice(0, B))
    return loss + carrier, stats
