"""Pictures: one palette, titles that state the finding, units on the axes. The library runs without this file."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

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


def road_figure(results: dict, out: Path) -> Figure:
    """Three panels: what the two PPO runs did to proxy and gold, where every method ended, and the digit world."""
    out = Path(out)
    figure, (over, ends, digits) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
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
    axes.set_title("What the hidden reader got out of it")
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
    axes.set_title(
        f"Right and wrong alone: {rows['SFT']['accuracy']:.0%} to {rows['GRPO']['accuracy']:.0%}, by thinking longer"
    )
    lines = axes.get_lines() + length.get_lines()
    axes.legend(lines, [line.get_label() for line in lines], fontsize=8, loc="lower right")


def save_road(results: dict, out: Path) -> Path:
    figure = road_figure(results, out)
    path = Path(out) / "road.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
