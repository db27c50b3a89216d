"""The page itself: its style, and the few kinds of block it is made of."""

import base64
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b636b; --page: #ffffff; --rule: #d9dde1; --box: #f5f6f8;
  --line: #0072b2; --plus: 0 114 178; --minus: 213 94 0; --kl: 160 70 140; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #9aa3ab; --page: #14171a; --rule: #33393f;
  --box: #1d2125; --line: #56b4e9; --plus: 40 140 210; --minus: 213 94 0; --kl: 214 130 190; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; }
code, pre { font: .9em/1.5 ui-monospace, monospace; }
pre { background: var(--box); padding: .75rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: 1.5rem; }
figure { margin: 0; }
figcaption, .note { font-size: .875rem; color: var(--soft); }
figcaption b { color: var(--ink); }
figcaption span { display: block; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; display: block; font: 11px system-ui, sans-serif; }
svg text { fill: var(--soft); } svg .grid { stroke: var(--rule); } svg .dot { fill: transparent; }
svg .line { fill: none; stroke: var(--line); stroke-width: 1.75; stroke-linejoin: round; }
svg .dot:hover, svg .alone { fill: var(--line); }
.wide { overflow-x: auto; }
img { width: 100%; min-width: 44rem; border-radius: 6px; background: #ffffff; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem 0 .2rem .75rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
tr > :first-child { text-align: left; padding-left: 0; } th { font-weight: 600; }
dl { columns: 15rem; column-gap: 2.5rem; margin: 0; }
dl div { display: flex; justify-content: space-between; gap: 1rem; border-bottom: 1px solid var(--rule);
  break-inside: avoid; }
dt { color: var(--soft); } dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
.response { background: var(--box); border-radius: 6px; padding: .5rem .75rem; margin: .5rem 0; }
.response p { margin: 0; max-width: none; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 2.1; }
.token { padding: .2em 0; background: rgb(var(--hue, 0 0 0) / var(--reward, 0));
  border-bottom: 3px solid rgb(var(--kl) / var(--moved, 0)); }
.plus { --hue: var(--plus); } .minus { --hue: var(--minus); }
.end { color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 2rem; }
.ramp { display: inline-block; width: 6rem; height: .8em; margin: 0 .4em; vertical-align: -.05em; border-radius: 2px; }
.ramp.reward { background: linear-gradient(90deg, rgb(var(--minus) / .6), rgb(var(--minus) / 0) 50%,
  rgb(var(--plus) / 0) 50%, rgb(var(--plus) / .6)); }
.ramp.moved { background: linear-gradient(90deg, rgb(var(--kl) / 0), rgb(var(--kl))); height: 3px;
  vertical-align: .2em; }
"""


def page(title: str, parts: list[str]) -> str:
    """A whole document; empty parts are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>" if content else ""


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def table(rows: list[list[str]]) -> str:
    """The first row is the head, the first column names the rows."""
    head, *body = rows
    lines = ["<tr>" + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head) + "</tr>"]
    for name, *cells in body:
        lines.append(
            f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        )
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def listing(values: dict) -> str:
    if not values:
        return ""
    rows = ((name, "not set" if value is None else str(value)) for name, value in values.items())
    return "<dl>" + "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in rows) + "</dl>"


def embedded(picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    alt = "The curves and end points that the tables below give in numbers"
    return f'<div class="wide"><img src="data:image/png;base64,{data}" alt="{alt}"></div>'
