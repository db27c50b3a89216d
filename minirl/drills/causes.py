"""The most probable cause of wrong numbers that no known mistake explains, from how they differ from the right ones.

Each question below looks at all cases at once and answers with a sentence or None. A sentence says what was seen ("the
sign is flipped everywhere"), which is sure, before what it suggests, which is a guess.
"""

from collections.abc import Callable

import torch

from minirl.drills.answers import Answer, agree, answer, same
from minirl.drills.bank import Case, Drill
from minirl.drills.performance import Performance
from minirl.drills.probes import probes
from minirl.types import Tensor


def probable_causes(drill: Drill, expected: list[Answer], performance: Performance) -> list[str]:
    """At most two sentences, the surest first."""
    got = performance.answers
    if [len(x.values) for x in expected] != [len(x.values) for x in got]:
        return []
    if any(x.shape != y.shape for one, two in zip(expected, got, strict=True) for x, y in _values(one, two)):
        return _found(lambda: _shape_in_words(drill, expected, got))
    if all(same(x, y, drill.tolerance) for one, two in zip(expected, got, strict=True) for x, y in _values(one, two)):
        return _found(
            lambda: _missing_gradient(drill, expected, got),
            lambda: _undetached(drill, got),
            lambda: _gradient_off_by(drill, expected, got),
        )
    return _found(
        lambda: _different_each_time(drill, performance),
        lambda: _related(drill, expected, got),
        lambda: _off_by_a_size(drill, expected, got),
        lambda: _moved(drill, expected, got),
        lambda: _only_with_padding(drill, expected, got, performance),
        lambda: _ignored(drill, performance),
        lambda: _only_in_places(drill, expected, got),
        lambda: _in_place(performance),
    )


def _found(*questions: Callable[[], str | None]) -> list[str]:
    answers = (question() for question in questions)
    return [sentence for sentence in answers if sentence][:2]


def _values(one: Answer, two: Answer):
    return zip(one.values, two.values, strict=True)


def _everywhere(drill: Drill, expected: list[Answer], got: list[Answer], relation: Callable) -> bool:
    """Whether got = relation(expected, case) for every value of every case, and some case can tell that from equality."""
    telling = False
    for case, one, two in zip(drill.cases, expected, got, strict=True):
        for x, y in _values(one, two):
            wanted = relation(x, case)
            if wanted is None or not same(wanted, y, max(drill.tolerance, 1e-4)):
                return False
            telling = telling or not same(x, y, max(drill.tolerance, 1e-4))
    return telling


# The shape


