"""Functions of a loop, replaced for the length of a run: how studies and the zoo leave a detail out, or plant a mistake."""

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from unittest.mock import patch


@contextlib.contextmanager
def standing_in(module: ModuleType, functions: dict[str, Callable]) -> Iterator[None]:
    """Inside, the module's functions of these names are ours.

    A name that the module lacks, or one that was never called, is an error: the loop has moved on, and what is measured
    would be the plain loop under another name.
    """
    called = set()

    def noticed(name: str, function: Callable) -> Callable:
        def stand_in(*inputs, **knobs):
            called.add(name)
            return function(*inputs, **knobs)

        return stand_in

    for name in functions.keys() - vars(module).keys():
        raise ValueError(f"{module.__name__} has no {name} to stand in for")
    with patch.dict(vars(module), {name: noticed(name, function) for name, function in functions.items()}):
        yield
    for name in functions.keys() - called:
        raise ValueError(f"{module.__name__} never called {name}: the stand-in changed nothing")
