"""`python -m minirl quiz`: question, short answer, long answer, your own grade, and a date on which it comes back.

Cards that are due come first, the longest waiting first; then new ones, those of the evening's list before the others.
After every grade the progress is on disk, so that Ctrl-C, a closed window or the end of the input loses nothing. The file
lies in the home folder, since what a person knows belongs to the person and not to one checkout; --progress names another.
"""

import argparse
import shutil
import sys
import textwrap
from collections import deque
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

from minirl.cards.cards import LEVELS, TOPICS, Card, load, load_evening, prove, select
from minirl.cards.schedule import State, comes_back_today, is_due, read_progress, review, write_progress

PROGRESS = ".minirl_quiz.json"  # in the home folder
GRADES = {"1": "again", "2": "hard", "3": "good", "4": "easy"}
BUTTONS = "  ".join(f"{key} {grade}" for key, grade in GRADES.items())


class Stop(Exception):
    """The learner said q, pressed Ctrl-C, or the input ended."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topic", metavar="T", help=f"one of: {', '.join(TOPICS)} (all)")
    parser.add_argument(
        "--level", type=int, metavar="L", help="1 screening call, 2 on site, 3 research and staff (all)"
    )
    parser.add_argument("--cards", type=int, metavar="N", help="at most so many (20; of the evening's, all)")
    parser.add_argument("--evening", action="store_true", help="the thirty for one evening, in order, due or not")
    parser.add_argument("--progress", type=Path, metavar="FILE", help=f"what you know by now (~/{PROGRESS})")


def run(args: argparse.Namespace) -> int:
    if args.cards is not None and args.cards < 1:
        raise ValueError(f"--cards: wanted at least 1, got {args.cards}")
    path = Path.home() / PROGRESS if args.progress is None else args.progress
    states, today = read_progress(path), date.today()  # before all else: a damaged file ends it here
    cards = load()
    evening = load_evening(cards)
    pool = select(cards, topic=args.topic, level=args.level)
    if args.evening:
        asked = [card for card in evening if card in pool][: args.cards]
    else:
        asked = next_cards(pool, states, today, first=[card.id for card in evening])[: args.cards or 20]
    if not asked:
        say(f"Nothing is due today. {coming(pool, states, today)}")
        return 0
    say(
        f"{len(asked)} card{'s' * (len(asked) != 1)}. Say your answer aloud before you look. q ends, your progress stays."
    )
    ask_cards(asked, states, today, answer_of=read_answer, keep=lambda: write_progress(path, states))
    say(f"\n{statistics(pool, states, today)}\n\nProgress: {path}")
    return 0


def next_cards(pool: list[Card], states: dict[str, State], today: date, *, first: list[str]) -> list[Card]:
    """What to ask: due cards, the longest waiting first, then new ones, those named in `first` before the others."""
    place = {name: rank for rank, name in enumerate(first)}
    due = [card for card in pool if card.id in states and is_due(states[card.id], today)]
    new = [card for card in pool if card.id not in states]
    return sorted(due, key=lambda card: states[card.id].due) + sorted(new, key=lambda c: place.get(c.id, len(place)))


def ask_cards(
    cards: list[Card],
    states: dict[str, State],
    today: date,
    *,
    answer_of: Callable[[str], str],
    keep: Callable[[], None],
) -> None:
    """The session: `states` is changed in place and `keep` is called after every grade. answer_of may raise Stop."""
    queue = deque((card, False) for card in cards)
    done = 0
    try:
        while queue:
            card, again = queue.popleft()
            done += not again
            grade = ask(card, "once more" if again else f"{done} of {len(cards)}", answer_of)
            before = states.get(card.id, State())
            states[card.id] = review(before, grade, today)
            keep()
            back = comes_back_today(grade)
            if back:
                queue.append((card, True))
            days = (states[card.id].due - today).days
            say(f"{grade}: back {'before we end, and then ' if back else ''}in {days} day{'s' * (days != 1)}.")
    except (Stop, KeyboardInterrupt):
        say("")


def ask(card: Card, place: str, answer_of: Callable[[str], str]) -> str:
    """One card, from its question to its grade."""
    say(f"\n{rule(f'{place} | {card.topic} | {LEVELS[card.level]}')}\n\n{bold(wrapped(card.question))}\n")
    choose(answer_of, "Enter: answer   q: quit > ", {"": ""})
    say(f"\n{wrapped(card.short)}\n")
    parts = {"": "more", "m": "more"} | ({"p": "proof"} if card.assertion else {})
    shown = set()
    while True:
        enter = "Enter: more   " if "more" not in shown else ""
        proof = "p: proof   " if card.assertion and "proof" not in shown else ""
        said = choose(answer_of, f"{enter}{proof}{BUTTONS}   q: quit > ", parts | GRADES)
        if said in GRADES.values():
            return said
        if said == "proof":
            say(proof_of(card))
        elif "more" not in shown:
            say("\n" + more(card) + "\n")
        shown.add(said)


def choose(answer_of: Callable[[str], str], prompt: str, meanings: dict[str, str]) -> str:
    """What the learner's answer means; asked again until it is one of `meanings`. Stop for q."""
    while True:
        said = answer_of(prompt).strip().lower()
        if said == "q":
            raise Stop
        if said in meanings:
            return meanings[said]
        say(f"Not {said!r}. What counts here: {', '.join('Enter' if key == '' else key for key in meanings)}, q.")


