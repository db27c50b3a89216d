"""Masked batches as rollouts make them, and worse: gaps, rows with nothing counted, garbage in the padding."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from minirl.types import STATS

GARBAGE = [float("nan"), float("inf"), float("-inf")]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_mask(seed: int, rows: int = 6, length: int = 7, *, empty_row: bool = True) -> Tensor:
    """Row 0 is full, row 1 counts nothing unless told otherwise, the others have random lengths and gaps."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.arange(length)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=generator)
    mask = (positions < lengths) & (torch.rand(rows, length, generator=generator) < 0.75)
    mask[0] = True
    mask[1:] |= ~mask[1:].any(1, keepdim=True) & (positions == length // 2)
    if empty_row:
        mask[1] = False
    return mask


def masks(rows: int = 4, length: int = 5) -> st.SearchStrategy[Tensor]:
    """Every mask of that shape in which something counts."""
    row = st.lists(st.booleans(), min_size=length, max_size=length)
    return st.lists(row, min_size=rows, max_size=rows).map(torch.tensor).filter(lambda mask: bool(mask.any()))


def spoil(x: Tensor, mask: Tensor, garbage: float) -> Tensor:
    """A copy of x with garbage wherever the mask is False, and a gradient of its own."""
    return x.detach().masked_fill(~mask, garbage).requires_grad_(x.requires_grad)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def packed(x: Tensor, mask: Tensor, row: int) -> Tensor:
    """One row as (1, n) with everything deleted that does not count: gaps, padding on the left and on the right."""
    return x[row][mask[row]].unsqueeze(0)


def gradient(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, retain_graph=True)[0]


def equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> bool:
    """Same shape, same dtype, no entry off by more than the tolerance: absolute for small ones, relative for large."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    return True


def are_stats(stats: dict[str, Tensor]) -> bool:
    return all(name in STATS and x.dim() == 0 and not x.requires_grad and x.isfinite() for name, x in stats.items())
