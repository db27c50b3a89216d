"""An exam of 90 points in 90 minutes, and its solutions, drawn from the interview cards. The same seed, the same exam.

python docs/exam.py --seed 1 --out exam.md solutions.md
"""

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minirl.cards import Card, load

MINUTES = POINTS = 90


@dataclass(frozen=True)
class Section:
    title: str
    about: str
    kind: str  # "short", "mistake" or "long"
    level: int
    questions: int
    points: int  # of each question, and its minutes


SECTIONS = (
    Section("Short answers", "Two or three sentences each. The first sentence should be the answer.", "short", 1, 8, 3),
    Section(
        "What is wrong?",
        "Somebody was asked the question and gave the answer below it. Say what is wrong with it, and give the right one.",
        "mistake",
        2,
        6,
        5,
    ),
    Section(
        "In full", "Give the formula where there is one, and name the sign, the direction or the mask.", "long", 2, 3, 8
    ),
    Section("Research", "Argue. A number or a derivation counts for more than an opinion.", "long", 3, 1, 12),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument(
        "--out", type=Path, nargs=2, metavar=("EXAM", "SOLUTIONS"), default=[Path("exam.md"), Path("solutions.md")]
    )
    args = parser.parse_args()
    drawn = draw(load(), args.seed)
    for path, text in zip(args.out, (exam(drawn, args.seed), solutions(drawn, args.seed)), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    print(f"Exam: {args.out[0]}, solutions: {args.out[1]} ({POINTS} points, {MINUTES} minutes)")
    return 0


def draw(cards: list[Card], seed: int) -> list[tuple[Section, list[Card]]]:
    """Questions for each section. No card twice; within a section every topic once before any comes again."""
    dice, used, asked = random.Random(seed), set(), {}
    drawn = []
    for section in SECTIONS:
        pool = [card for card in cards if card.level == section.level]
        dice.shuffle(pool)
        chosen = []
        for _ in range(section.questions):
            # the topic that was asked least so far; the shuffle breaks ties
            card = min((card for card in pool if card.id not in used), key=lambda card: asked.get(card.topic, 0))
            used.add(card.id)
            asked[card.topic] = asked.get(card.topic, 0) + 1
            chosen.append(card)
        drawn.append((section, chosen))
    return drawn


def exam(drawn: list[tuple[Section, list[Card]]], seed: int) -> str:
    rows = [f"| {section.title} | {len(cards)} | {len(cards) * section.points} |" for section, cards in drawn]
    parts = [
        "# Exam: reinforcement learning for language models",
        f"Exam {seed}. {POINTS} points, {MINUTES} minutes: a point is a minute. One sheet of your own notes is allowed.",
        "Name: ______________________________",
        "\n".join(["| section | questions | points |", "| --- | ---: | ---: |", *rows]),
    ]
    number = 0
    for section, cards in drawn:
        parts += [f"## {section.title}", f"{section.about} {section.points} points each."]
        for card in cards:
            number += 1
            parts.append(f"**{number}.** {card.question}")
            if section.kind == "mistake":
                parts.append(f"> {card.wrong[0].answer}")
    return "\n\n".join(parts) + "\n"


def solutions(drawn: list[tuple[Section, list[Card]]], seed: int) -> str:
    parts = [
        "# Solutions",
        f"Of exam {seed}. Other words are as good. Where an assertion stands, it runs: it decides what an argument cannot.",
    ]
    number = 0
    for section, cards in drawn:
        parts.append(f"## {section.title}, {section.points} points each")
        for card in cards:
            number += 1
            parts += [f"**{number}.** {card.question}", *answer(section, card)]
    return "\n\n".join(parts) + "\n"


def answer(section: Section, card: Card) -> list[str]:
    """What is expected, with its points; they add up to the section's."""
    most = section.points
    where = f"Lesson `{card.notebook}`, card `{card.id}`."
    if section.kind == "short":
        return [f"*{most} points:* {card.short}", where]
    if section.kind == "mistake":
        wrong = card.wrong[0]
        return [
            f"*3 points, what is wrong:* {wrong.why}",
            f"*{most - 3} points, the right answer:* {card.short}",
            where,
        ]
    traps = "; ".join(f"“{wrong.answer}” ({wrong.why})" for wrong in card.wrong)
    parts = [f"*3 points, the core:* {card.short}", f"*{most - 3} points, in full:* {card.long}"]
    parts.append(f"*Minus 2 for:* {traps}")
    if card.assertion:
        parts.append(f"```python\n{card.assertion}\n```")
    return [*parts, where]


if __name__ == "__main__":
    sys.exit(main())
