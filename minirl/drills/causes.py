"""The most probable cause of wrong numbers that no known mistake explains, from how they differ from the right ones.

Each question looks at all cases at once and answers with a sentence or None. A sentence says what was seen ("the sign is
flipped everywhere"), which is sure, before what it suggests, which is a guess.
"""

from collections.abc import Callable

import torch

from minirl.drills.answers import Answer, agree, answer, same
from minirl.drills.bank import Drill
from minirl.drills.numbers_off import (
    another_knob,
    common_factor,
    mask_turned,
    moved,
    off_by_a_size,
    one_relation,
    paired,
    scaled_by_batch,
    some_outputs,
    times,
)
from minirl.drills.performance import Performance
from minirl.drills.probes import probes
from minirl.drills.shapes_off import shape_in_words


def probable_causes(drill: Drill, expected: list[Answer], performance: Performance) -> list[str]:
    """At most two sentences, the surest first."""
    got = performance.answers
    if [len(x.values) for x in expected] != [len(x.values) for x in got]:
        return []
    if any(x.shape != y.shape for x, y in paired(expected, got)):
        return _first_two(lambda: shape_in_words(drill, expected, got))
    if all(same(x, y, drill.tolerance) for x, y in paired(expected, got)):
        return _first_two(
            lambda: _missing_gradient(drill, expected, got),
            lambda: _undetached(drill, got),
            lambda: _gradient_off_by(drill, expected, got),
        )
    return _first_two(
        lambda: _different_each_time(drill, performance),
        lambda: mask_turned(drill, got),
        lambda: _not_finite(expected, got),
        lambda: some_outputs(drill, expected, got),
        lambda: one_relation(drill, expected, got),
        lambda: another_knob(drill, got),
        lambda: off_by_a_size(drill, expected, got),
        lambda: moved(drill, expected, got),
        lambda: _rows_mixed(drill, performance),
        lambda: _only_with_padding(drill, expected, got, performance),
        lambda: _ignored(drill, performance),
        lambda: _only_in_places(drill, expected, got),
        lambda: scaled_by_batch(drill, expected, got),
        lambda: _in_place(performance),
    )


def _first_two(*questions: Callable[[], str | None]) -> list[str]:
    found = []
    for question in questions:
        sentence = question()
        if sentence:
            found.append(sentence)
        if len(found) == 2:
            break
    return found


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
    factor = common_factor(pairs)
    if factor is None:
        return "A term has the right value and the wrong gradient: a weight that should be detached, or one that should not."
    return f"Its gradient is {times(factor)} the right one everywhere: part of it goes through a detach()."


# Values


def _different_each_time(drill: Drill, performance: Performance) -> str | None:
    again = performance.probed.get("again")
    if again is None or agree(drill, performance.answers[-1], again):
        return None
    return "The same batch gives other numbers each time: something is drawn at random, or kept from the call before."


def _not_finite(expected: list[Answer], got: list[Answer]) -> str | None:
    if not any(bool((~y.isfinite() & x.isfinite()).any()) for x, y in paired(expected, got)):
        return None
    return "NaN or infinity where numbers are wanted: 0 / 0, the log of 0 or of a negative, or the deviation of one number."


def _rows_mixed(drill: Drill, performance: Performance) -> str | None:
    """What stands in the last row changes the results of others, and does not in the library."""
    got = performance.probed.get("another last row")
    moves = next((probe for probe in probes(drill) if probe.name == "another last row"), None)
    if got is None or moves is None:
        return None
    right = answer(drill, drill.of, drill.cases[-1]), answer(drill, drill.of, moves.case)
    tables = [(x, y) for x, y in paired([right[0]], [right[1]]) if x.dim() > 0]
    theirs = [(x, y) for x, y in paired([performance.answers[-1]], [got]) if x.dim() > 0]
    if not tables or any(not torch.equal(x[:-1], y[:-1]) for x, y in tables):
        return None
    if all(same(x[:-1], y[:-1], 1e-6) for x, y in theirs):
        return None
    return "Rows are mixed: what stands in the last row changes the results of others. Look at axes and indices."


def _only_with_padding(drill: Drill, expected: list[Answer], got: list[Answer], performance: Performance) -> str | None:
    if drill.cases[0].mask is None:
        return None
    agrees = [agree(drill, one, two) for one, two in zip(expected, got, strict=True)]
    padded = [not bool(case.mask.all()) for case in drill.cases]
    if not all(padded) and all(good != pad for good, pad in zip(agrees, padded, strict=True)):
        where = "It is right without padding and wrong with it"
    else:
        other = performance.probed.get("other padding")
        if other is None or agree(drill, performance.answers[-1], other):
            return None
        where = "What stands outside the mask changes the result"
    return f"{where}: such numbers are added up, divided by, or looked at from the last counted token."


def _ignored(drill: Drill, performance: Performance) -> str | None:
    """Inputs that can be changed without any change of the answer."""
    last, names = performance.answers[-1], []
    library = answer(drill, drill.of, drill.cases[-1])
    for probe in probes(drill):
        got = performance.probed.get(probe.name)
        if not probe.name.startswith("another ") or probe.name == "another last row" or got is None:
            continue
        moves = not agree(drill, library, answer(drill, drill.of, probe.case))
        if moves and all(torch.equal(x, y) for x, y in paired([last], [got])):
            names.append(probe.name.removeprefix("another "))
    if not names:
        return None
    either = "it is not used, or only its order or sign is" if len(names) == 1 else "they are not used"
    return f"Small changes of {' and '.join(names)} do not move the result: {either}."


def _only_in_places(drill: Drill, expected: list[Answer], got: list[Answer]) -> str | None:
    """Tables that are wrong in one kind of place."""
    places = {
        "It is wrong only in the padding: the result is 0 there.": lambda mask: ~mask,
        "It is wrong only on the last counted token of each row.": lambda mask: mask & (_ahead(mask) == 1),
        "It is wrong only on the first token of each row.": lambda mask: mask & (mask.cumsum(1) == 1),
        "It is right on the last counted token and wrong before it: look at what one token hands to the one before it.": (
            lambda mask: mask & (_ahead(mask) > 1)
        ),
    }
    if drill.cases[0].mask is None:
        return None
    wrong = []
    for case, one, two in zip(drill.cases, expected, got, strict=True):
        for x, y in paired([one], [two]):
            if x.shape != case.mask.shape:
                return None
            wrong.append((((x - y).abs() > 1e-4 * (1 + x.abs())) | ~y.isfinite(), case.mask))
    for sentence, place in places.items():
        if all(bool((table <= place(mask)).all()) for table, mask in wrong):
            return sentence
    return None


def _ahead(mask: torch.Tensor) -> torch.Tensor:
    """How many counted tokens there are from each position on."""
    return mask.flip(1).cumsum(1).flip(1)


def _in_place(performance: Performance) -> str | None:
    if not performance.changed:
        return None
    names = " and ".join(performance.changed)
    return f"It changes {names} in place, and later lines read the changed numbers: work on a copy."