def more(card: Card) -> str:
    """The long answer, what they ask next, and what is often said and wrong."""
    blocks = [
        wrapped(card.long),
        "\n".join([bold("They may ask next"), *map(listed, card.follow_ups)]),
        "\n".join([bold("Often said, and wrong"), *(listed(f'"{w.answer}" {w.why}') for w in card.wrong)]),
        f"Seen in notebooks/{card.notebook}.ipynb",
    ]
    return "\n\n".join(blocks)


def proof_of(card: Card) -> str:
    """The assertion's source, and what came of running it here."""
    code = textwrap.indent(card.assertion, "    ")
    try:
        prove(card)
    except AssertionError as error:
        return f"\n{code}\n\nIt failed here: {error or 'the assertion is false'}\n"
    return f"\n{code}\n\nIt ran just now, and holds.\n"


def statistics(pool: list[Card], states: dict[str, State], today: date) -> str:
    """By topic: how many cards there are, were asked, are held for six days or more, and the share of right answers."""
    rows = [("topic", "cards", "asked", "held", "right")]
    for topic in TOPICS:
        cards = [card for card in pool if card.topic == topic]
        known = [states[card.id] for card in cards if card.id in states]
        reviews = sum(state.reviews for state in known)
        right = f"{sum(state.right for state in known) / reviews:.0%}" if reviews else "-"
        held = sum(state.interval >= 6 for state in known)
        if cards:
            rows.append((topic, str(len(cards)), str(len(known)), str(held), right))
    lines = [f"{topic:18}" + "".join(f"{cell:>7}" for cell in cells) for topic, *cells in rows]
    return "\n".join([bold(lines[0]), *lines[1:], "", wrapped(coming(pool, states, today))])


def coming(pool: list[Card], states: dict[str, State], today: date) -> str:
    """When cards come back, in a sentence."""
    days = [(states[card.id].due - today).days for card in pool if card.id in states]
    new = sum(card.id not in states for card in pool)
    soon = {"due now": lambda d: d <= 0, "tomorrow": lambda d: d == 1, "within a week": lambda d: 1 < d <= 7}
    counts = [f"{sum(map(when, days))} {name}" for name, when in soon.items()]
    later = [day for day in days if day > 7]
    if later:
        counts.append(f"{len(later)} later, the next on {(today + timedelta(days=min(later))).isoformat()}")
    return f"Coming back: {', '.join(counts)}. Not yet asked: {new}."


# The terminal


def width() -> int:
    return max(24, min(shutil.get_terminal_size().columns, 96))


def wrapped(text: str) -> str:
    return "\n".join(textwrap.fill(line, width(), break_on_hyphens=False) for line in text.splitlines())


def listed(text: str) -> str:
    return textwrap.fill(text, width(), initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def rule(text: str) -> str:
    return f"-- {text} ".ljust(width(), "-")


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def say(text: str) -> None:
    print(text, flush=True)


def read_answer(prompt: str) -> str:
    """A line of the learner's. Stop where the input ends."""
    try:
        said = input(prompt)
    except EOFError:
        raise Stop from None
    if not sys.stdin.isatty():
        print()  # nobody pressed Enter on this screen
    return said
