"""Killed at any instant, --resume ends with the bits of the run that was never interrupted. More kills: data/studies/kill.py."""

import csv
import random
import signal

import pytest
from faults.harness import SMALL, Forge, arguments, differences
from store import HERE, settings_hash

from minirl.checkpoint import checkpoints

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
KILLS = {"pretrain": "final", "reward_model": "anywhere", "ppo": "a save", "dpo": "anywhere", "grpo": "a save"}


@pytest.fixture(scope="module")
def forge():
    with Forge() as forge:
        yield forge


@pytest.mark.parametrize("loop", SMALL)
def test_kill_and_resume_is_bit_exact(tmp_path, loop, forge, record_property):
    out, whole = tmp_path / "killed", tmp_path / "whole"
    hit, done = forge.kill(arguments(loop, out), KILLS[loop], random.Random(loop), out)
    assert hit == KILLS[loop] or (KILLS[loop] == "anywhere" and hit != "nothing"), f"it hit {hit} at step {done}"
    assert forge.run(arguments(loop, out)) == forge.run(arguments(loop, whole)) == 0
    assert differences(out, whole) == []
    record_property("faults survived", 1)


def test_a_kill_without_resume_is_seen(tmp_path, forge):
    """What the comparison above would say if the run had not gone on: it can fail."""
    out, whole = tmp_path / "killed", tmp_path / "whole"
    forge.kill(arguments("dpo", out), "a save", random.Random(0), out)
    assert forge.run(arguments("dpo", whole, "--seed", "1", steps=2)) == 0
    assert "metrics.jsonl" in differences(out, whole) and "final/model.safetensors" in differences(out, whole)
    left = [path.name for path in checkpoints(out / "checkpoints")]
    assert forge.run(arguments("dpo", out, "--seed", "1")) == 2, "another seed is another run"
    assert [path.name for path in checkpoints(out / "checkpoints")] == left, "and what is there stays"


def test_the_stored_kills_were_all_survived(record_property):
    import kill

    head, rows = (HERE / "kill.csv").read_text().splitlines()[:3], []
    with open(HERE / "kill.csv") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert head[1] == f"# settings: {settings_hash(kill.SETTINGS)}"
    assert len(rows) == kill.SETTINGS["kills"] == 40
    assert {row["result"] for row in rows} == {"the same bytes"}
    assert {row["loop"] for row in rows} == set(SMALL)
    hits = [row["hit"] for row in rows]
    assert hits.count("a save") >= 10 and hits.count("final") >= 5 and "nothing" not in hits
    record_property("faults survived earlier", len(rows))


@pytest.mark.nightly
def test_forty_kills(tmp_path):
    import kill

    rows = kill.study(tmp_path)
    assert len(rows) == 40 and {row["result"] for row in rows} == {"the same bytes"}
