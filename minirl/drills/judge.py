"""check(name, fn): is this function the library's, one of the well-known wrong versions, two of them at once, or none?

Values and gradients are compared on small random batches: finite padding, no gaps, the knobs that the formula needs,
log-ratios below 3. The caller's generator, gradient mode and tensors stay as they were.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from minirl.drills import kept
from minirl.drills.answers import Answer, agree, answer, first_difference, same
from minirl.drills.bank import BANK, Drill, Mutant
from minirl.drills.causes import probable_causes
from minirl.drills.combined import pairs_of
from minirl.drills.desk import find, shown, shown_apart
from minirl.drills.display import as_html, as_text
from minirl.drills.numbers_off import factor_between
from minirl.drills.performance import Performance, perform, undisturbed
from minirl.drills.probes import remarks
from minirl.types import Tensor


@dataclass(frozen=True)
class Result:
    """The verdict. True where the status is "ok", so that `assert check(name, fn)` is a test."""

    status: str  # "ok" | "todo" | "mistake" | "wrong" | "error"
    mistake: str | None  # the name of the wrong version, where it is a known one; "a + b" where it is two
    message: str  # a line for each thing it says, however long; print(result) breaks lines at 100 columns

    def __bool__(self) -> bool:
        return self.status == "ok"

    def __str__(self) -> str:
        return as_text(self.message)

    def _repr_html_(self) -> str:
        return as_html(self)


def check(name: str, fn) -> Result:
    """Judges `fn` against the library's function `name`.

    ok       the same values and gradients; what breaks beyond that (NaN padding, gaps, bfloat16) is only remarked upon
    todo     nothing written yet: fn is None or ..., returns None or raises NotImplementedError
    mistake  a known wrong version by its name, or two at once
    wrong    none of them; the message holds the smallest batch that differs and the most probable cause
    error    it raised, or is no function; the message holds the exception and the shapes

    ValueError for a name without a drill.
    """
    drill = find(name)
    result = verdict(drill.of.__name__, perform(drill, fn))
    kept.note(drill.of.__name__, result.status, result.mistake)
    return result


def verdict(name: str, performance: Performance) -> Result:
    """The second half of `check`: looks at what a function did, and never calls it."""
    drill = find(name)
    if performance.stopped:
        status, words = performance.stopped
        return Result(status, None, f"{name}: {words}." if status == "todo" else words)
    with undisturbed():
        return _judged(name, drill, performance)


def _judged(name: str, drill: Drill, performance: Performance) -> Result:
    expected = [answer(drill, drill.of, case) for case in drill.cases]
    difference = first_difference(drill, expected, performance.answers)
    if difference is None:
        return Result("ok", None, "\n".join(_praise(drill, performance)))
    mutants = mutants_of(drill)
    for mutant in mutants:
        if _did(drill, mutant.function, performance):
            seen = f" Seen in {mutant.seen}." if mutant.seen else ""
            return Result("mistake", mutant.name, f"{name}: {mutant.sentence}{seen}{_effect(mutant)}")
    for first, second, function in _pairs(drill, mutants):
        if _did(drill, function, performance):
            lines = [f"{name}: two mistakes at once.", f"1. {first.sentence}", f"2. {second.sentence}"]
            return Result("mistake", f"{first.name} + {second.name}", "\n".join(lines))
    lines = _counterexample(drill, difference, expected[difference], performance.answers[difference])
    causes = probable_causes(drill, expected, performance)
    causes += _mistake_and_factor(drill, mutants, expected, performance)
    return Result("wrong", None, "\n".join([*lines, *causes]))


def _did(drill: Drill, function: Callable, performance: Performance) -> bool:
    """Whether `function` does what the learner's did, largest batch first: most differ there already."""
    pairs = list(zip(drill.cases, performance.answers, strict=True))
    try:
        return all(agree(drill, answer(drill, function, case), got) for case, got in reversed(pairs))
    except Exception:  # two mistakes may make nonsense together
        return False


def _mistake_and_factor(
    drill: Drill, mutants: list[Mutant], expected: list[Answer], performance: Performance
) -> list[str]:
    """A known mistake, and a constant that is another."""
    for mutant in mutants:
        wrong = [answer(drill, mutant.function, case) for case in drill.cases]
        factor = factor_between(wrong, performance.answers)
        if factor is not None and factor_between(expected, performance.answers) is None:
            return [f"It is {factor} what this mistake gives: {mutant.sentence}"]
    return []


