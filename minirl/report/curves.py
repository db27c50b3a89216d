"""Curves with their meaning in words."""

import math
from html import escape

from minirl.report.page import note
from minirl.report.reading import series
from minirl.types import STATS

# Which statistics are drawn, and in which order. The others are in metrics.jsonl.
DRAWN = (
    "reward_mean gold_mean kl accuracy margin entropy length_mean finished worked_share explained_variance "
    "clip_fraction dead_groups chosen_logprobs rejected_logprobs loss grad_norm"
).split()


def curves(records: list[dict]) -> str:
    drawn = [name for name in DRAWN if series(records, name)]
    if not drawn:
        return ""
    rest = sorted({name for record in records for name in record} - set(drawn) - {"step"})
    beside = note(f"Recorded in metrics.jsonl as well: {', '.join(rest)}.") if rest else ""
    return f'<div class="curves">\n{"".join(curve(name, series(records, name)) for name in drawn)}</div>\n{beside}'


def curve(name: str, points: list[tuple[int, float]]) -> str:
    (first, start), (last, end) = points[0], points[-1]
    return (
        f"<figure>{chart(name, points)}<figcaption><b>{escape(name)}</b> {escape(STATS.get(name, ''))}"
        f"<span>{datum(start)} at step {first}, {datum(end)} at step {last}</span></figcaption></figure>\n"
    )


def datum(value: float) -> str:
    """The number to read, and the exact one behind it."""
    return f'<data value="{value!r}">{short(value)}</data>'


def short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def chart(name: str, points: list[tuple[int, float]]) -> str:
    """A line over the steps as SVG, with a note on every point for the pointer to find."""
    width, height, left, right, top, bottom = 320, 150, 42, 8, 8, 20
    ticks = round_ticks([value for _, value in points])
    low, high = ticks[0], ticks[-1]
    first, last = points[0][0], points[-1][0]

    def across(step: int) -> float:
        return left + (width - left - right) * (step - first) / max(last - first, 1)

    def down(value: float) -> float:
        return top + (height - top - bottom) * (high - value) / (high - low)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)} at each step">']
    for tick in ticks:
        y = f"{down(tick):.1f}"
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 5}" y="{y}" dy="4" text-anchor="end">{tick:.4g}</text>')
    for step, anchor in ((first, "start"), (last, "end"))[: 1 + (last > first)]:
        label = f"step {step}" if step == first else step
        parts.append(f'<text x="{across(step):.1f}" y="{height - 5}" text-anchor="{anchor}">{label}</text>')
    shown = thinned(points)
    places = [(f"{across(step):.1f}", f"{down(value):.1f}") for step, value in shown]
    parts.append(f'<polyline class="line" points="{" ".join(f"{x},{y}" for x, y in places)}"/>')
    dot = "dot" if len(shown) > 1 else "alone"
    for (x, y), (step, value) in zip(places, shown, strict=True):
        parts.append(
            f'<circle class="{dot}" cx="{x}" cy="{y}" r="4"><title>step {step}: {short(value)}</title></circle>'
        )
    return "".join([*parts, "</svg>"])


def round_ticks(values: list[float]) -> list[float]:
    """3 to 5 round numbers, evenly spaced, the first not above and the last not below all values."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):  # a flat line: room above and below
        low, high = low - max(abs(low), 1) / 2, high + max(abs(high), 1) / 2
    rough = (high - low) / 3
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough)
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def thinned(points: list[tuple[int, float]], buckets: int = 60) -> list[tuple[int, float]]:
    """At most some 2 * buckets points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= 2 * buckets:
        return points
    kept, size = {points[0], points[-1]}, len(points) / buckets
    for i in range(buckets):
        part = points[int(i * size) : int((i + 1) * size)]
        kept |= {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
    return sorted(kept)
