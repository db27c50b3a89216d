"""The table of swappable operations: what a model and a loop compute with, and where a GPU kernel may take its place.

An entry is a plain function on tensors. TORCH holds PyTorch's versions, `minirl.kernels.TRITON` the same names with the
same signatures as Triton kernels. Which table is used is an argument, never a global: `ops=TORCH` is the default.
The model and the loops call all but the losses, which are for a loop of your own.

The three `*_head_loss` entries take hidden states and the head's matrix, where the plain losses take log-probabilities:
a kernel can then turn logits into gradients on the spot, and the (N, V) table of logits is never held.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from minirl.advantages import gae
from minirl.logprobs import entropy, sequence_logprobs, token_logprobs
from minirl.losses.policy import grpo_loss, ppo_clip_loss
from minirl.losses.preference import dpo_loss
from minirl.masking import masked_mean, sequence_mean, token_mean
from minirl.rotary import rotate
from minirl.sampling import respond, sample
from minirl.types import Bool, Float, Int, Reducer, Stats, Tensor, check_dims, check_knob, check_shapes

LOGITS_AT_ONCE = 2**25  # numbers; more are computed in chunks and, for the gradient, a second time


def rms_norm(x: Float[Tensor, "... D"], weight: Float[Tensor, " D"], *, eps: float) -> Float[Tensor, "... D"]:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, eq. 4)."""
    return F.rms_norm(x, weight.shape, weight, eps)


def swiglu(gate: Float[Tensor, "... F"], up: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
    """silu(gate) * up, with silu(x) = x * sigmoid(x) (Shazeer 2020, eq. 5)."""
    check_shapes(gate=gate, up=up)
    return F.silu(gate) * up


def hidden_logprobs(
    hidden: Float[Tensor, "B T D"],
    weight: Float[Tensor, "V D"],
    tokens: Int[Tensor, "B T"],
    *,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """(logprobs, entropies) of softmax(hidden @ weight.T / temperature), with LOGITS_AT_ONCE logits at most in memory, or one
    position of every row where that is more.

    A chunk of positions goes through the head, becomes two numbers a position, and is forgotten; the backward pass
    computes its logits once more. The entropies carry a gradient only where `entropy_gradient` asks for it.
    """
    check_head(hidden, weight, tokens)
    check_knob("temperature", temperature, 0, open_low=True)

    def two_numbers(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(hidden, weight) / temperature
        return token_logprobs(logits, tokens), entropy(logits if entropy_gradient else logits.detach())

    rows, length = tokens.shape
    at_once = max(LOGITS_AT_ONCE // (rows * len(weight)), 1)
    if length <= at_once:
        return two_numbers(hidden, tokens)
    parts = [
        checkpoint(two_numbers, *chunk, use_reentrant=False)
        for chunk in zip(hidden.split(at_once, 1), tokens.split(at_once, 1), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs, 1), torch.cat(entropies, 1)


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
    """`grpo_loss` of the log-probabilities that the head gives to `tokens`; "entropy" joins its stats."""
    logprobs, entropies = _counted_logprobs(hidden, weight, tokens, mask, temperature)
    knobs = {"clip_eps": clip_eps, "clip_eps_high": clip_eps_high, "kl_coef": kl_coef, "reduce": reduce}
    loss, stats = grpo_loss(logprobs, old_logprobs, ref_logprobs, advantages, mask, **knobs)
    return loss, stats | {"entropy": masked_mean(entropies, mask)}


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
    """`ppo_clip_loss` of the log-probabilities that the head gives to `tokens`; "entropy" joins its stats."""
    logprobs, entropies = _counted_logprobs(hidden, weight, tokens, mask, temperature)
    knobs = {"clip_eps": clip_eps, "clip_eps_high": clip_eps_high, "reduce": reduce}
    loss, stats = ppo_clip_loss(logprobs, old_logprobs, advantages, mask, **knobs)
    return loss, stats | {"entropy": masked_mean(entropies, mask)}


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
    """`dpo_loss` of N pairs whose responses lie next to each other: row 2i is the chosen one, row 2i + 1 the rejected."""
    check_pairs(hidden, ref_chosen, ref_rejected)
    logprobs, _ = _counted_logprobs(hidden, weight, tokens, mask, 1.0)
    summed = sequence_logprobs(logprobs, mask)
    return dpo_loss(summed[::2], summed[1::2], ref_chosen, ref_rejected, beta=beta, label_smoothing=label_smoothing)


def _counted_logprobs(hidden: Tensor, weight: Tensor, tokens: Tensor, mask: Tensor, temperature: float):
    """hidden_logprobs with the hidden states of positions that do not count set to 0: not even NaN passes."""
    check_head(hidden, weight, tokens)
    check_shapes(tokens=tokens, mask=mask)
    return hidden_logprobs(hidden.masked_fill(~mask.unsqueeze(-1), 0.0), weight, tokens, temperature=temperature)


def check_head(hidden: Tensor, weight: Tensor, tokens: Tensor) -> None:
    check_dims(3, hidden=hidden)
    check_dims(2, weight=weight, tokens=tokens)
    if hidden.shape[-1] != weight.shape[1]:
        raise ValueError(f"weight: wanted (V, {hidden.shape[-1]}) to go with hidden, got {tuple(weight.shape)}")
    if tokens.shape != hidden.shape[:2]:
        raise ValueError(f"tokens: wanted shape {tuple(hidden.shape[:2])} like hidden, got {tuple(tokens.shape)}")


def check_pairs(hidden: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> None:
    check_dims(1, ref_chosen=ref_chosen)
    check_shapes(ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    if len(hidden) != 2 * len(ref_chosen):
        raise ValueError(f"hidden: wanted two rows a pair, {2 * len(ref_chosen)}, got {len(hidden)}")


@dataclass(frozen=True)
class Ops:
    """One callable an operation. `dataclasses.replace(TORCH, gae=my_gae)` swaps a single one."""

    rms_norm: Callable[..., Tensor]
    rotate: Callable[..., Tensor]
    swiglu: Callable[..., Tensor]
    hidden_logprobs: Callable[..., tuple[Tensor, Tensor]]
    gae: Callable[..., tuple[Tensor, Tensor]]
    grpo_loss: Callable[..., tuple[Tensor, Stats]]
    ppo_clip_loss: Callable[..., tuple[Tensor, Stats]]
    grpo_head_loss: Callable[..., tuple[Tensor, Stats]]
    ppo_head_loss: Callable[..., tuple[Tensor, Stats]]
    dpo_head_loss: Callable[..., tuple[Tensor, Stats]]
    sample: Callable[..., tuple[Tensor, Tensor]]
    respond: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


TORCH = Ops(
    rms_norm=rms_norm,
    rotate=rotate,
    swiglu=swiglu,
    hidden_logprobs=hidden_logprobs,
    gae=gae,
    grpo_loss=grpo_loss,
    ppo_clip_loss=ppo_clip_loss,
    grpo_head_loss=grpo_head_loss,
    ppo_head_loss=ppo_head_loss,
    dpo_head_loss=dpo_head_loss,
    sample=sample,
    respond=respond,
)
