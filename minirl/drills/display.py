"""A verdict as a notebook shows it: a bar in the colour of the status, a word for those who do not see colours."""

import html

WORDS = {"ok": "Right", "todo": "To do", "mistake": "A known mistake", "wrong": "Wrong", "error": "An error"}
COLOURS = {"ok": "#0072b2", "todo": "#777777", "mistake": "#d55e00", "wrong": "#d55e00", "error": "#aa3377"}


def as_html(result) -> str:
    name = f" <code>{html.escape(result.mistake)}</code>" if result.mistake else ""
    first, _, rest = result.message.partition("\n")
    details = f'<pre style="margin:.4em 0 0;white-space:pre-wrap">{html.escape(rest)}</pre>' if rest else ""
    return (
        f'<div style="border-left:5px solid {COLOURS[result.status]};padding:.3em .8em;max-width:48em">'
        f'<b style="color:{COLOURS[result.status]}">{WORDS[result.status]}</b>{name}<br>{html.escape(first)}{details}</div>'
    )
