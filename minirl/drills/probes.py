"""Batches beyond the ordinary ones. Some are harder: what the library's function withstands and a learner's need not, which
is worth a remark and no verdict. Others are altered in one place, so that a wrong answer gives away where it comes from."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from minirl.drills.answers import Answer, agree, answer, in_dtype
from minirl.drills.bank import Case, Drill
from minirl.types import Tensor


@dataclass(frozen=True)
class Probe:
    name: str
    drill: Drill  # how it is judged: without gradients where those of a rounded number type would differ
    case: Case


@functools.cache
def probes(drill: Drill) -> list[Probe]:
    """All that apply to a drill, made from its last and largest case."""
    case = drill.cases[-1]
    roughly = replace(drill, gradient=(), detached=(), tolerance=max(drill.tolerance, 1e-3))  # 1000 + x in float32
    judges = {"large logits": roughly}
    harder = {name: build(case) for name, (build, _) in HARDER.items()}
    found = [Probe(name, judges.get(name, drill), made) for name, made in harder.items() if made is not None]
    found = [probe for probe in found if _is_withstood_by_the_library(probe)]
    halves = Probe("bfloat16", replace(drill, gradient=(), detached=()), in_dtype(case, torch.bfloat16))
    if _has_floats(case) and _is_computed_in_float32(halves):
        found.append(halves)
    found.append(Probe("again", drill, case))
    if case.mask is not None:
        found.append(Probe("other padding", drill, _with_padding_of(1.7, case)))
    if "group_size" not in case.inputs:
        found.append(Probe("another last row", drill, _with_another_last_row(case)))
    return found + [
        Probe(f"another {name}", drill, _with_another(name, case)) for name in _numbers_of(case)
    ]  # does the answer move?


def remarks(drill: Drill, probed: dict[str, Answer | None]) -> list[str]:
    """One sentence for each harder batch on which a function, right on ordinary ones, differs from the library."""
    found = []
    for probe in probes(drill):
        sentence = HALVES if probe.name == "bfloat16" else HARDER.get(probe.name, (None, None))[1]
        got = probed.get(probe.name)
        if sentence and (got is None or not agree(probe.drill, answer(probe.drill, drill.of, probe.case), got)):
            found.append(f"Remark: {sentence}")
    return found


# Harder batches: each is made of an ordinary one, or None where it does not apply


def _with_padding_of(number: float, case: Case) -> Case | None:
    mask = case.mask
    if mask is None:
        return None

    def spoiled(x):
        table = isinstance(x, Tensor) and x.is_floating_point() and x.shape == mask.shape
        return x.masked_fill(~mask, number) if table else x

    return Case({name: spoiled(x) for name, x in case.inputs.items()}, case.knobs)


def _with_nan_padding(case: Case) -> Case | None:
    return _with_padding_of(float("nan"), case)


def _with_gaps(case: Case) -> Case | None:
    mask = case.mask
    if mask is None:
        return None
    gaps = mask.clone()
    gaps[:, 1] &= mask.sum(1) < 2  # the second token of every longer row
    gaps[0, 0] &= mask[0].sum() < 3
    return Case(case.inputs | {"mask": gaps}, case.knobs)


def _far_away(case: Case) -> Case | None:
    others = {"old_logprobs", "ref_logprobs"} & case.inputs.keys()
    if "logprobs" not in case.inputs or not others or "desirable" in case.inputs:
        return None
    return Case(case.inputs | {name: case.inputs[name] - 1000 for name in sorted(others)}, case.knobs)


def _with_an_impossible_token(case: Case) -> Case | None:
    if "logits" not in case.inputs or "tokens" in case.inputs:
        return None
    logits = case.inputs["logits"].clone()
    logits[..., 0] = float("-inf")
    return Case(case.inputs | {"logits": logits}, case.knobs)


def _with_large_logits(case: Case) -> Case | None:
    if "logits" not in case.inputs:
        return None
    return Case(case.inputs | {"logits": case.inputs["logits"] + 1000}, case.knobs)


HARDER: dict[str, tuple[Callable, str]] = {
    "NaN padding": (
        _with_nan_padding,
        "NaN in the padding reaches the result (0 * NaN is NaN): masked_fill it before computing.",
    ),
    "gaps": (_with_gaps, "with a gap inside the mask the result differs from that of the row with the gap deleted."),
    "far policies": (_far_away, "log-ratios of 1000 overflow: clamp them to +-20 before exp."),
    "impossible token": (_with_an_impossible_token, "a logit of -inf gives NaN: 0 log 0 is 0."),
    "large logits": (_with_large_logits, "logits of 1000 overflow: subtract the largest before exp."),
}
HALVES = "bfloat16 inputs are computed in bfloat16: call .float() first."


def _is_withstood_by_the_library(probe: Probe) -> bool:
    return all(x.isfinite().all() for x in answer(probe.drill, probe.drill.of, probe.case).values)


def _has_floats(case: Case) -> bool:
    return any(isinstance(x, Tensor) and x.is_floating_point() for x in case.inputs.values())


def _is_computed_in_float32(halves: Probe) -> bool:
    """Whether the library's function is: then its answer is that to the same, rounded numbers in float64."""
    exact = answer(halves.drill, halves.drill.of, in_dtype(halves.case, torch.float64))
    return agree(halves.drill, exact, answer(halves.drill, halves.drill.of, halves.case))


# Altered batches


def _numbers_of(case: Case) -> list[str]:
    """Inputs and knobs that are real numbers, and so may be moved a little."""
    tensors = [name for name, x in case.inputs.items() if isinstance(x, Tensor) and x.is_floating_point()]
    return tensors + [name for name, x in case.knobs.items() if isinstance(x, float)]


def _with_another(name: str, case: Case) -> Case:
    if name in case.knobs:
        return Case(case.inputs, case.knobs | {name: 0.9 * case.knobs[name]})
    x = case.inputs[name]
    moved = x + 0.05 * (torch.arange(x.numel(), dtype=x.dtype, device=x.device).view(x.shape) % 3 - 1)
    return Case(case.inputs | {name: moved}, case.knobs)


def _with_another_last_row(case: Case) -> Case:
    """The last row of every table moved a little, where the tables have as many rows as the first."""
    tensors = [x for x in case.inputs.values() if isinstance(x, Tensor) and x.dim() > 0]
    rows = len(tensors[0]) if tensors else 0

    def moved(x):
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() == 0 or not len(x) == rows > 1:
            return x
        steps = torch.arange(x.numel(), dtype=x.dtype, device=x.device).view(x.shape) % 3 - 0.5
        last = torch.arange(rows, device=x.device).view(-1, *[1] * (x.dim() - 1)) == rows - 1
        return x + 0.1 * last * steps

    return Case({name: moved(x) for name, x in case.inputs.items()}, case.knobs)
