"""The bench measures what it says: turns are taken, times come back as they were, and no figure stands beside a fault.

The protocol is tested against processes that only pretend to be a side: they take the times they are told to, and answer
what they are told to. One real worker runs as well. Whether the library is fast is no question for a test with a clock: the
operations are counted, and the modules an import brings.
"""

import argparse
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import minirl.attention
from minirl.bench import command, flops, measure, ours
from minirl.bench.measure import Fault, Python, compare, disagreement, verdict
from minirl.bench.workloads import SIZES, WORKLOADS, Workload, write_folder

ROOT = Path(__file__).resolve().parents[2]

# worker.py's protocol without its work. It stands in for a Python, so it is called like one: argv holds the worker's file,
# or -c and the question which packages there are.
PRETENDER = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).resolve().parent
told = json.loads((here / "told.json").read_text())
if sys.argv[1] == "-c":
    print(json.dumps(told["installed"]))
    raise SystemExit(0)
_, _, side, name, folder = sys.argv
log = pathlib.Path(folder) / "log.txt"
def say(**message):
    print(json.dumps(message), flush=True)
    if not sys.stdin.readline():
        raise SystemExit(0)
    with log.open("a") as file:
        file.write(side[0])
say(ready={{"name": side}}, peak=100_000_000)
if told.get("dies"):
    print("first line\\nout of ink", file=sys.stderr)
    raise SystemExit(3)
say(answers=told["answers"])
say(peak=400_000_000)
say(peak=100_000_000)
for seconds in told["seconds"]:
    say(seconds=seconds, peak=300_000_000)
"""


@pytest.fixture
def pretender(tmp_path, monkeypatch):
    """pretender(side, seconds=..., answers=...) -> a Python; ours is put in the place of the library's own."""

    def make(side: str, **told) -> Python:
        home = tmp_path / side
        home.mkdir()
        told = {"answers": {"loss": [1.0, 2.0]}, "installed": {}} | told
        (home / "told.json").write_text(json.dumps(told))
        (home / "python").write_text(PRETENDER.format(python=sys.executable))
        (home / "python").chmod(stat.S_IRWXU)
        found = Python(str(home / "python"))
        if side == "ours":
            monkeypatch.setattr(measure, "OURS", found)
        return found

    monkeypatch.setattr(measure, "BREATH", 0.0)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "spec.json").write_text('{"dtype": "fp32"}')
    return make


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    folder = tmp_path_factory.mktemp("micro")
    write_folder(folder, "micro", units=4, threads=1, clock="cpu", dtype="fp32")
    return folder, json.loads((folder / "spec.json").read_text())


def test_turns_are_taken_and_the_first_are_dropped(pretender, tmp_path):
    pretender("ours", seconds=[9.0, 9.0, 1.0, 2.0, 4.0])
    peer = pretender("peers", seconds=[9.0, 9.0, 3.0, 4.0, 6.0])
    mine, theirs = compare("grpo", tmp_path / "work", peer, pairs=3)
    assert mine.seconds == [1.0, 2.0, 4.0] and theirs.seconds == [3.0, 4.0, 6.0]
    turns = (tmp_path / "work" / "log.txt").read_text()[4:]  # after ready and answers of each
    assert turns[-10:] == "opopopopop", turns
    assert mine.before == 100_000_000 and mine.peak == 300_000_000, "the check's own memory is not the work's"

    v = verdict(mine, theirs, Workload("", must=(2.0, 2.5), aim=None), "tiny")
    assert (v.ratio, v.quartiles, v.minima, v.words) == (2.0, (1.75, 2.5), 3.0, "reached")
    assert verdict(mine, theirs, Workload("", (2.0, 2.5), None), "micro").words == "NOT reached"


def test_a_side_that_computes_something_else_gets_no_figures(pretender, tmp_path):
    pretender("ours", seconds=[1.0] * 9)
    peer = pretender("peers", seconds=[1.0] * 9, answers={"loss": [1.0, 2.01]})
    with pytest.raises(Fault, match=r"compute different things: loss: up to 0.01 apart"):
        compare("grpo", tmp_path / "work", peer, pairs=3)


def test_a_side_that_ends_early_says_why(pretender, tmp_path):
    pretender("ours", seconds=[], dies=True)
    with pytest.raises(Fault, match=r"ours \(grpo\): it ended early: out of ink"):
        compare("grpo", tmp_path / "work", None, pairs=3)


