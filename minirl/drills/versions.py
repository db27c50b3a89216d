"""Two versions of a notebook from one source: the student's, without answers, and the solution's, with all of them.

    python -m minirl notebooks --out built            # all notebooks, built/student and built/solution
    python -m minirl notebooks 08_gae --out built --run   # the solution is executed as well

The source is the notebook as it is stored. What the two versions change:

    an empty function           def my_gae(...): with a comment "# your lines here"
                                student: as it is; solution: written as in a folded answer of the same notebook, or,
                                where it is handed to check("gae", my_gae), as in minirl.drills.solutions
    <details> ... </details>    student: a question stays, its answer goes; solution: unfolded
    outputs                     student: none; solution: as stored, but for the cells that were filled in
"""

import ast
import copy
import inspect
import json
import re
import textwrap
from pathlib import Path

from minirl.drills import solutions
from minirl.drills.desk import find, names

FOLDED = re.compile(r"<details><summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
YOURS = re.compile(r"#.*\byour (lines?|turn)\b")


def student(notebook: dict) -> dict:
    """Nothing executed, nothing answered."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        else:
            _write(cell, re.sub(r"\n{3,}", "\n\n", FOLDED.sub(_question, _source(cell))))
    return notebook


def solution(notebook: dict) -> dict:
    """Every answer unfolded, every exercise solved."""
    notebook = copy.deepcopy(notebook)
    written = folded_functions(notebook)
    for cell in notebook["cells"]:
        text = _source(cell)
        if cell["cell_type"] == "code":
            solved = fill_in(text, written)
            if solved != text:
                cell["outputs"] = []
                _write(cell, solved)
        else:
            _write(cell, text.replace("<details>", "<details open>"))
    return notebook


def _question(folded: re.Match) -> str:
    """A folded question keeps its question; what is folded under "Answer" goes altogether."""
    return f"- {folded[1]}\n" if folded[1].rstrip().endswith("?") else ""


def folded_functions(notebook: dict) -> dict[str, str]:
    """{name: source} of every function in a folded answer."""
    found = {}
    for cell in notebook["cells"]:
        for folded in FOLDED.finditer(_source(cell)) if cell["cell_type"] == "markdown" else []:
            for code in re.findall(r"```python\n(.*?)```", folded[2], re.DOTALL):
                functions = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
                found |= {node.name: ast.get_source_segment(code, node) for node in functions}
    return found


def fill_in(code: str, written: dict[str, str] | None = None) -> str:
    """The code of a cell with its exercises solved. ValueError: an exercise of which nothing says how."""
    if not YOURS.search(code):
        return code
    tree, lines = ast.parse(code), code.splitlines()
    drills, needed = exercises(tree), set()
    for node in reversed([node for node in tree.body if isinstance(node, ast.FunctionDef)]):
        if not YOURS.search("\n".join(lines[node.lineno - 1 : node.end_lineno])):
            continue
        if node.name in (written or {}):
            lines[node.lineno - 1 : node.end_lineno] = written[node.name].splitlines()
        elif node.name in drills:
            body, outside = body_of(drills[node.name], [a.arg for a in (*node.args.args, *node.args.kwonlyargs)])
            needed |= outside
            first = node.body[1] if ast.get_docstring(node) else node.body[0]
            lines[first.lineno - 1 : node.end_lineno] = textwrap.indent(body, "    ").splitlines()
        else:
            raise ValueError(f"code: {node.name} is to be written, and neither an answer nor a check(...) says how")
    imports = imports_of(needed - {node.name for node in tree.body if isinstance(node, ast.FunctionDef)})
    return "\n".join([*imports, *lines])


def exercises(tree: ast.Module) -> dict[str, str]:
    """{function: drill} for every ("drill", function) that stands side by side, in a call or in a tuple."""
    found = {}
    for node in ast.walk(tree):
        pair = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.Tuple) else []
        match pair:
            case [ast.Constant(value=str(drill)), ast.Name(id=function)] if drill in [*names(), "attention"]:
                found[function] = find(drill).of.__name__
    return found


def body_of(drill: str, arguments: list[str]) -> tuple[str, set[str]]:
    """The body of the solution with its arguments called as here, and the names it needs from outside. Knobs that the
    exercise leaves out stand at their defaults."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(getattr(solutions, drill)))).body
    theirs = [a.arg for a in tree.args.args]
    defaults = dict(zip(theirs[len(theirs) - len(tree.args.defaults) :], tree.args.defaults, strict=True))
    other = {old: ast.Name(new) for old, new in zip(theirs, arguments, strict=False) if old not in arguments}
    other |= {name: default for name, default in defaults.items() if name not in arguments}

    class Renamed(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return other.get(node.id, node)

    body = [Renamed().visit(node) for node in tree.body]
    used = {node.id for statement in body for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return "\n".join(map(ast.unparse, body)), used & vars(solutions).keys()


def imports_of(used: set[str]) -> list[str]:
    """Import lines for modules and for other solutions."""
    modules = {"torch": "import torch", "F": "import torch.nn.functional as F", "math": "import math"}
    lines = [modules[name] for name in sorted(used & modules.keys())]
    others = sorted(used - modules.keys())
    if others:
        lines.append(f"from minirl.drills.solutions import {', '.join(others)}")
    return [*lines, ""] if lines else []


def _source(cell: dict) -> str:
    return "".join(cell["source"])


def _write(cell: dict, text: str) -> None:
    cell["source"] = text.splitlines(keepends=True)


# python -m minirl notebooks


def add_arguments(parser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 08_gae (all)")
    parser.add_argument("--out", type=Path, required=True, help="folder for student/ and solution/")
    parser.add_argument("--source", type=Path, default=Path("notebooks"), help="where they are (notebooks)")
    parser.add_argument(
        "--run", action="store_true", help="execute the solutions, which takes minutes and needs jupyter"
    )


def run(args) -> int:
    paths = sorted(args.source.glob("[0-9][0-9]_*.ipynb"))
    chosen = [path for path in paths if not args.names or path.stem in args.names]
    missing = sorted(set(args.names) - {path.stem for path in chosen})
    if not paths:
        raise ValueError(f"--source: no notebooks in {args.source}; run this in the repository's root")
    if missing:
        raise ValueError(f"NAME: {', '.join(missing)} not in {args.source}")
    for version in (student, solution):
        folder = args.out / version.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for path in chosen:
            notebook = version(json.loads(path.read_text(encoding="utf-8")))
            if version is solution and args.run:
                notebook = executed(notebook, path.parent)
            text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
            (folder / path.name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{folder}: {len(chosen)} notebook{'s' * (len(chosen) > 1)}")
    return 0


def executed(notebook: dict, folder: Path) -> dict:
    """ValueError without jupyter; a cell that fails raises as nbclient does."""
    try:
        import nbclient
        import nbformat
    except ImportError:
        raise ValueError("--run: wants jupyter (pip install jupyter)") from None
    book = nbformat.reads(json.dumps(notebook), as_version=4)  # joins the lines of each cell
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return book
