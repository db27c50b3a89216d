"""Files of a run. One that was killed may end in half a line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from minirl.files import parse_json, read_text


@contextlib.contextmanager
def making_sense_of(path: Path) -> Iterator[None]:
    """What goes wrong inside is a ValueError about this file: it is JSON, and not what a run writes."""
    try:
        yield
    except (TypeError, KeyError, IndexError, AttributeError, ArithmeticError, ValueError) as error:
        if str(path.parent) in str(error):  # it names a file already
            raise
        raise ValueError(f"{path}: not what a run writes ({type(error).__name__}: {error})") from error


def read_lines(path: Path) -> list[dict]:
    """The whole lines of a .jsonl file; none where there is no file. ValueError for a line that is JSON and no step's."""
    records = []
    for place, line in enumerate(read_text(path).splitlines() if path.is_file() else [], start=1):
        try:
            record = parse_json(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f"{path}, line {place}: wanted an object with a step, got {line:.80}")
        records.append(record)
    return records


HUGE = 1e100  # sums of squares still fit below it


def series(records: list[dict], name: str) -> list[tuple[int, float]]:
    """(step, value) where the value is finite."""
    found = [(record["step"], record[name]) for record in records if name in record]
    return [(step, value) for step, value in found if type(value) in (int, float) and abs(value) <= HUGE]
