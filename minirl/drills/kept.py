"""What a learner has tried and solved, in a small JSON file that can be carried from one machine to the next.

    from minirl.drills import keep_progress, progress

    keep_progress("my_drills.json")     # from here on `check` and `hint` are noted down
    print(progress())

Nothing is written until `keep_progress` is called, so that tests and notebooks leave no files behind.
"""

import datetime
from pathlib import Path

from minirl.checkpoint import write_json
from minirl.files import check_path, read_json

VERSION = 1
_file: Path | None = None


def keep_progress(path: str | Path | None) -> dict:
    """From here on, notes are kept in this file; None stops that. Gives back what the file holds already.

    ValueError for a file that holds something else, which is left as it is.
    """
    global _file
    if path is None:
        _file = None
        return {}
    path = check_path("path", path)
    notes = read(path)
    write(path, notes)  # fails now, and not after an hour's work
    _file = path
    return notes


def progress() -> dict:
    """{drill: {"tries", "hints", "solved" (a date or None), "mistakes"}} of the file in use."""
    return read(_file) if _file else {}


def note(name: str, status: str, mistake: str | None = None) -> None:
    """One check. A drill that is solved stays solved."""
    if _file is None or status == "todo":
        return
    notes = read(_file)
    entry = notes.setdefault(name, blank())
    entry["tries"] += 1
    if status == "ok" and entry["solved"] is None:
        entry["solved"] = datetime.date.today().isoformat()
    if mistake is not None and mistake not in entry["mistakes"]:
        entry["mistakes"].append(mistake)
    write(_file, notes)


def note_hint(name: str, n: int) -> None:
    """The n-th hint was read."""
    if _file is None:
        return
    notes = read(_file)
    entry = notes.setdefault(name, blank())
    entry["hints"] = max(entry["hints"], n)
    write(_file, notes)


def blank() -> dict:
    return {"tries": 0, "hints": 0, "solved": None, "mistakes": []}


def read(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        data = read_json(path)
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']}")
        for entry in data["drills"].values():
            if entry.keys() != blank().keys():
                raise ValueError(f"an entry with {sorted(entry)}")
            counts = [entry["tries"], entry["hints"]]
            solved, mistakes = entry["solved"], entry["mistakes"]
            right = all(type(count) is int and count >= 0 for count in counts) and isinstance(solved, str | None)
            if not (right and isinstance(mistakes, list) and all(isinstance(name, str) for name in mistakes)):
                raise ValueError(f"an entry of {entry!r:.120}")
        return data["drills"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"path: {path} is no file of drill progress ({error}); it is left as it is") from None


def write(path: Path, notes: dict) -> None:
    write_json(path, {"version": VERSION, "drills": dict(sorted(notes.items()))})
