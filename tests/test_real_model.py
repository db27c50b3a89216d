"""A real pretrained model through the same command: a rule moves its stories, and KL in the reward keeps them stories."""

import json
from pathlib import Path

import pytest
import torch

from minirl.__main__ import main
from minirl.generate import generate
from minirl.pretrained import load_pretrained
from minirl.rollout import responses_text, sequence_kl

MODEL = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260k"
pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="the 260k-parameter Llama is not here")

RULE = "def girl(prompts, responses):\n    return [1.0 if 'girl' in r else -1.0 for r in responses]\n"


def train(folder: Path, *knobs: str) -> list[dict]:
    (folder / "prompts.jsonl").write_text('{"prompt": "Once upon a time"}\n')
    (folder / "rule.py").write_text(RULE)
    given = ["--task", str(folder / "prompts.jsonl"), "--reward", f"{folder / 'rule.py'}:girl", "--threads", "1"]
    small = ["--batch", "32", "--minibatch", "16", "--max-new-tokens", "24", "--seed", "7"]
    assert main(["train", "ppo", "--model", str(MODEL), *given, *small, "--out", str(folder / "out"), *knobs]) == 0
    return [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]


def written(folder: Path) -> tuple[list[str], float]:
    """64 stories by the trained model, and its KL to the one it came from."""
    (policy, tokenizer), (ref, _) = load_pretrained(folder / "out" / "final"), load_pretrained(MODEL)
    generator = torch.Generator().manual_seed(1)
    prompt = [tokenizer.encode("Once upon a time")]
    rollout = generate(policy, prompt, max_new_tokens=24, group_size=64, eos=tokenizer.eos_id, generator=generator)
    return responses_text(rollout, tokenizer), float(sequence_kl(policy, ref, rollout).mean())


def test_with_kl_the_stories_stay_stories(tmp_path):
    records = train(tmp_path, "--steps", "16", "--epochs", "2", "--lr", "5e-4", "--kl-coef", "0.2")
    start, end = records[0]["reward_mean"], sum(record["reward_mean"] for record in records[-4:]) / 4
    assert start < 0.5 < 0.7 < end
    stories, kl = written(tmp_path)
    assert kl < 10
    assert sum("there was a little girl" in story for story in stories) > 32


def test_without_kl_the_rule_is_satisfied_and_the_text_is_lost(tmp_path):
    records = train(tmp_path, "--steps", "12", "--epochs", "4", "--lr", "1e-3", "--kl-coef", "0")
    assert max(record["reward_mean"] for record in records) > 0.8
    assert written(tmp_path)[1] > 30


def lora(folder: Path, loop: str, seed: int, *knobs: str) -> list[float]:
    (folder / "prompts.jsonl").write_text('{"prompt": "Once upon a time"}\n')
    (folder / "rule.py").write_text(RULE)
    given = ["--model", str(MODEL), "--task", str(folder / "prompts.jsonl"), "--reward", f"{folder / 'rule.py'}:girl"]
    saving = ["--lora", "8", "--lr", "3e-3", "--max-new-tokens", "24", "--micro-batch", "8"]
    out = ["--threads", "1", "--seed", str(seed), "--out", str(folder / "out")]
    assert main(["train", loop, *given, *saving, *out, *knobs]) == 0
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["reward_mean"] for line in lines]


PPO = ["ppo", "--batch", "32", "--minibatch", "16", "--steps", "16", "--epochs", "2", "--kl-coef", "0.2"]
GRPO = ["grpo", "--prompts", "4", "--group-size", "8", "--minibatch", "32", "--steps", "16", "--kl-coef", "0.1"]


@pytest.mark.parametrize(
    "seed, loop",
    [
        (7, PPO),
        (8, GRPO),
        *(pytest.param(seed, loop, marks=pytest.mark.nightly) for seed in (9, 10) for loop in (PPO, GRPO)),
    ],
)
def test_lora_learns_the_rule(tmp_path, seed, loop):
    """Settings were chosen on seeds 0 and 1. Ten seconds on one core."""
    name, *knobs = loop
    rewards = lora(tmp_path, name, seed, *knobs)
    assert rewards[0] < 0.5 and sum(rewards[-4:]) / 4 > 0.7
    stories, kl = written(tmp_path)
    assert kl < 10 and sum("girl" in story for story in stories) > 40
