"""LoRA on a small real model: PPO pays a 260k-parameter Llama for a word, at several ranks, scales and learning rates, beside
full fine-tuning, and with two planted mistakes. Seeds 40, 41, 42; the settings were chosen on seeds 0 and 1.

python data/studies/real_models.py

About five minutes on one CPU core. Needs the 260k-parameter Llama in shared/data/stories260k beside the checkout.
"""

import torch
from store import write

from minirl.lora import add_lora, base_of
from minirl.model import PolicyWithValue
from minirl.pretrained import load_pretrained
from minirl.rollout import responses_text, roll_out, rule_scorer, sequence_kl
from minirl.tasks import DATA
from minirl.train.optimizer import adamw, warmed_up
from minirl.train.ppo import PPOConfig, improve

SEEDS = (40, 41, 42)
MODEL = DATA.parents[1] / "shared" / "data" / "stories260k"
PROMPT, WORD, TEXTS = "Once upon a time", "girl", 128
SIZES = dict(steps=16, batch=32, minibatch=16, epochs=2, max_new_tokens=24, kl_coef=0.2)
LR, FULL_LR, RANK = 3e-3, 5e-4, 8
RUNS = {  # rank None is full fine-tuning, alpha None is 2 * rank
    "full": {"rank": None, "lr": FULL_LR},
    "full, LoRA's rate": {"rank": None, "lr": LR},
    "rank 1": {"rank": 1},
    "rank 2": {"rank": 2},
    "rank 8": {},
    "rank 32": {"rank": 32},
    "rank 1, alpha 16": {"rank": 1, "alpha": 16.0},
    "rank 2, alpha 16": {"rank": 2, "alpha": 16.0},
    "rank 32, alpha 16": {"rank": 32, "alpha": 16.0},
    "rate of full": {"lr": FULL_LR},
    "rate 1e-2": {"lr": 1e-2},
    "corrections in the reference": {"reference": "policy"},
    "optimiser before LoRA": {"optimiser": "first"},
}
CURVES = ("full", "rank 8", "rate of full", "corrections in the reference", "optimiser before LoRA")  # kept by step
SETTINGS = (SEEDS, PROMPT, WORD, TEXTS, SIZES, LR, FULL_LR, RANK, RUNS, CURVES)


def paid_for_a_word(prompts: list[str], texts: list[str]) -> list[float]:
    return [1.0 if WORD in text else -1.0 for text in texts]


def train(seed: int, *, rank=RANK, alpha=None, lr=LR, reference="base", optimiser="last") -> tuple[list[dict], dict]:
    """(stats of every step, measured on fresh texts afterwards)."""
    if not MODEL.is_dir():
        raise ValueError("stories260k: wanted the 260k-parameter Llama in shared/data beside the checkout, found none")
    (policy, words), (start, _) = load_pretrained(MODEL), load_pretrained(MODEL)
    start.requires_grad_(False)
    actor = PolicyWithValue(policy)
    early = adamw(actor)
    if rank is not None:
        torch.manual_seed(seed)
        add_lora(policy, rank=rank, alpha=alpha)
    ref = {"base": start if rank is None else base_of(policy), "policy": policy}[reference]
    optimizer = {"first": early, "last": adamw(actor)}[optimiser]
    config, dice = PPOConfig(**SIZES, lr=lr, seed=seed), torch.Generator().manual_seed(seed)
    scorer, log = rule_scorer(paid_for_a_word, words), []
    for step in range(1, config.steps + 1):
        texts, rollout = roll_out(
            actor, words, [PROMPT] * config.batch, max_new_tokens=config.max_new_tokens, generator=dice
        )
        knobs = {"kl_coef": config.kl_coef, "step": step, "lr": warmed_up(step, lr, config.warmup), "generator": dice}
        log.append(improve(actor, ref, rollout, scorer(texts, rollout), config, optimizer, **knobs))
    dice = torch.Generator().manual_seed(1000 + seed)
    texts, told = roll_out(policy, words, [PROMPT] * TEXTS, max_new_tokens=config.max_new_tokens, generator=dice)
    end = {"score": float(scorer(texts, told).mean()), "kl": float(sequence_kl(policy, start, told).mean())}
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    return log, end | {"trained": trained, "text": responses_text(told[:1], words)[0]}


def rows(seed: int, name: str) -> list[dict]:
    log, end = train(seed, **RUNS[name])
    kept = {"reward_mean": "score", "kl": "kl", "value_loss": "value_loss", "grad_norm": "grad_norm"}
    steps = [
        {"seed": seed, "run": name, "kind": "step", "step": step} | {to: float(r[of]) for of, to in kept.items()}
        for step, r in enumerate(log, start=1)
        if name in CURVES
    ]
    return [*steps, {"seed": seed, "run": name, "kind": "end", "step": len(log)} | end]


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("real_models", [row for seed in SEEDS for name in RUNS for row in rows(seed, name)], SETTINGS)
