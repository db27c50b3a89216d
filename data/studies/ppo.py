"""PPO on the stories with one detail changed at a time: what each of them did to gold, proxy and KL after 30 steps, on seeds
30, 31, 32, others than those on which the settings were chosen (0, 1, 2). About 19 minutes on one CPU core.

python data/studies/ppo.py                  all of it
python data/studies/ppo.py full "no clip"   these variants, printed and not stored

A seed decides the rollouts and the minibatches; the SFT model and the reward model are the stored ones. A variant is a
change of the config, and functions that stand in for the loop's own during the run. Three variants were added when the others
had been seen: value coefficient 0.1, a critic of its own at lambda 0.95, and advantages one token late.
"""

import sys
import time
from dataclasses import replace

import torch
from standing_in import standing_in
from store import write

from minirl.advantages import gae
from minirl.losses.policy import ppo_clip_loss, reinforce_loss
from minirl.masking import blank, masked_whiten
from minirl.model import PolicyWithValue
from minirl.pretrained import load_pretrained, load_reward_model
from minirl.rewards import kl_shaped_rewards
from minirl.road import copy_of
from minirl.rollout import (
    mean_entropy,
    model_scorer,
    response_logprobs_and_values,
    roll_out,
    rule_scorer,
    sequence_kl,
)
from minirl.run import Run
from minirl.tasks import DATA, stories
from minirl.train import ppo

BASE = {
    "steps": 30,
    "batch": 64,
    "minibatch": 32,
    "epochs": 2,
    "max_new_tokens": 40,
    "kl_coef": 0.25,
    "lr": 6e-4,
}
EVALUATED = 512
SEEDS = [30, 31, 32]

# What stands in for the loop's functions.


def no_clip(logprobs, old_logprobs, advantages, mask, *, clip_eps, reduce):
    return ppo_clip_loss(logprobs, old_logprobs, advantages, mask, clip_eps=1.0, clip_eps_high=1e6, reduce=reduce)


def no_ratio(logprobs, old_logprobs, advantages, mask, *, clip_eps, reduce):
    """REINFORCE on whatever was sampled, however old it is."""
    loss, _ = reinforce_loss(logprobs, advantages, mask, reduce=reduce)
    return loss, ppo_clip_loss(logprobs.detach(), old_logprobs, advantages, mask, clip_eps=clip_eps, reduce=reduce)[1]


def maximum(logprobs, old_logprobs, advantages, mask, *, clip_eps, reduce):
    """The larger of the two terms."""
    _, stats = ppo_clip_loss(logprobs.detach(), old_logprobs, advantages, mask, clip_eps=clip_eps, reduce=reduce)
    loss, _ = ppo_clip_loss(logprobs, old_logprobs, -advantages, mask, clip_eps=clip_eps, reduce=reduce)
    return -loss, stats


def not_whitened(advantages, mask):
    return blank(advantages, mask)


def whitened_here(logprobs, old_logprobs, advantages, mask, *, clip_eps, reduce):
    """Whitened in each minibatch and not over the batch."""
    return ppo_clip_loss(
        logprobs, old_logprobs, masked_whiten(advantages, mask), mask, clip_eps=clip_eps, reduce=reduce
    )


def without_critic(*inputs, **knobs):
    logprobs, entropies, values = response_logprobs_and_values(*inputs, **knobs)
    return logprobs, entropies, torch.zeros_like(values)


def on_the_last_column(scores, kl, mask, *, kl_coef):
    """The score where the tensor ends. It counts for the rows that reach so far."""
    rewards = kl_shaped_rewards(torch.zeros_like(scores), kl, mask, kl_coef=kl_coef)
    rewards[:, -1] += scores
    return rewards


def on_every_token(scores, kl, mask, *, kl_coef):
    return blank(scores.unsqueeze(1) - kl_coef * kl, mask)


def paid_for_distance(scores, kl, mask, *, kl_coef):
    return kl_shaped_rewards(scores, -kl, mask, kl_coef=kl_coef)


def hotter(*inputs, temperature, **knobs):
    """Samples at 1.4 what the loop believes to be of temperature 1."""
    return roll_out(*inputs, temperature=1.4 * temperature, **knobs)


def one_token_late(*inputs, **knobs):
    """To each token the advantage and the return of the token before it."""
    return tuple(x.roll(1, dims=1) for x in gae(*inputs, **knobs))


VARIANTS = {"full": ({}, {})}
for n in (1, 2, 4, 8):
    if n != 2:
        VARIANTS[f"{n} epochs"] = ({"epochs": n}, {})
    VARIANTS[f"{n} epochs, no clip"] = ({"epochs": n}, {"ppo_clip_loss": no_clip})
    VARIANTS[f"{n} epochs, no ratio"] = ({"epochs": n}, {"ppo_clip_loss": no_ratio})
