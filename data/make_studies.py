"""Runs the studies whose results are stored in data/studies, and writes them again.

python data/make_studies.py road        the whole road on seeds 3, 4, 5: about ten minutes on one CPU core

Each file begins with the command, the seeds, the versions and the machine. The seeds are others than those on which the
settings were chosen.
"""

import csv
import hashlib
import io
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # so that it runs from a checkout that is not installed

from minirl.checkpoint import write_aside  # noqa: E402
from minirl.road import walk  # noqa: E402
from minirl.train.settings import DIGIT_SUM, STORIES  # noqa: E402

SEEDS = (3, 4, 5)
COLUMNS = ["seed", "world", "method", "gold", "proxy", "kl", "length", "accuracy", "worked", "seconds"]
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


def road() -> None:
    rows = [row for seed in SEEDS for row in road_rows(seed)]
    text = io.StringIO(newline="")
    text.write("# command: python data/make_studies.py road\n")
    text.write(f"# settings: {settings_hash()}\n")
    text.write(f"# torch {torch.__version__}, 1 thread, {platform.system()} {platform.machine()}\n")
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    table.writeheader()
    for row in rows:
        table.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items() if v is not None})
    (HERE / "studies").mkdir(exist_ok=True)
    write_aside(HERE / "studies" / "road.csv", text.getvalue().encode())


if __name__ == "__main__":
    if sys.argv[1:] != ["road"]:
        sys.exit("usage: python data/make_studies.py road")
    torch.set_num_threads(1)
    road()
