"""How a study is stored: NAME.py beside NAME.csv. The file begins with the command that makes it again, a hash of the
settings it was made with, the versions and the machine. The tests hold the hash against the script's SETTINGS, so that a
setting cannot change without the study being run again.
"""

import csv
import hashlib
import io
import platform
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # so that a study runs from a checkout that is not installed

from minirl.checkpoint import write_aside  # noqa: E402


def settings_hash(settings) -> str:
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]


def write(name: str, rows: list[dict], settings) -> None:
    """Write data/studies/NAME.csv: one row a dict, the columns in the order in which they first appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    text.write(f"# command: python data/studies/{name}.py\n")
    text.write(f"# settings: {settings_hash(settings)}\n")
    text.write(f"# torch {torch.__version__}, 1 thread, {platform.system()} {platform.machine()}\n")
    table = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    table.writeheader()
    for row in rows:
        table.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items() if v is not None})
    write_aside(HERE / f"{name}.csv", text.getvalue().encode())
