"""Log-probabilities of tokens and of sequences, and the one place where logits and tokens are shifted against each other."""

import torch
import torch.nn.functional as F

from minirl.masking import blank
from minirl.types import (
    Bool,
    Float,
    Int,
    Tensor,
    check_dims,
    check_mask,
    check_shapes,
    check_size,
    check_tensors,
    check_together,
    looks_at_values,
    upcast,
)


def response_slice(x: Float[Tensor, "B S ..."], length: int) -> Float[Tensor, "B T ..."]:
    """The `length` positions of x that predict the response: x[:, -length-1:-1].

    x holds something for every position of prompt + response (logits, hidden states, values). The position that
    predicts token s is s - 1, so the slice starts one before the response and ends one before its end. Everything
    downstream is indexed by the response token: logprobs[:, t], values[:, t] = V(s_t), rewards[:, t].
    """
    check_size("length", length)
    check_tensors(x=x)
    if x.dim() < 2 or x.shape[1] <= length:
        raise ValueError(
            f"x: wanted (B, S, ...) with at least {length + 1} positions, one of them prompt, got {tuple(x.shape)}"
        )
    return x[:, predicting(length)]


def predicting(length: int) -> slice:
    """Where the last `length` tokens are predicted: one position before each. See `response_slice`."""
    return slice(-length - 1, -1)


def token_logprobs(logits: Float[Tensor, "B T V"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """log pi(token) for each position: the chosen entry of log_softmax(logits).

    logits[:, t] must already be the ones that predict tokens[:, t] (see `response_slice`). Divide the logits by the
    sampling temperature first. Padded positions need some token in range: put 0 there, not -100.
    """
    check_dims(3, logits=logits)
    check_together(logits, tokens=tokens)
    if tokens.shape != logits.shape[:2]:
        raise ValueError(
            f"tokens: wanted shape {tuple(logits.shape[:2])}, one a position of logits, got {tuple(tokens.shape)}"
        )
    if tokens.is_floating_point():
        raise ValueError(f"tokens: wanted whole numbers, got {tokens.dtype}")
    vocabulary = logits.shape[-1]
    if looks_at_values(tokens):
        bad = (tokens < 0) | (tokens >= vocabulary)
        if bad.any():
            raise ValueError(
                f"tokens: wanted ids in [0, {vocabulary}), got {tokens[bad][0].item()} "
                f"(labels of -100 have to be replaced before the gather, and masked after it)"
            )
    return F.log_softmax(upcast(logits), dim=-1).gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)


def entropy(logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """H(pi) = -sum_v p_v log p_v at each position, in nats. A logit of -inf is a probability of 0, and 0 log 0 = 0."""
    check_dims(3, logits=logits)
    logp = F.log_softmax(upcast(logits), dim=-1)
    return -(logp.exp() * logp.masked_fill(logp == -torch.inf, 0.0)).sum(-1)


def sequence_logprobs(logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """log pi(y|x): the SUM over counted tokens, as DPO needs it. A row with nothing counted gives 0."""
    check_dims(2, logprobs=logprobs, mask=mask)
    check_shapes(logprobs=logprobs, mask=mask)
    check_mask(mask)
    return blank(logprobs, mask).sum(1)


def average_logprobs(logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """log pi(y|x) / |y|: the mean over counted tokens, for SimPO, ORPO and TRL's IPO (and for no DPO)."""
    return sequence_logprobs(logprobs, mask) / mask.sum(1).clamp(min=1)