@pytest.mark.parametrize(
    "theirs, said",
    [
        ({"loss": [1.0, 2.0 + 5e-4]}, ""),
        ({"loss": [1.0, 2.0 + 1e-3]}, "loss: up to 0.001 apart"),
        ({"loss": [1.0, float("nan")]}, "loss: up to nan"),
        ({"loss": [1.0]}, "loss: shape (2,) and (1,)"),
        ({"greedy tokens": [3, 4]}, ""),
        ({"greedy tokens": [3, 5]}, "greedy tokens"),
        ({"scores": [1.0]}, "nothing they answered can be compared"),
        ({}, "nothing they answered can be compared"),
    ],
)
def test_disagreement(theirs, said):
    found = disagreement({"loss": [1.0, 2.0], "greedy tokens": [3, 4]}, theirs)
    assert found.startswith(said) if said else found == ""


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["--model", "micro", "--pairs", "3", "--threads", "1", "--clock", "cpu", *words])


def test_our_side_alone_for_real(tmp_path, capsys, monkeypatch):
    """A worker with the library in it: three units of GRPO, timed and written down."""
    monkeypatch.setattr(command, "installed", lambda python: {"torch": "2", "transformers": "5"})
    assert command.run(options("--only", "grpo", "--out", str(tmp_path / "new" / "bench.json"))) == 0
    said, record = capsys.readouterr().out, json.loads((tmp_path / "new" / "bench.json").read_text())
    assert "our side alone for grpo. For theirs: pip install trl transformers" in said
    assert "ratio" in said and "reached" not in said.replace("reached.", "")
    (found,) = record["workloads"]
    assert found["name"] == "grpo" and found["model"] == "micro" and "ratio" not in found and "peer" not in found
    assert len(found["ours"]["seconds"]) == 3 and all(0.005 < s < 10 for s in found["ours"]["seconds"])
    assert found["ours"]["peak_bytes"] > 1e8 and found["ours"]["versions"]["torch"] == torch.__version__
    assert record["threads"] == 1 and record["clock"] == "cpu" and record["load_average"] >= 0 and record["machine"]


def test_the_table_with_both_sides(pretender, tmp_path, capsys, monkeypatch):
    everything = {"torch": "2", "transformers": "5", "trl": "1"}
    pretender("ours", seconds=[9.0, 9.0, 0.1, 0.1, 0.1])
    peer = pretender("peers", seconds=[9.0, 9.0, 0.2, 0.3, 0.4], installed=everything)
    monkeypatch.setattr(command, "write_folder", lambda folder, size, **knobs: work_folder(folder, knobs))
    monkeypatch.setattr(command.os, "getloadavg", lambda: (100.0, 0, 0))
    words = ("--only", "dpo,ppo", "--peer-python", peer.executable, "--out", str(tmp_path / "bench.json"))
    assert command.run(options(*words)) == 0
    said = capsys.readouterr().out
    assert "WARNING: 100.00 on" in said
    assert "our side alone for ppo. For theirs: pip install --no-deps --target DIR trl==1.12.0" in said
    (row,) = (line for line in said.splitlines() if line.startswith("dpo  "))
    assert row.split() == "dpo micro 100.0 300.0 3.00 2.50-3.50 2.00 2.1 2.6 300 +200 300 +200 reached".split()
    assert "1 of 1 goals" in said
    dpo, ppo = json.loads((tmp_path / "bench.json").read_text())["workloads"]
    assert (dpo["ratio"], dpo["low"], dpo["high"], dpo["must"]) == (3.0, 2.5, 3.5, 2.1)
    assert dpo["peer"]["versions"] == {"name": "peers"} and "ratio" not in ppo


def work_folder(folder: Path, knobs: dict) -> None:
    (folder / "spec.json").write_text(json.dumps(knobs))


def test_a_refusal_is_in_the_table_and_in_the_exit_status(pretender, tmp_path, capsys, monkeypatch):
    everything = {"torch": "2", "transformers": "5", "trl": "1"}
    pretender("ours", seconds=[1.0] * 9)
    peer = pretender("peers", seconds=[1.0] * 9, installed=everything, answers={"loss": [1.5, 2.0]})
    monkeypatch.setattr(command, "write_folder", lambda folder, size, **knobs: work_folder(folder, knobs))
    words = ("--only", "dpo", "--peer-python", peer.executable, "--out", str(tmp_path / "bench.json"))
    assert command.run(options(*words)) == 1
    assert "dpo                 micro  refused: the two sides compute different things" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "bench.json").read_text())["workloads"]
    assert found.keys() == {"name", "model", "refused"}, "no figure beside a fault"


