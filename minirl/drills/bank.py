"""What a drill is made of: the wrong versions of a function, and the small batches on which a version is judged.

A wrong version is a plain function (or class) under the decorator `wrong`, complete enough to be put in place of the
right one. A batch is a `Case`: its numbers have one decimal, so that a reader can redo it by hand. All of it is data,
and `minirl.drills.judge` does the judging.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from minirl.drills.effects import EFFECTS
from minirl.types import Stats, Tensor


@dataclass(frozen=True)
class Mutant:
    """A wrong version of a library function, with the same signature, the input checks left out."""

    of: Callable  # the function it imitates
    name: str  # unique among the mutants of one function
    sentence: str  # what a kind teacher says: what is wrong, and what to do
    seen: str | None  # where it was met, if that is public
    function: Callable

    @property
    def effect(self) -> str | None:
        """What it does to training, where that is known: see minirl.drills.effects."""
        return EFFECTS.get(self.of.__name__, {}).get(self.name)


@dataclass(frozen=True)
class Case:
    """One batch: `inputs` go in by position and in this order, `knobs` by keyword. Floating tensors are float64."""

    inputs: dict
    knobs: dict

    @property
    def mask(self) -> Tensor | None:
        """Which positions of a padded batch count. The mask of attention says something else: who may look at whom."""
        return None if "q" in self.inputs else self.inputs.get("mask")


def plainly(function: Callable, inputs: dict, knobs: dict):
    return function(*inputs.values(), **knobs)


@dataclass(frozen=True, eq=False)  # each is itself: what is made from one can be kept
class Drill:
    of: Callable  # the reference
    cases: Sequence[Case]  # from the smallest on: the first one that differs is shown to the learner
    hints: Sequence[str]  # each more direct than the one before
    gradient: Sequence[str] = ()  # inputs whose gradient is judged; none where the result is data for a loss
    outputs: Sequence[str] = ("result",)
    detached: Sequence[str] = ()  # inputs that must not get any
    tolerance: float = 1e-5  # absolute and relative: a learner may have computed in float32
    call: Callable = plainly
    form: str = ""  # how the call looks, where it is not the plain one


BANK: list[Mutant] = []
RIGHT: dict[Callable, Callable] = {}  # what a function looks like in the words its wrong versions are written in


def right(of: Callable) -> Callable:
    """Marks the decorated function as a right version of `of`, without its input checks. Where two mistakes are looked for
    at once, both are planted in it: see minirl.drills.combined."""

    def mark(function: Callable) -> Callable:
        RIGHT[of] = function
        return function

    return mark


def wrong(of: Callable, sentence: str, *, seen: str | None = None) -> Callable:
    """Puts the decorated function into the bank, under its own name, as a wrong version of `of`."""

    def add(function: Callable) -> Callable:
        BANK.append(Mutant(of, function.__name__, sentence, seen, function))
        return function

    return add


def reported(loss: Tensor) -> tuple[Tensor, Stats]:
    """(loss, stats), as every loss of the library returns it."""
    return loss, {"loss": loss.detach()}


# Batches


def numbers(seed: int, *shape: int, low: float = -2.5, high: float = 2.5) -> Tensor:
    """Uniform in [low, high], rounded to one decimal. Draws from a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu")
    return (low + (high - low) * x).mul(10).round().div(10)


def logprobs_like(seed: int, *shape: int) -> Tensor:
    """Log-probabilities in [-2.9, -0.1]: two of them never lie as far as 3 apart."""
    return numbers(seed, *shape, low=-2.9, high=-0.1)


def ragged(lengths: Sequence[int], width: int) -> Tensor:
    """The mask of a padded batch: row b counts its first lengths[b] positions."""
    return torch.arange(width, device="cpu") < torch.tensor(lengths, device="cpu").unsqueeze(1)


# lengths of the rows, and positions in each: one token, two, an end in the middle, two rows, four rows twice
LAYOUTS = [((1,), 1), ((2,), 2), ((2,), 3), ((1, 3), 4), ((2, 4, 1, 3), 5), ((5, 1, 6, 3), 6)]


def masked_cases(inputs: Callable[[int, Tensor], dict], *knobs: dict) -> list[Case]:
    """inputs(seed, mask) for each layout, with the knobs taken in turn."""
    cases = []
    for i, (lengths, width) in enumerate(LAYOUTS):
        cases.append(Case(inputs(100 * (i + 1), ragged(lengths, width)), knobs[i % len(knobs)] if knobs else {}))
    return cases
