"""Trains the small models the notebooks and the command line start from, and writes them to data/weights.

python data/make_weights.py         about three minutes on one CPU core

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

from minirl.model import RewardModel, Transformer, summed  # noqa: E402
from minirl.pretrained import save_pretrained  # noqa: E402
from minirl.road import labelled_pairs  # noqa: E402
from minirl.run import Run  # noqa: E402
from minirl.tasks import digit_sum, stories  # noqa: E402
from minirl.train import pretrain, reward_model, sft  # noqa: E402
from minirl.train.settings import DIGIT_SUM, PREFERENCE_PAIRS, STORIES, tiny_transformer  # noqa: E402


def main() -> None:
    torch.set_num_threads(1)
    final, folder = HERE / "weights", HERE / "weights.aside"
    shutil.rmtree(folder, ignore_errors=True)
    for task, settings in ((stories, STORIES), (digit_sum, DIGIT_SUM)):
        name, tokenizer = task.__name__.rpartition(".")[2], task.tokenizer()
        torch.manual_seed(0)
        model = Transformer(tiny_transformer(tokenizer.vocab_size))
        pretrain.train(model, tokenizer, task.pretraining_examples, settings["pretrain"], Run(name="pretrain"))
        save_pretrained(model, tokenizer, folder / f"{name}_pretrain")
        sft.train(model, tokenizer, task.demonstrations, settings["sft"], Run(name="sft"))
        save_pretrained(model, tokenizer, folder / f"{name}_sft")
        if task is stories:
            pairs = labelled_pairs(model, PREFERENCE_PAIRS, torch.Generator().manual_seed(1))
            judge = RewardModel(copy.deepcopy(model), summed)
            reward_model.train(judge, pairs, settings["reward_model"], Run(name="reward model"))
            save_pretrained(judge, tokenizer, folder / f"{name}_reward_model")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "hashes.json").write_text(json.dumps(hashes, indent=1) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    folder.rename(final)


if __name__ == "__main__":
    main()
