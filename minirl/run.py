"""A run: metrics as they happen, a progress bar, and checkpoints to come back to.

OUT/config.json       what was run, with versions and threads
OUT/metrics.jsonl     one object a step, "step" first, no clock in it, so that a resumed run writes the same bytes
OUT/timings.jsonl     the clock
OUT/checkpoints/      see minirl.checkpoint

A kill costs the steps since the last checkpoint, which --resume does again. So does a power cut: metrics are handed to the
system line by line and forced to the disk before each checkpoint, never after it.
"""

import contextlib
import hashlib
import json
import platform
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from minirl import __version__
from minirl.checkpoint import checkpoints, keep_last, restore, write_checkpoint
from minirl.disk import free_name, naming, sync, write_aside, write_json
from minirl.guards import CAUSES, NonFiniteError, check_record, check_weights
from minirl.ranks import ALONE, Ranks
from minirl.signals import Ended, finishing_the_step
from minirl.types import Stats, check_size

CONFIG_MAY_CHANGE = {"steps", "versions", "checkpoint_every"}  # on --resume


class Stopped:
    """Why a run ended before its last step; empty while it goes on."""

    def __init__(self):
        self.reason = ""


class Written:
    """The metrics as they stood at a checkpoint, so that a resumed run sees whether they are still the same."""

    def __init__(self):
        self.sha256 = ""


