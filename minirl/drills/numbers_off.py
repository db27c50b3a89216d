"""One relation between all right numbers and all wrong ones: a factor, a sign, a shift, another knob.

Each question looks at all cases at once, and answers with a sentence or None.
"""

from collections.abc import Callable

import torch

from minirl.drills.answers import Answer, agree, answer, same
from minirl.drills.bank import Case, Drill
from minirl.drills.shapes_off import tensors_of
from minirl.types import Tensor

NEAR = 1e-4  # how close counts as equal, here where a learner's float32 has gone through a relation


def paired(expected: list[Answer], got: list[Answer]) -> list[tuple[Tensor, Tensor]]:
    """(right, wrong) for every value of every case."""
    return [pair for one, two in zip(expected, got, strict=True) for pair in zip(one.values, two.values, strict=True)]


def everywhere(drill: Drill, expected: list[Answer], got: list[Answer], relation: Callable) -> bool:
    """Whether got = relation(expected, case) for every value of every case, and some case can tell that from equality."""
    telling, tolerance = False, max(drill.tolerance, NEAR)
    for case, one, two in zip(drill.cases, expected, got, strict=True):
        for x, y in zip(one.values, two.values, strict=True):
            if not same(relation(x, case), y, tolerance):
                return False
            telling = telling or not same(x, y, tolerance)
    return telling


RELATIONS: list[tuple[Callable, str]] = [
    (lambda x: -x, "The sign is flipped everywhere, and nothing else is wrong."),
    (torch.exp, "It is exp of the right number everywhere: leave out an exp, or take the log."),
    (torch.log, "It is the log of the right number everywhere: leave out a log."),
    (lambda x: -x.log(), "It is minus the log of the right number everywhere: leave out the log."),
    (torch.square, "It is the square of the right number everywhere: a root is missing."),
    (torch.sqrt, "It is the root of the right number everywhere: a square is missing."),
    (lambda x: 1 / x, "It is 1 over the right number everywhere: a fraction is upside down."),
    (torch.abs, "It is the absolute value of the right number everywhere: keep the sign."),
    (lambda x: 1 - x, "It is 1 minus the right number everywhere: a complement too many or too few."),
]


