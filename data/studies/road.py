"""The whole road of `python -m minirl` on seeds 3, 4, 5, others than those on which the settings were chosen: about ten
minutes on one CPU core.

python data/studies/road.py
"""

import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from store import write

from minirl.road import walk
from minirl.train.settings import DIGIT_SUM, STORIES

SETTINGS = [(name, asdict(config)) for table in (STORIES, DIGIT_SUM) for name, config in table.items()]
STAGES = {
    "pretrained": "stories_pretrain",
    "SFT": "stories_sft",
    "PPO": "stories_ppo",
    "PPO, no KL": "stories_ppo_without_kl",
    "DPO": "stories_dpo",
    "GRPO": "stories_grpo",
}


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("road", [row for seed in (3, 4, 5) for row in road_rows(seed)], SETTINGS)
