"""What the conformance tests share: the batch both sides are given, and the comparison.

Run by hand, in an environment that has the other package: see the README of this folder.
"""

import importlib.metadata
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from batches import leaf, normal
from torch import Tensor

TOLERANCE = 1e-5  # of values and gradients, absolute for numbers below 1 and relative above


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to numbers above 1. NaN where either side has one."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max().item()


def value_and_gradients(function: Callable, leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    leaves = [leaf(x) for x in leaves]
    value = function(*leaves)
    return value.detach(), list(torch.autograd.grad(value, leaves))


@pytest.fixture
def agree(record_property):
    """agree(ours, theirs, *leaves): two functions of the same tensors have the same value and the same gradients.

    A comparison that would hold with its inputs negated on one side compares nothing, so that is tried as well. The
    largest deviations go into the report.
    """
    worst = {"value": 0.0, "gradient": 0.0}

    def note(kind: str, amount: float) -> None:
        assert amount <= TOLERANCE, f"the {kind} deviates by {amount:.1e}"
        worst[kind] = max(worst[kind], amount)
        record_property(f"{kind} deviation", f"{worst[kind]:.0e}")

    def agree(ours: Callable, theirs: Callable, *leaves: Tensor) -> None:
        value, gradients = value_and_gradients(ours, leaves)
        their_value, their_gradients = value_and_gradients(theirs, leaves)
        note("value", deviation(value, their_value))
        for gradient, their_gradient in zip(gradients, their_gradients, strict=True):
            assert gradient.abs().max() > 100 * TOLERANCE, "next to no gradient: nothing is compared"
            note("gradient", deviation(gradient, their_gradient))
        turned, turned_gradients = value_and_gradients(theirs, [-x for x in leaves])
        pairs = [(value, turned), *zip(gradients, turned_gradients, strict=True)]
        assert any(not deviation(x, y) <= TOLERANCE for x, y in pairs), "holds with the sign turned as well"

    def agree_as_data(ours: Tensor, theirs: Tensor) -> None:
        """The same for numbers that carry no gradient."""
        note("value", deviation(ours, theirs))
        assert not deviation(ours, -theirs) <= TOLERANCE, "holds with the sign turned as well"

    agree.as_data = agree_as_data
    return agree


@pytest.fixture
def versions(record_property):
    """Notes which versions were compared."""

    def note(*packages: str) -> None:
        found = {package: importlib.metadata.version(package) for package in [*packages, "torch", "minirl"]}
        record_property("versions", ", ".join(f"{package} {version}" for package, version in found.items()))

    return note


@pytest.fixture
def batch() -> SimpleNamespace:
    """Six responses in three groups of two, right-padded, one with a gap and one with nothing counted; float64.

    The ratios lie inside and outside every clip of the tests, under advantages of both signs.
    """
    mask = torch.tensor(
        [
            [1, 1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1, 0, 0],
            [1, 0, 1, 1, 0, 0, 0],
            [1, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
        ]
    ).bool()
    logprobs = -normal(1, *mask.shape).abs() - 0.1
    old_logprobs = logprobs - 0.3 * normal(2, *mask.shape)
    return SimpleNamespace(
        mask=mask,
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        ref_logprobs=logprobs + 0.5 * normal(3, *mask.shape),
        advantages=torch.tensor([1.1, -1.3, 0.7, -0.6, 0.4, -0.9], dtype=torch.float64),
        token_advantages=normal(4, *mask.shape),
        scores=torch.tensor([1.0, -0.5, 2.0, 2.5, 0.25, 0.25], dtype=torch.float64),
        counted_rows=mask.any(1).double().mean(),  # the share of rows with something counted
    )


@pytest.fixture
def right_padded(batch) -> SimpleNamespace:
    """The same without gaps and without an empty row, for code that knows nothing else."""
    lengths = torch.tensor([7, 5, 3, 1, 6, 3]).unsqueeze(1)
    return SimpleNamespace(**{**vars(batch), "mask": torch.arange(7) < lengths, "values": normal(5, 6, 7)})


@pytest.fixture
def pairs() -> SimpleNamespace:
    """Five pairs as per-token log-probabilities, and their reference as one number a response."""
    lengths = torch.tensor([7, 2, 5, 3, 4, 3, 6, 4, 1, 7]).unsqueeze(1)  # chosen first, then rejected
    mask = torch.arange(7) < lengths
    return SimpleNamespace(
        mask=mask,
        logprobs=-normal(6, *mask.shape).abs() - 0.05,
        ref=-normal(7, 10).abs() * 4 - 1,
        scores=2 * normal(8, 10),
        margin=normal(9, 5).abs(),
        desirable=torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 0, 1]).bool(),
    )
