"""What the students handed in: NAME.py or NAME.ipynb in a folder, read and not run."""

import io
import json
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

from minirl.files import read_text

MOST_CODE = 1_000_000  # bytes
MOST_NOTEBOOK = 50_000_000  # bytes: pictures stand in them


@dataclass(frozen=True)
class Submission:
    student: str
    filename: str
    sources: list[str]  # the file, or the code cells
    problem: str | None = None  # why it cannot be read

    @property
    def notebook(self) -> bool:
        return self.filename.endswith(".ipynb")

    def defines(self, names: list[str]) -> set[str]:
        """Which of the names are written at the margin, as a function or otherwise; imported helpers do not count."""
        text = "\n".join(self.sources)
        written = re.findall(r"^(?:def|class)\s+(\w+)|^(\w+)\s*[:=]", text, re.M)
        return {name for groups in written for name in groups} & set(names)


def read_submissions(folder: Path) -> list[Submission]:
    """One for each .py and .ipynb file, and for each folder that holds exactly one of them. Sorted by name.

    ValueError without a folder, or with nothing in it.
    """
    if not folder.is_dir():
        raise ValueError(f"submissions: wanted a folder with NAME.py or NAME.ipynb files, got {str(folder)!r}")
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__")):
            continue
        if path.is_dir():
            files = [file for file in sorted(path.iterdir()) if _is_code(file)]
            if len(files) == 1:
                found.append((path.name, files[0], None))
            elif files:
                found.append((path.name, files[0], f"wanted one file in the folder {path.name}, got {len(files)}"))
        elif _is_code(path):
            found.append((path.stem, path, None))
    if not found:
        raise ValueError(f"submissions: wanted NAME.py or NAME.ipynb files, found none in {str(folder)!r}")
    students = [student for student, _, _ in found]
    twice = [path.name if students.count(student) > 1 else student for student, path, _ in found]
    return [read(path, student, problem) for student, (_, path, problem) in zip(twice, found, strict=True)]


def _is_code(path: Path) -> bool:
    return path.suffix in (".py", ".ipynb") and path.is_file() and not path.name.startswith(".")


def read(path: Path, student: str, problem: str | None = None) -> Submission:
    if problem:
        return Submission(student, path.name, [], problem)
    most = MOST_CODE if path.suffix == ".py" else MOST_NOTEBOOK
    try:
        with path.open("rb") as file:  # and not its size first: it may be a pipe or a device behind a link
            content = file.read(most + 1)
        if len(content) > most:
            raise ValueError(f"it is larger than {most / 1e6:g} MB")
        sources = cells(content) if path.suffix == ".ipynb" else [decoded(content)]
        if sum(len(source) for source in sources) > MOST_CODE:
            raise ValueError(f"it holds more than {MOST_CODE / 1e6:g} MB of code")
    except (ValueError, OSError, SyntaxError, RecursionError) as error:
        return Submission(student, path.name, [], f"the file cannot be read: {str(error)[:300]}")
    return Submission(student, path.name, sources)


def decoded(content: bytes) -> str:
    """In the encoding that it names, else UTF-8."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return io.TextIOWrapper(io.BytesIO(content), encoding).read()


def cells(content: bytes) -> list[str]:
    """The code cells of a notebook."""
    notebook = json.loads(content)
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError("it is no notebook: no list of cells")
    code = [cell for cell in notebook["cells"] if isinstance(cell, dict) and cell.get("cell_type") == "code"]
    sources = [cell.get("source") or [] for cell in code]
    if not all(isinstance(source, str | list) for source in sources):
        raise ValueError("it is no notebook: a cell whose source is no text")
    return ["".join(map(str, source)) for source in sources]


def asked(drills: str | None, submissions: list[Submission], known: list[str]) -> list[str]:
    """Which drills: "a,b,c", or a text file with one name a line, or else every one that any submission has.

    ValueError for a name without a drill, or for none at all.
    """
    if drills is None:
        found = set().union(*(submission.defines(known) for submission in submissions))
        if not found:
            raise ValueError("--drills: no submission defines a function named after a drill; name the ones asked for")
        return sorted(found)
    is_file = "," not in drills and Path(drills).is_file()
    lines = read_text(Path(drills)).splitlines() if is_file else drills.split(",")
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    for name in names:
        if name not in known:
            raise ValueError(f"--drills: wanted names from minirl.drills.names() or a file of them, got {name!r}")
    if not names:
        raise ValueError(f"--drills: wanted at least one name, got {drills!r}")
    return list(dict.fromkeys(names))
