"""Drills in a terminal: `python -m minirl drill` and `python -m minirl interview`, with the learner's own editor beside it."""

import contextlib
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from minirl.drills import kept
from minirl.drills.desk import CHAPTERS, drill, find, hint, names
from minirl.drills.display import as_text
from minirl.drills.interview import Interview, minutes_and_seconds
from minirl.drills.judge import Result, check
from minirl.files import read_text

PROGRESS = Path("drill_progress.json")
HEADER = '''"""Write your functions here; a body of ... is one that is still to be written."""

import math

import torch
import torch.nn.functional as F

from minirl.masking import fixed_length_mean, sequence_mean, token_mean
from minirl.types import Bool, Float, Int, Reducer, Stats, Tensor
'''
SIGNS = {"ok": "right", "todo": "to do", "mistake": "a known mistake", "wrong": "wrong", "error": "an error"}


# python -m minirl drill


def add_drill_arguments(parser) -> None:
    parser.add_argument("name", nargs="?", help="which drill; without one, all of them are listed")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the empty function into this file")
    parser.add_argument("--check", type=Path, metavar="FILE", help="judge the function of that name in this file")
    parser.add_argument(
        "--hint", type=int, metavar="N", help="one of three hints, each more direct than the one before"
    )
    parser.add_argument(
        "--progress", type=Path, default=PROGRESS, metavar="FILE", help=f"where tries are noted ({PROGRESS})"
    )


def run_drill(args) -> int:
    """0 unless a function was judged and is not right."""
    kept.keep_progress(args.progress if args.check or args.hint or args.progress.exists() else None)
    if args.name is None:
        print(listing(kept.progress()))
        return 0
    name = find(args.name).of.__name__
    if args.hint is not None:
        print(hint(name, args.hint))
    elif args.write is not None:
        write_stubs(args.write, [name])
        print(f"{args.write} now holds an empty {name}. When it is written:\n")
        print(f"  python -m minirl drill {name} --check {args.write}")
    elif args.check is not None:
        result = judged(args.check, [name])[name]
        print(result)
        return 0 if result else 1
    else:
        print(drill(name))
    return 0


def listing(progress: dict) -> str:
    lines = []
    for title, rooms in CHAPTERS.items():
        lines += [title, ""]
        for one in (one for room in rooms for one in room.DRILLS):
            name, entry = one.of.__name__, progress.get(one.of.__name__, kept.blank())
            mark = "solved" if entry["solved"] else "tried" if entry["tries"] else ""
            used = f"{entry['tries']} tries, {entry['hints']} hints" if entry["tries"] or entry["hints"] else ""
            about = textwrap.shorten(one.of.__doc__.strip().splitlines()[0], 76, placeholder=" ...")
            lines.append(f"{mark:7}{name:27} {used or about}")
        lines.append("")
    solved = sum(entry["solved"] is not None for entry in progress.values())
    return "\n".join(
        [*lines, f"{len(names())} drills, {solved} solved. `python -m minirl drill NAME` says what to write."]
    )


# The learner's file


def write_stubs(path: Path, wanted: list[str]) -> None:
    """Adds empty functions to a file, which is begun if need be. ValueError for one that it holds already."""
    text = read_text(path) if path.exists() else HEADER
    for name in wanted:
        if f"def {name}(" in text or f"class {name}" in text:
            raise ValueError(f"--write: {path} has a {name} already, and it is left as it is")
    stubs = ["\n\n" + drill(name).partition("\n\nJudged as")[0] + "\n" for name in wanted]
    path.write_text(text + "".join(stubs), encoding="utf-8", newline="\n")


def judged(path: Path, wanted: list[str], judge: Callable[[str, object], Result] = check) -> dict[str, Result]:
    """What `check` says of the functions of these names in a file. A file that does not run is an error of each."""
    if not path.is_file():
        raise ValueError(f"--check: wanted a file, got {path}")
    space = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), space)
    except (Exception, SystemExit) as error:
        line = getattr(error, "lineno", None) or _last_line(error, str(path))
        where = f"line {line} of {path}" if line else str(path)
        return {name: Result("error", None, f"{where}: {type(error).__name__}: {error}") for name in wanted}
    return {name: judge(name, space.get(name)) for name in wanted}


def _last_line(error: BaseException, path: str) -> int | None:
    """The line of the learner's file that an exception came through last."""
    line, at = None, error.__traceback__
    while at is not None:
        line = at.tb_lineno if at.tb_frame.f_code.co_filename == path else line
        at = at.tb_next
    return line


# python -m minirl interview


def add_interview_arguments(parser) -> None:
    parser.add_argument("-n", type=int, default=3, help="drills (3)")
    parser.add_argument("--minutes", type=float, default=30, help="on the clock (30)")
    parser.add_argument("--among", nargs="+", metavar="NAME", help="draw from these (all)")
    parser.add_argument("--draw", type=int, metavar="SEED", help="draw what this number drew before (new ones)")
    parser.add_argument("--file", type=Path, default=Path("interview.py"), help="where you write (interview.py)")


def run_interview(args) -> int:
    interview = Interview(args.n, minutes=args.minutes, seed=args.draw, among=args.among)
    if args.file.exists():
        raise ValueError(f"--file: {args.file} exists already, and may hold work of yours; name another")
    write_stubs(args.file, interview.drills)
    print(f"{args.n} drills, {args.minutes:g} minutes: {', '.join(interview.drills)}.")
    print(f"Write them in {args.file}, save, and come back here.")
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        talk(interview, args.file, input)
    sheet = args.file.with_name(args.file.stem + "_sheet.md")
    sheet.write_text(interview.sheet() + "\n", encoding="utf-8", newline="\n")
    print(f"\n{interview.sheet()}\n\nSheet: {sheet}   Your code: {args.file}")
    return 0


def talk(interview: Interview, path: Path, ask: Callable[[str], str]) -> None:
    """Until all is solved, the time is over, or q."""
    hints_read = dict.fromkeys(interview.drills, 0)
    while interview.seconds_left > 0 and len(interview.solved) < len(interview.drills):
        left = minutes_and_seconds(interview.seconds_left)
        words = ask(f"\n[{left}] Enter: judge   h NAME: a hint   q: finish > ").split()
        if not words:
            open_ones = [name for name in interview.drills if name not in interview.solved]
            for result in judged(path, open_ones, interview.check).values():
                print(as_text(f"- {SIGNS[result.status]}. {result.message}"))
        elif words[0] == "q":
            return
        elif words[0] == "h":
            near = [name for name in interview.drills if len(words) > 1 and name.startswith(words[1])]
            if len(near) != 1:
                print(f"h and one of {', '.join(interview.drills)}")
                continue
            hints_read[near[0]] = min(3, hints_read[near[0]] + 1)
            print(f"hint {hints_read[near[0]]} of 3:", interview.hint(near[0], hints_read[near[0]]), sep="\n")
        else:
            print("Enter, h NAME or q.", file=sys.stderr)
    print("\nAll solved." if interview.seconds_left > 0 else "\nTime is over.")
