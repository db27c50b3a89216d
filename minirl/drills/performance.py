"""All that a learner's function does, written down as data.

Judging falls into two halves, so that a grader can run the first in a process of its own: `perform` calls the function,
on every batch it will be judged by, and `minirl.drills.judge.verdict` looks at what came out and never at the function.
"""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch

from minirl.drills.answers import Answer, Unfinished, answer, from_plain, in_dtype, to_plain
from minirl.drills.bank import Case, Drill
from minirl.drills.desk import called, shapes
from minirl.drills.probes import probes
from minirl.types import Tensor


@dataclass(frozen=True)
class Performance:
    stopped: tuple[str, str] | None = None  # ("todo" or "error", what it said); nothing below then means anything
    answers: list[Answer] = field(default_factory=list)  # one a case
    probed: dict[str, Answer | None] = field(default_factory=dict)  # by the probe's name; None where it raised
    refused: bool = False  # it raised a ValueError for a mask with nothing in it
    changed: list[str] = field(default_factory=list)  # inputs it changed in place
    carriers: list[str] = field(default_factory=list)  # inputs that get a gradient
    float32_only: bool = False


def perform(drill: Drill, fn) -> Performance:
    """Calls fn. Whatever it raises is part of the performance; generator, gradient mode and warnings are put back."""
    if fn is None or fn is ...:
        return Performance(("todo", "nothing here yet"))
    if not callable(fn):
        return Performance(("error", f"{drill.of.__name__}: wanted a function, got {type(fn).__name__}."))
    with undisturbed():
        return _performed(drill, fn)


def _performed(drill: Drill, fn: Callable) -> Performance:
    answers, notes = [], set()
    for case in drill.cases:
        try:
            answers.append(_patient_answer(drill, fn, case, notes))
        except (NotImplementedError, Unfinished) as stopped:
            return Performance(("todo", str(stopped) or "not implemented yet"))
        except Exception as error:
            return Performance(("error", _error_message(drill, case, error)))
    return Performance(
        None,
        answers,
        {probe.name: _answer_or_none(probe.drill, fn, probe.case) for probe in probes(drill)},
        drill.cases[-1].mask is not None and _refuses(drill, fn, _nothing_counted(drill.cases[-1])),
        _changed(drill, fn, drill.cases[-1]),
        _carriers(drill, fn, drill.cases[-1]),
        bool(notes),
    )


def _patient_answer(drill: Drill, fn: Callable, case: Case, notes: set) -> Answer:
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
        notes.add("float32 only")
        return in_float32


def _answer_or_none(drill: Drill, fn: Callable, case: Case) -> Answer | None:
    try:
        return answer(drill, fn, case)
    except Exception:
        return None


def _error_message(drill: Drill, case: Case, error: Exception) -> str:
    what = f"{drill.of.__name__}: {type(error).__name__}: {error}"
    return f"{what}\nIt was called as {called(drill, case)} with\n{shapes(case)}"


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


def _changed(drill: Drill, fn: Callable, case: Case) -> list[str]:
    copies = {name: x.clone() if isinstance(x, Tensor) else copy.copy(x) for name, x in case.inputs.items()}
    try:
        drill.call(fn, dict(copies), dict(case.knobs))
    except Exception:
        return []

    def moved(before, after) -> bool:
        return not torch.equal(before, after) if isinstance(before, Tensor) else before != after

    return [name for name, x in case.inputs.items() if moved(x, copies[name])]


def _carriers(drill: Drill, fn: Callable, case: Case) -> list[str]:
    """Floating inputs that get a gradient, in a drill where gradients are judged."""
    if not drill.gradient:
        return []
    names = [name for name, x in case.inputs.items() if isinstance(x, Tensor) and x.is_floating_point()]
    performed = _answer_or_none(replace(drill, gradient=names, detached=()), fn, case)
    if performed is None:
        return []
    return sorted(name for name in names if bool((performed.gradients[name] != 0).any()))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Generator, gradient mode and warnings are outside what they were, whatever the function does to them inside."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


# From one process to another, without pickle


def to_json(performance: Performance) -> dict:
    """What json.dumps takes; NaN and infinity stay what they are."""
    return {
        "stopped": performance.stopped,
        "answers": [to_plain(x) for x in performance.answers],
        "probed": {name: None if x is None else to_plain(x) for name, x in performance.probed.items()},
        "refused": performance.refused,
        "changed": performance.changed,
        "carriers": performance.carriers,
        "float32_only": performance.float32_only,
    }


def from_json(data: dict) -> Performance:
    """ValueError where the data is not what `to_json` writes."""
    try:
        stopped = data["stopped"]
        if stopped is not None:
            status, words = stopped
            if status not in ("todo", "error") or not isinstance(words, str):
                raise ValueError(f"stopped: wanted todo or error and a text, got {stopped!r}")
            stopped = (status, words)
        return Performance(
            stopped,
            [from_plain(x) for x in data["answers"]],
            {str(name): None if x is None else from_plain(x) for name, x in data["probed"].items()},
            bool(data["refused"]),
            [str(name) for name in data["changed"]],
            [str(name) for name in data["carriers"]],
            bool(data["float32_only"]),
        )
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"performance: not what to_json writes ({error!r})") from None
