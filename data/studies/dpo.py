"""Where DPO and its relatives end in a world of 40 answers that is solved exactly, on seeds 30 to 37, and what DPO does to
the stories from 1,000 labels, on seeds 30 to 32. The settings were chosen on seeds 0 to 2. About six and a
half minutes on one CPU core, five of them for the stories.

python data/studies/dpo.py

The exact world: three words and a stop, at most three tokens. A seed decides the reference (a table of logits with standard
deviation 0.5) and deals the scores, spread evenly with standard deviation 1. Every loss is the expectation over all pairs
that the reference writes, both labels weighted by their probability: no sampling, only descent.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from store import write

from minirl import exact
from minirl.losses.preference import dpo_loss
from minirl.model import Transformer, TransformerConfig
from minirl.pretrained import load_pretrained
from minirl.road import copy_of, labelled_pairs
from minirl.rollout import roll_out, rule_scorer, sequence_kl
from minirl.run import Run
from minirl.tasks import DATA, stories
from minirl.train import dpo
from minirl.train.settings import STORIES
from minirl.types import PreferenceBatch

WORDS, ROOM, BETA, FLIPPED = 4, 3, 0.5, 0.15
STEPS, LR = 400, 0.1  # Adam, the rate falling to 0
BETAS = [0.01, 0.03, 0.1, 0.3, 1.0, 2.0]
TIMES = [1.0, 2.0, 3.0, 4.0, 6.0]  # what averaged DPO's beta is multiplied with
SHORT, SGD_LR, ADAM_LR = 20, 0.3, 0.05  # "a few steps"
NETWORK = {"width": 32, "layers": 1, "heads": 4, "ffn": 64, "max_length": 8, "positions": "learned"}
NETWORK_STEPS, NETWORK_LR = 150, 3e-3
EXACT_SEEDS, STORY_SEEDS = list(range(30, 38)), [30, 31, 32]
PAIRS, LIVE = 1000, replace(STORIES["dpo"], steps=60, lr=6e-4)
ROUNDS, ROUND_WARMUP = 4, 3
STORY_BETAS, TOKENS = [0.05, 0.2, 1.0], 24.0  # a story has some 24 tokens
EVALUATED = 1024
SETTINGS = [
    (WORDS, ROOM, BETA, FLIPPED),
    (STEPS, LR, BETAS, TIMES),
    (SHORT, SGD_LR, ADAM_LR),
    (NETWORK, NETWORK_STEPS, NETWORK_LR),
    (EXACT_SEEDS, STORY_SEEDS),
    (PAIRS, LIVE, ROUNDS, ROUND_WARMUP, STORY_BETAS, TOKENS, EVALUATED),
]

world = exact.World(WORDS, ROOM)
LENGTH = world.mask.sum(1).double()


class Setting:
    """A seed's reference, scores and optimum."""

    def __init__(self, seed: int):
        dice = torch.Generator().manual_seed(seed)
        self.seed = seed
        self.logits = 0.5 * torch.randn(world.child.shape, generator=dice, dtype=torch.float64)
        even = torch.linspace(-(3**0.5), 3**0.5, len(world), dtype=torch.float64)
        self.scores = even[torch.randperm(len(world), generator=dice)]
        self.seen = torch.rand(len(world), generator=dice) < 0.5  # of the support experiment
        self.ref = exact.sequence_logprobs(world, self.logits)
        self.best, _ = exact.optimum(self.ref, self.scores, beta=BETA)
        self.true = (self.scores[:, None] - self.scores).sigmoid()  # (Y, Y): the first is preferred

    def pairs(self, labels: torch.Tensor, sampler: torch.Tensor | None = None) -> torch.Tensor:
        """(Y, Y), sums to 1: how often the row is chosen and the column rejected."""
        p = self.ref.exp() if sampler is None else sampler
        return 2 * p[:, None] * p * labels

    def distances(self, logp: torch.Tensor) -> dict:
        return {
            "tv": float(exact.total_variation(logp, self.best)),
            "kl": float(exact.kl(logp, self.ref)),
            "score": float((logp.exp() * self.scores).sum()),
            "length": float((logp.exp() * LENGTH).sum()),
        }


def descend(
    logits: torch.Tensor,
    ref: torch.Tensor,
    pairs: torch.Tensor,
    term: Callable[[torch.Tensor], torch.Tensor],
    *,
    averaged: bool = False,
    steps: int = STEPS,
    optimizer: type = torch.optim.Adam,
    lr: float = LR,
    falling: bool = True,
) -> torch.Tensor:
    """log pi (Y,) of a table of logits after descent on the expectation of term(h) over the pairs."""
    logits, by = logits.clone().requires_grad_(), LENGTH if averaged else 1.0
    descent = optimizer([logits], lr=lr)
    for step in range(steps):
        descent.param_groups[0]["lr"] = lr * (1 - step / steps) if falling else lr
        moved = (exact.sequence_logprobs(world, logits) - ref) / by
        loss = (pairs * term(moved[:, None] - moved)).sum()
        descent.zero_grad()
        loss.backward()
        descent.step()
    return exact.sequence_logprobs(world, logits).detach()


