"""Run by the simulated machine's Python, in its empty folder: first cells, each in the states a reader can meet.

    python in_the_machine.py CELLS.json RESULTS.json

PyTorch and matplotlib are imported once; every state is then a process that forks from here, as if it were fresh.
"""

import ast
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

import google.colab
import matplotlib.pyplot as plt  # noqa: F401 - the slow imports: see above
import torch

MACHINE = Path(sys.prefix)
SITE = Path(google.colab.__file__).resolve().parents[2]


def fetching(source: str) -> str:
    """A first cell up to the statement that asks for Colab, with what it imports before."""
    body = ast.parse(source).body
    end = next(
        node.end_lineno for node in body if isinstance(node, ast.If) and "google.colab" in ast.unparse(node.test)
    )
    return "\n".join(source.splitlines()[:end])


def read(name: str) -> list[dict]:
    path = MACHINE / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def in_a_fork(*sources: str, colab: bool = True) -> dict:
    """Execute these, one after the other in one namespace. How it ended, and what pip was asked for."""
    before = len(read("pip.jsonl"))
    child = os.fork()
    if not child:
        sys.path.insert(0, "")  # a kernel looks into the folder it was started in
        if not colab:
            del sys.modules["google.colab"]
        error, space = None, {"__name__": "__main__"}
        try:
            for number, source in enumerate(sources, start=1):
                exec(compile(source, f"cell {number}", "exec"), space)
        except BaseException as problem:
            error = "".join(traceback.format_exception_only(problem)).strip()
        (MACHINE / "end.jsonl").write_text(json.dumps(error))
        os._exit(0)
    os.waitpid(child, 0)
    [error] = read("end.jsonl")
    return {"error": error, "asked": read("pip.jsonl")[before:]}


def without_minirl() -> None:
    """As it was before the first cell. What was built moves back to where the next installation finds it."""
    wheel = MACHINE / "wheel"
    wheel.mkdir(exist_ok=True)
    for path in SITE.iterdir():
        if path.name.startswith("minirl"):
            path.rename(wheel / path.name)
        elif path.name.lower().startswith(("gymnasium", "farama")):
            path.unlink()
    if not any(wheel.iterdir()):
        wheel.rmdir()
    importlib.invalidate_caches()


def set_network(there: bool) -> None:
    path = MACHINE / "machine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"network": there}))


def states_of(cell: str) -> dict:
    found = {"laptop without minirl": in_a_fork(fetching(cell), colab=False)}
    set_network(False)
    found["no network"] = in_a_fork(fetching(cell))
    set_network(True)
    (clone := Path("minirl") / "minirl").mkdir(parents=True)  # what `!git clone` leaves in the folder of the notebook
    found["beside a clone"] = in_a_fork(fetching(cell), "import minirl.types")
    clone.rmdir()
    clone.parent.rmdir()
    without_minirl()
    found["fresh"] = in_a_fork(cell, cell)  # twice: a reader may run it again
    found["restarted"] = in_a_fork(fetching(cell), "import minirl.types")
    found["laptop"] = in_a_fork(fetching(cell), "import minirl.types", colab=False)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    cells, results = json.loads(Path(sys.argv[1]).read_text()), {}
    for name, cell in cells.items():
        without_minirl()
        results[name] = states_of(cell)
    Path(sys.argv[2]).write_text(json.dumps(results))
