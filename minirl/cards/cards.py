"""Interview cards: data/interview.jsonl, one card a line, read and checked. What a card claims and can be computed, it proves.

    cards = load()                        # every card, in the order of TOPICS, then of level
    prove(cards[0])                       # runs the card's assertion; an AssertionError if the claim is false
    evening = load_evening(cards)         # thirty of them, the best value first

Only `prove` executes anything, and what it executes is Python source from the file: prove cards that you trust.
"""

import ast
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F

from minirl.files import check_path, parse_json, read_json, read_text
from minirl.tasks import DATA

CARDS = DATA / "interview.jsonl"
EVENING = DATA / "interview_evening.json"
LEVELS = {1: "screening call", 2: "on site", 3: "research and staff"}
TOPICS = (
    "policy gradients",
    "language models",
    "sft",
    "reward models",
    "kl",
    "gae",
    "ppo",
    "reward hacking",
    "dpo",
    "grpo",
    "reasoning",
    "choosing",
    "systems",
    "evaluation",
    "debugging",
)
MOST_WORDS = {"short": 60, "long": 220}
MOST_LINES = 20  # of an assertion


@dataclass(frozen=True)
class Wrong:
    answer: str  # what is often said
    why: str  # and why it is wrong, in a sentence


@dataclass(frozen=True)
class Card:
    id: str  # a slug that never changes: progress and Anki notes hang on it
    level: int  # one of LEVELS
    topic: str  # one of TOPICS
    question: str  # as an interviewer says it
    short: str  # what to say first
    long: str  # the whole answer
    follow_ups: tuple[str, ...]  # what they ask next
    wrong: tuple[Wrong, ...]
    notebook: str  # its name without .ipynb
    assertion: str | None  # Python source that proves the claim, where it can be computed


def load(path: str | Path | None = None) -> list[Card]:
    """The cards of a JSONL file (None: data/interview.jsonl). ValueError names the line and the field that is wrong."""
    path = CARDS if path is None else check_path("path", path)
    cards, line_of = [], {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: is no JSON ({error.msg} at column {error.colno})") from None
        except ValueError as error:
            raise ValueError(f"{where}: is no JSON ({error})") from None
        card = read_card(row, where)
        if card.id in line_of:
            raise ValueError(f"{where}, id: {card.id!r} stands in line {line_of[card.id]} already")
        line_of[card.id] = number
        cards.append(card)
    if not cards:
        raise ValueError(f"{path.name}: wanted at least one card, got none")
    return cards


def load_evening(cards: list[Card], path: str | Path | None = None) -> list[Card]:
    """The cards for one evening, the best value for an interview first (None: data/interview_evening.json, a list of ids)."""
    path = EVENING if path is None else check_path("path", path)
    card_of = {card.id: card for card in cards}
    ids = read_json(path, list)
    for name in ids:
        if not isinstance(name, str) or name not in card_of:
            raise ValueError(f"{path.name}: there is no card {name!r}")
    return [card_of[name] for name in ids]


def select(cards: list[Card], *, topic: str | None = None, level: int | None = None) -> list[Card]:
    """The cards of a topic, a level, or both. ValueError for a topic or level that there is not."""
    topic = None if topic is None else str(topic).replace("-", " ").lower()
    if topic is not None and topic not in TOPICS:
        raise ValueError(f"topic: wanted one of {', '.join(TOPICS)}; got {topic!r}")
    if level is not None and not (isinstance(level, int) and level in LEVELS):
        raise ValueError(f"level: wanted 1, 2 or 3, got {level!r}")
    chosen = [card for card in cards if topic in (None, card.topic) and level in (None, card.level)]
    if not chosen:
        raise ValueError(f"topic, level: no card has both {topic!r} and level {level}")
    return chosen


def prove(card: Card) -> bool:
    """Runs the card's assertion, with torch, math and F at hand. True if it held, False if the card has none."""
    if card.assertion is None:
        return False
    source = compile(card.assertion, f"<assertion of {card.id}>", "exec")
    exec(source, {"__name__": "assertion", "torch": torch, "math": math, "F": F})
    return True


# Checks. Each takes the field's value and says what was wanted, or None.


def read_card(row, where: str) -> Card:
    """One line of the file as a Card. ValueError, starting with `where` and the field, unless it keeps every rule."""
    names = [field.name for field in fields(Card)]
    if not isinstance(row, dict) or list(row) != names:
        got = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where}: wanted the fields {', '.join(names)}, in this order; got {got}")
    for name, rule in RULES.items():
        if wanted := rule(row[name]):
            raise ValueError(f"{where}, {name}: wanted {wanted}, got {_shortened(row[name])}")
    wrong = tuple(Wrong(**entry) for entry in row["wrong"])
    return Card(**row | {"follow_ups": tuple(row["follow_ups"]), "wrong": wrong})


def _is_text(value) -> bool:
    return isinstance(value, str) and value.strip() == value != ""


def _slug(value) -> str | None:
    parts = value.split("-") if isinstance(value, str) else [""]
    good = all(part.isascii() and part.isalnum() and part == part.lower() for part in parts)
    return None if good else "lower-case words joined by hyphens"


def _one_of(allowed: tuple):
    def rule(value) -> str | None:
        good = type(value) in (int, str) and value in allowed
        return None if good else f"one of {', '.join(map(str, allowed))}"

    return rule


def _text(value) -> str | None:
    return None if _is_text(value) else "a text without space around it"


def _words(most: int):
    def rule(value) -> str | None:
        return _text(value) or (f"at most {most} words" if len(value.split()) > most else None)

    return rule


def _questions(value) -> str | None:
    good = isinstance(value, list) and 2 <= len(value) <= 4 and all(map(_is_text, value))
    return None if good else "a list of 2 to 4 questions"


def _wrong(value) -> str | None:
    def fits(entry) -> bool:
        return isinstance(entry, dict) and list(entry) == ["answer", "why"] and all(map(_is_text, entry.values()))

    good = isinstance(value, list) and 1 <= len(value) <= 3 and all(map(fits, value))
    return None if good else "a list of 1 to 3 objects with answer and why"


def _assertion(value) -> str | None:
    if value is None:
        return None
    if not _is_text(value):
        return "Python source, or null"
    if len(value.splitlines()) > MOST_LINES:
        return f"at most {MOST_LINES} lines"
    try:
        last = ast.parse(value).body[-1]
    except (SyntaxError, ValueError, RecursionError, MemoryError, IndexError) as error:
        if not isinstance(error, SyntaxError):
            return "Python source of at least one statement"
        return f"Python source ({error.msg} in line {error.lineno})"
    while isinstance(last, ast.For | ast.With | ast.If):
        last = last.body[-1]
    checks = isinstance(last, ast.Assert) or "assert_close" in ast.unparse(last)
    return None if checks else "a last statement that asserts"


def _shortened(value) -> str:
    if isinstance(value, str) and len(value.split()) > 12:
        return f"{len(value.split())} words, {len(value.splitlines())} lines: {' '.join(value.split()[:8])!r} ..."
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


RULES = {
    "id": _slug,
    "level": _one_of(tuple(LEVELS)),
    "topic": _one_of(TOPICS),
    "question": _text,
    "short": _words(MOST_WORDS["short"]),
    "long": _words(MOST_WORDS["long"]),
    "follow_ups": _questions,
    "wrong": _wrong,
    "notebook": _text,
    "assertion": _assertion,
}
