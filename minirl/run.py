"""A run: metrics as they happen, a progress bar, and checkpoints to come back to.

OUT/config.json       what was run, with versions and threads
OUT/metrics.jsonl     one object a step, "step" first, no clock in it, so that a resumed run writes the same bytes
OUT/timings.jsonl     the clock
OUT/checkpoints/      see minirl.checkpoint
"""

import json
import platform
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from minirl import __version__
from minirl.checkpoint import checkpoints, restore, write_aside, write_checkpoint, write_json
from minirl.types import Stats

CONFIG_MAY_CHANGE = {"steps", "versions", "checkpoint_every"}  # on --resume


class Stopped:
    """Why a run ended before its last step; empty while it goes on."""

    def __init__(self):
        self.reason = ""


class Run:
    """Keeps a training loop's records, and its state if there is a folder to keep it in.

        run = Run("runs/ppo", config={...})
        start = run.track(model=model, optimizer=optimizer, generator=generator)
        for step in run.steps(start, total):          # start + 1, ..., total
            ...
            run.record(step, stats)                   # writes the metrics, and a checkpoint when one is due

    Without a folder (`Run()`) it only collects `records`, a list of dicts of floats.
    """

    def __init__(
        self,
        out: str | Path | None = None,
        *,
        config: dict | None = None,
        resume: bool = False,
        checkpoint_every: int = 10,
        keep: int = 3,
        name: str = "",
        progress: bool = True,
    ):
        self.out = None if out is None else Path(out)
        self.checkpoint_every, self.keep, self.name, self.progress = checkpoint_every, keep, name, progress
        self.resume = resume
        self.records: list[dict] = []
        self.tracked: dict = {}
        self.stopped = Stopped()
        if self.out is not None:
            self._open(dict(config or {}))

    def _open(self, config: dict) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "config.json"
        config["versions"] = {
            "minirl": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        config = json.loads(json.dumps(config))
        if path.exists() and self._has_begun():
            if not self.resume:
                raise ValueError(
                    f"{self.out}: already holds a run; add --resume to go on with it, or choose another --out"
                )
            _same_config(path, config)
        write_json(path, config)

    def _has_begun(self) -> bool:
        """A start that failed before its first step, over a mistyped argument say, leaves nothing worth keeping."""
        metrics = self.out / "metrics.jsonl"
        return bool(checkpoints(self.out / "checkpoints")) or (metrics.exists() and metrics.stat().st_size > 0)

    def track(self, **objects) -> int:
        """Names the state of the loop: modules, optimisers, torch.Generators, and objects with plain attributes.

        Returns the number of steps that are already done: 0, or where a resumed run stands after its state was loaded.
        """
        self.tracked = objects = objects | {"stopped": self.stopped}
        if self.out is None:
            return 0
        done = restore(self.out / "checkpoints", objects) if self.resume else 0
        self._cut_back(done)
        return done

    def _cut_back(self, done: int) -> None:
        """Metrics beyond the checkpoint belong to steps that will be done again."""
        for name in ("metrics.jsonl", "timings.jsonl"):
            path = self.out / name
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            kept = []
            for line in lines:
                try:
                    if json.loads(line)["step"] > done:
                        break
                except (ValueError, KeyError, TypeError):  # the kill came in the middle of a line
                    break
                kept.append(line)
            write_aside(path, "".join(kept).encode())
            if name == "metrics.jsonl":
                self.records = [json.loads(line) for line in kept]

    def steps(self, done: int, total: int) -> Iterator[int]:
        """The steps still to do, counted from 1, under a progress bar."""
        self._clock = time.perf_counter()
        todo = range(done + 1, done + 1 if self.stopped.reason else total + 1)
        bar = tqdm(
            todo, desc=self.name, initial=done, total=total, disable=None if self.progress else True, leave=False
        )
        self._bar = bar
        step = done
        for step in bar:
            yield step
            if self.stopped.reason:
                break
        if self.stopped.reason:
            tqdm.write(f"{self.name or 'run'}: stopped after step {step}: {self.stopped.reason}")
        if self.out is not None and step > 0:
            self._checkpoint(step)

    def stop(self, reason: str) -> None:
        """Make this step the last one. A resumed run remembers it."""
        self.stopped.reason = reason

    def record(self, step: int, stats: Stats) -> None:
        """Append this step's statistics to the metrics, and write a checkpoint if one is due."""
        record = {"step": step} | {name: float(value) for name, value in stats.items()}
        self.records.append(record)
        shown = [name for name in ("reward_mean", "accuracy", "kl", "loss") if name in record][:3]
        self._bar.set_postfix({name: f"{record[name]:.3f}" for name in shown}, refresh=False)
        if self.out is None:
            return
        now = time.perf_counter()
        _append(self.out / "metrics.jsonl", record)
        _append(self.out / "timings.jsonl", {"step": step, "seconds": round(now - self._clock, 4)})
        self._clock = now
        if self.checkpoint_every and step % self.checkpoint_every == 0:
            self._checkpoint(step)

    def _checkpoint(self, step: int) -> None:
        folder = self.out / "checkpoints"
        if not (folder / f"step_{step:06d}").exists():
            write_checkpoint(folder, step, self.tracked)
        for old in checkpoints(folder)[: -self.keep]:
            shutil.rmtree(old)


def _same_config(path: Path, config: dict) -> None:
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error})") from None
    for key in before.keys() | config.keys():
        if key not in CONFIG_MAY_CHANGE and before.get(key) != config.get(key):
            raise ValueError(f"{path}: the run was made with {key} = {before.get(key)}, not {config.get(key)}")
    if before.get("versions") != config["versions"]:
        warnings.warn(
            f"{path}: versions or threads differ ({before.get('versions')} then, {config['versions']} now): "
            "the run goes on, but not bit for bit",
            stacklevel=2,
        )


def _append(path: Path, record: dict) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(record) + "\n")
