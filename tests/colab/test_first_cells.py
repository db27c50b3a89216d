"""Every notebook's first cell, in each state in which a reader can meet it on Colab and elsewhere."""

import ast
import json
import re

import nbformat
import pytest
import simulated

from minirl import REPOSITORY

NAMES = [path.stem for path in simulated.NOTEBOOKS]
WANTS_GYMNASIUM = "02_cartpole"


def first_cell(name: str) -> str:
    book = nbformat.read(simulated.ROOT / "notebooks" / f"{name}.ipynb", 4)
    return simulated.code(book)[0].source


def fetching_part(name: str) -> str:
    """The statements that fetch, without comments and without what is imported for later."""
    body = ast.parse(first_cell(name)).body
    end = next(i for i, node in enumerate(body) if isinstance(node, ast.If) and "google.colab" in ast.unparse(node))
    needed = ("importlib.util", "subprocess", "sys")
    kept = [n for n in body[: end + 1] if not isinstance(n, ast.Import | ast.ImportFrom) or n.names[0].name in needed]
    return "\n".join(map(ast.unparse, kept))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    machine = simulated.build(tmp_path_factory.mktemp("colab") / "machine")
    cells, found = machine.folder / "cells.json", machine.folder / "results.json"
    cells.write_text(json.dumps({name: first_cell(name) for name in NAMES}))
    done = simulated.python(machine, str(simulated.HERE / "in_the_machine.py"), str(cells), str(found))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(found.read_text())


def test_the_cells_fetch_alike():
    """One text in all, but for the notebook that needs one package more."""
    kinds = {}
    for name in NAMES:
        kinds.setdefault(fetching_part(name), []).append(name)
    assert sorted(kinds.values(), key=len) == [[WANTS_GYMNASIUM], [name for name in NAMES if name != WANTS_GYMNASIUM]]


@pytest.mark.parametrize("name", NAMES)
def test_fresh_runtime(results, name):
    """The cell runs, fetches minirl alone, changes nothing of Colab's, and asks for nothing when it is run again."""
    found = results[name]["fresh"]
    assert found["error"] is None
    installed = [call["changes"] for call in found["asked"]]
    with_gymnasium = {"gymnasium": "new", "farama-notifications": "new"}
    assert installed == [{"minirl": "new"}, with_gymnasium][: 1 + (name == WANTS_GYMNASIUM)]
    release = found["asked"][0]["asked"]
    assert release == ["install", "-q", "--no-deps", f"git+https://github.com/{REPOSITORY}"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("state", ["restarted", "laptop", "laptop without minirl"])
def test_nothing_to_do(results, name, state):
    """After a restart of the runtime minirl is still on its disk; elsewhere than on Colab nothing is ever fetched."""
    found = results[name][state]
    assert found["asked"] == [] and found["error"] is None


@pytest.mark.parametrize("name", NAMES)
def test_no_network_is_one_clear_sentence(results, name):
    error = results[name]["no network"]["error"]
    assert re.fullmatch(r"\w+Error: minirl could not be fetched\. .*run this cell again.*", error), error


@pytest.mark.parametrize("name", NAMES)
def test_a_clone_in_the_folder_is_not_taken_for_the_package(results, name):
    """`!git clone` leaves a folder named minirl beside the notebook, and Python sees a package without code in it."""
    found = results[name]["beside a clone"]
    assert found["error"] is None and found["asked"]


@pytest.mark.parametrize("name", NAMES)
def test_badge_opens_this_notebook(name):
    book = nbformat.read(simulated.ROOT / "notebooks" / f"{name}.ipynb", 4)
    links = [link for cell in book.cells for link in re.findall(r"https://colab\.research[^\s)]+", cell.source)]
    badge = "https://colab.research.google.com/assets/colab-badge.svg"
    own = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{name}.ipynb"
    assert links == [badge, own] and f"[![Open in Colab]({badge})]({own})" in book.cells[0].source


def test_readme_s_badges_open_each_notebook():
    """Each once, in the row that links to the notebook itself."""
    rows = [line for line in (simulated.ROOT / "README.md").read_text().splitlines() if line.startswith("| [`")]
    assert [re.match(r"\| \[`(\w+)`\]", row)[1] for row in rows if "colab.research" in row] == NAMES
    for row, name in zip(rows, NAMES, strict=False):
        path = f"notebooks/{name}.ipynb"
        own = f"(https://colab.research.google.com/github/{REPOSITORY}/blob/main/{path})"
        assert f"]({path})" in row and re.findall(r"\(https://colab.research.google.com/github.*?\)", row) == [own]
