"""Means that leave padding out, and the four ways to turn a (B, T) table of losses into one number.

A mask is a Bool tensor, True where a token counts. A position outside it never reaches a result or a gradient, whatever
it holds: 0 * NaN is NaN, so every function here replaces such positions before it computes anything with them.
"""

import torch

from minirl.types import (
    Bool,
    Float,
    Reducer,
    Tensor,
    check_dims,
    check_knob,
    check_mask,
    check_shapes,
    looks_at_values,
    upcast,
)


def blank(x: Tensor, mask: Tensor, value: float = 0.0) -> Tensor:
    """x in its computing precision, with `value` outside the mask; the gradient there is exactly 0."""
    return upcast(x).masked_fill(~mask, value)


def masked_mean(x: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean of the counted entries of x. Any shape; ValueError if nothing is counted."""
    check_shapes(x=x, mask=mask)
    check_mask(mask)
    return blank(x, mask).sum() / mask.sum()


def masked_whiten(x: Float[Tensor, "..."], mask: Bool[Tensor, "..."], *, eps: float = 1e-8) -> Float[Tensor, "..."]:
    """(x - mean) / sqrt(variance + eps) over the counted entries, 0 elsewhere.

    The variance is the population's (divide by n), as in OpenAI's code; TRL divided by n - 1. Equal entries give 0.
    """
    check_knob("eps", eps, 0)
    mean = masked_mean(x, mask)
    # without this, large equal entries would be divided by the rounding error of their own mean
    equal = blank(x, mask, torch.inf).min() == blank(x, mask, -torch.inf).max()
    centred = blank(blank(x, mask) - mean, mask & ~equal)
    variance = (centred**2).sum() / mask.sum()
    return centred * torch.rsqrt((variance + eps).masked_fill(equal, 1.0))


def token_mean(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Sum over counted tokens / number of counted tokens: a long answer weighs more than a short one.

    Over the whole batch, as in TRL; DAPO's eq. 8 divides by the tokens of one prompt's group.
    """
    check_dims(2, x=x, mask=mask)
    return masked_mean(x, mask)


def sequence_mean(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Each row's own token mean, then the mean over rows: every answer weighs the same (GRPO, DeepSeekMath eq. 3).

    A row with nothing counted is left out of the mean over rows.
    """
    check_dims(2, x=x, mask=mask)
    check_shapes(x=x, mask=mask)
    check_mask(mask)
    lengths = mask.sum(1)
    row_means = blank(x, mask).sum(1) / lengths.clamp(min=1)
    return row_means.sum() / (lengths > 0).sum()


def fixed_length_mean(length: int) -> Reducer:
    """A reducer: sum over counted tokens / (B * length), the same constant for every batch (Dr. GRPO).

    With length 1 a row contributes its sum, which is the unbiased policy gradient. A row with nothing counted adds 0
    and is still counted in B.
    """
    check_knob("length", length, 1)

    def fixed_length_mean(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
        check_dims(2, x=x, mask=mask)
        check_shapes(x=x, mask=mask)
        check_mask(mask)
        return blank(x, mask).sum() / (x.shape[0] * length)

    return fixed_length_mean


def masked_sum_over(denominator: float | Tensor) -> Reducer:
    """A reducer: sum over counted tokens / a count that was taken over the whole batch.

    The micro-batches of one batch then add up to its loss exactly, however the tokens fall on them.
    """
    if isinstance(denominator, Tensor):
        check_dims(0, denominator=denominator)
    if not isinstance(denominator, Tensor) or looks_at_values(denominator):
        check_knob("denominator", denominator, 0, open_low=True)

    def masked_sum_over(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
        check_dims(2, x=x, mask=mask)
        check_shapes(x=x, mask=mask)
        check_mask(mask)
        return blank(x, mask).sum() / denominator

    return masked_sum_over
