"""A pytest plugin: which of the tests that were collected turns red under each wrong version of the bank?

    python -m pytest -p mutant_runner tests/test_kl.py ... --verdicts verdicts.json

The tests are collected once and run once as they are. Then each wrong version in turn takes the place of the function
it imitates, and the items of that function's own test file run until one fails that the plain right version of plain.py
passes. The JSON maps "function.mutant" to {"test": name of the item, "why": where it failed}, or to null for a mutant that
survives, and "baseline" to the items that failed without any mutant.

The place is taken inside the function object: its code is replaced, so that every name it was imported under, every
parametrised list and every default argument that holds it sees the mutant. This needs plain functions, hence the early
import below: what is imported before conftest.py is not reached by its shape-checking hook.
"""

import contextlib
import dataclasses
import inspect
import json
import types
from pathlib import Path

import hypothesis
from _pytest.runner import runtestprotocol

from minirl.drills import solutions as plain
from minirl.drills.bank import Drill, Mutant
from minirl.drills.desk import DRILLS
from minirl.drills.judge import mutants_of, without_gradient

# words in the names of tests that hold something other than the function's values
LAST = ("refused", "padding", "garbage", "halves", "half", "float64", "finite", "stats", "accepted", "unhooked")


def pytest_addoption(parser):
    parser.addoption("--verdicts", required=True, help="where to write the JSON")


def pytest_runtestloop(session):
    quick = hypothesis.settings(max_examples=4, phases=[hypothesis.Phase.generate], derandomize=True, deadline=None)
    hypothesis.settings.register_profile("mutants", quick, database=None)
    hypothesis.settings.load_profile("mutants")
    verdicts = {"baseline": [item.nodeid for item in session.items if _failure(item)]}
    for drill in DRILLS.values():
        items = _items_of(drill, session.items)
        unfair = set()  # items that the plain right version fails too
        for mutant in mutants_of(drill):
            verdicts[f"{drill.of.__name__}.{mutant.name}"] = _first_failure(items, drill, mutant, unfair)
    Path(session.config.getoption("verdicts")).write_text(json.dumps(verdicts, indent=1))
    return True


def _items_of(drill: Drill, items: list) -> list:
    """The items of the test file of the function's module. First those that are about this function and its values."""
    module = drill.of.__module__.rpartition(".")[2]
    own = [item for item in items if item.path.stem == f"test_{module}"]
    return sorted(own, key=lambda item: (_is_late(item), not _is_about(item, drill.of), _is_generated(item)))


def _is_about(item, function) -> bool:
    held = getattr(item, "callspec", None)
    return held is not None and any(value is function for value in held.params.values())


def _is_late(item) -> bool:
    return any(word in item.originalname for word in LAST)


def _is_generated(item) -> bool:
    return getattr(item.function, "is_hypothesis_test", False)


def _first_failure(items: list, drill: Drill, mutant: Mutant, unfair: set[str]) -> dict | None:
    """The first item that fails with the mutant, and passes with the plain right version."""
    for item in items:
        if item.nodeid not in unfair:
            with _in_place_of_the_original(drill, mutant):
                why = _failure(item)
            if why:
                with _in_place_of_the_original(drill, _plain(drill)):
                    if not _failure(item):
                        return {"test": item.name, "why": why}
                unfair.add(item.nodeid)
    return None


def _plain(drill: Drill) -> Mutant:
    return Mutant(drill.of, "plain", "", None, getattr(plain, drill.of.__name__))


def _failure(item) -> str | None:
    """Where and how an item failed, or None if it passes."""
    for report in runtestprotocol(item, log=False):
        if report.failed:
            return report.longreprtext.strip().splitlines()[0]
    return None


@contextlib.contextmanager
def _in_place_of_the_original(drill: Drill, mutant: Mutant):
    """Exchanges what stands inside the function, or inside the class, and puts it back."""
    with _methods_of(drill, mutant) if inspect.isclass(drill.of) else _code_of(drill, mutant):
        yield


@contextlib.contextmanager
def _methods_of(drill: Drill, mutant: Mutant):
    before = {name: x for name, x in vars(drill.of).items() if inspect.isfunction(x)}
    methods = inspect.getmembers(mutant.function, inspect.isfunction)
    for name, method in methods:
        setattr(drill.of, name, method)
    yield
    for name, _ in methods:
        delattr(drill.of, name)
    for name, method in before.items():
        setattr(drill.of, name, method)


@contextlib.contextmanager
def _code_of(drill: Drill, mutant: Mutant):
    of = drill.of
    original = types.FunctionType(of.__code__, of.__globals__, of.__name__, of.__defaults__, of.__closure__)
    original.__kwdefaults__ = of.__kwdefaults__
    if mutant.name == "no_gradient":
        mutant = without_gradient(dataclasses.replace(drill, of=original))  # or it would call itself

    def stand_in(*args, mutated, **knobs):
        return mutated(*args, **knobs)

    def mutated(*args, **knobs):
        """Input checks and statistics stay the original's: what is on trial is the result."""
        expected = original(*args, **knobs)
        got = mutant.function(*args, **knobs)
        if isinstance(expected, tuple) and isinstance(expected[1], dict):
            loss = got[0] if isinstance(got, tuple) else got
            return loss, expected[1] | {"loss": loss.detach()}
        return got

    saved = of.__code__, of.__defaults__, of.__kwdefaults__
    of.__signature__ = inspect.signature(of)  # the tests read names and knobs from it
    of.__code__, of.__defaults__, of.__kwdefaults__ = stand_in.__code__, None, {"mutated": mutated}
    yield
    of.__code__, of.__defaults__, of.__kwdefaults__ = saved
    del of.__signature__
