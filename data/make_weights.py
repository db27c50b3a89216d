"""Trains the small models the notebooks and the command line start from, and writes them to data/weights.

python data/make_weights.py                       about eight minutes on one CPU core
python data/make_weights.py addition countdown    only those of these worlds; the others stay as they are

Training rounds differently on other machines, so other bits come out there; hashes.json says which ones are stored here.
"""

import copy
import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # so that it runs from a checkout that is not installed

from minirl.launch import LOOPS, TASKS, starting_model  # noqa: E402
from minirl.model import RewardModel, summed  # noqa: E402
from minirl.pretrained import save_pretrained  # noqa: E402
from minirl.road import labelled_pairs  # noqa: E402
from minirl.run import Run  # noqa: E402
from minirl.train import pretrain, reward_model, sft  # noqa: E402
from minirl.train.settings import PREFERENCE_PAIRS  # noqa: E402


def make(name: str, folder: Path) -> None:
    """The models of one world, as NAME_pretrain, NAME_sft and, for the stories, NAME_reward_model."""
    task, settings = TASKS[name]
    model, tokenizer = starting_model(task, LOOPS["pretrain"], None, seed=0)
    pretrain.train(model, tokenizer, task.pretraining_examples, settings["pretrain"], Run(name="pretrain"))
    save_pretrained(model, tokenizer, folder / f"{name}_pretrain")
    sft.train(model, tokenizer, task.demonstrations, settings["sft"], Run(name="sft"))
    save_pretrained(model, tokenizer, folder / f"{name}_sft")
    if name == "stories":
        pairs = labelled_pairs(model, PREFERENCE_PAIRS, torch.Generator().manual_seed(1))
        judge = RewardModel(copy.deepcopy(model), summed)
        reward_model.train(judge, pairs, settings["reward_model"], Run(name="reward model"))
        save_pretrained(judge, tokenizer, folder / f"{name}_reward_model")


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    final, aside = HERE / "weights", HERE / "weights.aside"
    shutil.rmtree(aside, ignore_errors=True)
    if unknown := set(names) - TASKS.keys():
        raise SystemExit(f"wanted some of {', '.join(TASKS)}, got {', '.join(sorted(unknown))}")
    if names and final.exists():
        shutil.copytree(final, aside)
    for name in names or TASKS:
        make(name, aside)
    files = sorted(path for path in aside.glob("*/*") if path.is_file())
    hashes = {path.relative_to(aside).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (aside / "hashes.json").write_text(json.dumps(hashes, indent=1) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)


if __name__ == "__main__":
    main(sys.argv[1:])
