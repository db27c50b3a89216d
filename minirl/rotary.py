"""How fast each pair of channels turns with position, and the two ways long-context models slow that down.

Pair i of a head turns by position * f_i, f_i = base^(-2i / head_dim): the first pairs tell neighbours apart, the last
ones turn once in many thousand tokens. A model that was trained on short texts has never seen the far ends of the slow
turns; dividing their frequencies brings long texts back into what it knows.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from minirl.types import Float, Tensor, check_knob


@dataclass(frozen=True)
class RopeScaling:
    """Frequencies of a model whose context was extended by `factor`.

    linear: every frequency / factor (Position Interpolation, Chen et al. 2023, eq. 4).
    llama3: pairs that turn more than `high_freq_factor` times within `original_max_length` tokens stay, those that turn
    fewer than `low_freq_factor` times are divided, and what is between changes over gradually (Llama 3.1's weights).
    The last three fields mean nothing for linear.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int = 8192

    def __post_init__(self):
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"kind: wanted 'linear' or 'llama3', got {self.kind!r}")
        check_knob("factor", self.factor, 1)
        check_knob("low_freq_factor", self.low_freq_factor, 0, open_low=True)
        check_knob("high_freq_factor", self.high_freq_factor, self.low_freq_factor, open_low=True)
        check_knob("original_max_length", self.original_max_length, 1)


def rope_frequencies(head_dim: int, base: float, scaling: RopeScaling | None) -> Float[Tensor, " E"]:
    """Radians per position of each of the head_dim / 2 pairs, in float64."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, device="cpu").double() / head_dim)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_max_length * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def turns(head_dim: int, length: int, base: float, scaling: RopeScaling | None) -> Float[Tensor, "2 L E"]:
    """cos and signed sin of the angle of every position and channel of a head (RoFormer, Su et al. 2021, section 3.4.2).

    Channel i is paired with channel i + head_dim/2 and turns by position * base^(-2i/head_dim), slowed by the scaling:
    the half-rotation layout of Hugging Face's weights. (The paper and Meta's weights pair neighbours 2i and 2i + 1.)
    """
    angles = torch.outer(torch.arange(length, device="cpu").double(), rope_frequencies(head_dim, base, scaling))
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]).float()


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin) for the halves a, b of each head; the minus is already in the sines."""
    cos, sin = rope
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin
