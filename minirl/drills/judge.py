"""check(name, fn): is this function the library's, one of the well-known wrong versions, or neither?

Values and gradients are compared on small random batches: finite padding, no gaps, the knobs that the formula needs,
log-ratios below 3. The caller's generator, gradient mode and tensors stay as they were.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from minirl.drills.answers import Answer, Unfinished, answer, first_difference, in_dtype, same
from minirl.drills.bank import BANK, Case, Drill, Mutant
from minirl.drills.desk import called, find, shapes, shown, shown_apart
from minirl.drills.fragility import remarks
from minirl.types import Tensor


@dataclass(frozen=True)
class Result:
    status: str  # "ok" | "todo" | "mistake" | "wrong" | "error"
    mistake: str | None  # the name of the wrong version, where it is a known one
    message: str


def check(name: str, fn) -> Result:
    """Judges `fn` against the library's function `name`.

    ok       the same values and gradients; what breaks beyond that (NaN padding, gaps, bfloat16) is only remarked upon
    todo     nothing written yet: fn is None or ..., returns None or raises NotImplementedError
    mistake  a known wrong version, by name
    wrong    neither; the message holds the smallest batch that differs
    error    it raised, or is no function; the message holds the exception and the shapes

    ValueError for a name without a drill.
    """
    drill = find(name)
    if fn is None or fn is ...:
        return Result("todo", None, f"{name}: nothing here yet.")
    if not callable(fn):
        return Result("error", None, f"{name}: wanted a function, got {type(fn).__name__}.")
    with _undisturbed():
        return _judged(name, drill, fn)


def _judged(name: str, drill: Drill, fn: Callable) -> Result:
    answers, notes = [], []
    for case in drill.cases:
        try:
            answers.append(_patient_answer(drill, fn, case, notes))
        except (NotImplementedError, Unfinished) as stopped:
            return Result("todo", None, f"{name}: {str(stopped) or 'not implemented yet'}.")
        except Exception as error:
            return Result("error", None, _error_message(drill, case, error))
    expected = [answer(drill, drill.of, case) for case in drill.cases]
    difference = first_difference(drill, expected, answers)
    if difference is None:
        judged = "values and gradients" if drill.gradient else "values"
        praise = f"{name}: right, {judged}, on {len(drill.cases)} batches."
        return Result("ok", None, "\n".join([praise, *notes, *remarks(drill, fn)]))
    for mutant in mutants_of(drill):
        wrong = [answer(drill, mutant.function, case) for case in drill.cases]
        if first_difference(drill, wrong, answers) is None:
            seen = f" Seen in {mutant.seen}." if mutant.seen else ""
            return Result("mistake", mutant.name, f"{name}: {mutant.sentence}{seen}")
    return Result("wrong", None, _counterexample(drill, difference, expected[difference], answers[difference]))


def mutants_of(drill: Drill) -> list[Mutant]:
    """The wrong versions in the bank, and the right one cut off from its gradient where that is judged."""
    return [mutant for mutant in BANK if mutant.of is drill.of] + [without_gradient(drill)] * bool(drill.gradient)


def without_gradient(drill: Drill) -> Mutant:
    """The library's function, right in every number and useless for learning."""

    def detached(result):
        if isinstance(result, Tensor):
            return result.detach()
        if isinstance(result, tuple):
            return (detached(result[0]), *result[1:])
        return lambda *args: detached(result(*args))  # a reducer

    def no_gradient(*args, **knobs):
        return detached(drill.of(*args, **knobs))

    sentence = (
        f"The numbers are right, but no gradient reaches {' and '.join(drill.gradient)}, so nothing would be learned: "
        "look for a detach(), item(), no_grad() or torch.tensor(...) on the way."
    )
    return Mutant(drill.of, "no_gradient", sentence, None, no_gradient)


def _patient_answer(drill: Drill, fn: Callable, case: Case, notes: list[str]) -> Answer:
    """In float64, and in float32 where tensors made inside do not mix with float64."""
    try:
        return answer(drill, fn, case)
    except (NotImplementedError, Unfinished):
        raise
    except Exception as error:
        try:
            in_float32 = answer(drill, fn, in_dtype(case, torch.float32))
        except Exception:
            raise error from None
        notes[:] = ["Remark: it takes float32 only; give new tensors the dtype of the inputs."]
        return in_float32


def _error_message(drill: Drill, case: Case, error: Exception) -> str:
    what = f"{drill.of.__name__}: {type(error).__name__}: {error}"
    return f"{what}\nIt was called as {called(drill, case)} with\n{shapes(case)}"


def _counterexample(drill: Drill, index: int, expected: Answer, got: Answer) -> str:
    case = drill.cases[index]
    lines = [
        f"{drill.of.__name__}: not the right numbers, and no mistake that this drill knows. "
        "The smallest batch that differs, to redo by hand:",
        shown(case),
    ]
    if len(expected.values) != len(got.values):
        lines.append(f"expected {len(expected.values)} results, {' and '.join(drill.outputs)}; got {len(got.values)}")
        return "\n".join(lines)
    for output, x, y in zip(drill.outputs, expected.values, got.values, strict=True):
        if x.shape != y.shape:
            lines.append(f"{output}: expected the shape {tuple(x.shape)}, got {tuple(y.shape)}")
        if not same(x, y, drill.tolerance):
            expected_numbers, numbers = shown_apart(x, y)
            return "\n".join([*lines, f"expected {output} = {expected_numbers}", f"     got {output} = {numbers}"])
    name = next(name for name, x in expected.gradients.items() if not same(x, got.gradients[name], drill.tolerance))
    of = drill.outputs[0] if expected.values[0].dim() == 0 else "1 * first entry + 2 * second + ..."
    expected_numbers, numbers = shown_apart(expected.gradients[name], got.gradients[name])
    lines += [
        f"The {drill.outputs[0]} agrees; the gradient of {of} with respect to {name} does not:",
        f"expected {expected_numbers}",
        f"     got {numbers}",
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Generator, gradient mode and warnings are outside what they were, whatever the function does to them inside."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
