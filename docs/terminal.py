"""The moving picture at the top of the README: a recorded run of the main job, drawn as an SVG that moves by CSS alone.

    python docs/terminal.py record docs/terminal.cast --figure docs/road.png
                                                          runs `python -m minirl` and keeps what it printed, and when,
                                                          and the figure of the same run
    python docs/terminal.py draw docs/terminal.cast docs/terminal.svg

The recording is an asciicast, version 2: a line of JSON about the run, then [seconds, "o", text] for each piece of output.
Every letter of the picture comes from it. Only the clock is changed, evenly, and the picture says by how much.
"""

import argparse
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape

COLUMNS, ROWS = 74, 29  # of the drawn window: letters of nine pixels on a phone that is 390 pixels wide
WIDE, HIGH, FONT = 8.4, 18, 14  # one letter, one row, pixels
LEFT, TOP, BOTTOM = 16, 44, 34  # margins, the upper one with the title, the lower one with the caption
FRAMES = 5  # a second of the picture
SECONDS = 15  # of the picture, for the run itself
TYPED = 1.6  # seconds, while the command is typed
HELD = 7.0  # seconds for the tables at the end, and again for what follows them
COMMAND = ["-m", "minirl"]
FIGURE = "runs/road/road.png"
SUMMARY = "Stories. "  # how the line above the tables begins
LETTERS = 'ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace'


