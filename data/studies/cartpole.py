"""CartPole at 100,000 environment steps on seeds 10, 11, 12 (the settings were chosen on 0, 1, 2): PPO, plain REINFORCE, PPO
with a planted mistake in `what_follows`, and PPO with other lambdas. About four minutes on one CPU core.

python data/studies/cartpole.py
"""

import time
from dataclasses import asdict, replace

import numpy as np
import torch
from standing_in import standing_in
from store import write

from minirl.train import cartpole
from minirl.train.cartpole import CartPoleConfig, evaluate, train_ppo, train_reinforce

SEEDS = (10, 11, 12)
PPO = CartPoleConfig()
# REINFORCE's worst of seeds 0, 1, 2 at .005, .01, .02, .04 was 437, 444, 139, 131. Two are as good as level, so both are stored:
# on seeds 10 to 12 the one that came second in tuning turned out the better, which was seen after the first was run.
REINFORCE_RATES = (1e-2, 5e-3)
LAMBDAS = (0.0, 0.9, 1.0)
SETTINGS = [SEEDS, sorted(asdict(PPO).items()), REINFORCE_RATES, LAMBDAS]
GRID = range(5_000, 100_001, 5_000)


def cut_is_an_end(next_values, steps):
    """Every cut counts as a fall: the clock's, and the one after our own `length` steps."""
    values = next_values.masked_fill(steps.terminated | steps.truncated, 0.0)
    values[:, -1] = 0
    return values


def clock_is_an_end(next_values, steps):
    """Only the clock at 500 steps counts as a fall."""
    return next_values.masked_fill(steps.terminated | steps.truncated, 0.0)


def fall_goes_on(next_values, steps):
    """A fall counts as a cut: the critic's opinion of the fallen pole is added."""
    return next_values


MISTAKES = {f.__name__: f for f in (cut_is_an_end, clock_is_an_end, fall_goes_on)}


def runs(seed: int):
    """(name, how to train)."""
    yield "PPO", lambda: train_ppo(replace(PPO, seed=seed))
    for lr in REINFORCE_RATES:
        yield f"REINFORCE {lr:g}", lambda lr=lr: train_reinforce(replace(PPO, lr=lr, seed=seed))
    for name, mistake in MISTAKES.items():
        yield name, lambda mistake=mistake: broken(mistake, seed)
    for lam in LAMBDAS:
        yield f"lambda {lam:g}", lambda lam=lam: train_ppo(replace(PPO, lam=lam, seed=seed))


def broken(mistake, seed: int):
    with standing_in(cartpole, {"what_follows": mistake}):
        return train_ppo(replace(PPO, seed=seed))


def cartpole_rows(seed: int) -> list[dict]:
    """One row a point of the curve; the last row of a run also has its evaluation, 20 sampled episodes, and its seconds."""
    rows = []
    for name, train in runs(seed):
        start = time.process_time()
        model, records = train()
        seconds = time.process_time() - start
        steps = [record["step"] for record in records]
        for at in GRID:
            columns = {
                column: float(np.interp(at, steps, [record[column] for record in records]))
                for column in ("reward_mean", "value_mean")
                if column in records[0]
            }
            rows.append({"seed": seed, "method": name, "step": at} | columns)
        rows[-1] |= {"evaluated": evaluate(model, seed=900_000 + seed), "seconds": round(seconds, 1)}
        print(seed, name, rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("cartpole", [row for seed in SEEDS for row in cartpole_rows(seed)], SETTINGS)
