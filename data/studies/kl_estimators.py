"""Where each way of charging for KL comes to rest. A table of logits follows the exact expected gradient (no sample, so no
noise), in worlds of 4 tokens and length 4, on seeds 3 to 12; the settings were chosen on 0, 1, 2. About two minutes on one
CPU core.

python data/studies/kl_estimators.py
"""

import torch
from store import write

from minirl.exact import (
    World,
    kl,
    objective,
    optimum,
    sequence_logprobs,
    token_logprobs,
    total_variation,
)
from minirl.kl import kl_k1, kl_k2, kl_k3
from minirl.rewards import kl_shaped_rewards

SEEDS = range(3, 13)
BETA, BETAS = 0.5, (0.2, 0.35, 0.7, 1.0, 1.5)  # every way at BETA, three of them along BETAS
SETTINGS = {"vocab_size": 4, "max_length": 4, "reference_std": 0.5, "steps": 400, "lr": 0.1, "betas": (BETA, *BETAS)}
ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
WAYS = ["none", "k1 reward", "k2 reward", "k3 reward", "k1 loss", "k2 loss", "k3 loss"]
ALONG = ["k1 reward", "k2 loss", "k3 loss"]
WORLD = World(SETTINGS["vocab_size"], SETTINGS["max_length"], eos=None)


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits of the reference, scores of the sequences)"""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(WORLD.child.shape, generator=generator, dtype=torch.float64)
    return SETTINGS["reference_std"] * logits, torch.randn(len(WORLD), generator=generator, dtype=torch.float64)


def settle(way: str, ref_logits: torch.Tensor, scores: torch.Tensor, beta: float) -> torch.Tensor:
    """log pi of every sequence after Adam has followed the expected gradient, (Y,)."""
    ref = token_logprobs(WORLD, ref_logits)
    logits = ref_logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=SETTINGS["lr"])
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / SETTINGS["steps"])
    name, _, place = way.partition(" ")
    for _ in range(SETTINGS["steps"]):
        tokens = token_logprobs(WORLD, logits)
        p = tokens.detach().sum(1).exp()
        charge = ESTIMATORS[name](tokens, ref) if place else torch.zeros_like(ref)
        in_reward = charge.detach() if place == "reward" else torch.zeros_like(ref)
        rewards = kl_shaped_rewards(scores, in_reward, WORLD.mask, kl_coef=beta)
        loss = -(p * rewards.sum(1) * tokens.sum(1)).sum()
        if place == "loss":
            loss = loss + beta * (p * charge.sum(1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return sequence_logprobs(WORLD, logits.detach())


def rows_of(seed: int) -> list[dict]:
    ref_logits, scores = problem(seed)
    ref = sequence_logprobs(WORLD, ref_logits)
    rows = []
    for way, beta in [(way, BETA) for way in WAYS] + [(way, beta) for beta in BETAS for way in ALONG]:
        best, most = optimum(ref, scores, beta=beta)
        logp = settle(way, ref_logits, scores, beta)
        rows.append(
            {
                "seed": seed,
                "way": way,
                "beta": beta,
                "total_variation": total_variation(logp, best).item(),
                "kl": kl(logp, ref).item(),
                "kl_of_optimum": kl(best, ref).item(),
                "score": (logp.exp() * scores).sum().item(),
                "best_score": scores.max().item(),
                "short_of_optimum": (most - objective(logp, ref, scores, beta=beta)).item(),
            }
        )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("kl_estimators", [row for seed in SEEDS for row in rows_of(seed)], SETTINGS)