def sigmoid_term(beta: float, flipped: float = 0.0, second: float = 1.0) -> Callable:
    """second = 1: DPO, smoothed where flipped > 0 (cDPO). second = -1: robust DPO."""
    scale = 1.0 if second == 1.0 else 1 - 2 * flipped
    return lambda h: (-(1 - flipped) * F.logsigmoid(beta * h) - second * flipped * F.logsigmoid(-beta * h)) / scale


def squared_term(beta: float) -> Callable:
    return lambda h: (h - 1 / (2 * beta)) ** 2


def exact_rows(seed: int) -> list[dict]:
    s, rows = Setting(seed), []

    def add(variant: str, logp: torch.Tensor, **more) -> None:
        rows.append({"world": "exact", "variant": variant, "seed": seed, **more} | s.distances(logp))

    true, sure = s.pairs(s.true), s.pairs((s.scores[:, None] > s.scores).double() + 0.5 * torch.eye(len(world)))
    noisy = s.pairs((1 - FLIPPED) * s.true + FLIPPED * (1 - s.true))
    add("optimum", s.best)
    add("imitate the chosen", true.sum(1).log())
    add("no brake", descend(s.logits, s.ref, true, lambda h: -h))
    add("dpo", descend(s.logits, s.ref, true, sigmoid_term(BETA)))
    for times in TIMES:
        add("averaged", descend(s.logits, s.ref, true, sigmoid_term(times * BETA), averaged=True), times=times)
    for labels, pairs in (("clean", true), ("flipped", noisy)):
        for variant, term in (("cdpo", sigmoid_term(BETA, FLIPPED)), ("robust", sigmoid_term(BETA, FLIPPED, -1.0))):
            add(variant, descend(s.logits, s.ref, pairs, term), labels=labels)
    add("dpo", descend(s.logits, s.ref, noisy, sigmoid_term(BETA)), labels="flipped")
    for averaged in (False, True):
        logp = descend(s.logits, s.ref, true, squared_term(BETA), averaged=averaged)
        add("ipo, averaged" if averaged else "ipo", logp)
    add("no reference", descend(s.logits, torch.zeros_like(s.ref), true, sigmoid_term(BETA)))
    add("swapped", descend(s.logits, s.ref, true.T, sigmoid_term(BETA)))

    chosen, rejected = true.sum(1), true.sum(0)
    for beta in BETAS:
        best, _ = exact.optimum(s.ref, s.scores, beta=beta)
        sgd, adam = (
            descend(s.logits, s.ref, true, sigmoid_term(beta), steps=SHORT, optimizer=way, lr=lr, falling=False)
            for way, lr in ((torch.optim.SGD, SGD_LR), (torch.optim.Adam, ADAM_LR))
        )
        for variant, logp in (("at the optimum", best), ("SGD, few steps", sgd), ("Adam, few steps", adam)):
            rise = {"chosen": float(chosen @ (logp - s.ref)), "rejected": float(rejected @ (logp - s.ref))}
            add(variant, logp, beta=beta, **rise)

    for steps in (100, 1000):
        for variant, term in (("dpo", sigmoid_term(BETA)), ("ipo", squared_term(BETA))):
            logp = descend(s.logits, s.ref, sure, term, steps=steps, falling=False)
            add(variant, logp, labels="sure", steps=steps)
    return rows + support_rows(s)


def support_rows(s: Setting) -> list[dict]:
    """The probability of the answers that no pair shows, before and after: a table of logits, and a network that shares."""
    rows = []
    torch.manual_seed(s.seed)
    network = Transformer(TransformerConfig(vocab_size=WORDS, **NETWORK))
    with torch.no_grad():
        network.head.weight.mul_(0.5)
        net_ref = exact.sequence_logprobs(world, exact.policy_logits(world, network).double())
    for learner, ref in (("table", s.ref), ("network", net_ref)):
        sampler = torch.where(s.seen, ref.exp(), 0.0)
        pairs = s.pairs(s.true, sampler / sampler.sum())
        if learner == "table":
            logp = descend(s.logits, ref, pairs, sigmoid_term(BETA))
        else:
            logp = descend_network(network, ref, pairs)
        before, after = (float(x.exp()[~s.seen].sum()) for x in (ref, logp))
        row = {"world": "exact", "variant": f"half unseen, {learner}", "seed": s.seed}
        rows.append(row | {"unseen_before": before, "unseen_after": after})
    return rows


