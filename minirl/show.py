"""Pictures: one palette, titles that state the finding, units on the axes. The library runs without this file."""

import csv
import html
import inspect
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from minirl.tasks import DATA

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#777777",
)
COLOURS = {
    "pretrained": GREY,
    "SFT": "#222222",
    "best of 16": PURPLE,
    "PPO": BLUE,
    "GRPO": GREEN,
    "DPO": ORANGE,
    "PPO, no KL": RED,
}


def read_metrics(path: Path) -> list[dict]:
    """The records of a run, one dict a step."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def column(records: list[dict], name: str) -> list[float]:
    return [record[name] for record in records]


def study(name: str) -> list[dict]:
    """The rows of a stored study, data/studies/NAME.csv, with numbers where the cells are numbers."""

    def number(cell: str):
        try:
            return float(cell)
        except ValueError:
            return cell

    text = (DATA / "studies" / f"{name}.csv").read_text()
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return [{key: number(cell) for key, cell in row.items()} for row in rows]


def road_figure(results: dict, out: Path) -> Figure:
    """Three panels: what the two PPO runs did to proxy and gold, where every method ended, and the digit world."""
    out = Path(out)
    figure, (over, ends, digits) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    if results["quick"]:
        figure.suptitle("A quick walk: a few steps of each stage, nothing is learned and no title is to be believed")
    draw_overoptimisation(over, out)
    draw_end_points(ends, results["stories"]["rows"])
    draw_digits(digits, read_metrics(out / "digits_grpo" / "metrics.jsonl"), results["digit_sum"]["rows"])
    return figure


def draw_overoptimisation(axes, out: Path) -> None:
    for stage, colour, name in (("stories_ppo", BLUE, "with KL"), ("stories_ppo_without_kl", RED, "without")):
        records = read_metrics(out / stage / "metrics.jsonl")
        steps = column(records, "step")
        axes.plot(steps, column(records, "reward_mean"), color=colour, linestyle="--", label=f"proxy, {name}")
        axes.plot(steps, column(records, "gold_mean"), color=colour, label=f"gold, {name}")
    axes.set_title("Without KL the proxy soars and the gold sinks")
    axes.set_xlabel("PPO step")
    axes.set_ylabel("mean reward of a story")
    axes.legend(fontsize=8)


def draw_end_points(axes, rows: dict[str, dict]) -> None:
    start = rows["SFT"]["gold"]
    shown = [name for name in COLOURS if name in rows and name not in ("pretrained", "SFT")]
    gains = [rows[name]["gold"] - start for name in shown]
    bars = axes.barh(shown, [max(gain, -3.0) for gain in gains], color=[COLOURS[name] for name in shown])
    axes.bar_label(bars, [f"{gain:+.2f}" for gain in gains], padding=3)
    axes.axvline(0, color="#222222", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlim(-4.2, max(2.2, *gains) + 0.8)
    axes.set_title("At a few nats of KL the hidden reader gains")
    axes.set_xlabel("gold gained over SFT (bars are cut at -3)")


def draw_digits(axes, records: list[dict], rows: dict[str, dict]) -> None:
    steps = column(records, "step")
    axes.plot(steps, column(records, "reward_mean"), color=GREEN, label="share of right answers")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("GRPO step")
    axes.set_ylabel("share of right answers")
    length = axes.twinx()
    length.plot(steps, column(records, "length_mean"), color=PURPLE, linestyle=":", label="length")
    length.set_ylabel("tokens an answer")
    length.set_ylim(0, 10)
    axes.set_title(f"{rows['SFT']['accuracy']:.0%} to {rows['GRPO']['accuracy']:.0%} right, by working it out")
    lines = axes.get_lines() + length.get_lines()
    axes.legend(lines, [line.get_label() for line in lines], fontsize=8, loc="lower right")


def save_road(results: dict, out: Path) -> Path:
    figure = road_figure(results, out)
    path = Path(out) / "road.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


# Notebooks

NOTEBOOK = {  # 5.6 inches at 120 dots are 670 pixels: type of 12 points can still be read on a phone, 390 pixels wide
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


def panels(rows: int = 1, *, height: float = 3.2):
    """(figure, axes): `rows` panels below each other, each `height` inches high, as wide as a page of a notebook."""
    with plt.rc_context(NOTEBOOK):
        return plt.subplots(rows, figsize=(5.6, rows * height), layout="constrained")


def label(axes, title: str, *, x: str = "", y: str = "") -> None:
    """The finding as the title, and what the axes measure, with units."""
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold")
    axes.set(xlabel=x, ylabel=y)


def lines(axes, records: list[dict], styles: dict[str, dict]) -> None:
    """Columns of a run's records over its steps: {"gold_mean": {"label": "gold", "color": BLUE}, ...}."""
    for name, style in styles.items():
        axes.plot(column(records, "step"), column(records, name), **({"linewidth": 2.2} | style))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if any("label" in style for style in styles.values()):
        axes.legend(fontsize=11, frameon=False)


def picture(figure: Figure, alt: str) -> None:
    """Show the figure in a notebook, with a text for readers who cannot see it."""
    from IPython.display import Image, display  # here, so that the command line does without IPython

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    display(Image(with_few_colours(buffer.getvalue()), alt=alt))


