"""Metrics from disk: a .jsonl of ours, a trainer_state.json, or the folder of a run."""

import math
from pathlib import Path

from minirl.doctor.names import is_training_row, number, ours
from minirl.files import check_path, parse_json, read_json


def read_metrics(path: str | Path) -> list[dict]:
    """The records of a metrics file, its rows in the order in which they stand.

    A folder stands for its metrics.jsonl or trainer_state.json; where a config.json of ours lies beside, the first record
    gets `updates`, the gradient steps a batch. A last line that a kill cut short is left out. ValueError, with file and line,
    for anything else that is no JSON object, and for a file without a single metric.
    """
    path = check_path("metrics", path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise ValueError(f"metrics: no file {path}")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    records = _whole(text)
    if records is None:
        records = _lines(path, text)
    if not any(number(value) is not None for record in records for value in _metrics(record)):
        raise ValueError(f"metrics: {path}, line {max(1, len(text.splitlines()))}: read to its end and found no metric")
    updates = updates_of(path.parent / "config.json")
    return records if updates is None else [{"updates": updates} | records[0], *records[1:]]


def _metrics(record) -> list:
    usable = isinstance(record, dict) and is_training_row(record)
    return [value for name, value in ours(record).items() if name not in ("step", "epoch")] if usable else []


def _in_folder(folder: Path) -> Path:
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda state: state.stat().st_mtime)
    for path in (folder / "metrics.jsonl", folder / "trainer_state.json", *reversed(states)):
        if path.is_file():
            return path
    raise ValueError(f"metrics: {folder} has no metrics.jsonl and no trainer_state.json")


def _whole(text: str) -> list[dict] | None:
    """The log history of a trainer's state, or a list of records; None if the text is not one such JSON value."""
    try:
        value = parse_json(text)
    except ValueError:
        return None
    if isinstance(value, dict) and isinstance(value.get("log_history"), list):
        value = value["log_history"]
    return [record for record in value if isinstance(record, dict)] if isinstance(value, list) else None


def _lines(path: Path, text: str) -> list[dict]:
    lines, records = text.splitlines(), []
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
            if not isinstance(record, dict):
                raise ValueError(f"got {line.strip()[:40]}")
        except ValueError as error:
            if place == len(lines) and records:
                break
            raise ValueError(f"metrics: {path}, line {place}: wanted one JSON object a line ({error})") from None
        records.append(record)
    return records


def updates_of(path: Path) -> int | None:
    """Gradient steps a batch, from the config.json of one of our runs."""
    try:
        config = read_json(path)
        rows = config["batch"] if "batch" in config else config["prompts"] * config["group_size"]
        return int(config["epochs"]) * math.ceil(rows / config["minibatch"])
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError):
        return None
