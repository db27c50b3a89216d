"""Files of a run. One that was killed may end in half a line."""

import json
import math
from pathlib import Path


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict]:
    """The whole lines of a .jsonl file; none where there is no file."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def series(records: list[dict], name: str) -> list[tuple[int, float]]:
    """(step, value) where the value is finite."""
    found = [(record["step"], record[name]) for record in records if name in record]
    return [(step, value) for step, value in found if math.isfinite(value)]
