"""Where a table policy ends when GAE tells its tokens apart: critics of several qualities, lambda from 0 to 1, three planted
mistakes, on seeds 10 to 17, others than those on which the settings were chosen. About two minutes on one CPU core.

python data/studies/gae.py
"""

import torch
from store import write

from minirl import exact
from minirl.advantages import gae
from minirl.losses.policy import reinforce_loss
from minirl.masking import blank, fixed_length_mean
from minirl.rewards import kl_shaped_rewards

WORDS = {".": 0.0, "kind": 1.0, "dull": 0.0, "rude": -1.5}  # what each word adds to the score; the first ends an answer
ROOM, FOR_TRYING, NO_STOP, BETA = 5, 3.0, -1.0, 0.5
STEPS, BATCH, LR, VALUE_LR = 200, 16, 0.1, 0.3
SEEDS = range(10, 18)
LAMBDAS = [0.0, 0.5, 0.8, 0.95, 1.0]
CRITICS = [0.0, 0.5, 1.0, "learned"]  # the standard deviation of its error in each state, or learned from its returns
MISTAKES = [("pad", 0.5), ("pad", 1.0), ("discount", 0.5), ("discount", 1.0), ("inside", 0.5), ("inside", 1.0)]
SETTINGS = [
    WORDS,
    (ROOM, FOR_TRYING, NO_STOP, BETA),
    (STEPS, BATCH, LR, VALUE_LR),
    list(SEEDS),
    LAMBDAS,
    CRITICS,
    MISTAKES,
]

world = exact.World(len(WORDS), ROOM)
worth = torch.tensor(list(WORDS.values()), dtype=torch.float64)
scores = FOR_TRYING + blank(worth[world.tokens], world.mask).sum(1) + NO_STOP * ~world.finished
ref = torch.zeros(world.child.shape, dtype=torch.float64)  # every word equally likely
best, _ = exact.optimum(exact.sequence_logprobs(world, ref), scores, beta=BETA)


def train(seed: int, *, critic: float | str, lam: float, mistake: str = "") -> dict:
    generator = torch.Generator().manual_seed(seed)
    error = torch.randn(len(ref), generator=generator, dtype=torch.float64)
    logits, learned = ref.clone().requires_grad_(), torch.zeros_like(error)
    optimizer = torch.optim.Adam([logits], lr=LR)
    gamma = 0.9 if mistake == "discount" else 1.0
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LR * (1 - step / STEPS)
        with torch.no_grad():
            kl = logits.log_softmax(1) - ref.log_softmax(1)
            exact_values, _ = exact.values(world, logits, exact.choice_rewards(world, scores, kl, kl_coef=BETA))
            v = learned if critic == "learned" else exact_values + critic * error
            drawn = torch.multinomial(
                exact.sequence_logprobs(world, logits).exp(), BATCH, replacement=True, generator=generator
            )
            mask = world.mask[drawn]
            rewards = kl_shaped_rewards(scores[drawn], exact.along(world, kl)[drawn], mask, kl_coef=BETA)
            seen = torch.ones_like(mask) if mistake == "pad" else mask
            advantages, returns = gae(rewards, v[world.states[drawn]], seen, gamma=gamma, lam=lam)
            advantages = blank(advantages, mask)
            if mistake == "inside":  # each answer whitened by itself
                mean = advantages.sum(1, keepdim=True) / mask.sum(1, keepdim=True)
                centred = blank(advantages - mean, mask)
                spread = (centred.square().sum(1, keepdim=True) / mask.sum(1, keepdim=True) + 1e-8).sqrt()
                advantages = centred / spread
            if critic == "learned":  # towards the mean return of each state that was visited
                visited, total, count = world.states[drawn][mask], torch.zeros_like(v), torch.zeros_like(v)
                total.index_add_(0, visited, returns[mask] - v[visited])
                count.index_add_(0, visited, torch.ones_like(returns[mask]))
                learned = v + VALUE_LR * total / count.clamp(min=1)
        logprobs = exact.token_logprobs(world, logits)[drawn]
        loss, _ = reinforce_loss(logprobs, advantages, mask, reduce=fixed_length_mean(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logp = exact.sequence_logprobs(world, logits)
        return {
            "tv": float(exact.total_variation(logp, best)),
            "score": float((logp.exp() * scores).sum()),
            "length": float((logp.exp() * world.mask.sum(1)).sum()),
        }


def rows_of(seed: int) -> list[dict]:
    runs = [{"critic": critic, "lam": lam, "mistake": ""} for critic in CRITICS for lam in LAMBDAS]
    runs += [{"critic": 0.0, "lam": lam, "mistake": mistake} for mistake, lam in MISTAKES]
    return [{"seed": seed} | run | train(seed, **run) for run in runs]


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("gae", [row for seed in SEEDS for row in rows_of(seed)], SETTINGS)
