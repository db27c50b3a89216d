"""A verdict as it is shown. In a terminal: whole words in lines that fit. In a notebook: a bar in the colour of the status,
a word for those who do not see colours."""

import html
import re
import textwrap

WORDS = {"ok": "Right", "todo": "To do", "mistake": "A known mistake", "wrong": "Wrong", "error": "An error"}
COLOURS = {"ok": "#0072b2", "todo": "#777777", "mistake": "#d55e00", "wrong": "#d55e00", "error": "#aa3377"}
COLUMNS = 100  # JupyterLab tears longer lines of plain text in the middle of a word
TOGETHER = re.compile(r"\((?:[^()]|\([^()]*\))*\)|\[[^][]*\]| (?:[-+*/=@<>]|[<>=!]=) ")  # (2, 3), f(x, y), x = y


def as_text(message: str) -> str:
    """The message in lines of at most 100 columns. Words stay whole, and so do calls, shapes, rows of numbers and the two
    sides of an operator, where they are short; what does not fit goes on two columns further in."""
    return "\n".join(map(_wrapped, message.split("\n")))


def _wrapped(line: str) -> str:
    if len(line) <= COLUMNS:
        return line
    glued = TOGETHER.sub(lambda found: found[0].replace(" ", "\0") if len(found[0]) <= COLUMNS // 2 else found[0], line)
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    whole = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(glued, COLUMNS, subsequent_indent=indent, **whole).replace("\0", " ")


def as_html(result) -> str:
    name = f" <code>{html.escape(result.mistake)}</code>" if result.mistake else ""
    first, _, rest = result.message.partition("\n")
    details = f'<pre style="margin:.4em 0 0;white-space:pre-wrap">{html.escape(rest)}</pre>' if rest else ""
    return (
        f'<div style="border-left:5px solid {COLOURS[result.status]};padding:.3em .8em;max-width:48em">'
        f'<b style="color:{COLOURS[result.status]}">{WORDS[result.status]}</b>{name}<br>{html.escape(first)}{details}</div>'
    )
