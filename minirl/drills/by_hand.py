"""What PyTorch and other libraries do for us, written out once: the references of the drills for which minirl itself
calls somebody else's code. Each is compared with that code in tests/drills/test_by_hand.py."""

import math

import torch

from minirl.logprobs import token_logprobs
from minirl.masking import token_mean
from minirl.types import Bool, Float, Int, Tensor


def softmax(logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
    """p_i = exp(z_i) / sum_j exp(z_j) over the last axis. torch.softmax.

    The largest logit is subtracted first: the ratios stay, and exp(1000) never happens.
    """
    e = (logits - logits.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def rms_norm(x: Float[Tensor, "B D"], weight: Float[Tensor, " D"], *, eps: float = 1e-5) -> Float[Tensor, "B D"]:
    """weight * x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich 2019, eq. 4). torch.nn.RMSNorm."""
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rotary(x: Float[Tensor, "S E"], *, base: float = 10_000.0) -> Float[Tensor, "S E"]:
    """Channels i and i + E/2 of position s are a point in the plane, turned by the angle s * base^(-2i / E)
    (RoFormer, Su et al. 2021, section 3.4.2; halves as in Hugging Face's weights). What minirl.model does to q and k.

        (a, b) -> (a cos - b sin, b cos + a sin)
    """
    length, channels = x.shape
    frequencies = base ** (-torch.arange(0, channels, 2, dtype=x.dtype, device=x.device) / channels)
    angles = torch.outer(torch.arange(length, dtype=x.dtype, device=x.device), frequencies)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def kv_cache_step(
    q: Float[Tensor, "H E"],
    k: Float[Tensor, "H E"],
    v: Float[Tensor, "H E"],
    keys: Float[Tensor, "H L E"],
    values: Float[Tensor, "H L E"],
) -> tuple[Float[Tensor, "H E"], Float[Tensor, "H L+1 E"], Float[Tensor, "H L+1 E"]]:
    """One new token in each of H heads: attention over the L positions kept so far and itself, softmax(q k^T / sqrt(E)) v.
    Returns (mixed, keys, values), the cache one position longer. No causal mask is needed: nothing later exists yet.
    """
    keys = torch.cat([keys, k.unsqueeze(1)], 1)
    values = torch.cat([values, v.unsqueeze(1)], 1)
    scores = (keys @ q.unsqueeze(-1)).squeeze(-1) / math.sqrt(q.shape[-1])
    mixed = (scores.softmax(-1).unsqueeze(1) @ values).squeeze(1)
    return mixed, keys, values


def bpe_merge(tokens: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """The tokens with every occurrence of `pair` replaced by `new`, from left to right and without overlap: one step of
    byte-pair encoding (Sennrich et al. 2016, algorithm 1). With the pair (7, 7) and new 9, [7, 7, 7] becomes [9, 7]."""
    merged, i = [], 0
    while i < len(tokens):
        if tuple(tokens[i : i + 2]) == tuple(pair):
            merged.append(new)
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return merged


def lora_forward(
    x: Float[Tensor, "B I"],
    weight: Float[Tensor, "O I"],
    a: Float[Tensor, "R I"],
    b: Float[Tensor, "O R"],
    *,
    alpha: float,
) -> Float[Tensor, "B O"]:
    """y = x W^T + (alpha / R) (x A^T) B^T, with the rank R read from a (Hu et al. 2021, eq. 3). minirl.lora.LoRALinear."""
    return x @ weight.T + alpha / len(a) * (x @ a.T) @ b.T


def sft_loss(
    logits: Float[Tensor, "B S V"], tokens: Int[Tensor, "B S"], mask: Bool[Tensor, "B S"]
) -> Float[Tensor, ""]:
    """Mean of -log p(token) over the tokens that count. Position s of the logits predicts token s + 1; mask is True on the
    tokens of the response (the end token too), False on the prompt and on padding. What minirl.train.sft minimises."""
    return token_mean(-token_logprobs(logits[:, :-1], tokens[:, 1:]), mask[:, 1:])


def ensemble_reward(scores: Float[Tensor, "M B"], *, caution: float = 1.0) -> Float[Tensor, " B"]:
    """Mean minus caution * standard deviation over the M members, for each of B responses: where reward models disagree,
    do not trust their mean. The deviation divides by M - 1. What minirl.rollout.ensemble_scorer pays."""
    return scores.mean(0) - caution * scores.std(0)


def pass_at_k(n: int, correct: Int[Tensor, " P"], k: int) -> Float[Tensor, " P"]:
    """The chance that at least one of k answers, drawn from the n sampled ones without putting back, is right:
    1 - C(n - correct, k) / C(n, k) for each of P problems (Chen et al. 2021, eq. 1). Unbiased for any n >= k."""
    misses = [math.comb(n - c, k) / math.comb(n, k) for c in correct.tolist()]
    return 1 - torch.tensor(misses, dtype=torch.float64, device=correct.device)
