"""Token ids as those programs hand them over, in tensors and lists of every shape, as plain rows."""

from typing import Any

import torch

from minirl.types import Tensor, check_knob


def rows_of(name: str, rows: Any, pad: int | None) -> list[list[int]]:
    """Token ids, a row each: a list of tensors or lists, a tensor (B, S), or one row alone. (1, S) is a row.

    A tensor of several rows may hold padding at its ends; `pad` says which token that is.
    """
    if isinstance(rows, Tensor):
        if rows.dim() not in (1, 2) or rows.is_floating_point():
            raise ValueError(f"{name}: wanted token ids, (S,) or (B, S), got {tuple(rows.shape)} of {rows.dtype}")
        found = torch.atleast_2d(rows).tolist()
        return [stripped(row, pad) for row in found] if pad is not None and len(found) > 1 else nonempty(name, found)
    if not isinstance(rows, list | tuple) or not rows:
        raise ValueError(f"{name}: wanted a list of tensors of token ids, got {rows!r:.60}")
    found = []
    for i, row in enumerate(rows):
        row = row.tolist() if hasattr(row, "tolist") else row
        row = row[0] if isinstance(row, list) and len(row) == 1 and isinstance(row[0], list) else row
        if not isinstance(row, list) or not all(isinstance(token, int) for token in row):
            raise ValueError(f"{name}: wanted token ids in row {i}, (S,), got {rows[i]!r:.60}")
        found.append(row)
    return nonempty(name, found)


def nonempty(name: str, rows: list[list[int]]) -> list[list[int]]:
    for i, row in enumerate(rows):
        if not row:
            raise ValueError(f"{name}: row {i} is empty; wanted at least one token")
    return rows


def stripped(row: list[int], pad: int) -> list[int]:
    """Without the padding at both ends; a row of nothing else keeps one."""
    real = [i for i, token in enumerate(row) if token != pad]
    return row[real[0] : real[-1] + 1] if real else row[:1]


def up_to_end(row: list[int], eos: int | None) -> list[int]:
    """Nothing after the end token was written by the model."""
    return row[: row.index(eos) + 1] if eos in row else row


def split(rows: list, size: int) -> list[list]:
    check_knob("batch_size", size, 1)
    return [rows[i : i + size] for i in range(0, len(rows), size)]
