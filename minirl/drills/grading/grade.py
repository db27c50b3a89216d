"""grade(submission, drills, sandbox): every drill judged as by `check`, on numbers that the submission's process sends.

`check` has two halves. The first, which calls the function, runs over there; the second, which looks at what came out and
compares it with the library and with the known mistakes, runs here, where no line of a submission is ever read as code.

A process serves all drills of a submission and is replaced when it ends, hangs, or leaves threads behind. A drill that
takes it down after others went well is tried once more in a fresh one: the fault may have been a thread of those.
"""

import math
import time
from dataclasses import dataclass, field

from minirl.drills.grading.sandbox import KEPT_OUTPUT, Process, Sandbox, Stopped
from minirl.drills.grading.submissions import Submission
from minirl.drills.judge import verdict
from minirl.drills.performance import from_json

MOST_NUMBERS = 200_000  # in one table
RESTARTS = 3  # pieces of one file that may take the process down while it is read


@dataclass(frozen=True)
class Verdict:
    drill: str
    status: str  # those of `check`, or "timeout", "crash", "library", "unread"
    mistake: str | None
    message: str
    notes: tuple[str, ...] = ()


@dataclass
class Marks:
    student: str
    filename: str
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # about the file as a whole
    head: str = ""  # what it printed first
    seconds: float = 0.0  # wall time

    @property
    def points(self) -> int:
        return sum(verdict.status == "ok" for verdict in self.verdicts)


def grade(
    submission: Submission, drills: list[str], sandbox: Sandbox, *, seconds: float = 10.0, import_seconds: float = 20.0
) -> Marks:
    """Limits are wall time: `seconds` for a drill, `import_seconds` for the file. Never raises for what a submission does."""
    start = time.monotonic()
    marks = Marks(submission.student, submission.filename)
    room = Room(submission, sandbox, import_seconds, marks)
    for name in drills:
        marks.verdicts.append(room.judged(name, seconds))
    room.leave()
    marks.seconds = time.monotonic() - start
    return marks


class Room:
    """One submission and its current process."""

    def __init__(self, submission: Submission, sandbox: Sandbox, import_seconds: float, marks: Marks):
        self.submission, self.sandbox, self.import_seconds, self.marks = submission, sandbox, import_seconds, marks
        self.process: Process | None = None
        self.served = 0  # drills that the process has been called for
        self.skip: list[int] = []  # pieces that took a process down
        self.problem = submission.problem
        self.printed = 0

    def judged(self, name: str, seconds: float) -> Verdict:
        found = self._judged_once(name, seconds)
        if found.status in ("timeout", "crash") and self.served:
            found = self._judged_once(name, seconds)
        self.served = self.served + 1 if self.process else 0
        return found

    def _judged_once(self, name: str, seconds: float) -> Verdict:
        try:
            if self.process is None and self.problem is None:
                self._open()
            if self.problem:
                self._note(self.problem)
                return Verdict(name, "unread", None, f"{name}: {self.problem}.")
            reply = self.process.ask({"do": "drill", "name": name}, seconds)
            if "missing" in reply:
                return Verdict(name, "todo", None, f"{name}: {str(reply['missing'])[:100]}.")
            if "raised" in reply:
                return Verdict(name, "error", None, _raised(name, reply["raised"]))
            return self._verdict(name, reply)
        except Stopped as stopped:
            self.leave()
            return Verdict(name, stopped.status, None, f"{name}: it {stopped.why}.")
        except OSError:  # no process could be started: nobody's fault here
            raise
        except Exception as error:  # its process said something that no honest one says
            self.leave()
            return Verdict(name, "error", None, f"{name}: its answer could not be read: {str(error)[:300]}")

    def _verdict(self, name: str, reply: dict) -> Verdict:
        check_sizes(reply["performance"])
        result = verdict(name, from_json(reply["performance"]))
        message = result.message
        if result.status == "error" and reply["raised_at"]:
            message += f"\nIt was raised at {str(reply['raised_at'])[:300]}"
        notes = tuple(f"it {str(said)[:200]}" for said in reply["changed"][:20])
        if int(reply["threads"]) > 0:
            notes += ("it left a thread running, which was ended",)
        if int(reply["threads"]) > 0 or any(note.startswith("it replaced") for note in notes):
            self.leave()  # the next drill begins afresh
        if reply["library"] and result.status == "ok":
            said = f"{name}: right, but it calls {str(reply['library'])[:100]}, which was the thing to write."
            return Verdict(name, "library", None, said, notes)
        return Verdict(name, result.status, result.mistake, message, notes)

    def _open(self) -> None:
        """A process that has run the file, past the pieces that took earlier ones down."""
        one = self.submission
        request = {"do": "load", "filename": one.filename, "sources": one.sources, "notebook": one.notebook}
        while True:
            self.process, self.served = self.sandbox.start(), 0
            try:
                loaded = self.process.ask(request | {"skip": self.skip}, self.import_seconds)
                self._tell_of(loaded)
                return
            except Stopped as stopped:
                last = self.process.last_piece
                self.leave()
                where, piece = (str(last.get("where"))[:40], last.get("piece")) if last else ("the file", None)
                self._note(f"{where}: it {stopped.why}; what else is in the file was judged")
                if not isinstance(piece, int) or piece in self.skip or len(self.skip) >= RESTARTS:
                    self.problem = f"the file cannot be run: at {where} it {stopped.why}"
                    return
                self.skip.append(piece)

    def _tell_of(self, loaded: dict) -> None:
        if "failed" not in loaded:
            self.problem = f"the file cannot be run: {str(loaded.get('problem') or loaded.get('raised'))[:300]}"
            return
        for where, raised in loaded["failed"][:20]:
            said = f"{str(where)[:40]} raised {str(raised['name'])[:60]}: {str(raised['message'])[:300]}"
            self._note(said.removesuffix(": "))
        for said in loaded["changed"][:20]:
            self._note(f"while the file was read, it {str(said)[:200]}")

    def _note(self, note: str) -> None:
        if note not in self.marks.notes:  # the file is read again after every restart
            self.marks.notes.append(note)

    def leave(self) -> None:
        """Ends the process and keeps what it printed."""
        if self.process is None:
            return
        self.process.end()
        self.printed += self.process.printed
        self.marks.head = self.marks.head or self.process.head.decode(errors="replace")
        self.process = None
        if self.printed > KEPT_OUTPUT:
            self.marks.notes[:] = [note for note in self.marks.notes if not note.startswith("printed ")]
            self.marks.notes.append(f"printed {_bytes(self.printed)}, cut")


def check_sizes(performance: dict) -> None:
    """ValueError for tables too large to be written out: an empty axis may stand beside a huge one."""
    answers = [*performance["answers"], *filter(None, performance["probed"].values())]
    for table in [x for answer in answers for x in [*answer["values"], *answer["gradients"].values()]]:
        if math.prod(max(int(n), 1) for n in table["shape"]) > MOST_NUMBERS or len(table["shape"]) > 16:
            raise ValueError(f"more than {MOST_NUMBERS:,} numbers, or as many rows")


def _raised(name: str, raised: dict) -> str:
    at = f"\nIt was raised at {str(raised['line'])[:300]}" if raised["line"] else ""
    return f"{name}: {str(raised['name'])[:60]}: {str(raised['message'])[:1500]}{at}"


def _bytes(n: int) -> str:
    for size, unit in [(1e9, "GB"), (1e6, "MB"), (1e3, "KB")]:
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} bytes"