def _shape_in_words(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    for case, one, two in reversed(list(zip(drill.cases, expected, got, strict=True))):  # the largest says most
        for x, y in _values(one, two):
            if x.shape != y.shape:
                rows = _size(case, "rows")
                if x.dim() == 0 and y.numel() == 1:
                    return "A scalar is wanted, without axes: take the mean without keepdim, or squeeze()."
                if x.dim() == 0:
                    return "One number for the whole batch is wanted: the last step, a mean or a sum, is missing."
                if y.dim() == 0:
                    return f"One number came back where {tuple(x.shape)} are wanted: a mean or a sum too many?"
                if y.shape == x.shape[::-1] and x.dim() == 2:
                    return "It is transposed: rows and columns are exchanged."
                if x.dim() == 1 and tuple(y.shape) == (rows, rows) and rows > 1:
                    return (
                        "(B,) met (B, 1) and broadcasting made B x B of it: squeeze(1) or unsqueeze(1) one of the two."
                    )
                if y.dim() == x.dim() + 1 and 1 in y.shape and y.numel() == x.numel():
                    return "An axis of length 1 is left over: squeeze it, or leave keepdim out of the last step."
                if y.dim() == x.dim() - 1 and y.shape == x.shape[:-1]:
                    return "The last axis is summed or averaged away: the result keeps it."
                if y.dim() == x.dim() and x.dim() > 0 and y.shape[:-1] == x.shape[:-1]:
                    more = y.shape[-1] - x.shape[-1]
                    return (
                        f"The last axis is {abs(more)} too {'long' if more > 0 else 'short'}: look at where it is cut."
                    )
    return None


# Gradients, where the values agree


def _missing_gradient(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    def silent(answers: list[Answer], name: str) -> bool:
        return all(bool((x.gradients[name] == 0).all()) for x in answers)

    names = [name for name in drill.gradient if silent(got, name) and not silent(expected, name)]
    if not names:
        return None
    return f"No gradient reaches {' and '.join(names)}: look for a detach(), item() or no_grad() on the way from it."


def _undetached(drill: Drill, got: list[Answer]) -> str | None:
    names = [name for name in drill.detached if any(bool((x.gradients[name] != 0).any()) for x in got)]
    return f"A gradient reaches {' and '.join(names)}, which is data here: detach() it." if names else None


def _gradient_off_by(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    pairs = [
        (one.gradients[name], two.gradients[name])
        for one, two in zip(expected, got, strict=True)
        for name in drill.gradient
    ]
    factor = _common_factor(pairs)
    if factor is None:
        return "A term has the right value and the wrong gradient: a weight that should be detached, or one that should not."
    return f"Its gradient is {_times(factor)} the right one everywhere: part of it goes through a detach()."


# Values


def _different_each_time(drill: Drill, performance: Performance) -> str | None:
    again = performance.probed.get("again")
    if again is None or agree(drill, performance.answers[-1], again):
        return None
    return "The same batch gives other numbers each time: something is drawn at random, or kept from the call before."


def _related(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    """One relation between all right and all wrong numbers."""
    if _everywhere(drill, expected, got, lambda x, case: -x):
        return "The sign is flipped everywhere, and nothing else is wrong."
    factor = _common_factor([(x, y) for one, two in zip(expected, got, strict=True) for x, y in _values(one, two)])
    if factor is not None:
        return f"It is {_times(factor)} the right number everywhere: a constant is missing, or one too many."
    relations = {
        "exp": (
            lambda x, case: x.exp(),
            "It is exp of the right number everywhere: leave out an exp, or take the log.",
        ),
        "log": (lambda x, case: x.log(), "It is the log of the right number everywhere: leave out a log."),
        "-log": (lambda x, case: -x.log(), "It is minus the log of the right number everywhere: leave out the log."),
        "square": (lambda x, case: x.square(), "It is the square of the right number everywhere: a root is missing."),
        "root": (lambda x, case: x.sqrt(), "It is the root of the right number everywhere: a square is missing."),
        "inverse": (lambda x, case: 1 / x, "It is 1 over the right number everywhere: a fraction is upside down."),
        "size": (lambda x, case: x.abs(), "It is the absolute value of the right number everywhere: keep the sign."),
        "one less": (lambda x, case: 1 - x, "It is 1 minus the right number everywhere: a complement too many or few."),
    }
    for relation, sentence in relations.values():
        if _everywhere(drill, expected, got, relation):
            return sentence
    gaps = torch.cat([(y - x).flatten() for one, two in zip(expected, got, strict=True) for x, y in _values(one, two)])
    if gaps.numel() > 1 and same(gaps, gaps[:1].expand_as(gaps), 1e-4):
        return f"It is off by the same {gaps[0].item():+.4g} everywhere: a constant is added that should not be, or left out."
    return None


def _common_factor(pairs: list[tuple[Tensor, Tensor]]) -> float | None:
    """c with y = c * x for all of them, c neither 0 nor 1."""
    x = torch.cat([x.flatten() for x, _ in pairs])
    y = torch.cat([y.flatten() for _, y in pairs])
    largest = x.abs().argmax() if x.numel() else None
    if largest is None or x[largest] == 0 or not y.isfinite().all():
        return None
    factor = (y[largest] / x[largest]).item()
    if factor == 0 or abs(factor - 1) < 1e-6 or x.count_nonzero() < 2 or not same(factor * x, y, 1e-4):
        return None
    return factor


def factor_between(one: list[Answer], two: list[Answer]) -> str | None:
    """In words, by which constant the values of two differ; None where they have other shapes or no such constant."""
    pairs = [(x, y) for a, b in zip(one, two, strict=True) for x, y in zip(a.values, b.values, strict=False)]
    if any(x.shape != y.shape for x, y in pairs) or sum(int(x.count_nonzero()) for x, _ in pairs) < 4:
        return None
    factor = _common_factor(pairs)
    return None if factor is None else _times(factor)


def _times(factor: float) -> str:
    words = {2.0: "twice", 0.5: "half", -1.0: "minus", 1 / 3: "a third of", 0.25: "a quarter of"}
    close = next((word for number, word in words.items() if abs(number - factor) < 1e-3), None)
    return close or f"{factor:.4g} times"


SIZES = {
    "rows": "the number of rows",
    "width": "the width of the table, padding included",
    "entries": "the size of the table, padding included",
    "counted": "the number of counted tokens",
    "vocabulary": "the size of the vocabulary",
    "group_size": "group_size",
    "others": "group_size - 1",
}


def _size(case: Case, name: str) -> float | None:
    tensors = [x for x in case.inputs.values() if isinstance(x, Tensor) and x.dim() > 0]
    mask, logits, group = case.mask, case.inputs.get("logits"), case.inputs.get("group_size")
    if name == "rows":
        return len(tensors[0]) if tensors else None
    if name == "width":
        return None if mask is None else mask.shape[1]
    if name == "entries":
        return None if mask is None else mask.numel()
    if name == "counted":
        return None if mask is None else int(mask.sum())
    if name == "vocabulary":
        return None if logits is None else logits.shape[-1]
    if name in ("group_size", "others"):
        return group if group is None or name == "group_size" else group - 1
    knob = case.knobs.get(name)
    return knob if isinstance(knob, float) and knob != 0 else None


def _off_by_a_size(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    """Numbers that are too large or too small by something which changes from case to case."""
    for name in [*SIZES, *drill.cases[0].knobs]:
        words = SIZES.get(name, name)
        if any(_size(case, name) is None for case in drill.cases):
            continue
        if _everywhere(drill, expected, got, lambda x, case, name=name: x * _size(case, name)):
            return f"It is the right number times {words}: divide by it, or do not multiply."
        if _everywhere(drill, expected, got, lambda x, case, name=name: x / _size(case, name)):
            return f"It is the right number divided by {words}: multiply by it, or do not divide."
    return None


def _moved(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    """The right numbers in the wrong places."""

    def tables(move: Callable) -> bool:
        found = False
        for one, two in zip(expected, got, strict=True):
            for x, y in _values(one, two):
                if x.dim() < 1 or x.shape[-1] < 2:
                    continue
                a, b = move(x, y)
                if not same(a, b, 1e-4):
                    return False
                found = found or not same(x, y, 1e-4)
        return found

    if tables(lambda x, y: (x[..., :-1], y[..., 1:])):
        return "The right numbers stand one position too late: an index is off by one."
    if tables(lambda x, y: (x[..., 1:], y[..., :-1])):
        return "The right numbers stand one position too early: an index is off by one."
    if tables(lambda x, y: (x.flip(-1), y)):
        return "The right numbers stand in reverse order: flip them back."
    if tables(lambda x, y: (x.sort(-1).values, y.sort(-1).values)):
        return "The right numbers stand in another order."
    return None


def _only_with_padding(drill: Drill, expected: list[Answer], got: list[Answer], performance: Performance) -> str | None:
    if drill.cases[0].mask is None:
        return None
    agrees = [agree(drill, one, two) for one, two in zip(expected, got, strict=True)]
    padded = [not bool(case.mask.all()) for case in drill.cases]
    if all(good != pad for good, pad in zip(agrees, padded, strict=True)):
        where = "It is right without padding and wrong with it"
    else:
        other = performance.probed.get("other padding")
        if other is None or agree(drill, performance.answers[-1], other):
            return None
        where = "What stands in the padding changes the result"
    return f"{where}: numbers outside the mask are added up, divided by, or looked at from the last counted token."


def _ignored(drill: Drill, performance: Performance) -> str | None:
    """Inputs that can be changed without any change of the answer."""
    last, names = performance.answers[-1], []
    library = answer(drill, drill.of, drill.cases[-1])
    for probe in probes(drill):
        got = performance.probed.get(probe.name)
        if not probe.name.startswith("another ") or got is None:
            continue
        moves = not agree(drill, library, answer(drill, drill.of, probe.case))
        if moves and all(torch.equal(x, y) for x, y in _values(last, got)):
            names.append(probe.name.removeprefix("another "))
    if not names:
        return None
    return f"The result does not depend on {' and '.join(names)} at all."


def _only_in_places(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    """Tables that are wrong in one kind of place."""
    places = {
        "in the padding: the result is 0 there": lambda mask: ~mask,
        "on the last counted token of each row": lambda mask: mask & (mask.flip(1).cumsum(1).flip(1) == 1),
        "on the first token of each row": lambda mask: mask & (mask.cumsum(1) == 1),
        "before the last counted token: it does not reach the tokens before it": lambda mask: (
            mask & (mask.flip(1).cumsum(1).flip(1) > 1)
        ),
    }
    if drill.cases[0].mask is None:
        return None
    wrong = []
    for case, one, two in zip(drill.cases, expected, got, strict=True):
        for x, y in _values(one, two):
            if x.shape != case.mask.shape:
                return None
            wrong.append(((x - y).abs() > 1e-4 * (1 + x.abs())) | ~y.isfinite())
    masks = [case.mask for case in drill.cases for _ in drill.outputs]
    for words, place in places.items():
        if all(bool((table <= place(mask)).all()) for table, mask in zip(wrong, masks, strict=True)):
            return f"It is wrong only {words}."
    return None


def _in_place(performance: Performance) -> str | None:
    if not performance.changed:
        return None
    names = " and ".join(performance.changed)
    return f"It changes {names} in place, and later lines read the changed numbers: work on a copy."
