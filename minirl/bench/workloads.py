"""The frozen workloads: two sizes of model, what one unit of work is, and how much faster than TRL it has to be.

`write_folder` puts everything both sides need into one folder: four models in the Hugging Face layout, a tokenizer, and the
rows of tokens. Neither side makes anything up by itself.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import models, pre_tokenizers

from minirl.model import RewardModel, Transformer, TransformerConfig, last_token
from minirl.pretrained import save_pretrained
from minirl.tokenizer import Tokenizer
from minirl.types import check_knob

SIZES = {
    "tiny": TransformerConfig(vocab_size=256, width=128, layers=4, heads=4, ffn=512, max_length=128, norm_eps=1e-6),
    "micro": TransformerConfig(vocab_size=64, width=64, layers=2, heads=2, ffn=256, max_length=128, norm_eps=1e-6),
}
PAD, BOS, EOS = 0, 1, 2  # never in a prompt
PROMPT, ROWS, GROUP, NEW = 16, 64, 8, 32  # tokens of a prompt, responses, responses a prompt, new tokens
PAIRS, PAIR_PROMPT, PAIR_LENGTH = 32, 32, 64  # preference pairs a step; the end token is in the length
WARM_UP = 2  # pairs of units whose times are dropped


@dataclass(frozen=True)
class Workload:
    about: str
    must: tuple[float, float] | None  # times as fast as the peer, tiny and micro
    aim: tuple[float, float] | None
    peer: str = "trl"  # what the peer's Python has to hold: "transformers", "trl" or "trl.experimental.ppo"


WORKLOADS = {
    "generate": Workload("64 prompts of 16, 32 new tokens each", (1.55, 1.9), (2.0, 2.7), "transformers"),
    "generate_64": Workload("the same with 64 new tokens", (1.55, 1.9), (2.0, 2.7), "transformers"),
    "generate_groups": Workload("8 prompts of 16, 8 responses of 32 to each", (2.0, 2.4), (2.8, 3.2), "transformers"),
    "generate_groups_64": Workload("the same with 64 new tokens", (2.0, 2.4), (2.8, 3.2), "transformers"),
    "grpo": Workload("8 x 8 responses of 32, a rule in Python, one step", (1.7, 2.5), (2.2, 3.3)),
    "dpo": Workload("32 pairs of 32 + 32, the reference runs along", (1.6, 2.1), (2.0, 2.6)),
    "dpo_precomputed": Workload("32 pairs of 32 + 32, the reference ran before", (1.6, 2.1), (2.0, 2.6)),
    "reward_model": Workload("32 pairs of 64, Bradley-Terry", (1.35, 1.9), (1.6, 2.3)),
    "ppo": Workload("64 responses of 32, four epochs, one trunk", (2.7, 5.0), (3.5, 6.5), "trl.experimental.ppo"),
    "ppo_critic": Workload("the same with a critic of its own", None, None, "trl.experimental.ppo"),
    "import": Workload("what GRPO needs, in a new process", (2.0, 2.0), None),
    "start_up": Workload("a new process, until GRPO's first step begins", (2.0, 2.0), None),
    "help": Workload("the command line: --help", None, None),
}
PROCESSES = ("import", "start_up", "help")  # new processes, the same for every model


def write_folder(folder: Path, size: str, *, units: int, threads: int, clock: str, dtype: str) -> None:
    """FOLDER/policy, reference, judge, critic: models. rows.safetensors: tokens. spec.json: everything else."""
    check_knob("units", units, 1)
    config, tokenizer = SIZES[size], word_tokenizer(SIZES[size].vocab_size)
    for seed, name in enumerate(("policy", "reference", "judge", "critic")):
        model = random_model(config, seed)
        if name in ("judge", "critic"):  # a score that is not 0, or the two sides would agree for the wrong reason
            model = RewardModel(model, last_token)
            torch.nn.init.normal_(model.score.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
        save_pretrained(model, tokenizer, folder / name)

    def tokens(rows: int, length: int, seed: int) -> torch.Tensor:
        return torch.randint(3, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))

    answer, pairs = PAIR_LENGTH - PAIR_PROMPT - 1, PAIRS * units
    rows = {
        "prompts": tokens(ROWS * units, PROMPT, 1),
        "responses": tokens(ROWS, NEW, 2),  # what the two sides are compared on
        "pair_prompts": tokens(pairs, PAIR_PROMPT, 3),
        "chosen": tokens(pairs, answer, 4),
        "rejected": tokens(pairs, answer, 5),
        "judged_chosen": tokens(pairs, PAIR_LENGTH - 1, 6),
        "judged_rejected": tokens(pairs, PAIR_LENGTH - 1, 7),
    }
    save_file(rows, folder / "rows.safetensors")
    spec = {"size": size, "units": units, "threads": threads, "clock": clock, "dtype": dtype}
    spec |= {"rows": ROWS, "prompt": PROMPT, "group": GROUP, "new": NEW, "pairs": PAIRS, "pair_length": PAIR_LENGTH}
    (folder / "spec.json").write_text(json.dumps(spec))


def random_model(config: TransformerConfig, seed: int) -> Transformer:
    """normal(0, 0.02) everywhere, the peer's way, so that every side samples from the same flat distributions."""
    model, generator = Transformer(config), torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.dim() == 2:
            torch.nn.init.normal_(p, std=0.02, generator=generator)
    return model


def word_tokenizer(vocab_size: int) -> Tokenizer:
    """One word, one token: t3, t4, ... Words are split at white space."""
    special = ["<pad>", "<bos>", "<eos>"]
    words = special + [f"t{i}" for i in range(len(special), vocab_size)]
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special)
    return Tokenizer(backend, eos="<eos>", bos="<bos>", pad="<pad>")
