"""Wrong versions of RMSNorm, of rotary positions, and of a layer with LoRA."""

import math

import torch

from minirl.drills.bank import Case, Drill, numbers, right, wrong
from minirl.drills.by_hand import lora_forward, rms_norm, rotary

# RMSNorm


@right(rms_norm)
def right_rms_norm(x, weight, *, eps=1e-5):
    return weight * x * torch.rsqrt((x**2).mean(-1, keepdim=True) + eps)


@wrong(rms_norm, "The mean is subtracted: that is LayerNorm. RMSNorm divides only.")
def layer_norm_for_rms(x, weight, *, eps=1e-5):
    x = x - x.mean(-1, keepdim=True)
    return weight * x * torch.rsqrt((x**2).mean(-1, keepdim=True) + eps)


@wrong(rms_norm, "The squares are added up: it is their mean, so that the size does not depend on the width.")
def norm_of_the_sum(x, weight, *, eps=1e-5):
    return weight * x * torch.rsqrt((x**2).sum(-1, keepdim=True) + eps)


@wrong(rms_norm, "The root is missing: divide by sqrt(mean of squares), or doubling x halves the result.")
def rms_without_root(x, weight, *, eps=1e-5):
    return weight * x / ((x**2).mean(-1, keepdim=True) + eps)


@wrong(rms_norm, "The weight is missing: each channel has a learned scale.")
def rms_without_weight(x, weight, *, eps=1e-5):
    return x * torch.rsqrt((x**2).mean(-1, keepdim=True) + eps)


@wrong(rms_norm, "One size for the whole batch: each row is divided by its own.")
def rms_of_the_batch(x, weight, *, eps=1e-5):
    return weight * x * torch.rsqrt((x**2).mean() + eps)


@wrong(rms_norm, "The mean runs over the rows: it belongs over the channels, the last axis.")
def rms_over_rows(x, weight, *, eps=1e-5):
    return weight * x * torch.rsqrt((x**2).mean(0, keepdim=True) + eps)


@wrong(
    rms_norm, "The scale is 1 + weight: that is Gemma's parametrisation. Here it is the weight itself.", seen="Gemma"
)
def one_plus_weight(x, weight, *, eps=1e-5):
    return (1 + weight) * x * torch.rsqrt((x**2).mean(-1, keepdim=True) + eps)


@wrong(rms_norm, "Mean of absolute values: the S in RMS is for squares.")
def mean_absolute_norm(x, weight, *, eps=1e-5):
    return weight * x / (x.abs().mean(-1, keepdim=True) + eps)


# Rotary positions


def _angles(length, channels, base, dtype):
    frequencies = base ** (-torch.arange(0, channels, 2, dtype=dtype) / channels)
    return torch.outer(torch.arange(length, dtype=dtype), frequencies)


def _turned(x, angles):
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


@right(rotary)
def right_rotary(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], base, x.dtype)
    return _turned(x, angles)


@wrong(
    rotary,
    "The turn goes the other way: (a cos - b sin, b cos + a sin). A fresh model learns as well, stored weights need this turn.",
)
def turned_backwards(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], base, x.dtype)
    return _turned(x, -angles)


@wrong(
    rotary,
    "Neighbours 2i and 2i + 1 are paired: here i goes with i + E/2, as in Hugging Face's weights.",
    seen="the paper and Meta's weights, which pair them so",
)
def neighbours_paired(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], base, x.dtype)
    a, b = x[:, ::2], x[:, 1::2]
    return torch.stack([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1).flatten(1)


@wrong(rotary, "Positions count from 0: the first token is not turned.")
def positions_from_one(x, *, base=10_000.0):
    angles = _angles(x.shape[0] + 1, x.shape[1], base, x.dtype)[1:]
    return _turned(x, angles)


@wrong(rotary, "All pairs turn at one speed: pair i turns by position * base^(-2i / E).")
def one_speed(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], 1.0, x.dtype)
    return _turned(x, angles)


@wrong(rotary, "The exponent is positive: base^(-2i / E), so that later pairs turn more slowly.")
def faster_and_faster(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], 1 / base, x.dtype)
    return _turned(x, angles)


@wrong(rotary, "One sign is wrong, and this is no rotation: lengths change. (a cos - b sin, b cos + a sin).")
def not_a_rotation(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], base, x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() - a * angles.sin()], -1)


