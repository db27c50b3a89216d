"""The submission's side: runs its pieces and then, drill by drill, what `check` would have its function do.

What the function did goes back as numbers (minirl.drills.performance); the verdict is made by the grader. Requests come as
JSON lines on what was standard input, replies leave on what was standard output, and what the submission prints goes where
standard error goes.
"""

import __future__

import ast
import linecache
import os
import re
import sys
import traceback
import types
from collections.abc import Callable
from json import dumps, loads

import torch

from minirl.drills.desk import find
from minirl.drills.grading.confine import confine
from minirl.drills.grading.surroundings import Surroundings
from minirl.drills.performance import perform, to_json
from minirl.types import Tensor

MOST_NUMBERS = 200_000  # in one result


def main(settings: dict) -> None:
    """Serves until its input ends; ends the process then."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.environ["TMPDIR"] = os.environ["HOME"] = settings["scratch"]
    torch.set_num_threads(1)
    held = confine(**settings)
    _write(replies, {"held": held})
    serve(requests, replies)
    os._exit(0)


def serve(requests: int, replies: int) -> None:
    desk = Desk(lambda message: _write(replies, message))
    with os.fdopen(requests, "rb") as lines:
        for line in lines:
            message = loads(line)
            try:
                reply = getattr(desk, message["do"])(message)
            except BaseException as error:  # SystemExit and KeyboardInterrupt too: they are the submission's
                reply = {"raised": described(error, desk.filename)}
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except BaseException:  # the submission may have put anything there
                    pass
            _write(replies, reply | {"id": message["id"]})


def _write(replies: int, message: dict, write=os.write) -> None:
    line = dumps(message).encode() + b"\n"
    while line:
        line = line[write(replies, line) :]


class Desk:
    """What can be asked for. State: the submission's module."""

    def __init__(self, tell: Callable):
        self.tell, self.filename = tell, "submission"
        self.module = types.ModuleType("submission")
        self.before = Surroundings()

    def load(self, message: dict) -> dict:
        """Runs the pieces (cells, or the statements of a file), each announced, past those that raise."""
        self.filename = self.module.__file__ = message["filename"]
        sys.modules["submission"] = self.module
        failed: list = []
        pieces = pieces_of(message["sources"], self.filename, message["notebook"], failed)
        if failed and not message["notebook"]:  # a cell that is no Python leaves the others; a file is all or nothing
            where, problem = failed[0]
            return {"problem": f"{where}: {problem['name']}: {problem['message']}"}
        for i, (where, piece) in enumerate(pieces):
            if i in message["skip"]:
                continue
            self.tell({"piece": i, "where": where})
            try:
                exec(piece, vars(self.module))
            except BaseException as error:
                failed.append([where, described(error, self.filename)])
        return {"failed": failed, "changed": self.before.changes()}

    def drill(self, message: dict) -> dict:
        """All that the function named so does on the batches of its drill, and what it changed around it."""
        name = message["name"]
        function = vars(self.module).get(name)
        if name not in vars(self.module) or (getattr(function, "__module__", None) or "").startswith("minirl."):
            return {"missing": "the library's own is imported, and none written" if function else "not in the file"}
        watched = Watched(function, self, library_code(name))
        performance = to_json(perform(find(name), watched if callable(function) else function))
        changes = list(dict.fromkeys([*watched.changes, *self.before.changes()]))
        left = {"changed": changes, "threads": self.before.more_threads()}
        return left | {"performance": performance, "raised_at": watched.line, "library": watched.library}