def descend_network(network: Transformer, ref: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    network = copy_of(network)
    descent = torch.optim.Adam(network.parameters(), lr=NETWORK_LR)
    for step in range(NETWORK_STEPS):
        descent.param_groups[0]["lr"] = NETWORK_LR * (1 - step / NETWORK_STEPS)
        moved = exact.sequence_logprobs(world, exact.policy_logits(world, network).double()) - ref
        loss = -(pairs * F.logsigmoid(BETA * (moved[:, None] - moved))).sum()
        descent.zero_grad()
        loss.backward()
        descent.step()
    with torch.no_grad():
        return exact.sequence_logprobs(world, exact.policy_logits(world, network).double())


# The stories.


def averaged_row(times: float) -> dpo.PairLoss:
    return dpo.PairLoss(
        dpo.average_logprobs, lambda c, r, rc, rr, config: dpo_loss(c, r, rc, rr, beta=times * config.beta)
    )


NO_REFERENCE = dpo.PairLoss(
    dpo.sequence_logprobs,
    lambda c, r, rc, rr, config: dpo_loss(c, r, torch.zeros_like(rc), torch.zeros_like(rr), beta=config.beta),
)


def swapped(pairs: PreferenceBatch) -> PreferenceBatch:
    return PreferenceBatch(pairs.rejected, pairs.chosen, pairs.rejected_mask, pairs.chosen_mask, pairs.starts)


STORY_VARIANTS = ["SFT", *(f"beta {beta:g}" for beta in STORY_BETAS), "averaged", "averaged, beta times 24"]
STORY_VARIANTS += ["online", "no reference", "swapped"]


def story_row(variant: str, seed: int) -> dict:
    start = time.process_time()
    ref, tokenizer = load_pretrained(DATA / "weights" / "stories_sft")
    ref.requires_grad_(False)
    dice, config = torch.Generator().manual_seed(1000 * seed + 1), replace(LIVE, seed=seed)
    held_out = labelled_pairs(ref, 500, torch.Generator().manual_seed(1000 * seed + 2))
    policy, run = copy_of(ref), Run(progress=False)
    if variant == "online":  # as many labels and steps, but each round's pairs are the current policy's
        for i in range(ROUNDS):
            data = labelled_pairs(policy, PAIRS // ROUNDS, dice)
            part = replace(config, steps=LIVE.steps // ROUNDS, warmup=ROUND_WARMUP, seed=10 * seed + i)
            policy = dpo.train(policy, ref, data, part, run)
    elif variant != "SFT":
        data, row = labelled_pairs(ref, PAIRS, dice), dpo.DPO
        if variant.startswith("beta"):
            config = replace(config, beta=float(variant.split()[1]))
        row = {"averaged": averaged_row(1.0), "averaged, beta times 24": averaged_row(TOKENS)}.get(variant, row)
        row = NO_REFERENCE if variant == "no reference" else row
        policy = dpo.train(policy, ref, swapped(data) if variant == "swapped" else data, config, run, row=row)
    measured = measure(policy, ref, tokenizer, held_out, seed)
    first = {"first_loss": run.records[0]["loss"], "last_loss": run.records[-1]["loss"]} if run.records else {}
    clock = {"seconds": round(time.process_time() - start, 1)}
    return {"world": "stories", "variant": variant, "seed": seed} | measured | first | clock


@torch.no_grad()
def measure(policy: Transformer, ref: Transformer, tokenizer, held_out: PreferenceBatch, seed: int) -> dict:
    """Gold, KL and length of new stories; and how log pi moved on pairs that were not trained on."""
    dice = torch.Generator().manual_seed(1000 * seed + 3)
    openings = stories.prompts(EVALUATED, dice)
    texts, told = roll_out(policy, tokenizer, openings, max_new_tokens=stories.MAX_NEW_TOKENS, generator=dice)
    (chosen, rejected), (ref_chosen, ref_rejected) = (dpo.pair_logprobs(model, held_out) for model in (policy, ref))
    rise, fall = chosen - ref_chosen, rejected - ref_rejected
    return {
        "gold": float(rule_scorer(stories.gold, tokenizer)(texts, told).mean()),
        "kl": float(sequence_kl(policy, ref, told).mean()),
        "length": float(told.mask.sum(1).float().mean()),
        "chosen": float(rise.mean()),
        "rejected": float(fall.mean()),
        "accuracy": float((rise > fall).float().mean()),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = [row for seed in EXACT_SEEDS for row in exact_rows(seed)]
    for seed in STORY_SEEDS:
        for variant in STORY_VARIANTS:
            rows.append(story_row(variant, seed))
            print(rows[-1], file=sys.stderr, flush=True)
    write("dpo", rows, SETTINGS)
