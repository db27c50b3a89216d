"""All questions with their short answers as one HTML page: A4, two columns, nothing loaded from anywhere."""

from html import escape

from minirl.cards.cards import LEVELS, TOPICS, Card

STYLE = """
@page { size: A4; margin: 12mm 11mm; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 190mm; font: 9.2pt/1.34 system-ui, sans-serif; color: #1c2024; background: #ffffff; }
h1 { font-size: 14pt; margin: 0 0 1mm; }
h2 { font-size: 10.5pt; margin: 3.5mm 0 1.5mm; padding-bottom: .5mm; border-bottom: .4mm solid #0072b2; break-after: avoid; }
p { margin: 0; }
.about { color: #4d555c; margin-bottom: 2mm; }
.columns { columns: 2; column-gap: 7mm; }
.card { break-inside: avoid; margin: 0 0 2.6mm; }
.question { font-weight: 700; }
.level { color: #4d555c; font-weight: 400; font-size: 8pt; white-space: nowrap; }
@media screen { body { padding: 8mm 4mm; } }
@media screen and (max-width: 600px) { .columns { columns: 1; } }
"""


def document(title: str, style: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def cards_page(cards: list[Card]) -> str:
    """The cards by topic: the question bold, its level, the short answer."""
    levels = "; ".join(f"{level} {name}" for level, name in LEVELS.items())
    parts = ["<h1>Interview questions, and what to say first</h1>"]
    parts += [f'<p class="about">minirl, {len(cards)} cards. Levels: {escape(levels)}.</p>', '<div class="columns">']
    for topic in TOPICS:
        of_topic = [card for card in cards if card.topic == topic]
        if of_topic:
            parts += [f"<h2>{escape(topic)}</h2>", *map(entry, of_topic)]
    return document("minirl: interview questions", STYLE, "\n".join([*parts, "</div>"]))


def entry(card: Card) -> str:
    return (
        f'<div class="card"><p class="question">{escape(card.question)} <span class="level">level {card.level}</span></p>'
        f"<p>{escape(card.short)}</p></div>"
    )
