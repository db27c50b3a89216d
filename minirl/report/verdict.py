"""What happened, in words."""

import math
import statistics
from itertools import pairwise
from pathlib import Path

from minirl.checkpoint import checkpoints
from minirl.files import read_json
from minirl.report.curves import short
from minirl.report.reading import making_sense_of, read_lines, series


def verdict(records: list[dict], config: dict) -> list[str]:
    if not records:
        return ["No step has been recorded."]
    first, last = records[0]["step"], records[-1]["step"]
    main = next((name for name in ("reward_mean", "accuracy", "loss") if series(records, name)), None)
    lines = []
    if main is not None:
        lines.append(f"Over steps {first} to {last}, {main} {change(records, main)}.")
    if series(records, "gold_mean"):
        lines.append(f"gold_mean, the hidden true reward, {change(records, 'gold_mean')}.")
        if (direction(records, "reward_mean"), direction(records, "gold_mean")) == ("rose", "fell"):
            lines.append("What training was paid for went up and what it stands for went down: over-optimisation.")
    if kl := series(records, "kl"):
        lines.append(f"KL to the reference ended at {short(kl[-1][1])} nats a response.")
    if (finished := series(records, "finished")) and finished[-1][1] < 0.95:
        lines.append(f"In the last step {1 - finished[-1][1]:.0%} of the responses were cut off before their end.")
    if (n := window(records)) > 1:
        lines.append(f"Where a change is named, it is from the mean of the first {n} steps to that of the last {n}.")
    return lines


def window(records: list[dict]) -> int:
    """Steps averaged at either end: a tenth of the run, at most 10."""
    return max(1, min(10, len(records) // 10))


def direction(records: list[dict], name: str) -> str:
    """rose, fell, or neither: a change counts above two standard errors, the noise of a step being taken from how much
    neighbouring steps differ."""
    values, n = [value for _, value in series(records, name)], window(records)
    if len(values) < 4:
        return "went"
    jumps = [b - a for a, b in pairwise(values)]
    error = math.sqrt(statistics.fmean(jump * jump for jump in jumps) / n)  # a jump has twice a step's variance
    moved = statistics.fmean(values[-n:]) - statistics.fmean(values[:n])
    return "stayed within its noise," if abs(moved) <= 2 * error else "rose" if moved > 0 else "fell"


def change(records: list[dict], name: str) -> str:
    values, n = [value for _, value in series(records, name)], window(records)
    ends = statistics.fmean(values[:n]), statistics.fmean(values[-n:])
    return f"{direction(records, name)} from {short(ends[0])} to {short(ends[1])}"


def ending(out: Path, records: list[dict], config: dict) -> list[str]:
    """Whether all steps were taken, why not if the run knows, and how long it took."""
    lines, done = [], records[-1]["step"] if records else 0
    if done < config.get("steps", done):
        reason = stop_reason(out)
        lines.append(f"The run ended at step {done} of {config['steps']}{': ' if reason else ''}{reason}.")
    with making_sense_of(out / "timings.jsonl"):
        seconds = sum(record["seconds"] for record in read_lines(out / "timings.jsonl"))
    if seconds:
        lines.append(f"Its steps took {seconds:.1f} seconds.")
    return lines


def stop_reason(out: Path) -> str:
    for folder in reversed(checkpoints(out / "checkpoints")):
        try:
            return str(read_json(folder / "state.json")["state"]["values"]["stopped"]["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ""


def road_verdict(results: dict) -> list[str]:
    told, digits = results["stories"]["rows"], results["digit_sum"]["rows"]
    sft, ppo, greedy = told["SFT"], told["PPO"], told["PPO, no KL"]
    lines = []
    if results["quick"]:
        lines.append("A quick walk: a few steps of every stage, which shows that it runs and not that it learns.")
    lines.append(
        f"PPO took the hidden reward of a story from {sft['gold']:.2f} to {ppo['gold']:.2f}, {ppo['kl']:.2f} nats away "
        f"from where it started. Without the KL penalty the reward model's score went from {sft['proxy']:.2f} to "
        f"{greedy['proxy']:.2f} and the hidden reward to {greedy['gold']:.2f}."
    )
    pleased = greedy["proxy"] > max(sft["proxy"], ppo["proxy"])
    if pleased and greedy["gold"] < sft["gold"] and not results["quick"]:
        lines.append("The reward model was pleased and the reader was not: over-optimisation.")
    before, after = digits["SFT"], digits["GRPO"]
    lines.append(
        f"GRPO, told only right from wrong, took the digit sums from {before['accuracy']:.0%} to "
        f"{after['accuracy']:.0%} right, with {before['length']:.1f} tokens an answer before and {after['length']:.1f} after."
    )
    return lines
