"""Killed at any instant, --resume ends with the bits of the run that was never interrupted."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = 24


def command(out: Path, loop: str, small: list[str]) -> list[str]:
    start = [sys.executable, "-m", "minirl", "train", loop, "--task", "digit_sum", "--out", str(out), "--threads", "1"]
    return [*start, "--steps", str(STEPS), "--checkpoint-every", "2", "--resume", *small]


def steps_done(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_once(arguments: list[str], out: Path, chance: random.Random) -> bool:
    """Start the run, kill -9 it some time after its next few steps; False if it had ended before."""
    after = steps_done(out) + chance.randint(1, 6)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while steps_done(out) < min(after, STEPS - 1) and process.poll() is None:
        time.sleep(0.002)
    time.sleep(chance.random() * 0.1)  # anywhere inside a step, or inside a save
    if process.poll() is not None:
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return True


def run_to_the_end(arguments: list[str]) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
@pytest.mark.parametrize(
    ("loop", "kills", "small"),
    [
        ("grpo", 2, ["--prompts", "8", "--kl-coef", "0.05"]),
        ("ppo", 2, ["--batch", "64", "--kl-target", "0.5"]),
        ("reward_model", 1, ["--pairs", "16"]),
    ],
)
def test_kill_and_resume_is_bit_exact(tmp_path, loop, kills, small):
    chance = random.Random(loop)
    out, reference = tmp_path / "killed", tmp_path / "whole"
    survived = sum(kill_once(command(out, loop, small), out, chance) for _ in range(kills))
    assert survived == kills, "the run ended before it could be killed"
    run_to_the_end(command(out, loop, small))
    run_to_the_end(command(reference, loop, small))
    assert (out / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    for file in ("model.safetensors", "config.json"):
        assert (out / "final" / file).read_bytes() == (reference / "final" / file).read_bytes()
