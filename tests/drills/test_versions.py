"""The student's notebook holds no answer, the solution's passes its own drills, and both come from the stored one."""

import argparse
import ast
import json
from pathlib import Path

import pytest

from minirl.drills import check
from minirl.drills.versions import YOURS, add_arguments, exercises, fill_in, folded_functions, run, solution, student

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code_of(notebook: dict) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def text_of(notebook: dict) -> str:
    return "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


@every
def test_the_student_gets_questions_and_no_answers(path):
    notebook = read(path)
    version = student(notebook)
    assert len(version["cells"]) == len(notebook["cells"]) and code_of(version) == code_of(notebook)
    assert not [cell for cell in version["cells"] if cell.get("outputs") or cell.get("execution_count")]
    assert "<details" not in text_of(version) and "</details>" not in text_of(version)
    questions = [line for line in text_of(version).splitlines() if line.startswith("- ") and line.endswith("?")]
    assert len(questions) >= 3
    assert len(text_of(version)) < len(text_of(notebook))


@every
def test_the_solution_leaves_nothing_to_be_written(path):
    version = solution(read(path))
    assert "<details>" not in text_of(version) and "<details open>" in text_of(version)
    assert not [code for code in code_of(version) if YOURS.search(code)]
    for code in code_of(version):
        ast.parse(code)


@every
def test_the_drills_of_the_solution_are_right(path):
    """Imports and functions of the page are run, not its experiments."""
    notebook = read(path)
    before, after = code_of(notebook), code_of(solution(notebook))
    solved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert solved, "every lesson has a drill"
    for old, new in solved:
        space = {}
        for code in (*[code for code in after if code != new], new):
            for node in ast.parse(code).body:
                if isinstance(node, ast.Import | ast.ImportFrom) or (isinstance(node, ast.FunctionDef) and code == new):
                    exec(compile(ast.Module([node], []), path.name, "exec"), space)
        todo = {node.name for node in ast.parse(old).body if isinstance(node, ast.FunctionDef)}
        mine = {name: drill for name, drill in exercises(ast.parse(old)).items() if name in todo}
        written = {name for name in mine if YOURS.search(ast.get_source_segment(old, function_in(old, name)))}
        for name in written:
            assert check(mine[name], space[name]).status == "ok", (name, check(mine[name], space[name]).message)


def function_in(code: str, name: str) -> ast.FunctionDef:
    return next(node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef) and node.name == name)


def test_most_lessons_are_judged_by_the_library():
    judged = [path.stem for path in NOTEBOOKS if any(exercises(ast.parse(code)) for code in code_of(read(path)))]
    assert len(judged) >= len(NOTEBOOKS) - 3


# By hand

PAGE = {
    "cells": [
        {
            "cell_type": "markdown",
            "source": ["# Page\n", "<details><summary>Why?</summary>\n\nBecause.\n\n</details>\n"],
        },
        {
            "cell_type": "code",
            "source": [
                "from minirl.drills import check\n\n\n",
                "def mine(a, b):\n",
                '    """Two policies."""\n',
                "    return None  # your line here\n\n\n",
                'print(check("kl_k1", mine))',
            ],
            "outputs": [{"text": "to do"}],
            "execution_count": 3,
        },
        {"cell_type": "markdown", "source": "<details><summary>Answer</summary>\n\nSecret.\n\n</details>"},
    ]
}


def test_versions_by_hand():
    assert "".join(student(PAGE)["cells"][0]["source"]) == "# Page\n- Why?\n\n"
    assert "".join(student(PAGE)["cells"][2]["source"]) == ""
    solved = solution(PAGE)["cells"][1]
    assert "".join(solved["source"]) == (
        "from minirl.drills import check\n\n\ndef mine(a, b):\n"
        '    """Two policies."""\n    return a - b\n\n\nprint(check("kl_k1", mine))'
    )
    assert solved["outputs"] == [] and PAGE["cells"][1]["outputs"], "the source is left alone"


def test_the_page_s_own_answer_comes_first():
    own = "<details><summary>A solution</summary>\n\n```python\ndef mine(a, b):\n    return -(b - a)\n```\n\n</details>"
    page = {"cells": [*PAGE["cells"], {"cell_type": "markdown", "source": own}]}
    assert list(folded_functions(page)) == ["mine"]
    assert "return -(b - a)" in "".join(solution(page)["cells"][1]["source"])


def test_knobs_that_an_exercise_leaves_out_stand_at_their_defaults():
    code = 'def mine(values, returns, mask):\n    ...  # your lines here\n\n\ncheck("value_loss", mine)'
    solved = fill_in(code)
    assert solved.startswith("from minirl.drills.solutions import token_mean\n") and "token_mean((returns" in solved
    space = {"check": check}
    exec(solved, space)
    assert check("value_loss", space["mine"])


def test_an_exercise_that_nobody_can_solve_is_named():
    with pytest.raises(ValueError, match=r"^code: mine is to be written"):
        fill_in("def mine(a):\n    ...  # your lines here\n")


@pytest.mark.nightly
def test_a_solution_can_be_executed(tmp_path):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert (
        run(parser.parse_args(["08_gae", "--out", str(tmp_path), "--source", str(NOTEBOOKS[0].parent), "--run"])) == 0
    )
    outputs = [
        cell["outputs"] for cell in read(tmp_path / "solution" / "08_gae.ipynb")["cells"] if cell["cell_type"] == "code"
    ]
    said = "".join("".join(output.get("text", "")) for cell in outputs for output in cell)
    assert "gae: right, values" in said and "returned None" not in said


def test_the_command_writes_both(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    source = str(NOTEBOOKS[0].parent)
    assert run(parser.parse_args(["08_gae", "07_kl", "--out", str(tmp_path), "--source", source])) == 0
    assert "student: 2 notebooks" in capsys.readouterr().out
    for version in ("student", "solution"):
        assert sorted(path.stem for path in (tmp_path / version).iterdir()) == ["07_kl", "08_gae"]
    with pytest.raises(ValueError, match=r"^NAME: 99_none not in"):
        run(parser.parse_args(["99_none", "--out", str(tmp_path), "--source", source]))
