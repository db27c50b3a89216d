"""Two workers that take turns, and what becomes of their times."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from minirl.bench.workloads import WARM_UP, Workload

HERE = Path(__file__).resolve().parent
BREATH = 0.01  # seconds between two turns: the threads of the side that has just worked go to sleep meanwhile
TOLERANCES = {"logits": 1e-4, "greedy tokens": 0.0}  # as a share of the largest number
TOLERANCE = {"fp32": 3e-4, "bf16": 2e-2}  # of everything else: sums over many tokens, and gradients

# What a new process does for "import" and "help". The last word is the process's own account of its memory.
CODE = {
    "ours": {
        "import": "import minirl.train.grpo, minirl.pretrained",
        "help": "import sys, runpy; sys.argv = ['minirl', '--help']; runpy.run_module('minirl', run_name='__main__')",
    },
    "peers": {
        "import": "from trl import GRPOConfig, GRPOTrainer",
        "help": "import sys; from trl.cli.main import main; sys.argv = ['trl', '--help']; main()",
    },
}


class Fault(Exception):
    """A side that could not do its work, or did another work than it should: no figures, and why."""


@dataclass(frozen=True)
class Python:
    """A Python, and a folder that comes first on its path (None: none does)."""

    executable: str
    path: str | None = None

    def environment(self) -> dict[str, str]:
        here = os.environ.get("PYTHONPATH") if self.executable == sys.executable else None
        found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        paths = [path for path in (self.path, here) if path]
        return found | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})


OURS = Python(sys.executable, str(HERE.parents[1]))


@dataclass
class Side:
    seconds: list[float] = field(default_factory=list)
    peak: int = 0  # bytes, while it worked
    before: int = 0  # bytes, when everything was imported and loaded
    versions: dict[str, str] = field(default_factory=dict)
    answers: dict = field(default_factory=dict)


class Worker:
    """One side of one workload: see `worker`."""

    def __init__(self, python: Python, side: str, name: str, folder: Path):
        self.errors = tempfile.TemporaryFile()
        self.what, self.side = f"{'ours' if side == 'ours' else 'the peer'} ({name})", Side()
        self.process = subprocess.Popen(
            [python.executable, str(HERE / "worker.py"), side, name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=python.environment(),
            text=True,
        )

    def hear(self) -> dict:
        line = self.process.stdout.readline()
        message = json.loads(line) if line else {"fault": f"it ended early: {self.last_words()}"}
        if "fault" in message:
            raise Fault(f"{self.what}: {message['fault']}")
        return message

    def ask(self) -> dict:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.hear()

    def begin(self) -> None:
        message = self.hear()
        self.side.versions, self.side.before = message["ready"], message["peak"]
        self.side.answers = self.ask()["answers"]

    def unit(self) -> float:
        message = self.ask()
        self.side.peak = max(self.side.peak, message["peak"])
        return message.get("seconds", float("nan"))

    def last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def compare(name: str, folder: Path, peer: Python | None, pairs: int) -> tuple[Side, Side | None]:
    """Both sides of a workload, in turns: ours, theirs, ours, theirs. Fault unless they compute the same thing."""
    workers = [Worker(OURS, "ours", name, folder)]
    try:
        workers += [Worker(peer, "peers", name, folder)] if peer is not None else []
        for worker in workers:
            worker.begin()
        if peer is not None:
            dtype = json.loads((folder / "spec.json").read_text())["dtype"]
            differs = disagreement(*(worker.side.answers for worker in workers), dtype=dtype)
            if differs:
                raise Fault(f"the two sides compute different things: {differs}")
        for worker in workers:
            worker.ask()  # the answers are forgotten
            worker.unit()  # up to the first pause: preparations
        for turn in range(WARM_UP + pairs):
            for worker in workers:
                time.sleep(BREATH)
                seconds = worker.unit()
                if turn >= WARM_UP:
                    worker.side.seconds.append(seconds)
    finally:
        for worker in workers:
            worker.close()
    return workers[0].side, workers[1].side if peer is not None else None


def disagreement(ours: dict, theirs: dict, *, dtype: str = "fp32") -> str:
    """What the two sides' answers differ in, or "" where they agree. Answers that nobody can compare do not agree.

    Most answers are float32 whatever the dtype, but a trainer that was told to use bfloat16 may not be talked out of it.
    """
    common = [name for name in ours if name in theirs]
    if not common:
        return "nothing they answered can be compared"
    for name in common:
        one, other = (torch.as_tensor(side[name], dtype=torch.float64) for side in (ours, theirs))
        if one.shape != other.shape:
            return f"{name}: shape {tuple(one.shape)} and {tuple(other.shape)}"
        gap, scale = (one - other).abs().max(), other.abs().max()
        if not gap <= TOLERANCES.get(name, TOLERANCE[dtype]) * scale:
            return f"{name}: up to {gap:.3g} apart, of at most {scale:.3g}"
    return ""


def processes(
    name: str, folder: Path, peer: Python | None, pairs: int, *, threads: int, clock: str
) -> tuple[Side, Side | None]:
    """The same for workloads that are new processes."""
    pythons = {"ours": OURS} | ({} if peer is None else {"peers": peer})
    sides = {which: Side() for which in pythons}
    for turn in range(1 + pairs):  # the first reads the files from the disk
        for which, python in pythons.items():
            if name == "start_up":
                seconds, peak = started(python, which, folder)
            else:
                seconds, peak = one_process(python, CODE[which][name], threads=threads, clock=clock)
            if turn >= 1:
                sides[which].seconds.append(seconds)
                sides[which].peak = max(sides[which].peak, peak)
    return sides["ours"], sides.get("peers")


def started(python: Python, which: str, folder: Path) -> tuple[float, int]:
    """(seconds, peak bytes) of a new process until GRPO's first step begins: imports, weights, and what a trainer prepares.
    Always by the clock on the wall. What a worker computes in between, to be compared, is not counted."""
    began = time.perf_counter()
    worker = Worker(python, which, "grpo", folder)
    try:
        worker.hear()  # imported and loaded
        seconds = time.perf_counter() - began
        worker.ask(), worker.ask()  # its answers; they are forgotten
        began = time.perf_counter()
        worker.unit()  # up to the first step
        return seconds + time.perf_counter() - began, worker.side.peak
    finally:
        worker.close()


def one_process(python: Python, code: str, *, threads: int, clock: str) -> tuple[float, int]:
    """(seconds, peak bytes) of a new process, from its start to its end."""
    account = "import atexit, sys; sys.path.append(sys.argv.pop()); import worker; "
    account += "atexit.register(lambda: sys.stderr.write(f'\\npeak {worker.peak_bytes()}'))"
    started = time.perf_counter()
    process = subprocess.Popen(
        [python.executable, "-c", f"{account}\n{code}", str(HERE)],
        env=python.environment() | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode != 0:
        lines = [line for line in said.strip().splitlines() if not line.startswith("peak ")]
        raise Fault(f"{code}: {lines[-1] if lines else f'exit status {process.returncode}'}")
    seconds = usage.ru_utime + usage.ru_stime if clock == "cpu" else wall
    return seconds, int(said.rpartition("peak ")[2])


@dataclass(frozen=True)
class Verdict:
    ratio: float  # the median over pairs of turns of their seconds / ours
    quartiles: tuple[float, float]
    minima: float  # their shortest unit / our shortest
    must: float | None
    aim: float | None

    @property
    def words(self) -> str:
        if self.must is None:
            return ""
        return "reached" if self.ratio >= self.must else "NOT reached"


def verdict(ours: Side, theirs: Side, workload: Workload, size: str) -> Verdict:
    ratios = [b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    place = 0 if size == "tiny" else 1
    return Verdict(
        ratio=statistics.median(ratios),
        quartiles=quartiles(ratios),
        minima=min(theirs.seconds) / min(ours.seconds),
        must=workload.must and workload.must[place],
        aim=workload.aim and workload.aim[place],
    )


def quartiles(numbers: list[float]) -> tuple[float, float]:
    if len(numbers) < 2:
        return numbers[0], numbers[0]
    low, _, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return low, high


PROBE = """
import importlib.metadata, importlib.util, json, pathlib
found = {}
for name in ("torch", "transformers", "trl"):
    spec = importlib.util.find_spec(name)
    if spec is not None:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "?"
        if name == "trl" and (pathlib.Path(spec.origin).parent / "experimental" / "ppo").is_dir():
            found["trl.experimental.ppo"] = found[name]
print(json.dumps(found))
"""


def installed(python: Python) -> dict[str, str]:
    """Which of the peer's packages a Python has, with their versions, without importing any of them."""
    try:
        done = subprocess.run(
            [python.executable, "-c", PROBE], env=python.environment(), capture_output=True, text=True, timeout=60
        )
    except OSError as error:
        raise ValueError(f"{python.executable}: cannot be run ({error})") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise ValueError(f"{python.executable}: is no Python that runs ({lines[-1] if lines else 'no reason given'})")
    return json.loads(done.stdout)
