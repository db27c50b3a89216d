"""The files in data/: the generator writes the same bytes again, the hashes are theirs, and what they say is so."""

import hashlib
import importlib.util
import json

import pytest
import torch

from minirl.tasks import DATA, digit_sum, stories
from minirl.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def make_data():
    spec = importlib.util.spec_from_file_location("make_data", DATA / "make_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def recorded() -> dict[str, str]:
    return json.loads((DATA / "hashes.json").read_text())


def test_the_generator_writes_the_same_bytes_again(make_data, tmp_path):
    hashes = make_data.make(tmp_path / "again")
    assert len(hashes) == 7
    for name, digest in hashes.items():
        assert (tmp_path / "again" / name).read_bytes() == (DATA / name).read_bytes(), name
        assert recorded()[name] == digest, name


def test_every_hash_is_that_of_its_file():
    for name, digest in recorded().items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == digest, name


def test_recording_keeps_the_entries_of_others(make_data, tmp_path):
    make_data.record(tmp_path, {"b": "1", "a": "2"})
    make_data.record(tmp_path, {"b": "3"})
    assert json.loads((tmp_path / "hashes.json").read_text()) == {"a": "2", "b": "3"}


def test_the_samples_are_small(make_data, tmp_path):
    assert sum((DATA / name).stat().st_size for name in make_data.make(tmp_path)) < 1_000_000


def test_stories_parse_and_have_the_gold_they_claim():
    samples = rows("stories.jsonl")
    assert len(samples) == 400 and all(stories.parses(f"{s['prompt']} {s['response']}") for s in samples)
    gold = stories.gold([s["prompt"] for s in samples], [s["response"] for s in samples])
    assert gold.tolist() == pytest.approx([s["gold"] for s in samples])


def test_preferences_have_the_gold_they_claim_and_mostly_follow_it():
    pairs = rows("stories_preferences.jsonl")
    assert len(pairs) == 400
    for side in ("chosen", "rejected"):
        gold = stories.gold([p["prompt"] for p in pairs], [p[side] for p in pairs])
        assert gold.tolist() == pytest.approx([p[f"gold_{side}"] for p in pairs])
    margin = torch.tensor([p["gold_chosen"] - p["gold_rejected"] for p in pairs])
    follows, against = (margin > 0).float().mean(), (margin < 0).float().mean()
    assert follows > 2 * against and against > 0.15


def test_digit_sums_are_right():
    samples = rows("digit_sum.jsonl")
    prompts = [s["prompt"] for s in samples]
    for kind in ("direct", "worked"):
        assert digit_sum.score(prompts, [s[kind] for s in samples]).min() == 1
    assert digit_sum.is_worked(prompts, [s["worked"] for s in samples]).min() == 1


@pytest.mark.parametrize("task", [digit_sum, stories])
def test_the_stored_tokenizers_are_those_of_the_tasks(task):
    stored = Tokenizer.load(DATA / "tokenizers" / task.__name__.rpartition(".")[2])
    prompts = task.prompts(50, torch.Generator().manual_seed(5))
    assert [stored.encode(p) for p in prompts] == [task.tokenizer().encode(p) for p in prompts]
    assert (stored.eos_id, stored.vocab_size) == (task.tokenizer().eos_id, task.tokenizer().vocab_size)


def test_the_stored_weights_are_small_and_have_their_hashes():
    hashes = json.loads((DATA / "weights" / "hashes.json").read_text())
    files = {path.relative_to(DATA / "weights").as_posix(): path for path in (DATA / "weights").glob("*/*")}
    assert files.keys() == hashes.keys()
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == hashes[name], name
    for folder in {path.parent for path in files.values()}:
        assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
