"""torchrun -m minirl train: a rank that dies, what goes on after it, and runs that end well."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minirl.__main__ import main
from minirl.checkpoint import checkpoints

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["train", "grpo", "--task", "digit_sum", "--prompts", "4", "--group-size", "4", "--checkpoint-every", "1"]


def torchrun(out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minirl"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [*command, *WORDS, "--out", str(out), *more]
    return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def process_of_rank(parent: int, rank: int) -> int:
    """torchrun gives each of its children a RANK."""
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(words[1]) == parent and f"RANK={rank}" in (folder / "environ").read_text().split("\0"):
                return int(folder.name)
        except (OSError, IndexError, ValueError):
            continue
    raise AssertionError(f"no process of rank {rank}")


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for the process in /proc")
@pytest.mark.filterwarnings("ignore:.*versions or threads differ")
def test_a_rank_that_dies_ends_the_job_with_its_name_and_another_number_of_ranks_goes_on(tmp_path, capsys):
    out = tmp_path / "run"
    job = torchrun(out, "--steps", "1000")
    try:
        wait_for(lambda: len(checkpoints(out / "checkpoints")) >= 2, 120)
        victim = process_of_rank(job.pid, 1)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        said, _ = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode != 0 and time.monotonic() - killed < 20
    root_cause = said[said.index("Root Cause") :]
    assert "rank      : 1 (local_rank: 1)" in root_cause and f"exitcode  : -9 (pid: {victim})" in root_cause
    assert "lost another rank" in said and "--resume goes on" in said

    done = int(checkpoints(out / "checkpoints")[-1].name[5:])
    assert main([*WORDS, "--out", str(out), "--steps", str(done + 1), "--threads", "1", "--resume"]) == 0
    assert (out / "final" / "model.safetensors").exists() and "Model:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["sft", "--task", "digit_sum"], "train in several"),
        (["grpo", "--task", "digit_sum", "--on-nonfinite", "back"], "--on-nonfinite back"),
        (["grpo", "--task", "digit_sum", "--shard", "fsdp", "--lora", "4"], "--shard ddp with --lora"),
    ],
)
def test_what_several_processes_do_not_do_is_said(monkeypatch, tmp_path, capsys, more, said):
    from minirl import ranks

    shard = "fsdp" if "fsdp" in more else "ddp"
    monkeypatch.setattr(ranks, "join", lambda *_: ranks.Ranks(0, 2, shard=shard))
    assert main(["train", *more, "--out", str(tmp_path / "run"), "--threads", "1"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_runs_that_end_well_exit_0(tmp_path, shard):
    """Twelve runs of two processes each: see minirl.ranks.exit_now for what went wrong in some."""
    for i in range(12):
        job = torchrun(tmp_path / str(i), "--steps", "2", "--shard", shard)
        said, _ = job.communicate(timeout=300)
        assert job.returncode == 0 and "terminate called" not in said, said[-2000:]
