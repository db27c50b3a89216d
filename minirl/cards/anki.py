"""An Anki deck of the cards, by genanki (an extra; nothing else here needs it).

Every id is made from a name by a hash that is fixed here, never from the clock or by chance: import a later deck over an
older one, and Anki updates each note and keeps when you are to see it again. The file itself differs from build to build,
since Anki wants to know when it was made.
"""

import hashlib
import os
from html import escape
from pathlib import Path

from minirl.cards.cards import LEVELS, Card

DECK = "minirl: interview"
FIELDS = ("Question", "Where", "Short", "Long", "Follow-ups", "Wrong", "Notebook", "Proof")
FRONT = '<div class="where">{{Where}}</div><div class="question">{{Question}}</div>'
BACK = """{{FrontSide}}<hr id="answer"><div class="short">{{Short}}</div><div>{{Long}}</div>
<h4>They may ask next</h4>{{Follow-ups}}<h4>Often said, and wrong</h4>{{Wrong}}
{{#Proof}}<details><summary>Proof</summary><pre>{{Proof}}</pre></details>{{/Proof}}
<div class="where">{{Notebook}}</div>"""
STYLE = """.card { font: 18px/1.45 system-ui, sans-serif; max-width: 40em; margin: 0 auto; text-align: left; }
.where { font-size: 13px; opacity: .65; } .question, .short { font-weight: 600; } .short { margin-bottom: .8em; }
h4 { margin: 1em 0 .2em; } ul { margin: 0; padding-left: 1.2em; } pre { font-size: 13px; white-space: pre-wrap; }"""


def stable_id(name: str) -> int:
    """A whole number in [2^30, 2^31), as Anki wants for decks and note types: from the first 30 bits of SHA-256."""
    return (1 << 30) + int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % (1 << 30)


def note_guid(card_id: str) -> str:
    """What makes two notes the same one to Anki: the first 16 digits of SHA-256 of the card's id."""
    return hashlib.sha256(f"minirl card {card_id}".encode()).hexdigest()[:16]


def write_deck(cards: list[Card], path: str | Path) -> Path:
    """An .apkg file. ValueError, with the command that helps, where genanki is not installed."""
    try:
        import genanki
    except ImportError:
        raise ValueError("an Anki deck needs genanki: pip install genanki (or: pip install 'minirl[anki]')") from None
    model = genanki.Model(
        stable_id("minirl interview note type"),
        "minirl interview",
        fields=[{"name": name} for name in FIELDS],
        templates=[{"name": "Question", "qfmt": FRONT, "afmt": BACK}],
        css=STYLE,
    )
    deck = genanki.Deck(stable_id("minirl interview deck"), DECK)
    for card in cards:
        deck.add_note(genanki.Note(model, fields=note_fields(card), guid=note_guid(card.id), tags=tags(card)))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".aside")
    genanki.Package(deck).write_to_file(aside)
    os.replace(aside, path)
    return path


def tags(card: Card) -> list[str]:
    """Anki's tags hold no space: topic::reward-models, level::2."""
    return ["minirl", f"topic::{card.topic.replace(' ', '-')}", f"level::{card.level}"]


def note_fields(card: Card) -> list[str]:
    """The texts of FIELDS, as HTML."""
    return [
        escape(card.question),
        escape(f"{card.topic}, level {card.level}: {LEVELS[card.level]}"),
        escape(card.short),
        escape(card.long).replace("\n", "<br>"),
        items(escape(question) for question in card.follow_ups),
        items(f"<i>{escape(wrong.answer)}</i> {escape(wrong.why)}" for wrong in card.wrong),
        escape(f"notebooks/{card.notebook}.ipynb"),
        escape(card.assertion or ""),
    ]


def items(lines) -> str:
    return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"
