"""What a function makes of a batch, and whether two functions make the same of it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minirl.drills.bank import Case, Drill
from minirl.types import Tensor


@dataclass(frozen=True)
class Answer:
    """The results of a call, and the gradient of each judged input, in float64."""

    values: list[Tensor]
    gradients: dict[str, Tensor]


class Unfinished(Exception):
    """The function returned None."""


def answer(drill: Drill, function: Callable, case: Case) -> Answer:
    """Calls the function on copies. Those that carry a gradient are no leaves: they may be changed in place."""
    leaves = {name: case.inputs[name].clone().requires_grad_() for name in [*drill.gradient, *drill.detached]}
    copies = {
        name: (leaves[name] if name in leaves else x).clone() if isinstance(x, Tensor) else copy.copy(x)
        for name, x in case.inputs.items()
    }
    with torch.enable_grad():  # one function may have switched it off for the next
        values = results_of(drill, drill.call(function, copies, dict(case.knobs)))
    carriers = [x for x in values if x.requires_grad]
    gradients = [None] * len(leaves)
    if leaves and carriers:
        total = sum((weights_like(x) * x).sum() for x in carriers)
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), gradients, strict=True)
    return Answer(
        [x.detach().double() for x in values],
        {name: (torch.zeros_like(leaf) if got is None else got).double() for (name, leaf), got in pairs},
    )


def results_of(drill: Drill, result) -> list[Tensor]:
    """The results as tensors. Where the library returns (loss, stats) a bare scalar will do."""
    if len(drill.outputs) == 1:
        results = [result[0] if isinstance(result, tuple) and result else result]
    else:
        results = list(result) if isinstance(result, tuple | list) else [result]
    if any(x is None or x is ... for x in results):
        raise Unfinished("it returned None (still to be written, or a missing return?)")
    for x in results:
        if not isinstance(x, Tensor | int | float | list):
            raise TypeError(f"wanted a tensor as {drill.outputs[0]}, got {type(x).__name__}")
    return [x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64) for x in results]


def weights_like(x: Tensor) -> Tensor:
    """1, 2, 3, ...: a gradient wants a scalar, and a plain sum is blind to what always adds up to nothing."""
    return torch.arange(1, x.numel() + 1, dtype=x.dtype, device=x.device).view(x.shape)


def same(x: Tensor, y: Tensor, tolerance: float) -> bool:
    return x.shape == y.shape and torch.allclose(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)


def agree(drill: Drill, expected: Answer, got: Answer) -> bool:
    alike = len(expected.values) == len(got.values) and all(
        same(x, y, drill.tolerance) for x, y in zip(expected.values, got.values, strict=True)
    )
    if not alike or not all(x.isfinite().all() for x in got.values):
        return alike  # the gradient of NaN depends on how it came about
    return all(same(x, got.gradients[name], drill.tolerance) for name, x in expected.gradients.items())


def first_difference(drill: Drill, expected: list[Answer], got: list[Answer]) -> int | None:
    """The index of the first case on which the two disagree."""
    pairs = enumerate(zip(expected, got, strict=True))
    return next((i for i, (x, y) in pairs if not agree(drill, x, y)), None)


def in_dtype(case: Case, dtype: torch.dtype) -> Case:
    def cast(x):
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return Case({name: cast(x) for name, x in case.inputs.items()}, case.knobs)


# As lists of numbers, to be written down


def to_plain(x: Answer) -> dict:
    return {
        "values": [_listed(value) for value in x.values],
        "gradients": {name: _listed(gradient) for name, gradient in x.gradients.items()},
    }


def from_plain(data: dict) -> Answer:
    return Answer(
        [_tabled(value) for value in data["values"]],
        {str(name): _tabled(gradient) for name, gradient in data["gradients"].items()},
    )


def _listed(x: Tensor) -> dict:
    return {"shape": list(x.shape), "numbers": x.flatten().tolist()}


def _tabled(x: dict) -> Tensor:
    return torch.tensor(x["numbers"], dtype=torch.float64).view(x["shape"])
