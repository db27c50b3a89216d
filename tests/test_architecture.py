"""The floors of the house. Imports run downwards only; rooms on one floor do not know each other."""

import ast
import re
from pathlib import Path

import pytest

import minirl
from minirl.drills import BANK, names

PACKAGE = Path(__file__).resolve().parents[1] / "minirl"

FLOORS = [
    ["types", "disk", "files", "signals"],
    ["masking", "guards", "ranks"],
    ["kl", "logprobs", "advantages", "rewards", "rotary", "sampling", "shards"],
    ["losses", "tokenizer", "checkpoint"],
    ["ops", "config"],
    ["attention"],
    ["model"],
    ["decoder"],
    ["generate", "layouts", "chat", "lora", "tasks", "exact"],
    ["rollout", "run", "pretrained", "adapters"],
    ["train", "samples", "gguf_file", "served"],
    ["loops"],
    ["road", "launch"],
    ["__main__"],
]
# nothing imports a side room but the command line
SIDE = {"bench", "cards", "classic", "cost", "doctor", "drills", "kernels", "report", "show"}
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "minirl":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("minirl.")}
    return rooms & (set(FLOOR_OF) | SIDE)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    here = room_of(path)
    for room in imported_rooms(path) - {here}:
        if room in SIDE:
            assert here == "__main__", f"{here} imports the side room {room}"
        elif here not in SIDE:
            assert FLOOR_OF[room] < FLOOR_OF[here], f"{here} (floor {FLOOR_OF[here]}) imports {room} ({FLOOR_OF[room]})"


def test_every_room_has_a_floor():
    assert {room_of(path) for path in FILES} == set(FLOOR_OF) | SIDE


def test_modules_stay_readable():
    """A page or three: the aim is 200 lines; 400 is where a room has become two."""
    too_long = {path.name: n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    assert not too_long


def test_no_forbidden_rooms():
    assert not [path for path in PACKAGE.rglob("*") if path.stem in ("utils", "helpers", "common")]


def test_library_runs_without_plots_or_notebooks():
    for path in FILES:
        if room_of(path) not in SIDE:
            names = {
                alias.name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import)
                for alias in node.names
            }
            assert not names & {"matplotlib", "IPython", "jupyter"}, path


def test_readme_speaks_of_one_repository():
    """minirl.REPOSITORY is the one name; whoever changes it is told where else it is written."""
    readme = (PACKAGE.parent / "README.md").read_text()
    named = re.findall(r"/github/([\w.-]+/[\w.-]+)|//github\.com/([\w.-]+/[\w.-]+)", readme)
    assert {colab or clone for colab, clone in named} == {minirl.REPOSITORY}


def test_readme_counts_what_there_is():
    readme = (PACKAGE.parent / "README.md").read_text()
    assert f"**Yours.** {len(names())} drills" in readme
    assert (
        readme.count(f"{len(BANK)} well-known wrong versions") == readme.count(f"holds {len(BANK)} wrong versions") == 1
    )
    rows = [line.split(",") for line in (PACKAGE.parent / "data/zoo/table.csv").read_text().splitlines()[1:]]
    shown = [row for row in rows if int(row[1]) > 0]
    assert all(row[1] == row[2] and row[5] == "0" for row in shown), "each named first in all its runs, no false alarm"
    assert f"{len(shown)}\nsicknesses" in readme and f"on none of {rows[0][4]} healthy ones" in readme
