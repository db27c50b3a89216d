"""Interview cards: questions with answers that run, a quiz in the terminal, an Anki deck, pages to print.

python -m minirl quiz                     spaced repetition in the terminal
python -m minirl cards sheet              two pages for the evening before
"""

from minirl.cards.cards import LEVELS, TOPICS, Card, Wrong, load, load_evening, prove, select

__all__ = ["LEVELS", "TOPICS", "Card", "Wrong", "load", "load_evening", "prove", "select"]
