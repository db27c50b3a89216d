"""What a response is paid: one score on its last token, a KL charge on every token, and small rules that compose.

The rules take scores and return scores, all (B,), so that they chain:

    scores = missing_eos_penalty(length_penalty(scores, mask, coef=0.01), finished, penalty=1.0)
"""

import re

import torch

from minirl.masking import blank
from minirl.types import (
    Bool,
    Float,
    Tensor,
    check_dims,
    check_finite,
    check_knob,
    check_mask,
    check_rows,
    check_shapes,
    looks_at_values,
    upcast,
)


def kl_shaped_rewards(
    scores: Float[Tensor, " B"], kl: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, kl_coef: float
) -> Float[Tensor, "B T"]:
    """r_t = -kl_coef * kl_t at every counted token, and the score added on the last (Ziegler et al. 2019, eq. 2;
    Ouyang et al. 2022, eq. 2).

    With kl = kl_k1(...) the rewards of a row sum to score - kl_coef * (log pi(y|x) - log pi_ref(y|x)), the objective
    itself. The last counted token is found by the mask: the end token of a finished row, the last token of a truncated
    one. ValueError for a row with nothing counted, since its score would vanish.
    """
    check_dims(2, kl=kl, mask=mask)
    check_shapes(kl=kl, mask=mask)
    check_rows(kl, scores=scores)
    check_mask(mask)
    check_finite(scores=scores)
    check_finite(mask, kl=kl)
    check_knob("kl_coef", kl_coef, 0)
    empty = ~mask.any(1)
    if looks_at_values(mask) and empty.any():
        row = empty.nonzero()[0].item()
        raise ValueError(f"mask: row {row} has nothing counted, so its score has no token to sit on")
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = positions.masked_fill(~mask, 0).amax(1, keepdim=True)
    rewards = -kl_coef * blank(kl, mask)
    return rewards.scatter_add(1, last, upcast(scores).to(rewards.dtype).unsqueeze(1))


def missing_eos_penalty(
    scores: Float[Tensor, " B"], finished: Bool[Tensor, " B"], *, penalty: float
) -> Float[Tensor, " B"]:
    """scores - penalty where the response never ended, so that running into the length limit does not pay."""
    check_dims(1, scores=scores)
    check_rows(scores, finished=finished)
    if finished.dtype != torch.bool:
        raise ValueError(f"finished: wanted a torch.bool tensor, got {finished.dtype}")
    check_finite(scores=scores)
    check_knob("penalty", penalty, 0)
    return torch.where(finished, upcast(scores), upcast(scores) - penalty)


def length_penalty(
    scores: Float[Tensor, " B"], mask: Bool[Tensor, "B T"], *, coef: float, free_length: int = 0
) -> Float[Tensor, " B"]:
    """scores - coef * max(0, length - free_length), length in counted tokens: the price of thinking."""
    check_dims(1, scores=scores)
    check_dims(2, mask=mask)
    check_mask(mask)
    check_rows(mask, scores=scores)
    check_finite(scores=scores)
    check_knob("coef", coef)
    check_knob("free_length", free_length, 0)
    scores = upcast(scores)
    return scores - coef * (mask.sum(1) - free_length).clamp(min=0).to(scores.dtype)


def format_bonus(
    scores: Float[Tensor, " B"], responses: list[str], *, pattern: str, bonus: float = 1.0
) -> Float[Tensor, " B"]:
    """scores + bonus where the whole response matches the regular expression (R1-Zero's format reward)."""
    matches = [re.fullmatch(pattern, response, re.DOTALL) is not None for response in responses]
    return _add(scores, [float(match) for match in matches], bonus, "bonus")


def language_bonus(
    scores: Float[Tensor, " B"], responses: list[str], *, words: set[str], bonus: float = 1.0
) -> Float[Tensor, " B"]:
    """scores + bonus * share of a response's words that belong to the target language (DeepSeek-R1, section 2.3.2).

    Words are compared in lower case; a response without a word gets no bonus.
    """
    shares = []
    for response in responses:
        found = re.findall(r"\w+", response.lower())
        shares.append(sum(word in words for word in found) / max(len(found), 1))
    return _add(scores, shares, bonus, "bonus")


def _add(scores: Tensor, amounts: list[float], coef: float, knob: str) -> Tensor:
    check_dims(1, scores=scores)
    check_finite(scores=scores)
    check_knob(knob, coef)
    if len(amounts) != len(scores):
        raise ValueError(f"responses: wanted one a score, {len(scores)}, got {len(amounts)}")
    scores = upcast(scores)
    return scores + coef * torch.tensor(amounts, device=scores.device, dtype=scores.dtype)
