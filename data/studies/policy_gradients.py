"""Where a table policy ends when REINFORCE teaches it a tree of two choices: with no baseline, with the mean of the other
answers as the baseline, and with the returns of every answer whitened by themselves (a mistake), at five learning rates
each, on seeds 10 to 25, others than those on which the settings were chosen. About two minutes on one CPU core.

python data/studies/policy_gradients.py
"""

import torch
from store import write

from minirl import exact
from minirl.advantages import discounted_returns, leave_one_out_advantages
from minirl.losses.policy import reinforce_loss
from minirl.masking import fixed_length_mean, masked_whiten

START = [[0.4, 0.6], [0.75, 0.25], [0.5, 0.5]]  # the policy before: tick and tock at first, after tick, after tock
SCORES = [11.0, 15.0, 12.0, 10.0]  # tick tick, tick tock, tock tick, tock tock
STEPS, BATCH, GAMMA = 150, 8, 0.99
BASELINES = ["none", "leave one out", "whitened inside"]
LRS = [0.03, 0.1, 0.3, 1.0, 3.0]
SEEDS = range(10, 26)
SETTINGS = [START, SCORES, (STEPS, BATCH, GAMMA), BASELINES, LRS, list(SEEDS)]

world = exact.World(2, 2, eos=None)
scores = torch.tensor(SCORES, dtype=torch.float64)
every = fixed_length_mean(1)


def advantages_of(scored: torch.Tensor, mask: torch.Tensor, baseline: str) -> torch.Tensor:
    """(B,) scores to (B, T) advantages."""
    if baseline == "leave one out":
        scored = leave_one_out_advantages(scored, len(scored))
    if baseline != "whitened inside":
        return scored.unsqueeze(1).expand(mask.shape)
    rewards = torch.zeros(mask.shape, dtype=scored.dtype)
    rewards[:, -1] = scored
    returns = discounted_returns(rewards, mask, gamma=GAMMA)
    return torch.stack([masked_whiten(row, counted) for row, counted in zip(returns, mask, strict=True)])


def train(seed: int, *, baseline: str, lr: float) -> dict:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.tensor(START, dtype=torch.float64).log().requires_grad_()
    for _ in range(STEPS):
        logprobs = exact.token_logprobs(world, logits)
        p = logprobs.detach().sum(1).exp()
        rows = torch.multinomial(p, BATCH, replacement=True, generator=generator)
        mask = world.mask[rows]
        loss, _ = reinforce_loss(logprobs[rows], advantages_of(scores[rows], mask, baseline), mask, reduce=every)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - lr * gradient).detach().requires_grad_()
    final = exact.sequence_logprobs(world, logits.detach()).exp() @ scores
    return {"final": float(final)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    runs = [{"baseline": baseline, "lr": lr, "seed": seed} for baseline in BASELINES for lr in LRS for seed in SEEDS]
    write("policy_gradients", [run | train(**run) for run in runs], SETTINGS)
