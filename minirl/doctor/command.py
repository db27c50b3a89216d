"""`python -m minirl doctor METRICS`."""

import argparse
import textwrap
from pathlib import Path

from minirl.doctor import NEEDS, diagnose, read_metrics
from minirl.doctor.log import Log

WORDS = (
    (0.9, "almost certain"),
    (0.75, "very likely"),
    (0.55, "likely"),
    (0.35, "possible"),
    (0.0, "a mere suspicion"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "metrics",
        type=Path,
        metavar="METRICS",
        help="a metrics.jsonl, TRL's trainer_state.json, or the folder of a run",
    )


def run(args: argparse.Namespace) -> int:
    """Print what is probably wrong. Returns 0, with a diagnosis or without: a sick run is an answer and no failure."""
    records = read_metrics(args.metrics)
    log, found = Log(records), diagnose(records)
    steps = max((len(curve) for curve in log.curves.values()), default=0)
    print(f"{args.metrics}: {steps} record{'s' * (steps != 1)}, {len(log.curves)} metrics")
    for place, d in enumerate(found, start=1):
        print(f"\n{place}. {d.name}: {in_words(d.confidence)} ({d.confidence:.0%})")
        print(filled("seen", d.evidence))
        print(filled("next", d.advice))
    if not found:
        print("\nNothing wrong was found. That is no proof of health: read a few samples all the same.")
    looked = [name for name, needs in NEEDS.items() if any(need in log for need in needs)]
    missing = {name: needs for name, needs in NEEDS.items() if name not in looked}
    if not found:
        print("\n" + filled("looked for", ", ".join(["non_finite", *looked])))
    if missing:
        wants = sorted({" or ".join(needs) for needs in missing.values()})
        print("\n" + filled("could not be looked for", ", ".join(missing)))
        print(filled("for want of", ", ".join(wants)))
    if steps < 10:
        print("\nWith so few records most rules stay silent; ask again after some twenty steps.")
    return 0


def in_words(confidence: float) -> str:
    return next(word for least, word in WORDS if confidence >= least)


def filled(label: str, text: str) -> str:
    indents = {"initial_indent": "   ", "subsequent_indent": "      "}
    return textwrap.fill(f"{label}: {text}", width=100, break_long_words=False, break_on_hyphens=False, **indents)
