"""Several processes give the numbers of one: two really run here, on the CPU (gloo), once for all checks (session.py)."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import session

from minirl.ranks import ALONE, Ranks, join
from minirl.shards import check_shards

HERE = Path(__file__).parent
SHARDS = ("ddp", "fsdp")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The folder of a session of two processes, which found in it what one process had left at step 2 of 4."""
    out = tmp_path_factory.mktemp("two")
    session.resumed(ALONE, out / "alone_ddp", 2)
    shutil.copytree(out / "alone_ddp", out / "alone_fsdp")
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "session.py"), str(out)],
            env=os.environ | place | {"RANK": str(rank), "PYTHONPATH": str(HERE.parents[1])},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)[-3000:]
    return out


@pytest.fixture(scope="module")
def found(two) -> dict:
    return json.loads((two / "found.json").read_text())


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("name", session.CASES)
def test_weights_and_metrics_are_those_of_one_process(found, name, shard):
    assert found[f"{name}, {shard}"] < 1e-6


@pytest.mark.parametrize("group_size", [1, 4])
def test_rollouts_are_those_of_one_process(found, group_size):
    assert found[f"rollouts in groups of {group_size}"] < 1e-12


@pytest.mark.parametrize("name", ["mean of means", "whitening by rank", "gradients averaged", "noise by rank"])
def test_a_mistake_is_seen(found, name):
    assert found[f"mistake: {name}"] > 1e-3


@pytest.mark.parametrize("shard", SHARDS)
def test_two_processes_go_on_where_one_stopped(found, shard):
    assert found[f"resumed by two, {shard}"] < 1e-6


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.filterwarnings("ignore:.*versions or threads differ")
def test_one_process_goes_on_where_two_stopped(two, shard):
    weights, records = session.resumed(ALONE, two / f"two_{shard}", 4)
    assert session.largest_difference((weights, records), session.train_ppo(ALONE, steps=4)) < 1e-6


def test_only_the_sharded_model_is_written_in_shares(found):
    assert found["shards in the checkpoint, fsdp"] == 2 and found["shards in the checkpoint, ddp"] == 0


def test_the_first_rank_alone_writes_metrics(two):
    lines = (two / "two_fsdp" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines][:2] == [1, 2]


def test_nothing_on_disk_is_a_pickle(two):
    kinds = {path.suffix for path in two.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".safetensors"}


@pytest.mark.filterwarnings("ignore:.*damaged checkpoint", "ignore:.*versions or threads differ")
def test_a_damaged_share_is_noticed(two, tmp_path):
    """Step 4 has a flipped bit in one rank's share: the run goes back to step 2, and ends where it would have."""
    folder = tmp_path / "run"
    shutil.copytree(two / "alone_fsdp", folder)  # steps 2 and 4, the second in shares
    share = next((folder / "checkpoints" / "step_000004").glob("shards/*00002*.safetensors"))
    data = bytearray(share.read_bytes())
    data[-1] ^= 1
    share.write_bytes(data)
    weights, _ = session.resumed(ALONE, folder, 4)
    alone = session.train_ppo(ALONE, steps=4)
    assert session.largest_difference((weights, alone[1]), alone) < 1e-6
    assert (folder / "checkpoints" / "damaged_000004").is_dir()


def test_missing_and_added_shares_are_named(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"1")
    with pytest.raises(ValueError, match="wanted"):
        check_shards(tmp_path, {})
    with pytest.raises(ValueError, match="wanted"):
        check_shards(tmp_path / "none", {"a.safetensors": ""})
    with pytest.raises(ValueError, match="does not match its checksum"):
        check_shards(tmp_path, {"a.safetensors": ""})


# One process by itself


def test_alone_everything_is_given_back():
    x, stats = torch.tensor([1.0]), {"loss": torch.tensor(2.0)}
    assert ALONE.every(x)[0] is x and ALONE.add(x) is x and ALONE.total(stats) is stats
    assert ALONE.part(5) == slice(0, 5) and ALONE.first and ALONE.any(True) and not ALONE.any(False)
    assert list(ALONE.in_step([1, 2])) == [1, 2]


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("n", range(1, 12))
def test_shares_cover_everything_once(n, size):
    parts = [list(range(n))[Ranks(rank, size).part(n)] for rank in range(size)]
    assert [i for part in parts[:n] for i in part] == list(
        range(n)
    )  # with fewer things than ranks the last is read by several
    assert all(parts) and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert join() is ALONE
    with pytest.raises(ValueError, match="torchrun"):
        join("fsdp")
    with pytest.raises(ValueError, match="--shard: wanted ddp or fsdp"):
        join("zero")


def test_several_processes_run_on_cpu_or_cuda(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="mps"):
        join(device="mps")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="rank 1 of this machine has no GPU"):
        join(device="cuda")
