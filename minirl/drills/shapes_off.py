"""A result of the wrong shape, in words."""

from minirl.drills.answers import Answer
from minirl.drills.bank import Case, Drill
from minirl.types import Tensor


def shape_in_words(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    """What the largest case shows: there, axes of length 1 are not taken for others."""
    for case, one, two in reversed(list(zip(drill.cases, expected, got, strict=True))):
        for x, y in zip(one.values, two.values, strict=True):
            if x.shape != y.shape:
                return _said(case, x, y)
    return None


def _said(case: Case, x: Tensor, y: Tensor) -> str | None:
    rows, group = len(next(iter(tensors_of(case)), [])), case.inputs.get("group_size")
    if x.dim() == 0 and y.numel() == 1:
        return "A scalar is wanted, without axes: take the mean without keepdim, or squeeze()."
    if x.dim() == 0:
        return "One number for the whole batch is wanted: the last step, a mean or a sum, is missing."
    if y.dim() == 0:
        return "One number came back where a table is wanted: a mean or a sum too many?"
    if group is not None and y.numel() == x.numel() and y.dim() == 2:
        return "The result is still cut into groups: end with .view(-1), one number a row."
    if group is not None and y.dim() == 1 and len(y) * group == len(x):
        return "One number a group came back: each row of a group has its own."
    if case.mask is not None and x.shape == case.mask.shape and y.shape == (int(case.mask.sum()),):
        return "Only the counted entries came back, as x[mask] gives them: put them into a table again, 0 elsewhere."
    if y.shape == x.shape[::-1] and x.dim() == 2:
        return "It is transposed: rows and columns are exchanged."
    if x.dim() == 1 and tuple(y.shape) == (rows, rows) and rows > 1:
        return "(B,) met (B, 1) and broadcasting made B x B of it: squeeze(1) or unsqueeze(1) one of the two."
    if y.dim() == x.dim() + 1 and 1 in y.shape and y.numel() == x.numel():
        return "An axis of length 1 is left over: squeeze it, or leave keepdim out of the last step."
    if y.dim() == x.dim() + 1 and y.shape[:-1] == x.shape:
        return "One axis too many: the last one is still there. Pick one entry of it, or sum over it."
    if y.dim() == x.dim() - 1 and y.shape == x.shape[:-1]:
        return "The last axis is summed or averaged away: the result keeps it."
    if y.dim() == x.dim() and y.shape[:-1] == x.shape[:-1]:
        more = y.shape[-1] - x.shape[-1]
        return f"The last axis is {abs(more)} too {'long' if more > 0 else 'short'}: look at where it is cut."
    return None


def tensors_of(case: Case) -> list[Tensor]:
    return [x for x in case.inputs.values() if isinstance(x, Tensor) and x.dim() > 0]