@pytest.mark.parametrize(
    "words, said",
    [
        (("--only", "grpo,pppo"), "--only: wanted some of generate"),
        (("--pairs", "0"), "--pairs"),
        (("--threads", "2"), "--clock: cpu adds the seconds of all threads"),
        (("--peer-python", "/no/such/python"), "/no/such/python: cannot be run"),
    ],
)
def test_bad_arguments(words, said):
    with pytest.raises(ValueError, match=said):
        command.run(options(*words))


def test_our_shortcuts_are_held_against_the_long_way(micro, monkeypatch):
    """A fault planted in each: prompts that go to the wrong rows, keys that are not the ones kept."""
    folder, spec = micro
    answers = {name: ours.WORKLOADS[name](folder, spec)[0] for name in ("grpo", "dpo", "generate_groups")}
    for answer in answers.values():
        answer()

    class WrongRows(minirl.attention.SharedPrompt):
        def __init__(self, rows):
            super().__init__(rows.flip(0))

    monkeypatch.setattr("minirl.rollout.SharedPrompt", WrongRows)
    for name in ("grpo", "dpo"):
        with pytest.raises(ValueError, match="with prompts shared and without: our two ways differ"):
            answers[name]()
    repeat = minirl.attention.KVCache.repeat

    def forgetful(cache, n):
        other = repeat(cache, n)
        other.keys[:, :, :, 0] = 0
        return other

    monkeypatch.setattr(minirl.attention.KVCache, "repeat", forgetful)
    with pytest.raises(ValueError, match="sampling with and without keys and values kept"):
        answers["generate_groups"]()


CEILINGS = {
    "generate_groups": 1.01,
    "grpo": 1.01,
    "dpo": 1.01,
    "dpo_precomputed": 1.01,
    "reward_model": 1.01,
    "ppo": 1.02,
}


@pytest.mark.parametrize("name", CEILINGS)
def test_no_operation_too_many(micro, name):
    """Of the weights' matrix products. What stays below the floor by rounding is a product that torch did as a batch."""
    folder, spec = micro
    share = flops.counted(name, folder, spec) / flops.least(name, "micro")
    assert 0.998 < share < CEILINGS[name]


def test_the_floor_by_hand():
    """One layer, width 2, one head, ffn 3, vocabulary 5: 7 positions of which 4 are asked."""
    config = SIZES["micro"].__class__(vocab_size=5, width=2, layers=1, heads=1, ffn=3)
    keys_and_values, query_and_out, ffn, head = 7 * 2 * 2 * 2, 4 * 2 * 2 * 2, 4 * 3 * 2 * 3, 4 * 2 * 5
    assert flops.forward(config, 7, 4) == 2 * (keys_and_values + query_and_out + ffn + head)


def test_the_two_sides_have_the_same_workloads():
    """peers.py is read and not imported: its packages are not the project's."""
    text = (ROOT / "minirl" / "bench" / "peers.py").read_text()
    named = {line.split('"')[1] for line in text.partition("\nWORKLOADS = {")[2].splitlines() if '": ' in line}
    assert named == set(ours.WORKLOADS) == set(WORKLOADS) - {"import", "start_up", "help"}
    assert "minirl" not in {
        line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))
    }


def test_an_import_brings_nothing_heavy():
    """Modules and no clock: beyond PyTorch, the loops bring the two small libraries they need, and the command line none."""
    code = """
import json, sys
import torch
def packages(): return {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
before = packages()
import minirl.train.grpo, minirl.train.ppo, minirl.train.dpo, minirl.pretrained
loops = packages()
from minirl.__main__ import build_parser
build_parser()
print(json.dumps([sorted(loops - before), sorted(packages() - loops), "torch._dynamo" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loops, more, compiler = json.loads(done.stdout)
    ours_and_small = {"minirl", "tokenizers", "safetensors", "tqdm", "jaxtyping", "wadler_lindig"}
    standard = set(sys.stdlib_module_names)
    assert set(loops) - standard <= ours_and_small, loops
    assert not set(more) - standard, more
    assert not compiler, "torch._dynamo brings sympy and 150 MB"