class Run:
    """Keeps a training loop's records, and its state if there is a folder to keep it in.

        run = Run("runs/ppo", config={...})
        start = run.track(model=model, optimizer=optimizer, generator=generator)
        for step in run.steps(start, total):          # start + 1, ..., total
            ...
            run.record(step, stats)                   # writes the metrics, and a checkpoint when one is due

    Without a folder (`Run()`) it only collects `records`, a list of dicts of floats. Of several `ranks` the first writes.
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
        ranks: Ranks = ALONE,
    ):
        self.out = None if out is None else Path(out)
        self.ranks = ranks
        self.checkpoint_every, self.keep, self.name, self.progress = checkpoint_every, keep, name, progress
        self.resume = resume
        self.records: list[dict] = []
        self.tracked: dict = {}
        self.stopped, self.written = Stopped(), Written()
        self.step, self.total = 0, 0  # the step that is running, and the last one
        self.of, self.constants = "", {}  # constants: statistics that are added to every record
        check_size("keep", keep)
        check_size("checkpoint_every", checkpoint_every, 0)
        if self.out is not None:
            self._open(dict(config or {}))

    def _open(self, config: dict) -> None:
        with naming(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            begun = self._has_begun()
        path = self.out / "config.json"
        config["versions"] = {
            "minirl": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        if self.ranks.size > 1:
            config["versions"] |= {"ranks": self.ranks.size, "shard": self.ranks.shard}
        config = json.loads(json.dumps(config))
        fixed = {key: value for key, value in config.items() if key not in CONFIG_MAY_CHANGE}
        self.of = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
        if not self.ranks.first:
            return
        if begun:
            if not self.resume:
                raise ValueError(
                    f"{self.out}: already holds a run; add --resume to go on with it, or choose another --out"
                )
            if path.exists():
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
        self.tracked = objects = objects | {"stopped": self.stopped, "written": self.written}
        if self.out is None:
            return 0
        done = restore(self.out / "checkpoints", objects, of=self.of, ranks=self.ranks) if self.resume else 0
        if self.ranks.first:
            self._cut_back(done)
        return done

    def _cut_back(self, done: int) -> None:
        """Metrics beyond the checkpoint belong to steps that will be done again."""
        for name in ("metrics.jsonl", "timings.jsonl"):
            path = self.out / name
            with naming(self.out):
                data = path.read_bytes() if path.exists() else b""
            kept, bad = _lines_up_to(data, done)
            text = b"".join(line for _, line in kept)
            if name == "metrics.jsonl":
                self.records = [record for record, _ in kept]
                if bad or (done and hashlib.sha256(text).hexdigest() != self.written.sha256):
                    self._lament(path, data, bad, done)
            write_aside(path, text)

    def _lament(self, path: Path, data: bytes, bad: list[int], done: int) -> None:
        """The weights do not need the metrics, so the run goes on; the file as it was found is kept."""
        missing = sorted(set(range(1, done + 1)) - {record["step"] for record in self.records})
        what = f"line {bad[0]} cannot be read" if bad else "it was changed after it was written"
        if missing:
            what += f"; of steps 1 to {done} it lacks {len(missing)}, the first is step {missing[0]}"
        kept = ""
        if data:
            copy = free_name(path.with_name("metrics_damaged.jsonl"))
            write_aside(copy, data)
            kept = f"; the file as it was found is now {copy.name}"
        warnings.warn(f"{path}: {what}{kept}. The run itself is whole and goes on after step {done}", stacklevel=4)

    def steps(self, done: int, total: int) -> Iterator[int]:
        """The steps still to do, counted from 1, under a progress bar.

        Where the command line listens (minirl.signals), a signal ends them after a step, once that is saved.
        """
        self._clock = time.perf_counter()
        todo = range(done + 1, done + 1 if self.stopped.reason else total + 1)
        shown = None if self.progress and self.ranks.first else True
        bar = tqdm(todo, desc=self.name, initial=done, total=total, disable=shown, leave=False)
        self._bar, self.total = bar, total
        step = done
        with finishing_the_step() as asked:
            for step in bar:
                self.step = step
                yield step
                if self.stopped.reason:
                    break
                ended = asked()
                if self.ranks.any(
                    ended is not None
                ):  # the signal finds ranks in different steps: they end after the same
                    ended = ended or Ended(signal.SIGTERM)
                    bar.close()
                    ended.saved = f"after step {step} of {total}"
                    if self.out is not None:
                        self._checkpoint(step)
                        ended.saved += f", saved in {self.last_checkpoint()}"
                    raise ended
            if self.stopped.reason and self.ranks.first:
                tqdm.write(f"{self.name or 'run'}: stopped after step {step}: {self.stopped.reason}")
            if self.out is not None and step > 0:
                self._checkpoint(step)
            self.step = 0

    def stop(self, reason: str) -> None:
        """Make this step the last one. A resumed run remembers it."""
        self.stopped.reason = reason

    def record(self, step: int, stats: Stats) -> None:
        """Append this step's statistics to the metrics, and write a checkpoint if one is due.

        NonFiniteError, before a run with a folder writes anything, if a number is not finite or beyond its ceiling.
        """
        record = {"step": step} | {name: float(value) for name, value in stats.items()} | self.constants
        if self.out is not None:
            check_record(step, record)
        self.records.append(record)
        shown = [name for name in ("reward_mean", "accuracy", "kl", "loss") if name in record][:3]
        self._bar.set_postfix({name: f"{record[name]:.3f}" for name in shown}, refresh=False)
        if self.out is None:
            return
        now = time.perf_counter()
        if self.ranks.first:
            with naming(self.out):
                _append(self.out / "metrics.jsonl", record)
                _append(self.out / "timings.jsonl", {"step": step, "seconds": round(now - self._clock, 4)})
        self._clock = now
        if self.checkpoint_every and step % self.checkpoint_every == 0:
            self._checkpoint(step)

    def _checkpoint(self, step: int) -> None:
        folder = self.out / "checkpoints"
        if self.ranks.any(self.ranks.first and not (folder / f"step_{step:06d}").is_dir()):
            for item in self.tracked.values():
                if isinstance(item, torch.nn.Module):
                    check_weights(item, f"step {step}: after the update")
            metrics = self.out / "metrics.jsonl"
            with naming(self.out):
                if self.ranks.first and metrics.exists():
                    sync(metrics)  # first: a checkpoint promises the metrics up to its step
                    self.written.sha256 = hashlib.sha256(metrics.read_bytes()).hexdigest()
            write_checkpoint(folder, step, self.tracked, of=self.of, ranks=self.ranks)
        if self.ranks.first:
            keep_last(folder, self.keep)

    def last_checkpoint(self) -> Path | None:
        found = [] if self.out is None else checkpoints(self.out / "checkpoints")
        return found[-1] if found else None

    @contextlib.contextmanager
    def telling_where(self) -> Iterator[None]:
        """An error inside a step says which step, and what to go back to."""
        try:
            yield
        except (ValueError, ArithmeticError) as error:
            said, kind = str(error), ValueError if isinstance(error, ValueError) else type(error)
            if self.step and not said.startswith(f"step {self.step}: "):
                said = f"step {self.step}: {said}"
            if "wanted finite numbers" in said and "scores: " not in said:  # types.check_finite, about a table
                said, kind = f"{said}. {CAUSES.format(lr='')}", NonFiniteError
            if self.step and self.out is not None:
                last = self.last_checkpoint()
                last = f"The last checkpoint, all finite: {last}" if last else "No checkpoint had been written"
                said = f"{said.rstrip('.')}. {last}."
                if kind is NonFiniteError:
                    said += f" What came before it: python -m minirl doctor {self.out / 'metrics.jsonl'}"
            raised = kind(said)
            raised.step = self.step
            raise raised from error


def _lines_up_to(data: bytes, done: int) -> tuple[list[tuple[dict, bytes]], list[int]]:
    """The records of steps 1 to `done`, in order, with their lines; and the numbers of lines before the last of them that
    are no records. What comes after is of steps that are done again, or half a line that a kill left."""
    kept, bad, last = [], [], 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        try:
            record = json.loads(line)
            step = record["step"]
            whole = isinstance(step, int) and step > last and line.endswith(b"\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            bad.append(number)
        elif step <= done:
            kept.append((record, line))
            last = step
        else:
            break
    return kept, bad if last < done else [number for number in bad if number <= len(kept)]


def _same_config(path: Path, config: dict) -> None:
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise ValueError(f"wanted an object, got {type(before).__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: damaged ({error}). The checkpoints beside it are untouched and know their settings: remove this file, "
            f"and --resume goes on if the command is the same"
        ) from None
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
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(record) + "\n")