def one_relation(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    for relation, sentence in RELATIONS:
        if everywhere(drill, expected, got, lambda x, case, relation=relation: relation(x)):
            return sentence
    factor = common_factor(paired(expected, got))
    if factor is not None:
        return f"It is {times(factor)} the right number everywhere: a constant is missing, or one too many."
    gaps = torch.cat([(y - x).flatten() for x, y in paired(expected, got)])
    if gaps.numel() > 1 and gaps.isfinite().all() and same(gaps, gaps[:1].expand_as(gaps), NEAR):
        return f"It is off by the same {gaps[0].item():+.4g} everywhere: a constant is added that should not be, or left out."
    return None


# Factors


def common_factor(pairs: list[tuple[Tensor, Tensor]]) -> float | None:
    """c with y = c * x for all of them, c neither 0 nor 1."""
    x, y = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    largest = x.abs().argmax() if x.numel() else None
    if largest is None or x[largest] == 0 or not y.isfinite().all():
        return None
    factor = (y[largest] / x[largest]).item()
    if factor == 0 or abs(factor - 1) < 1e-6 or x.count_nonzero() < 2 or not same(factor * x, y, NEAR):
        return None
    return factor


def factor_between(one: list[Answer], two: list[Answer]) -> str | None:
    """In words, by which constant the values of two differ; None where they have other shapes or no such constant."""
    pairs = [(x, y) for a, b in zip(one, two, strict=True) for x, y in zip(a.values, b.values, strict=False)]
    if any(x.shape != y.shape for x, y in pairs) or sum(int(x.count_nonzero()) for x, _ in pairs) < 4:
        return None
    factor = common_factor(pairs)
    return None if factor is None else times(factor)


def times(factor: float) -> str:
    words = {2.0: "twice", 0.5: "half", -1.0: "minus", 1 / 3: "a third of", 0.25: "a quarter of"}
    close = next((word for number, word in words.items() if abs(number - factor) < 1e-3), None)
    return close or f"{factor:.4g} times"


SIZES = {
    "rows": ("the number of rows", lambda case: len(next(iter(tensors_of(case)), [])) or None),
    "width": ("the width of the table, padding included", lambda case: _of_mask(case, lambda m: m.shape[1])),
    "entries": ("the size of the table, padding included", lambda case: _of_mask(case, Tensor.numel)),
    "counted": ("the number of counted tokens", lambda case: _of_mask(case, lambda m: int(m.sum()))),
    "length": (
        "the mean number of counted tokens in a row",
        lambda case: _of_mask(case, lambda m: int(m.sum()) / len(m)),
    ),
    "vocabulary": ("the size of the vocabulary", lambda case: _last_axis(case.inputs.get("logits"))),
    "group_size": ("group_size", lambda case: case.inputs.get("group_size")),
    "others": ("group_size - 1", lambda case: case.inputs.get("group_size", 1) - 1 or None),
}


def _of_mask(case: Case, size: Callable):
    return None if case.mask is None else size(case.mask)


def _last_axis(x: Tensor | None) -> int | None:
    return None if x is None else x.shape[-1]


def off_by_a_size(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    """Numbers that are too large or too small by something which changes from case to case."""
    knobs = [name for name in drill.cases[0].knobs if isinstance(drill.cases[0].knobs[name], float)]
    sizes = [*SIZES.values(), *((name, lambda case, name=name: case.knobs.get(name)) for name in knobs)]
    for words, size in sizes:
        if not all(size(case) for case in drill.cases):
            continue
        if everywhere(drill, expected, got, lambda x, case, size=size: x * size(case)):
            return f"It is the right number times {words}: divide by it, or do not multiply."
        if everywhere(drill, expected, got, lambda x, case, size=size: x / size(case)):
            return f"It is the right number divided by {words}: multiply by it, or do not divide."
    return None


def scaled_by_batch(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    """A constant for each batch, but not the same one."""
    tables = [pair for pair in paired(expected, got) if pair[0].count_nonzero() > 1]
    factors = [common_factor([pair]) for pair in tables]
    if len(factors) < 2 or None in factors or max(factors) - min(factors) < 1e-3:
        return None
    shown = ", ".join(f"{factor:.3g}" for factor in factors[:3])
    return (
        f"In each batch it is the right table times a constant, another one each time ({shown}, ...): what divides it?"
    )


# The right numbers of another question

KNOBS: list[tuple[str, Callable[[float], float]]] = [
    ("half of {}", lambda x: x / 2),
    ("twice {}", lambda x: 2 * x),
    ("the square of {}", lambda x: x * x),
    ("the root of {}", lambda x: x**0.5),
    ("1 / {}", lambda x: 1 / x),
    ("1 - {}", lambda x: 1 - x),
    ("0 in place of {}", lambda x: 0.0),
    ("1 in place of {}", lambda x: 1.0),
]


def another_knob(drill: Drill, got: list[Answer]) -> str | None:
    """The library's own numbers, with another value of one knob."""
    for name in drill.cases[0].knobs:
        if not all(isinstance(case.knobs.get(name), float) for case in drill.cases):
            continue
        for words, change in KNOBS:

            def does_it(case: Case, two: Answer, name=name, change=change) -> bool:
                knobs = case.knobs | {name: change(case.knobs[name])}
                return agree(drill, answer(drill, drill.of, Case(case.inputs, knobs)), two)

            try:  # the largest case first: most differ there already
                found = all(does_it(*pair) for pair in reversed(list(zip(drill.cases, got, strict=True))))
            except (ValueError, ZeroDivisionError):  # the library refuses such a value
                continue
            if found:
                return f"It is what {words.format(name)} would give: look at each place where {name} stands."
    return None


def mask_turned(drill: Drill, got: list[Answer]) -> str | None:
    """The library's own numbers for the positions that do not count."""
    agreed = 0
    for case, two in zip(drill.cases, got, strict=True):
        if case.mask is None or not bool((~case.mask).any(1).all()):
            continue  # a row without padding has nothing to show
        try:
            one = answer(drill, drill.of, Case(case.inputs | {"mask": ~case.mask}, case.knobs))
        except ValueError:
            continue
        if not all(x.shape == y.shape and same(x, y, NEAR) for x, y in paired([one], [two])):
            return None
        agreed += 1
    return "The mask is upside down: these are the right numbers of what does NOT count." if agreed else None


# The right numbers in the wrong places


def moved(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    tables = [(x, y) for x, y in paired(expected, got) if x.dim() > 0 and x.shape[-1] > 1]

    def all_of(move: Callable) -> bool:
        return all(same(*move(x, y), NEAR) for x, y in tables) and not all(same(x, y, NEAR) for x, y in tables)

    if all_of(lambda x, y: (x[..., :-1], y[..., 1:])):
        return "The right numbers stand one position too late: an index is off by one."
    if all_of(lambda x, y: (x[..., 1:], y[..., :-1])):
        return "The right numbers stand one position too early: an index is off by one."
    if all_of(lambda x, y: (x.flip(-1), y)):
        return "The right numbers stand in reverse order: flip them back."
    if all_of(lambda x, y: (x.sort(-1).values, y.sort(-1).values)):
        return "The right numbers stand in another order."
    return None


def some_outputs(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    """Right tables in the wrong order, or only one of them wrong."""
    if len(drill.outputs) < 2:
        return None
    pairs = list(zip(expected, got, strict=True))
    if all(same(x, y, NEAR) for one, two in pairs for x, y in zip(one.values, reversed(two.values), strict=True)):
        return f"The right tables in the wrong order: return {', '.join(drill.outputs)}."
    right = [
        name
        for i, name in enumerate(drill.outputs)
        if all(same(one.values[i], two.values[i], NEAR) for one, two in pairs)
    ]
    return f"Right in every batch: {' and '.join(right)}. Look at the rest." if right else None
