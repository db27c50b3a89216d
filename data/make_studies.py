"""Runs the studies whose results are stored in data/studies, and writes them again.

python data/make_studies.py road        the whole road on seeds 3, 4, 5: about ten minutes on one CPU core
python data/make_studies.py loops       every loop on the digit world, seeds 12, 13, 14: about six minutes

Each file begins with the command, the seeds, the versions and the machine. The seeds are others than those on which the
settings were chosen.
"""

import csv
import hashlib
import io
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # so that it runs from a checkout that is not installed

from minirl.checkpoint import write_aside  # noqa: E402
from minirl.launch import LOOPS, stored_weights, train  # noqa: E402
from minirl.pretrained import load_pretrained  # noqa: E402
from minirl.road import walk  # noqa: E402
from minirl.rollout import responses_text, roll_out  # noqa: E402
from minirl.tasks import digit_sum  # noqa: E402
from minirl.train.settings import DIGIT_SUM, STORIES  # noqa: E402

ROAD_COLUMNS = ["seed", "world", "method", "gold", "proxy", "kl", "length", "accuracy", "worked", "seconds"]
LOOP_COLUMNS = ["seed", "loop", "accuracy", "worked", "length", "seconds"]
STAGES = {
    "pretrained": "stories_pretrain",
    "SFT": "stories_sft",
    "PPO": "stories_ppo",
    "PPO, no KL": "stories_ppo_without_kl",
    "DPO": "stories_dpo",
    "GRPO": "stories_grpo",
}


def settings_hash() -> str:
    """Changes when a setting changes: a stored study then has to be run again."""
    text = repr([(name, asdict(config)) for table in (STORIES, DIGIT_SUM) for name, config in table.items()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def road_rows(seed: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        results = walk(Path(folder) / "road", seed=seed)
    rows = []
    for method, row in results["stories"]["rows"].items():
        seconds = results["seconds"].get(STAGES.get(method, ""), "")
        rows.append({"seed": seed, "world": "stories", "method": method, "seconds": seconds} | row)
    rows.append(
        {
            "seed": seed,
            "world": "stories",
            "method": "reward model",
            "accuracy": results["stories"]["reward_model_accuracy"],
            "seconds": results["seconds"]["stories_reward_model"],
        }
    )
    for method, row in results["digit_sum"]["rows"].items():
        seconds = results["seconds"][f"digits_{method.lower()}"]
        rows.append({"seed": seed, "world": "digit_sum", "method": method, "seconds": seconds} | row)
    return rows


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


def write(name: str, columns: list[str], rows: list[dict]) -> None:
    text = io.StringIO(newline="")
    text.write(f"# command: python data/make_studies.py {name}\n")
    text.write(f"# settings: {settings_hash()}\n")
    text.write(f"# torch {torch.__version__}, 1 thread, {platform.system()} {platform.machine()}\n")
    table = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    table.writeheader()
    for row in rows:
        table.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items() if v is not None})
    (HERE / "studies").mkdir(exist_ok=True)
    write_aside(HERE / "studies" / f"{name}.csv", text.getvalue().encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["road"]:
        write("road", ROAD_COLUMNS, [row for seed in (3, 4, 5) for row in road_rows(seed)])
    elif sys.argv[1:] == ["loops"]:
        write("loops", LOOP_COLUMNS, [row for seed in (12, 13, 14) for row in loop_rows(seed)])
    else:
        sys.exit("usage: python data/make_studies.py road|loops")
