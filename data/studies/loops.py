"""Every loop on the digit world on seeds 12, 13, 14, others than those on which the settings were chosen: about six minutes
on one CPU core.

python data/studies/loops.py
"""

import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from store import write

from minirl.launch import LOOPS, stored_weights, train
from minirl.pretrained import load_pretrained
from minirl.rollout import responses_text, roll_out
from minirl.tasks import digit_sum
from minirl.train.settings import DIGIT_SUM, STORIES

SETTINGS = [(name, asdict(config)) for table in (STORIES, DIGIT_SUM) for name, config in table.items()]


def loop_rows(seed: int) -> list[dict]:
    """Every loop that changes a policy, with its settings, from the stored model that answers at once."""
    rows = [{"seed": seed, "loop": "none"} | digit_accuracy(stored_weights(digit_sum, "sft"))]
    for name in LOOPS.keys() - {"pretrain", "sft", "reward_model"}:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            model = train(
                name,
                task="digit_sum",
                out=Path(folder) / "run",
                model=None,
                reward=None,
                seed=seed,
                device="cpu",
                resume=False,
                checkpoint_every=0,
                knobs={},
            )
            seconds = time.perf_counter() - start
            rows.append({"seed": seed, "loop": name} | digit_accuracy(model) | {"seconds": round(seconds, 1)})
    return sorted(rows, key=lambda row: row["loop"])


def digit_accuracy(folder: Path) -> dict:
    model, tokenizer = load_pretrained(folder)
    generator = torch.Generator().manual_seed(77)
    texts, rollout = roll_out(
        model, tokenizer, digit_sum.prompts(1024, generator), max_new_tokens=12, generator=generator
    )
    answers = responses_text(rollout, tokenizer)
    return {
        "accuracy": float(digit_sum.score(texts, answers).mean()),
        "worked": float(digit_sum.is_worked(texts, answers).mean()),
        "length": float(rollout.mask.sum(1).float().mean()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("loops", [row for seed in (12, 13, 14) for row in loop_rows(seed)], SETTINGS)
