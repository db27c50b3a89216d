"""Files that somebody else wrote: read, or refused with their name and what is wrong with them.

Text is UTF-8, with or without a mark at its beginning, with any line ends. JSON is read and nothing else: nothing is ever
unpickled or evaluated.
"""

import json
import os
from pathlib import Path

KINDS = {dict: "object", list: "list"}


def check_path(name: str, value: object) -> Path:
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise ValueError(f"{name}: wanted a path, got {value!r}"[:200])
    return Path(value)


def read_text(path: Path) -> str:
    """FileNotFoundError where there is no file, ValueError where it is no text, both with its path."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file" + (", it is a folder" if path.is_dir() else ""))
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start})") from None


def read_json(path: Path, kind: type = dict):
    """What a file of one JSON value holds. FileNotFoundError or ValueError, naming the file."""
    try:
        found = parse_json(read_text(path))
    except FileNotFoundError:
        raise
    except ValueError as error:
        told = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not a JSON file: {told}") from None
    if not isinstance(found, kind):
        raise ValueError(f"{path}: wanted a JSON {KINDS[kind]}, got {type(found).__name__}")
    return found


def parse_json(text: str | bytes):
    """ValueError, and no other error, for what is no JSON; brackets in brackets a thousand deep are none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not a text in UTF-8 ({error.reason} at byte {error.start})") from None