VARIANTS |= {
    "max, not min": ({}, {"ppo_clip_loss": maximum}),
    "not whitened": ({}, {"masked_whiten": not_whitened}),
    "whitened in each minibatch": ({}, {"masked_whiten": not_whitened, "ppo_clip_loss": whitened_here}),
    "lambda 0": ({"lam": 0.0}, {}),
    "lambda 1": ({"lam": 1.0}, {}),
    "no critic, lambda 1": ({"lam": 1.0}, {"response_logprobs_and_values": without_critic}),
    "critic of its own": ({}, {}),
    "critic of its own, lambda 1": ({"lam": 1.0}, {}),
    "value coefficient 0.1": ({"value_coef": 0.1}, {}),
    "no value clip": ({"value_clip_eps": 1e6}, {}),
    "no gradient clip": ({"max_grad_norm": 1e6}, {}),
    "entropy bonus 0.02": ({"entropy_coef": 0.02}, {}),
    "lr 1.5e-4": ({"lr": 1.5e-4}, {}),
    "lr 3e-3": ({"lr": 3e-3}, {}),
    "beta 0": ({"kl_coef": 0.0}, {}),
    "beta 0.05": ({"kl_coef": 0.05}, {}),
    "beta 1": ({"kl_coef": 1.0}, {}),
    "beta from 0.05, target 3.2": ({"kl_coef": 0.05, "kl_target": 3.2, "kl_horizon": 200}, {}),
    "beta from 1, target 3.2": ({"kl_coef": 1.0, "kl_target": 3.2, "kl_horizon": 200}, {}),
    "score on the last column": ({}, {"kl_shaped_rewards": on_the_last_column}),
    "score on every token": ({}, {"kl_shaped_rewards": on_every_token}),
    "KL with the wrong sign": ({}, {"kl_shaped_rewards": paid_for_distance}),
    "sampled at 1.4, scored at 1": ({}, {"roll_out": hotter}),
    "advantages one token late": ({}, {"gae": one_token_late}),
}
SETTINGS = [
    BASE,
    EVALUATED,
    SEEDS,
    {name: (config, sorted(stands_in)) for name, (config, stands_in) in VARIANTS.items()},
]

ref, tokenizer = load_pretrained(DATA / "weights" / "stories_sft")
ref.requires_grad_(False)
judge, _ = load_reward_model(DATA / "weights" / "stories_reward_model")
proxy = model_scorer(judge.requires_grad_(False))
gold = rule_scorer(stories.gold, tokenizer)


def train(variant: str, seed: int, **changes) -> tuple[PolicyWithValue, list[dict]]:
    config, stands_in = VARIANTS[variant]
    config = ppo.PPOConfig(**BASE | config | {"seed": seed} | changes)
    critic = copy_of(ref) if variant.startswith("critic of its own") else None  # else a head on the policy's trunk
    actor, run = PolicyWithValue(copy_of(ref), critic), Run(progress=False)
    inside = {name: function for name, function in stands_in.items() if name not in ("gae", "roll_out")}
    sample = stands_in.get("roll_out", roll_out)  # what the loop is given, and does not look up itself
    actor.policy.ops = replace(actor.policy.ops, gae=stands_in.get("gae", gae))
    with standing_in(ppo, inside):
        ppo.train(actor, ref, tokenizer, stories.prompts, proxy, config, run, watch=gold, sample=sample)
    return actor, run.records


def row_of(variant: str, seed: int) -> dict:
    start = time.process_time()
    actor, records = train(variant, seed)
    last = records[-10:]

    def mean(name: str) -> float:
        return sum(record[name] for record in last) / len(last)

    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        prompts = stories.prompts(EVALUATED, generator)
        texts, told = roll_out(actor.policy, tokenizer, prompts, max_new_tokens=40, generator=generator)
        return {
            "variant": variant,
            "seed": seed,
            "gold": float(gold(texts, told).mean()),
            "proxy": float(proxy(texts, told).mean()),
            "kl": float(sequence_kl(actor.policy, ref, told).mean()),
            "entropy": float(mean_entropy(actor.policy, told)),
            "length": float(told.mask.sum(1).float().mean()),
            "finished": float(told.finished.float().mean()),
            "clip_fraction": mean("clip_fraction"),
            "explained_variance": mean("explained_variance"),
            "logged_kl": mean("kl"),
            "kl_coef": records[-1]["kl_coef"],
            "seconds": round(time.process_time() - start, 1),
        }


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[1:]
    rows = []
    for variant in chosen or VARIANTS:
        for seed in SEEDS:
            rows.append(row_of(variant, seed))
            print(rows[-1], flush=True)
    if not chosen:
        write("ppo", rows, SETTINGS)
