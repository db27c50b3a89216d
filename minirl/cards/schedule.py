"""When a card comes back: SM-2, and the file in which a learner's progress lies.

SM-2 is P. A. Wozniak's rule of 1987 ("Optimization of learning", master's thesis, University of Technology in Poznan, 1990,
chapter 3.2; super-memory.com/english/ol/sm2.htm). Its six grades of quality, 0 to 5, are four buttons here:

    again 1    hard 3    good 4    easy 5

    quality < 3:  the card starts from the beginning, its ease unchanged
    otherwise:    ease += 0.1 - (5 - quality) * (0.08 + (5 - quality) * 0.02), at least 1.3
                  interval = 1 day, then 6 days, then the last interval * ease, rounded up

A card that got less than 4 comes back in the same session until it gets 4. Only the first grade of a day moves the schedule.
"""

import math
from dataclasses import asdict, dataclass, fields
from datetime import date, timedelta
from pathlib import Path

from minirl.checkpoint import write_json
from minirl.files import read_json

QUALITY = {"again": 1, "hard": 3, "good": 4, "easy": 5}
FIRST_EASE, LEAST_EASE = 2.5, 1.3
FORMAT = "minirl quiz progress 1"


@dataclass(frozen=True)
class State:
    """What is remembered of one card. A new one is State()."""

    repetitions: int = 0  # in a row with quality 3 or more
    interval: int = 0  # days from the last review to the next
    ease: float = FIRST_EASE
    seen: date | None = None  # the last review
    due: date | None = None
    reviews: int = 0  # days on which it was asked
    right: int = 0  # of these, with quality 3 or more


def review(state: State, grade: str, today: date) -> State:
    """The state after a grade, one of again, hard, good and easy. A second grade on the same day changes nothing."""
    if grade not in QUALITY:
        raise ValueError(f"grade: wanted one of {', '.join(QUALITY)}, got {grade!r}")
    if state.seen == today:
        return state
    quality = QUALITY[grade]
    if quality < 3:
        repetitions, interval, ease = 0, 1, state.ease
    else:
        ease = state.ease + 0.1 - (5 - quality) * (0.08 + (5 - quality) * 0.02)
        ease = round(max(ease, LEAST_EASE), 4)  # without rounding, 2.6 * 10 would be more than 26
        interval = {0: 1, 1: 6}.get(state.repetitions, math.ceil(state.interval * ease))
        repetitions = state.repetitions + 1
    return State(
        repetitions=repetitions,
        interval=interval,
        ease=ease,
        seen=today,
        due=today + timedelta(days=interval),
        reviews=state.reviews + 1,
        right=state.right + (quality >= 3),
    )


def comes_back_today(grade: str) -> bool:
    """SM-2's last rule: whatever got less than 4 is asked again in the same session."""
    return QUALITY[grade] < 4


def is_due(state: State, today: date) -> bool:
    """Seen before, and its day has come."""
    return state.due is not None and state.due <= today


# The file


def read_progress(path: Path) -> dict[str, State]:
    """The states by card id; none for a file that is not there yet. ValueError, and the file as it was, if it is damaged."""
    if not path.exists():
        return {}
    try:
        stored = read_json(path)
        if stored["format"] != FORMAT:
            raise ValueError(f"its format is {stored['format']!r}")
        return {name: _state(entry) for name, entry in stored["cards"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"--progress: {path} is no progress of this quiz, or is damaged ({type(error).__name__}: {error}); it was left "
            f"as it is. Move it away to begin anew, or name another file"
        ) from None


def write_progress(path: Path, states: dict[str, State]) -> None:
    """Written aside and renamed: stopped at any instant, the file is the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cards = {name: {key: _plain(value) for key, value in asdict(state).items()} for name, state in states.items()}
    write_json(path, {"format": FORMAT, "cards": cards})


def _plain(value):
    return value.isoformat() if isinstance(value, date) else value


def _state(entry: dict) -> State:
    kinds = {"ease": (int, float), "seen": str, "due": str}
    for field in fields(State):
        if not isinstance(entry[field.name], kinds.get(field.name, int)):
            raise ValueError(f"{field.name} is {entry[field.name]!r}")
    if not (
        entry["ease"] >= LEAST_EASE and math.isfinite(entry["ease"]) and min(entry["interval"], entry["reviews"]) >= 1
    ):
        raise ValueError("its numbers are out of range")
    return State(**entry | {name: date.fromisoformat(entry[name]) for name in ("seen", "due")})
