"""Curves: what the rules look at. A Log turns records into one curve a name, in our vocabulary, finite numbers only."""

import math
import statistics
from dataclasses import dataclass
from itertools import accumulate, pairwise

from minirl.doctor.names import STEPS, is_training_row, number, ours

NOISE = 2.5  # a change counts from so many standard errors on: one false one in eighty
FEW = 4  # records below which no direction is claimed
HUGE = 1e100  # sums of squares still fit below it, and no metric of a run that lives is larger
SOLVED = 0.85  # of a reward between 0 and 1; the healthy digit runs stand at .85 to 1 when they are done


@dataclass(frozen=True)
class Curve:
    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @property
    def window(self) -> int:
        """Records averaged at either end: a fifth of them."""
        return max(1, len(self) // 5)

    @property
    def first(self) -> float:
        return self.values[0]

    @property
    def early(self) -> float:
        return statistics.fmean(self.values[: self.window])

    @property
    def late(self) -> float:
        return statistics.fmean(self.values[-self.window :])

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def second_half(self) -> "Curve":
        return Curve(self.steps[len(self) // 2 :], self.values[len(self) // 2 :])

    @property
    def error(self) -> float:
        """Standard error of the mean of a window, from how much neighbours differ (a jump has twice a step's variance)."""
        jumps = [b - a for a, b in pairwise(self.values)] or [0.0]
        return math.sqrt(statistics.fmean(jump * jump for jump in jumps) / 2 / self.window)

    @property
    def direction(self) -> str:
        """rose, fell, or "" where the difference of the two ends is within its noise or there are too few records."""
        moved = self.late - self.early if self else 0.0
        if len(self) < FEW or abs(moved) <= NOISE * math.sqrt(2) * self.error:
            return ""
        return "rose" if moved > 0 else "fell"

    @property
    def trend(self) -> float:
        """Correlation of the values with their order, 0 for a constant."""
        if len(self) < FEW or min(self.values) == max(self.values):
            return 0.0
        return statistics.correlation(range(len(self)), self.values)

    @property
    def smooth(self) -> "Curve":
        """Means over a window."""
        n, sums = self.window, [0.0, *accumulate(self.values)]
        return Curve(self.steps[n - 1 :], tuple((b - a) / n for a, b in zip(sums, sums[n:], strict=False)))

    def said(self, verb: str = "went") -> str:
        """went from 0.3 (steps 1-5) to 41 (steps 56-60): means over a window"""
        n, ends = self.window, [self.steps[0], self.steps[-1]]
        first, last = (f"step {end}" for end in ends)
        if n > 1:
            first, last = f"steps {ends[0]}-{self.steps[n - 1]}", f"steps {self.steps[-n]}-{ends[1]}"
        return f"{verb} from {short(self.early)} ({first}) to {short(self.late)} ({last})"


class Log:
    """log["kl"] is the curve of `kl`, empty where there is none. `bad` lists what was NaN, infinite or huge."""

    def __init__(self, records: list[dict]):
        found: dict[str, tuple[list, list]] = {}
        self.bad: list[tuple[int, str, float]] = []
        rows = [record for record in records if isinstance(record, dict) and is_training_row(record)]
        for place, record in enumerate(rows, start=1):
            step = next(
                (s for name in STEPS if (s := number(record.get(name))) is not None and math.isfinite(s)), place
            )
            for name, value in ours(record).items():
                value = None if name in (*STEPS, "epoch") else number(value)
                if value is None:
                    continue
                if not abs(value) <= HUGE:  # NaN compares false
                    self.bad.append((int(step), name, value))
                    continue
                steps, values = found.setdefault(name, ([], []))
                steps.append(int(step))
                values.append(value)
        self.curves = {name: Curve(tuple(steps), tuple(values)) for name, (steps, values) in found.items()}

    def __getitem__(self, name: str) -> Curve:
        return self.curves.get(name, Curve())

    def __contains__(self, name: str) -> bool:
        return name in self.curves

    @property
    def first_step(self) -> int:
        return min((curve.steps[0] for curve in self.curves.values()), default=0)

    @property
    def a_share(self) -> bool:
        """The reward is a share of right answers, by its range."""
        return bool(self["reward_mean"]) and all(0 <= x <= 1 for x in self["reward_mean"].values)

    @property
    def solved(self) -> bool:
        """Nearly all answers are right: nothing is left to learn."""
        return self.a_share and self["reward_mean"].late >= SOLVED

    @property
    def learning(self) -> bool:
        """The reward rose, or it cannot rise any more."""
        return self.solved or self["reward_mean"].direction == "rose"

    @property
    def updates(self) -> float | None:
        """Gradient steps a batch, where the log says so."""
        return max(self["updates"].values, default=None)


def short(x: float) -> str:
    return f"{x:.3g}"
