"""SIGTERM, a terminal that closes, and Ctrl-C: the step that is running is finished and saved, and then the process ends.

The command line listens; a notebook does not, and its KeyboardInterrupt stays what it is.

    with listening():                     # the command line, around everything
        ...
        with finishing_the_step() as asked:   # a run, around its steps
            for step in ...:
                yield step
                if asked():               # somebody wants us to stop: save, and raise asked()
"""

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP, and nobody who sends SIGTERM


class Ended(KeyboardInterrupt):
    """The process was asked to end. `saved` says what a run could still save, as a sentence's end."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number, self.saved = number, ""

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, as shells have it; 0 for the others: whoever sent them got what they wanted."""
        return 130 if self.number == signal.SIGINT else 0


class _Ear:
    """What was heard. Signals belong to the process, so there is one of these."""

    def __init__(self):
        self.in_steps, self.heard, self.process = False, None, 0


_ear = _Ear()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Inside, these signals raise Ended, or inside `finishing_the_step` wait for the end of the step; a second Ctrl-C does
    not wait. Only in the main thread, where Python allows it; a signal that is ignored (nohup, `&`) stays ignored."""
    before, _ear.process = {}, os.getpid()
    if threading.current_thread() is threading.main_thread():
        for name in NAMES:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, _hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _ear.in_steps, _ear.heard = False, None


@contextlib.contextmanager
def finishing_the_step() -> Iterator[Callable[[], Ended | None]]:
    """A function that says whether to end after this step: None, or the exception to raise once everything is saved."""
    before, _ear.in_steps = _ear.in_steps, True
    try:
        yield lambda: None if _ear.heard is None else Ended(_ear.heard)
    finally:
        _ear.in_steps = before


def _hear(number: int, frame) -> None:
    if os.getpid() != _ear.process:  # a child by fork, a worker of somebody's reward rule
        # a terminal sends Ctrl-C to all, and the step cannot be finished without its workers
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return
    again, first = _ear.heard is not None, _ear.heard is None
    if not _ear.in_steps or (again and number == signal.SIGINT):
        raise Ended(number)
    if first:
        _ear.heard = number
        hint = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone; print is not safe inside a handler
            os.write(sys.__stderr__.fileno(), f"\nminirl: finishing this step, then saving{hint}\n".encode())


# The words that go on


def how_to_go_on(words: list[str], can_resume: bool) -> str:
    """The command to type next. `words`: what followed `python -m minirl`."""
    if not can_resume:
        return f"The same command begins again: {command_line(words)}"
    return f"To go on: {command_line([*without_resume(words), '--resume'])}"


def command_line(words: list[str]) -> str:
    ours = os.environ.get("LOCAL_WORLD_SIZE", "1")
    start = ["torchrun", "--nproc-per-node", ours] if several_processes() else ["python"]
    return shlex.join([*start, "-m", "minirl", *words])


def several_processes() -> bool:
    """Whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def without_resume(words: list[str]) -> list[str]:
    return [word for word in words if word not in ("--res", "--resu", "--resum", "--resume")]
