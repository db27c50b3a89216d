"""What old rollouts cost: GRPO on the digits, each batch sampled by the weights of k updates ago, with three ways to use
it. The learner pretends that its own weights wrote the answers, or compares with those that did: by PPO's clipped ratio,
or by a weight min(ratio, 2). Seeds 30 to 32; the settings were chosen on 0 to 2. Three minutes on one CPU core.

python data/studies/stale.py
"""

import copy
from collections import deque
from dataclasses import replace

import torch
from store import write

from minirl.advantages import group_relative_advantages
from minirl.losses.policy import grpo_loss, reinforce_loss
from minirl.masking import sequence_mean
from minirl.pretrained import load_pretrained
from minirl.rollout import response_logprobs, rule_scorer
from minirl.tasks import DATA, digit_sum
from minirl.train import critic_free, grpo
from minirl.train.optimizer import adamw, follow_gradient, warmed_up
from minirl.train.settings import DIGIT_SUM

STEPS, LR, CAP = 60, 1e-3, 2.0
LAGS = [0, 2, 8]  # updates between the weights that sample and those that learn
USES = ["as if fresh", "clipped ratio", "min(ratio, 2)"]
SEEDS = range(30, 33)
SETTINGS = [(STEPS, LR, CAP), LAGS, USES, list(SEEDS)]


def loss_of(use: str, logprobs, sampled, advantages, mask):
    """The three ways. `sampled` are the log-probabilities under the weights that wrote the answers."""
    if use == "min(ratio, 2)":
        weight = (logprobs.detach() - sampled).exp().clamp(max=CAP)
        return reinforce_loss(logprobs, weight * advantages[:, None], mask, reduce=sequence_mean)[0]
    old = logprobs.detach() if use == "as if fresh" else sampled
    return grpo_loss(logprobs, old, None, advantages, mask, kl_coef=0.0)[0]


def run(seed: int, lag: int, use: str, *, steps: int = STEPS, lr: float = LR) -> dict:
    policy, tokenizer = load_pretrained(DATA / "weights" / "digit_sum_sft")
    config = replace(DIGIT_SUM["grpo"], seed=seed)
    dice, rule = torch.Generator().manual_seed(seed), rule_scorer(digit_sum.score, tokenizer)
    optimizer, scores_seen, kl = adamw(policy), [], []
    sampler, waiting = copy.deepcopy(policy), deque()  # the weights of `lag` updates ago, and those on their way there
    for step in range(1, steps + 1):
        waiting.append({name: p.clone() for name, p in policy.state_dict().items()})
        if len(waiting) > lag:
            sampler.load_state_dict(waiting.popleft())
        _, rollout, scores, _ = grpo.sample_groups(
            sampler, tokenizer, digit_sum.prompts, rule, config, critic_free.GRPO, dice
        )
        advantages = group_relative_advantages(scores, config.group_size)
        logprobs, _ = response_logprobs(policy, rollout.tokens, rollout.starts, rollout.mask.shape[1])
        loss = loss_of(use, logprobs, rollout.logprobs, advantages, rollout.mask)
        optimizer.zero_grad()
        loss.backward()
        follow_gradient(optimizer, loss.detach(), step=step, lr=warmed_up(step, lr, 5), max_grad_norm=1.0)
        scores_seen.append(float(scores.mean()))
        kl.append(float((rollout.logprobs - logprobs.detach())[rollout.mask].mean()))
    return {"score": accuracy(policy, tokenizer, seed), "best": max(scores_seen), "kl": sum(kl[-10:]) / 10}


def accuracy(policy, tokenizer, seed: int) -> float:
    """Share of right answers to 1,024 new questions."""
    config = grpo.GRPOConfig(prompts=1024, group_size=1, max_new_tokens=12)
    dice, rule = torch.Generator().manual_seed(1000 + seed), rule_scorer(digit_sum.score, tokenizer)
    _, _, scores, _ = grpo.sample_groups(
        policy, tokenizer, digit_sum.prompts, rule, config, critic_free.REINFORCE, dice
    )
    return float(scores.mean())


def plan() -> list[tuple]:
    """A fresh batch is the same for all three ways, so that lag 0 is run once."""
    uses = {0: USES[:1]}
    return [(seed, lag, use) for lag in LAGS for use in uses.get(lag, USES) for seed in SEEDS]


def row(seed: int, lag: int, use: str) -> dict:
    return {"lag": lag, "use": use, "seed": seed} | run(seed, lag, use)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = []
    for wanted in plan():
        rows.append(row(*wanted))
        print(rows[-1], flush=True)
    write("stale", rows, SETTINGS)
