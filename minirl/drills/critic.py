"""Wrong versions of the critic's two losses."""

import torch

from minirl.drills.bank import Drill, masked_cases, numbers, reported, right, wrong
from minirl.losses.policy import value_clip_loss, value_loss
from minirl.masking import token_mean

# The regression


@right(value_loss)
def right_value_loss(values, returns, mask, *, reduce=token_mean):
    return reported(reduce((values - returns) ** 2 / 2, mask))


@wrong(value_loss, "The half is missing: (values - returns)^2 / 2, whose gradient is the error itself.")
def value_loss_without_half(values, returns, mask, *, reduce=token_mean):
    return reported(reduce((values - returns) ** 2, mask))


@wrong(value_loss, "The sign is wrong: an error squared is to be made small.")
def negative_value_loss(values, returns, mask, *, reduce=token_mean):
    return reported(reduce(-((values - returns) ** 2) / 2, mask))


@wrong(value_loss, "An absolute error aims at the median of the returns; a value is their mean, so square it.")
def absolute_value_loss(values, returns, mask, *, reduce=token_mean):
    return reported(reduce((values - returns).abs() / 2, mask))


@wrong(value_loss, "Padding is averaged too: sum over the counted tokens and divide by how many they are.")
def value_loss_over_padding(values, returns, mask, *, reduce=token_mean):
    return reported(((values - returns) ** 2 / 2).mean())


@wrong(
    value_loss, "Padded errors are set to 0, but still divided by: divide by mask.sum(), not by the size of the table."
)
def value_loss_divided_by_padding(values, returns, mask, *, reduce=token_mean):
    return reported(((values - returns) ** 2 / 2 * mask).mean())


@wrong(value_loss, "The square comes first and the mean second: errors of opposite sign must not cancel.")
def mean_before_square(values, returns, mask, *, reduce=token_mean):
    return reported(reduce(values - returns, mask) ** 2 / 2)


@wrong(value_loss, "The mask is upside down: True means that a token counts.")
def value_loss_on_the_padding(values, returns, mask, *, reduce=token_mean):
    return reported((((values - returns) ** 2) / 2)[~mask].sum() / mask.sum())


@right(value_clip_loss)
def right_value_clip(values, old_values, returns, mask, *, clip_eps=0.2, reduce=token_mean):
    near = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return reported(reduce(torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2, mask))


@wrong(
    value_clip_loss, "The smaller of the two errors is kept: it is the larger, so that clipping never hides an error."
)
def smaller_error_kept(values, old_values, returns, mask, *, clip_eps=0.2, reduce=token_mean):
    near = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return reported(reduce(torch.minimum((values - returns) ** 2, (near - returns) ** 2) / 2, mask))


@wrong(value_clip_loss, "The free error is missing: take the larger of the clipped and the free one.")
def clipped_value_only(values, old_values, returns, mask, *, clip_eps=0.2, reduce=token_mean):
    near = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return reported(reduce((near - returns) ** 2 / 2, mask))


@wrong(value_clip_loss, "Nothing is clipped: this is value_loss.")
def value_not_clipped(values, old_values, returns, mask, *, clip_eps=0.2, reduce=token_mean):
    return reported(reduce((values - returns) ** 2 / 2, mask))


@wrong(value_clip_loss, "The half is missing: max(...) / 2, as in value_loss.")
def value_clip_without_half(values, old_values, returns, mask, *, clip_eps=0.2, reduce=token_mean):
    near = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return reported(reduce(torch.maximum((values - returns) ** 2, (near - returns) ** 2), mask))


@wrong(value_clip_loss, "The sign is wrong: an error squared is to be made small.")
def negative_value_clip(values, old_values, returns, mask, *, clip_eps=0.2, reduce=token_mean):
    near = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return reported(-reduce(torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2, mask))


@wrong(
    value_clip_loss,
    "clip_eps is in units of the values, not a ratio: old_values +- clip_eps, not times (1 +- clip_eps).",
)
def value_clipped_as_a_ratio(values, old_values, returns, mask, *, clip_eps=0.2, reduce=token_mean):
    ends = old_values * (1 - clip_eps), old_values * (1 + clip_eps)
    near = values.clamp(torch.minimum(*ends), torch.maximum(*ends))
    return reported(reduce(torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2, mask))


@wrong(
    value_clip_loss,
    "clip_eps is in units of the values; times (1 +- clip_eps) the ends also cross where old_values is negative.",
)
def value_clipped_between_crossed_ends(values, old_values, returns, mask, *, clip_eps=0.2, reduce=token_mean):
    near = values.clamp(old_values * (1 - clip_eps), old_values * (1 + clip_eps))
    return reported(reduce(torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2, mask))


@wrong(value_clip_loss, "Padding is averaged too: sum over the counted tokens and divide by how many they are.")
def value_clip_over_padding(values, old_values, returns, mask, *, clip_eps=0.2, reduce=token_mean):
    near = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return reported((torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2).mean())


# The drills


def _estimated(seed, mask):
    return {"values": numbers(seed, *mask.shape), "returns": numbers(seed + 1, *mask.shape), "mask": mask}


def _estimated_before(seed, mask):
    values = numbers(seed, *mask.shape, low=-1, high=1)
    moved = (
        numbers(seed + 2, *mask.shape, low=-0.5, high=0.5) + 0.05
    )  # never clip_eps exactly, where the gradient jumps
    returns = numbers(seed + 1, *mask.shape, low=-1, high=1)
    return {"values": values, "old_values": values + moved, "returns": returns, "mask": mask}


DRILLS = [
    Drill(
        value_loss,
        masked_cases(_estimated),
        (
            "A regression onto the returns.",
            "The gradient of the square is twice the error, and the half takes that back.",
            "token_mean((values - returns) ** 2 / 2, mask).",
        ),
        ["values"],
        outputs=["loss"],
    ),
    Drill(
        value_clip_loss,
        masked_cases(_estimated_before, {"clip_eps": 0.2}, {"clip_eps": 0.1}),
        (
            "Two predictions: the value, and the value held within clip_eps of old_values.",
            "Each has its squared error. The pessimist keeps the larger.",
            "near = old + (values - old).clamp(-clip_eps, clip_eps); torch.maximum of the squared errors, halved.",
        ),
        ["values"],
        outputs=["loss"],
    ),
]