class Watched:
    """A submission's function: ends no more than a call, returns no more than can be read, and is seen calling the library's."""

    def __init__(self, function: Callable, desk: Desk, codes: dict):
        self.function, self.desk, self.codes = function, desk, codes
        self.library, self.line, self.changes = None, "", []

    def __call__(self, *args, **knobs):
        if self.codes:
            sys.setprofile(self._look)
        try:
            result = self.function(*args, **knobs)
        except BaseException as error:
            seen = described(error, self.desk.filename)
            self.line = seen["line"]
            if isinstance(error, Exception) and not isinstance(error, MemoryError | PermissionError):
                raise
            raise type(seen["name"], (Exception,), {})(seen["message"]) from None
        finally:
            sys.setprofile(None)
            self.changes += self.desk.before.changes_of_torch()
        tensors = [x for x in (result if isinstance(result, tuple | list) else [result]) if isinstance(x, Tensor)]
        if sum(x.numel() for x in tensors) > MOST_NUMBERS:
            shapes = ", ".join(str(tuple(x.shape)) for x in tensors[:3])
            raise ValueError(f"it returned more than {MOST_NUMBERS:,} numbers, tensors of shape {shapes}")
        return result

    def _look(self, frame, event, _):
        if event == "call" and frame.f_code in self.codes:
            self.library = self.codes[frame.f_code]


def library_code(name: str) -> dict:
    """The code of the library's own `name`, wherever it lives: {code: where}."""
    found = {}
    for place, module in list(sys.modules.items()):
        thing = vars(module).get(name) if place.startswith("minirl.") else None
        if not (getattr(thing, "__module__", None) or "").startswith("minirl."):
            continue
        for function in vars(thing).values() if isinstance(thing, type) else [thing]:
            if isinstance(function, types.FunctionType):
                found[function.__code__] = f"{thing.__module__}.{name}"
    return found


def described(error: BaseException, filename: str) -> dict:
    """The exception in words, and the line of the submission it came from. Its own __str__ may be a trap."""
    try:
        said = str(error)[:1500]
    except BaseException:
        said = "(its text cannot be shown)"
    if isinstance(error, MemoryError):
        said = f"it wanted more memory than a submission may have {said}".strip()
    if isinstance(error, PermissionError):
        said += " (files, processes, signals and the network are closed while a submission is graded)"
    line = ""
    try:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(filename)]
        if frames:
            line = f"{frames[-1].filename}, line {frames[-1].lineno}: {(frames[-1].line or '')[:200]}"
    except BaseException:
        pass
    return {"name": type(error).__name__[:60], "message": said, "line": line}


# Reading


def pieces_of(sources: list[str], filename: str, notebook: bool, failed: list) -> list[tuple[str, object]]:
    """(where, compiled) for each cell of a notebook, or each statement of a file; what does not compile goes to failed."""
    pieces, flags = [], 0
    for n, source in enumerate(sources, 1):
        name = f"{filename}, cell {n}" if notebook else filename
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        try:
            body = parsed(source, name, notebook).body
            for part in [body] if notebook else [[statement] for statement in body]:
                if part and isinstance(part[0], ast.ImportFrom) and part[0].module == "__future__":
                    for alias in part[0].names:
                        flags |= getattr(__future__, alias.name).compiler_flag
                code = compile(ast.Module(part, []), name, "exec", flags, dont_inherit=True)
                pieces.append((f"cell {n}" if notebook else f"line {part[0].lineno}", code))
        except (SyntaxError, ValueError, AttributeError, RecursionError, MemoryError) as error:
            where = f"line {error.lineno}" if getattr(error, "lineno", None) else "as a whole"
            said = error.msg if isinstance(error, SyntaxError) else str(error)
            problem = {"name": type(error).__name__, "message": said[:300], "line": ""}
            failed.append([f"cell {n}, {where}" if notebook else where, problem])
    return pieces


def parsed(source: str, name: str, notebook: bool) -> ast.Module:
    """A cell that is no Python is read once more without its magics: %matplotlib inline, !pip install, torch.tensor?"""
    try:
        return ast.parse(source, name)
    except SyntaxError:
        if not notebook:
            raise
    if re.match(r"\s*%%(?!time|capture)", source):
        return ast.Module([], [])
    magic = re.compile(r"^(\s*)(?:[%!?].*|[\w, ]+=\s*[%!].*|[\w.]+\?{1,2}\s*)$")
    return ast.parse("\n".join(magic.sub(r"\1pass", line) for line in source.split("\n")), name)


if __name__ == "__main__":
    main(loads(sys.argv[1]))
