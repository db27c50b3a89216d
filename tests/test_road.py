"""The road goes on where it was stopped. What it claims to learn is in test_claims, that it runs in test_main."""

import json
import shutil
import subprocess
import sys

import pytest

from minirl.road import folder_in, walk
from minirl.run import Run


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "road"
    walk(out, quick=True)
    return out


def numbers(out) -> dict:
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("metrics.jsonl")}
    found |= {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("final/*.safetensors")}
    results = json.loads((out / "results.json").read_text())
    assert all(seconds > 0 for seconds in results.pop("seconds").values())
    return found | {"results": results, "samples": (out / "samples_stories.json").read_bytes()}


def test_a_walk_that_was_killed_twice_ends_with_the_same_bits(tmp_path, monkeypatch, whole):
    out, record, kills = tmp_path / "road", Run.record, [("stories_ppo_without_kl", 2), ("digits_grpo", 1)]

    def killed(run, step, stats):
        if kills and (run.out.name, step) == kills[0]:
            del kills[0]
            raise Killed
        record(run, step, stats)

    monkeypatch.setattr(Run, "record", killed)
    for resume in (False, True):
        with pytest.raises(Killed):
            walk(out, quick=True, resume=resume)
        assert not (out / "results.json").exists()
    walk(out, quick=True, resume=True)
    assert not kills
    assert len(numbers(whole)) == 10 + 2 + 2 and numbers(out) == numbers(whole)


def test_a_walk_that_is_done_is_only_measured_again(tmp_path, monkeypatch, whole):
    out = shutil.copytree(whole, tmp_path / "road")
    monkeypatch.setattr(Run, "record", lambda *_: pytest.fail("a step was done again"))
    walk(out, quick=True, resume=True)
    assert numbers(out) == numbers(whole)


def test_no_walk_goes_on_as_another_one(tmp_path, whole):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"^--out: .* holds a walk; add --resume"):
        walk(whole, quick=True)
    with pytest.raises(ValueError, match=r"^--resume: .* was begun with seed = 0, not 1"):
        walk(whole, quick=True, seed=1, resume=True)
    with pytest.raises(ValueError, match=r"^--resume: .* was begun with quick = True, not False"):
        walk(whole, resume=True)
    assert before == {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}


def test_two_walks_are_not_in_one_folder(tmp_path):
    """Another process holds it: it says so on its first line, and ends when its input does."""
    hold = "import sys, pathlib; from minirl.disk import alone_in\n"
    hold += "with alone_in(pathlib.Path(sys.argv[1])): print(1, flush=True); input()"
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "1\n"
        with pytest.raises(ValueError, match="is at work here"):
            walk(tmp_path, quick=True, resume=True)
        other.communicate("\n")
    assert not (tmp_path / "walk.json").exists()


def test_the_folder_of_a_walk_is_the_next_free_one_or_the_last(tmp_path):
    with pytest.raises(ValueError, match=r"^--resume: no walk has begun in"):
        folder_in(tmp_path, resume=True)
    for name in ("road", "road_2", "road_3"):
        assert folder_in(tmp_path, resume=False) == tmp_path / name
        (tmp_path / name).mkdir()
        assert folder_in(tmp_path, resume=True) == tmp_path / name
