"""The report of a run: one HTML page that needs nothing beside it, made from the files in the run's folder alone.

Curves are drawn as SVG in the page's own colours, so that light and dark come out right and no plotting library is needed;
the road's figure, which `show` drew, goes in as it is.
"""

import math
from html import escape
from pathlib import Path

from minirl.checkpoint import write_aside
from minirl.files import check_path, read_json
from minirl.report.curves import curves
from minirl.report.page import embedded, listing, note, page, section, table
from minirl.report.reading import making_sense_of, read_lines
from minirl.report.tokens import reads_tokens, samples
from minirl.report.verdict import ending, road_verdict, verdict
from minirl.road import BEST_OF, ORDER


def write_report(out: Path) -> Path:
    """Write out/report.html for a training run or for the whole road, and return its path.

    ValueError if the folder holds neither. What else is missing (samples, the command, the figure) is left out.
    """
    out = check_path("out", out)
    if (out / "results.json").is_file():
        with making_sense_of(out / "results.json"):
            title, parts = road_page(out)
    elif (out / "config.json").is_file():
        with making_sense_of(out / "config.json"):
            title, parts = run_page(out)
    else:
        raise ValueError(f"out: {out} has no config.json and no results.json, so there is no run to report on")
    write_aside(out / "report.html", page(title, parts).encode())
    return out / "report.html"


def run_page(out: Path) -> tuple[str, list[str]]:
    config, records = read_json(out / "config.json"), read_lines(out / "metrics.jsonl")
    versions = config.pop("versions", {})
    named = [config[name] for name in ("loop", "task") if config.get(name)]
    scored_by = "the reward model" if reads_tokens(out / "samples.json") else "the rule"
    return " on ".join(map(str, named)) or out.resolve().name, [
        f"<p>{escape(' '.join(verdict(records, config) + ending(out, records, config)))}</p>",
        section("Curves", curves(records)),
        section("Samples", samples(out / "samples.json", scored_by)),
        section("Settings", listing(config)),
        section("Versions", listing(versions)),
        section("The command", command(out)),
    ]


def road_page(out: Path) -> tuple[str, list[str]]:
    results = read_json(out / "results.json")
    told, digits = results["stories"]["rows"], results["digit_sum"]["rows"]
    stages = sorted(path for path in out.glob("*/config.json"))
    versions = (read_json(stages[0]).get("versions", {}) if stages else {}) | {
        "torch": results["torch"],
        "threads": results["threads"],
    }
    picture = out / "road.png"
    stories_note = (
        "gold: what the hidden reader really likes. proxy: what the reward model believes; it agrees with "
        f"{results['stories']['reward_model_accuracy']:.0%} of held-out labels. KL: nats from SFT. length: tokens."
    )
    digits_note = "accuracy: share of right answers. worked: share with the working written out. length: tokens."
    return "From random weights to aligned", [
        f"<p>{escape(' '.join(road_verdict(results)))}</p>",
        section("The road in one figure", embedded(picture) if picture.is_file() else ""),
        section("Stories", note(stories_note) + table(story_rows(told))),
        section("Digit sums", note(digits_note) + table(digit_rows(digits))),
        section("Samples: stories", samples(out / "samples_stories.json", "the reward model")),
        section("Samples: digit sums", samples(out / "samples_digit_sum.json", "the rule")),
        section("Seconds", listing(results["seconds"] | {"all": round(sum(results["seconds"].values()), 1)})),
        section("Versions", listing(versions | {"seed": results["seed"]})),
        section("The command", command(out)),
    ]


def story_rows(rows: dict[str, dict]) -> list[list[str]]:
    found = [["", "gold", "proxy", "KL", "length"]]
    for name in (name for name in ORDER if name in rows):
        row = rows[name]
        bound = math.log(BEST_OF) - (BEST_OF - 1) / BEST_OF  # of best-of-n, which has no policy of its own
        kl = f"< {bound:.2f}" if row["kl"] is None else f"{row['kl']:.2f}"
        found.append([name, f"{row['gold']:.2f}", f"{row['proxy']:.2f}", kl, f"{row['length']:.1f}"])
    return found


def digit_rows(rows: dict[str, dict]) -> list[list[str]]:
    return [["", "accuracy", "worked", "length"]] + [
        [name, f"{row['accuracy']:.2f}", f"{row['worked']:.2f}", f"{row['length']:.1f}"] for name, row in rows.items()
    ]


def command(out: Path) -> str:
    path = out / "command.txt"
    if not path.is_file():
        return ""
    hint = "From the folder it was started in, with another --out: this one holds the run already."
    return f"<pre><code>{escape(path.read_text(encoding='utf-8').strip())}</code></pre>" + note(hint)