def with_few_colours(png: bytes, colours: int = 128) -> bytes:
    """The same picture in a third of the bytes: a plot has few colours, and a notebook is stored with its plots."""
    from PIL import Image  # comes with matplotlib

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        few = image.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    few.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def table(header: list[str], rows: list[list[str]]) -> None:
    """Show a small table in a notebook: texts on the left, whatever the theme."""
    from IPython.display import HTML, display

    def line(cells: list[str], tag: str) -> str:
        return "".join(f'<{tag} style="text-align:left">{html.escape(str(cell))}</{tag}>' for cell in cells)

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    display(HTML(f"<table><thead><tr>{line(header, 'th')}</tr></thead><tbody>{body}</tbody></table>"))


def tint(value: float, largest: float) -> str:
    """A translucent colour that reads on light and dark pages: blue above zero, orange below, stronger further out."""
    red, green, blue = (0, 114, 178) if value > 0 else (230, 159, 0)
    return f"rgba({red},{green},{blue},{0.6 * abs(value) / (largest or 1.0):.2f})"


def heat(pieces: list[str], values: list[float]) -> None:
    """Show the tokens of a text with their values: blue above zero, orange below, and the number over each token.

    The numbers remain where colours are removed.
    """
    from IPython.display import HTML, display

    largest = max(map(abs, values), default=0.0)
    tokens = [
        f'<ruby style="background:{tint(value, largest)};padding:0 3px;border-radius:3px">{html.escape(piece)}'
        f"<rt>{value:+z.1f}</rt></ruby>"
        for piece, value in zip(pieces, values, strict=True)
    ]
    display(HTML(f'<p style="line-height:2.6">{" ".join(tokens)}</p>'))


def heat_table(pieces: list[str], rows: dict[str, list[float]], *, digits: int = 2) -> None:
    """Show several quantities of each token, one row a quantity, each row tinted on its own scale.

    heat_table(["once", "upon", "."], {"logprob": [-1.2, -0.1, -0.3], "advantage": [0.4, 0.1, -0.2]})
    """
    from IPython.display import HTML, display

    def line(name: str, values: list[float]) -> str:
        largest = max(map(abs, values), default=0.0)
        shown = zip(pieces, values, strict=True)
        cells = "".join(f'<td style="background:{tint(v, largest)}">{v:+z.{digits}f}</td>' for _, v in shown)
        return f'<tr><th style="text-align:left">{html.escape(name)}</th>{cells}</tr>'

    head = "".join(f"<th>{html.escape(piece)}</th>" for piece in pieces)
    body = "".join(line(name, values) for name, values in rows.items())
    display(HTML(f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"))


def symbols(*rows: tuple) -> None:
    """Show what the formula calls it, what the code calls it, and the shape it has: ("$V(s_t)$", "values", values).

    The third entry is the tensor itself, so that the shape on the page is the shape in memory; a string stays as it is.
    """
    from IPython.display import Markdown, display

    def shape(thing) -> str:
        return thing if isinstance(thing, str) else "(" + ", ".join(map(str, thing.shape)) + ")"

    lines = [f"| {mathematics} | `{code}` | {shape(thing)} |" for mathematics, code, thing in rows]
    display(Markdown("\n".join(["| mathematics | code | shape |", "| --- | --- | --- |", *lines])))


def source(function) -> None:
    """Show the library's own source, so that the page and the library cannot drift apart."""
    from IPython.display import Markdown, display

    display(Markdown(f"```python\n{inspect.getsource(function).rstrip()}\n```"))


def bands(axes, steps: list[float], curves, *, label: str, color: str, **style) -> None:
    """One curve a seed, (seeds, steps): the line is their median, the band reaches from the lowest to the highest."""
    curves = np.asarray(curves, dtype=float)
    axes.plot(steps, np.median(curves, axis=0), color=color, label=label, **({"linewidth": 2.2} | style))
    axes.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.2, linewidth=0)


def loop_figure() -> Figure:
    """The loop of reinforcement learning for text: roll out, score, advantages, update, and round again."""
    figure, axes = panels(height=3.9)
    label(axes, "Each round makes well-paid stories likelier")
    axes.set(xlim=(0, 10), ylim=(0, 7))
    axes.axis("off")
    boxes = {  # centre, colour, what happens, on which example
        "1  roll out": (2.3, 5.4, BLUE, "the policy writes stories"),
        "2  score": (7.7, 5.4, ORANGE, "one number a story: +1.2"),
        "3  advantages": (7.7, 1.5, PURPLE, "better than expected? +0.5"),
        "4  update": (2.3, 1.5, GREEN, "good likelier, bad rarer"),
    }
    for name, (x, y, colour, example) in boxes.items():
        frame = FancyBboxPatch((x - 2.1, y - 0.95), 4.2, 1.9, boxstyle="round,pad=0.05", fill=False)
        frame.set(edgecolor=colour, linewidth=2.5)
        axes.add_patch(frame)
        axes.text(x, y + 0.35, name, ha="center", va="center", fontsize=13, weight="bold")
        axes.text(x, y - 0.4, example, ha="center", va="center", fontsize=10.5)
    arrow = {"arrowstyle": "-|>", "linewidth": 2.2, "color": "#222222", "mutation_scale": 18}
    right, down, left, up = (4.5, 5.4, 5.5, 5.4), (7.7, 4.35, 7.7, 2.55), (5.5, 1.5, 4.5, 1.5), (2.3, 2.55, 2.3, 4.35)
    for x, y, to_x, to_y in (right, down, left, up):
        axes.annotate("", xy=(to_x, to_y), xytext=(x, y), arrowprops=arrow)
    axes.text(5, 3.45, "policy $\\pi_\\theta$", ha="center", va="center", fontsize=14)
    return figure
