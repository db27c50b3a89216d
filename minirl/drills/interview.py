"""Interview mode: some drills, a clock, a score sheet.

    from minirl.drills import Interview

    interview = Interview(3, minutes=30, seed=7)
    print(interview)                        # what to write, and how much time is left
    interview.check("gae", my_gae)          # as `check`, against the clock
    interview.hint("gae", 1)                # costs a point
    print(interview.sheet())

A drill is worth 10 points: 1 less for each hint that was read, and 1 less for each wrong attempt, but at least 4 once it is
solved within the time. `python -m minirl interview` does the same with your own editor beside a terminal.
"""

import random
import time
from collections.abc import Callable, Sequence

from minirl.drills.desk import drill, find, hint, names
from minirl.drills.judge import Result, check

POINTS, LEAST = 10, 4


class Interview:
    def __init__(
        self,
        n: int = 3,
        *,
        minutes: float = 30,
        seed: int | None = None,
        among: Sequence[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Draws n different drills `among` these names (all of them); the same seed draws the same ones. The clock starts
        now. ValueError: more drills than there are, a name that is none, no time."""
        pool = names() if among is None else [find(name).of.__name__ for name in among]
        pool = sorted(set(pool))
        if not isinstance(n, int) or not 1 <= n <= len(pool):
            raise ValueError(f"n: wanted 1 to {len(pool)} drills, got {n}")
        if isinstance(minutes, str) or not minutes > 0:
            raise ValueError(f"minutes: wanted more than 0, got {minutes}")
        self.drills = random.Random(seed).sample(pool, n)
        self.minutes, self.clock, self.start = minutes, clock, clock()
        self.hints: dict[str, set[int]] = {name: set() for name in self.drills}
        self.attempts: dict[str, list[Result]] = {name: [] for name in self.drills}
        self.solved: dict[str, float] = {}  # seconds after the start

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.start + 60 * self.minutes - self.clock())

    def check(self, name: str, fn) -> Result:
        """As `minirl.drills.check`. After the end the verdict is still given, and no longer counted."""
        self._drawn(name)
        in_time, at = self.seconds_left > 0, self.clock() - self.start
        result = check(name, fn)
        if in_time and name not in self.solved and result.status != "todo":
            self.attempts[name].append(result)
            if result.status == "ok":
                self.solved[name] = at
        return result

    def hint(self, name: str, n: int) -> str:
        """As `minirl.drills.hint`. A hint read twice is paid once, and after solving it is free."""
        self._drawn(name)
        text = hint(name, n)
        if name not in self.solved and self.seconds_left > 0:
            self.hints[name].add(n)
        return text

    def points(self, name: str) -> int:
        if name not in self.solved:
            return 0
        wrong = len(self.attempts[name]) - 1
        return max(LEAST, POINTS - len(self.hints[name]) - wrong)

    def sheet(self) -> str:
        """The score sheet, as Markdown."""
        rows = ["| drill | result | after | attempts | hints | points |", "| --- | --- | --- | --- | --- | --- |"]
        for name in self.drills:
            attempts = self.attempts[name]
            result = (
                "solved" if name in self.solved else (attempts[-1].mistake or attempts[-1].status) if attempts else "-"
            )
            after = minutes_and_seconds(self.solved[name]) if name in self.solved else "-"
            hints = len(self.hints[name])
            rows.append(f"| {name} | {result} | {after} | {len(attempts)} | {hints} | {self.points(name)} |")
        total = sum(map(self.points, self.drills))
        return "\n".join(
            [*rows, "", f"{total} of {POINTS * len(self.drills)} points. {comment(total / len(self.drills))}"]
        )

    def __str__(self) -> str:
        left = f"{minutes_and_seconds(self.seconds_left)} left of {self.minutes:g} minutes"
        tasks = [f"# {i}. {name}\n\n{drill(name)}" for i, name in enumerate(self.drills, 1)]
        return "\n\n".join([f"{len(self.drills)} drills, {left}.", *tasks])

    def _drawn(self, name: str) -> None:
        if name not in self.drills:
            raise ValueError(f"name: wanted one of {', '.join(self.drills)}, which were drawn; got {name!r}")


def minutes_and_seconds(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def comment(points: float) -> str:
    """What to do next, from the mean number of points a drill."""
    if points >= 9:
        return "Ready: say aloud why each line is there, and try longer ones."
    if points >= 6:
        return "Close: do the same ones again tomorrow, without hints."
    return "Read the notebooks of the ones you missed, then draw again."
