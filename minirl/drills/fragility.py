"""Beyond the base contract: what else the library's function withstands. Remarks, and no verdict."""

from collections.abc import Callable
from dataclasses import replace

import torch

from minirl.drills.answers import agree, answer, in_dtype
from minirl.drills.bank import Case, Drill
from minirl.types import Tensor


def remarks(drill: Drill, fn: Callable) -> list[str]:
    """One sentence for each probe in which fn, right on ordinary batches, differs from the library."""
    found = []
    case = drill.cases[-1]
    for probe, sentence in PROBES:
        probed = probe(drill, case)
        if probed is not None and not _withstands(drill, fn, probed):
            found.append(f"Remark: {sentence}")
    if "mask" in case.inputs and not _refuses(drill, fn, _nothing_counted(case)):
        found.append("Remark: an all-False mask goes unnoticed; the library raises a ValueError.")
    if _changes_its_inputs(drill, fn, case):
        found.append("Remark: it changes its inputs in place; the caller will use them again.")
    leaking = _inputs_with_a_gradient_of_their_own(drill, fn, case)
    if leaking:
        found.append(f"Remark: {' and '.join(leaking)} would get a gradient too; they are data, so detach() them.")
    return found


# Each probe makes a harder batch of an ordinary one, or None where it does not apply


def _with_padding_of(garbage: float, case: Case) -> Case | None:
    mask = case.inputs.get("mask")
    if mask is None:
        return None

    def spoiled(x):
        table = isinstance(x, Tensor) and x.is_floating_point() and x.shape == mask.shape
        return x.masked_fill(~mask, garbage) if table else x

    return Case({name: spoiled(x) for name, x in case.inputs.items()}, case.knobs)


def _with_nan_padding(drill: Drill, case: Case) -> Case | None:
    return _with_padding_of(float("nan"), case)


def _with_gaps(drill: Drill, case: Case) -> Case | None:
    mask = case.inputs.get("mask")
    if mask is None:
        return None
    gaps = mask.clone()
    gaps[:, 1] &= mask.sum(1) < 2  # the second token of every longer row
    gaps[0, 0] &= mask[0].sum() < 3
    return Case(case.inputs | {"mask": gaps}, case.knobs)


def _in_bfloat16(drill: Drill, case: Case) -> Case | None:
    tensors = [x for x in case.inputs.values() if isinstance(x, Tensor)]
    return in_dtype(case, torch.bfloat16) if any(x.is_floating_point() for x in tensors) else None


def _far_away(drill: Drill, case: Case) -> Case | None:
    others = {"old_logprobs", "ref_logprobs"} & case.inputs.keys()
    if "logprobs" not in case.inputs or not others or "desirable" in case.inputs:
        return None
    return Case(case.inputs | {name: case.inputs[name] - 1000 for name in sorted(others)}, case.knobs)


def _with_an_impossible_token(drill: Drill, case: Case) -> Case | None:
    if not {"logits"} <= case.inputs.keys() or "tokens" in case.inputs:
        return None
    return Case(case.inputs | {"logits": _never(case.inputs["logits"])}, case.knobs)


def _never(logits: Tensor) -> Tensor:
    logits = logits.clone()
    logits[..., 0] = float("-inf")
    return logits


PROBES = [
    (_with_nan_padding, "NaN in the padding reaches the result (0 * NaN is NaN): masked_fill it before computing."),
    (_with_gaps, "with a gap inside the mask the result differs from that of the row with the gap deleted."),
    (_in_bfloat16, "bfloat16 inputs are computed in bfloat16: call .float() first."),
    (_far_away, "log-ratios of 1000 overflow: clamp them to +-20 before exp."),
    (_with_an_impossible_token, "a logit of -inf gives NaN: 0 log 0 is 0."),
]


def _withstands(drill: Drill, fn: Callable, case: Case) -> bool:
    halves = any(isinstance(x, Tensor) and x.dtype == torch.bfloat16 for x in case.inputs.values())
    judge = (
        replace(drill, gradient=(), detached=()) if halves else drill
    )  # a gradient of bfloat16 is rounded, this way or that
    expected = answer(judge, drill.of, case)
    try:
        return agree(judge, expected, answer(judge, fn, case))
    except Exception:
        return False


def _nothing_counted(case: Case) -> Case:
    return Case(case.inputs | {"mask": torch.zeros_like(case.inputs["mask"])}, case.knobs)


def _refuses(drill: Drill, fn: Callable, case: Case) -> bool:
    try:
        answer(drill, fn, case)
    except ValueError:
        return True
    except Exception:
        return False
    return False


def _copies(case: Case) -> dict:
    return {name: x.clone() if isinstance(x, Tensor) else x for name, x in case.inputs.items()}


def _changes_its_inputs(drill: Drill, fn: Callable, case: Case) -> bool:
    copies = _copies(case)
    try:
        drill.call(fn, copies, dict(case.knobs))
    except Exception:
        return False
    pairs = [(x, copies[name]) for name, x in case.inputs.items() if isinstance(x, Tensor)]
    return not all(torch.equal(before, after) for before, after in pairs)


def _inputs_with_a_gradient_of_their_own(drill: Drill, fn: Callable, case: Case) -> list[str]:
    """Inputs that the library treats as data, and fn does not."""
    if not drill.gradient:
        return []
    names = [name for name, x in case.inputs.items() if isinstance(x, Tensor) and x.is_floating_point()]

    def carriers(function: Callable) -> set[str]:
        gradients = answer(replace(drill, gradient=names, detached=()), function, case).gradients
        return {name for name in names if bool((gradients[name] != 0).any())}

    try:
        return sorted(carriers(fn) - carriers(drill.of))
    except Exception:
        return []