def _praise(drill: Drill, performance: Performance) -> list[str]:
    judged = "values and gradients" if drill.gradient else "values"
    lines = [f"{drill.of.__name__}: right, {judged}, on {len(drill.cases)} batches."]
    if performance.float32_only:
        lines.append("Remark: it takes float32 only; give new tensors the dtype of the inputs.")
    lines += remarks(drill, performance.probed)
    if drill.cases[-1].mask is not None and not performance.refused and perform(drill, drill.of).refused:
        lines.append("Remark: an all-False mask goes unnoticed; the library raises a ValueError.")
    if performance.changed:
        lines.append("Remark: it changes its inputs in place; the caller will use them again.")
    leaking = sorted(set(performance.carriers) - set(perform(drill, drill.of).carriers))
    if leaking:
        lines.append(f"Remark: {' and '.join(leaking)} would get a gradient too; they are data, so detach() them.")
    return lines


def _effect(mutant: Mutant) -> str:
    return f"\nIn training: {mutant.effect}" if mutant.effect else ""


# The wrong versions


def mutants_of(drill: Drill) -> list[Mutant]:
    """The wrong versions in the bank, and the right one cut off from its gradient where that is judged."""
    return [mutant for mutant in BANK if mutant.of is drill.of] + [without_gradient(drill)] * bool(drill.gradient)


def without_gradient(drill: Drill) -> Mutant:
    """The library's function, right in every number and useless for learning."""
    sentence = (
        f"The numbers are right, but no gradient reaches {' and '.join(drill.gradient)}, so nothing would be learned: "
        "look for a detach(), item(), no_grad() or torch.tensor(...) on the way."
    )
    return Mutant(drill.of, "no_gradient", sentence, None, _followed_by(Tensor.detach, drill.of))


def _sign_flipped(drill: Drill) -> Mutant:
    return Mutant(drill.of, "sign_flipped", "The sign of the result is flipped.", None, drill.of)


def _followed_by(change: Callable[[Tensor], Tensor], function: Callable) -> Callable:
    """The function with `change` applied to its results: to the loss of (loss, stats), to both of two tables."""

    def changed(result):
        if isinstance(result, Tensor):
            return change(result)
        if isinstance(result, tuple):
            return tuple(change(x) if isinstance(x, Tensor) else x for x in result)
        return (lambda *args: changed(result(*args))) if callable(result) else result  # a reducer

    return lambda *args, **knobs: changed(function(*args, **knobs))


def _pairs(drill: Drill, mutants: list[Mutant]) -> Iterator[tuple[Mutant, Mutant, Callable]]:
    """(first mistake, second mistake, a function with both)."""
    banked = [mutant for mutant in mutants if mutant.name != "no_gradient"]
    yield from pairs_of(banked)
    for mutant in banked:
        if inspect.isclass(mutant.function):
            continue
        if drill.gradient:
            yield mutant, without_gradient(drill), _followed_by(Tensor.detach, mutant.function)
        yield mutant, _sign_flipped(drill), _followed_by(Tensor.neg, mutant.function)


# Neither


def _counterexample(drill: Drill, index: int, expected: Answer, got: Answer) -> list[str]:
    case = drill.cases[index]
    lines = [
        f"{drill.of.__name__}: not the right numbers, and no mistake that this drill knows. "
        "The smallest batch that differs, to redo by hand:",
        shown(case),
    ]
    if len(expected.values) != len(got.values):
        return [
            *lines,
            f"expected {len(expected.values)} results, {' and '.join(drill.outputs)}; got {len(got.values)}",
        ]
    for output, x, y in zip(drill.outputs, expected.values, got.values, strict=True):
        if x.shape != y.shape:
            lines.append(f"{output}: expected the shape {tuple(x.shape)}, got {tuple(y.shape)}")
        if not same(x, y, drill.tolerance):
            expected_numbers, numbers = shown_apart(x, y)
            return [*lines, f"expected {output} = {expected_numbers}", f"     got {output} = {numbers}"]
    name = next(name for name, x in expected.gradients.items() if not same(x, got.gradients[name], drill.tolerance))
    of = drill.outputs[0] if expected.values[0].dim() == 0 else "1 * first entry + 2 * second + ..."
    expected_numbers, numbers = shown_apart(expected.gradients[name], got.gradients[name])
    return [
        *lines,
        f"The {drill.outputs[0]} agrees; the gradient of {of} with respect to {name} does not:",
        f"expected {expected_numbers}",
        f"     got {numbers}",
    ]
