"""Runs that are killed at any instant, and what is left of them compared with a run that never was.

    with Forge() as forge:
        whole = forge.run(arguments("ppo", out))           # to its end: the exit status
        hit = forge.kill(arguments("ppo", out), "a save")  # kill -9 inside a save: where it hit
        differences(out, whole_out)                        # [] where every byte is the same

A start of Python with PyTorch takes seconds and a step milliseconds. So one process imports everything and forks for each
run: what is killed is a process of its own with everything it holds, as if it had been started.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

STEPS = 16
ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "pretrain": ["--batch", "8"],
    "reward_model": ["--pairs", "8", "--sampled-pairs", "32"],
    "ppo": ["--batch", "16", "--minibatch", "8", "--kl-coef", "0.1", "--kl-target", "0.5"],
    "dpo": ["--pairs", "8", "--sampled-pairs", "32"],
    "grpo": ["--prompts", "2", "--group-size", "8", "--kl-coef", "0.05"],
}
COMPARED = ("metrics.jsonl", "samples.json", "final.sha256")  # the last holds the sums of every file of final/


def arguments(loop: str, out: Path, *more: str, steps: int = STEPS) -> list[str]:
    """What follows `python -m minirl`: a run of few and small steps, with a checkpoint after every other one."""
    start = ["train", loop, "--task", "digit_sum", "--out", str(out), "--threads", "1", "--resume"]
    return [*start, "--steps", str(steps), "--checkpoint-every", "2", *SMALL[loop], *more]


class Forge:
    """A process that has imported everything, and forks one run after the other."""

    def __enter__(self):
        self.running = None
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        this_library = os.environ | {"PYTHONPATH": str(ROOT)}  # not another one that is installed
        self.process = subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=this_library, **pipes)
        return self

    def __exit__(self, *_):
        self.end()
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def end(self) -> None:
        """Of a run that a test has left when it failed: what it still says is not for the next one."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.running, signal.SIGKILL)
            self.status()

    def start(self, argv: list[str], slow: float = 0.0, log: Path | None = None) -> int:
        """Starts a run and returns its process number. `slow`: seconds that each fsync takes, so that saves take longer."""
        self.end()
        order = {"argv": argv, "slow": slow, "log": str(log or os.devnull)}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self.running = int(self.process.stdout.readline())
        return self.running

    def status(self) -> int:
        """How the run that was started last has ended: its exit status, or minus the signal that killed it."""
        self.running = None
        return int(self.process.stdout.readline())

    def run(self, argv: list[str], log: Path | None = None) -> int:
        self.start(argv, log=log)
        return self.status()

    def kill(self, argv: list[str], where: str, chance: random.Random, out: Path) -> tuple[str, int]:
        """Starts a run and kills -9 it: (where that hit, how many steps were recorded).

        where: "anywhere", "a save" (of a checkpoint) or "final" (while the trained model is written). Where it hit is read
        from what lies there: "nothing" if the run had ended before.
        """
        done = steps_done(out)
        after = STEPS if where == "final" else done + chance.randint(0, max(STEPS - 2 - done, 0))
        pid = self.start(argv, slow=0.0 if where == "anywhere" else 0.1)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and steps_done(out) < after and alive(pid):
            time.sleep(0.001)
        sign = {"a save": "checkpoints/aside_*", "final": "final.aside"}.get(where)
        while sign and time.monotonic() < deadline and not list(out.glob(sign)) and alive(pid):
            time.sleep(0.0005)
        time.sleep(chance.random() * (0.05 if where == "anywhere" else 0.1))
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
        if self.status() != -signal.SIGKILL:
            return "nothing", steps_done(out)
        if list(out.glob("checkpoints/aside_*")):
            return "a save", steps_done(out)
        if any((out / name).exists() for name in ("final.aside", "final.before", "samples.json.aside")):
            return "final", steps_done(out)
        return "a step" if 0 < steps_done(out) < STEPS else "before the first or after the last step", steps_done(out)


def alive(pid: int) -> bool:
    """Its parent asks about it at once, so that no zombie is taken for alive for long."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def steps_done(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def differences(out: Path, whole: Path) -> list[str]:
    """What is not the same, byte for byte, as in the run that was never interrupted."""
    pairs = [(out / name, whole / name) for name in COMPARED]
    final = sorted(path.name for path in (whole / "final").iterdir())
    pairs += [(out / "final" / name, whole / "final" / name) for name in final]
    wrong = [str(a.relative_to(out)) for a, b in pairs if not a.exists() or a.read_bytes() != b.read_bytes()]
    left_over = [path.name for path in out.iterdir() if path.suffix in (".aside", ".before") or path.name == "lock"]
    return wrong + left_over


def serve() -> None:
    import torch

    import minirl.launch
    import minirl.report  # noqa: F401  what a run imports late
    from minirl.__main__ import build_parser, main

    build_parser()
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            end = 1
            try:
                end = be_the_run(main, **order)
            finally:
                os._exit(end)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def be_the_run(main, argv: list[str], slow: float, log: str) -> int:
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        signal.signal(
            number, handler
        )  # tests that run in the background, or under nohup, inherit that they are ignored
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if slow:
        fsync = os.fsync

        def slow_fsync(handle):
            time.sleep(slow)
            fsync(handle)

        os.fsync = slow_fsync
    code = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve()