def record(out: Path, *, figure: Path | None = None, busy: bool = False) -> None:
    """Run the main job in a terminal as wide as the picture; what it prints, with the time, goes to `out`, and the figure
    it draws to `figure`."""
    import pty  # these two are not on Windows, which can still draw
    import termios

    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (ROWS, COLUMNS))
        # a bar that moves once a second is enough for a picture
        env = os.environ | {
            "COLUMNS": str(COLUMNS),
            "LINES": str(ROWS),
            "TERM": "xterm-256color",
            "TQDM_MININTERVAL": "1",
        }
        # a folder of its own, so that the paths in the last lines are those a first run gives
        env["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
        began = time.time()
        start = time.perf_counter()
        run = subprocess.Popen([sys.executable, *COMMAND], cwd=folder, env=env, stdout=theirs, stderr=theirs)
        os.close(theirs)
        events = []
        while True:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # Linux says so when the other end has closed
                    break
                if not piece:
                    break
                now = time.perf_counter() - start
                events.append([round(now, 2), "o", piece.decode("utf-8", "replace")])
            elif run.poll() is not None:
                break
        if run.wait():
            raise SystemExit(f"The run ended with {run.returncode}:\n" + "".join(event[2] for event in events)[-2000:])
        if figure is not None:
            shutil.copyfile(Path(folder) / FIGURE, figure)
    import torch

    about = {
        "version": 2,
        "width": COLUMNS,
        "height": ROWS,
        "timestamp": int(began),
        "command": " ".join(["python", *COMMAND]),
        "busy": busy,  # whether the machine had other work: the picture then says so
        "env": {"torch": torch.__version__.split("+")[0], "threads": "2"},
    }
    lines = [json.dumps(about), *(json.dumps(event, ensure_ascii=False) for event in events)]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(cast: Path) -> tuple[dict, list[tuple[float, str]]]:
    about, *events = [json.loads(line) for line in cast.read_text("utf-8").splitlines() if line.strip()]
    if about.get("version") != 2:
        raise ValueError(f"{cast}: wanted an asciicast of version 2, got {about.get('version')!r}")
    return about, [(seconds, text) for seconds, kind, text in events if kind == "o"]


class Screen:
    """What a terminal shows: enough of one for print and tqdm, which go back to the start of a line and write over it."""

    def __init__(self):
        self.lines, self.row, self.column = [""], 0, 0

    def write(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self.row, self.column = self.row + 1, 0
            elif part == "\x1b[A":
                self.row = max(0, self.row - 1)
            elif part in ("\x1b[K", "\x1b[0K"):
                self.lines[self.row] = self.lines[self.row][: self.column]
            elif part[0] != "\x1b":  # colours are left out
                self.put(part)
            while len(self.lines) <= self.row:
                self.lines.append("")

    def put(self, text: str) -> None:
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + text + line[self.column + len(text) :]
        self.column += len(text)

    def rows(self) -> list[str]:
        """As the drawn window shows them: a line that is too long goes on below, indented, and is cut between words."""
        shown = []
        for line in self.lines:
            line = line.rstrip()
            indent = " " * (len(line) - len(line.lstrip()) + 2)
            shown += textwrap.wrap(line, COLUMNS, subsequent_indent=indent, drop_whitespace=True) or [""]
        while shown and not shown[-1]:
            shown.pop()
        return shown


def frames(about: dict, events: list[tuple[float, str]]) -> tuple[list[tuple[float, list[str]]], float, float]:
    """([(time in the picture, rows from then on)], how many times as fast, the run's seconds)."""
    run = events[-1][0]
    fast = max(1.0, round(run / SECONDS))
    typed = f"$ {about['command']}"
    found = [(TYPED * n / len(typed), [typed[:n]]) for n in range(2, len(typed) + 1)]
    screen, due = Screen(), 0.0
    for (seconds, text), (following, _) in pairwise([*events, (run + 1e9, "")]):
        screen.write(text)
        if following / fast >= due or following > run:  # at most one frame in each slot, and the last state always
            due = seconds / fast + 1 / FRAMES
            rows = [typed, *screen.rows()]
            if rows != found[-1][1]:
                found.append((TYPED + 0.4 + seconds / fast, rows))
    return found, fast, run


def draw(cast: Path) -> str:
    """The SVG: every text is drawn once, and shown by an animation of its opacity from the time it is there."""
    about, events = read(cast)
    shown, fast, run = frames(about, events)
    whole = shown[-1][0] + 2 * HELD
    styles, bodies = [], []
    names: dict[str, str] = {}

    def animation(steps: list[tuple[float, str]]) -> str:
        keys = "".join(f"{max(0.0, at) / whole:.2%}{{{what}}}" for at, what in steps)
        if keys not in names:
            names[keys] = f"a{len(names)}"
            styles.append(f"@keyframes {names[keys]}{{{keys}}}.{names[keys]}{{animation-name:{names[keys]}}}")
        return names[keys]

    for place in range(max(len(rows) for _, rows in shown)):
        spans = []  # [text, from, to]: one entry for each text that stood in this row
        for at, rows in shown:
            text = rows[place] if place < len(rows) else ""
            if not spans or text != spans[-1][0]:
                if spans:
                    spans[-1][2] = at
                spans.append([text, at, None])
        for text, since, until in spans:
            if not text.strip():
                continue
            steps = [(0.0, "opacity:0"), (since, "opacity:1")] + ([(until, "opacity:0")] if until is not None else [])
            name = animation(steps if since > 0 else steps[1:])
            kind = "p" if text.startswith("$") else "b" if until is not None else "t"
            body = escape(text).replace("  ", "\u00a0\u00a0")
            y = TOP + HIGH * place + FONT
            last = "" if until is None else " gone"
            bodies.append(f'<text class="m {kind} {name}{last}" x="{LEFT}" y="{y}">{body}</text>')
    moves = [(0.0, "transform:translateY(0)")]
    for at, rows in shown:
        move = f"transform:translateY({-HIGH * max(0, len(rows) - ROWS)}px)"
        if move != moves[-1][1]:
            moves.append((at, move))
    at, rows = shown[-1]  # the summary is read from its top, then to its end
    summary = next((n for n, row in enumerate(rows) if row.startswith(SUMMARY)), 0)
    top = min(summary, max(0, len(rows) - ROWS))
    rest = f"transform:translateY({-HIGH * top}px)"
    scroll = animation([*moves[:-1], (at, rest), (at + HELD, moves[-1][1])])
    width, height = round(2 * LEFT + COLUMNS * WIDE), TOP + ROWS * HIGH + BOTTOM
    minutes, seconds = divmod(round(run), 60)
    clock = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    cores = "two busy CPU cores" if about.get("busy") else "two CPU cores"
    caption = f"A recorded run of {clock} on {cores}, shown {fast:g} times as fast."
    alt = f"{about['command']} in a terminal. It ends with: " + " / ".join(
        " ".join(row.split()) for row in rows[summary:] if row.strip()
    )
    view = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    inside = f"{width} {ROWS * HIGH}"  # a pixel below the margin, or the tails of the row above would show
    inner = f'y="{TOP + 1}" width="{width}" height="{ROWS * HIGH}" viewBox="0 {TOP + 1} {inside}"'
    lights = "".join(
        f'<circle cx="{x}" cy="19" r="5.5" fill="{fill}"/>'
        for x, fill in ((20, "#f4716a"), (38, "#f5bf4f"), (56, "#5fc454"))
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {view} role="img" aria-labelledby="title desc">
<title id="title">A run of {escape(about["command"])}, recorded</title>
<desc id="desc">{escape(alt)}</desc>
<style>
text{{font:{FONT}px {LETTERS};fill:#d7dde5;white-space:pre}}
.m,.s{{animation:{whole:.1f}s step-end infinite}}
.p{{fill:#7ee2a8;font-weight:bold}}.b{{fill:#8fb8ff}}.c{{fill:#a9b4c2;font-size:13px}}
.gone{{opacity:0}}.s{{{rest}}}
{"".join(styles)}
@media (prefers-reduced-motion:reduce){{.m,.s{{animation:none}}}}
</style>
<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10" fill="#161b22" stroke="#6e7681"/>
{lights}
<path d="M0 36.5H{width}M0 {height - BOTTOM + 3.5}H{width}" stroke="#3a424d"/>
<text class="c" x="{LEFT}" y="{height - 11}">{escape(caption)}</text>
<svg {inner}><g class="s {scroll}">
{chr(10).join(bodies)}
</g></svg>
</svg>
"""


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Record the main job in a terminal, and draw the recording.")
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("cast", type=Path)
    recording.add_argument("--figure", type=Path, help="where the figure of the run goes as well")
    recording.add_argument("--busy", action="store_true", help="other programs run on this machine: say so")
    drawing = commands.add_parser("draw")
    drawing.add_argument("cast", type=Path)
    drawing.add_argument("svg", type=Path)
    args = parser.parse_args(words)
    if args.command == "record":
        record(args.cast, figure=args.figure, busy=args.busy)
    else:
        args.svg.write_text(draw(args.cast), encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