@wrong(rotary, "The exponent is -i / E: it is -2i / E, with i counting the pairs.")
def half_the_exponent(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], math.sqrt(base), x.dtype)
    return _turned(x, angles)


# LoRA


@right(lora_forward)
def right_lora(x, weight, a, b, *, alpha):
    return x @ weight.T + alpha / len(a) * (x @ a.T @ b.T)


@wrong(lora_forward, "alpha / rank is missing: without it the correction grows with the rank.")
def lora_without_scale(x, weight, a, b, *, alpha):
    return x @ weight.T + x @ a.T @ b.T


@wrong(lora_forward, "alpha is not divided by the rank: the scale is alpha / rank.")
def lora_scaled_by_alpha(x, weight, a, b, *, alpha):
    return x @ weight.T + alpha * (x @ a.T @ b.T)


@wrong(lora_forward, "The scale is alpha / sqrt(rank): that is rsLoRA. LoRA's is alpha / rank.", seen="rsLoRA")
def lora_by_root_of_rank(x, weight, a, b, *, alpha):
    return x @ weight.T + alpha / math.sqrt(len(a)) * (x @ a.T @ b.T)


@wrong(lora_forward, "The frozen weight is missing: the correction is ADDED to what the base computes.")
def lora_without_base(x, weight, a, b, *, alpha):
    return alpha / len(a) * (x @ a.T @ b.T)


@wrong(lora_forward, "The correction is subtracted: y = x W^T + (alpha / R) x A^T B^T.")
def lora_subtracted(x, weight, a, b, *, alpha):
    return x @ weight.T - alpha / len(a) * (x @ a.T @ b.T)


@wrong(lora_forward, "The base is scaled too: alpha / rank belongs to the correction alone.")
def base_scaled_too(x, weight, a, b, *, alpha):
    return alpha / len(a) * (x @ weight.T + x @ a.T @ b.T)


@wrong(lora_forward, "The rank is read from the wrong axis: it is a.shape[0], the thin one.")
def rank_of_the_wrong_axis(x, weight, a, b, *, alpha):
    return x @ weight.T + alpha / a.shape[1] * (x @ a.T @ b.T)


# The drills


def _thin(seed: int, rows: int, inputs: int, outputs: int, rank: int, alpha: float) -> Case:
    weights = {
        "weight": numbers(seed + 1, outputs, inputs),
        "a": numbers(seed + 2, rank, inputs),
        "b": numbers(seed + 3, outputs, rank),
    }
    return Case({"x": numbers(seed, rows, inputs)} | weights, {"alpha": alpha})


DRILLS = [
    Drill(
        rms_norm,
        [
            Case({"x": numbers(i, *shape), "weight": numbers(i + 50, shape[1], low=0.3, high=1.7)}, {"eps": 1e-5})
            for i, shape in enumerate([(1, 2), (1, 3), (2, 4), (3, 6)])
        ],
        (
            "Root, mean, square: read from right to left.",
            "Each row by its own size; nothing is subtracted.",
            "weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps).",
        ),
        ["x", "weight"],
        ["normed"],
        tolerance=1e-4,  # any small eps will do
    ),
    Drill(
        rotary,
        [
            Case({"x": numbers(70 + i, *shape)}, {"base": base})
            for i, (shape, base) in enumerate([((1, 2), 100.0), ((2, 2), 100.0), ((2, 4), 100.0), ((5, 6), 50.0)])
        ],
        (
            "Two channels are a point in the plane. A turn by an angle keeps its length.",
            "The angle is position times speed; pair i of E/2 has the speed base^(-2i / E).",
            "a, b = x.chunk(2, -1); cat([a * cos - b * sin, b * cos + a * sin], -1), with angles (S, E/2).",
        ),
        ["x"],
        ["turned"],
        tolerance=1e-4,  # float32 through powers and sines
    ),
    Drill(
        lora_forward,
        [_thin(1, 1, 2, 2, 1, 2.0), _thin(11, 2, 3, 2, 1, 2.0), _thin(21, 2, 5, 3, 2, 6.0), _thin(31, 3, 4, 6, 3, 1.5)],
        (
            "The frozen layer's output, and a thin one's added to it.",
            "x goes through A (to R numbers), then through B (to O numbers).",
            "x @ weight.T + alpha / len(a) * (x @ a.T) @ b.T.",
        ),
        ["x", "a", "b"],
        ["y"],
    ),
]
