"""What GRPO's choices do, measured four times: lengths under three divisions, in a table policy with its group sizes and in
a network; groups without a gradient on the digits; a leash with one mistake in it. Seeds from 30 on; the settings were
chosen on 0 and 1. And two rows more for the long world of exact_world.py, on its settings and its seeds, to set beside
its GRPO with std. Five minutes on one CPU core.

python data/studies/grpo.py
"""

from dataclasses import replace

import exact_world
import torch
from store import write

from minirl import exact
from minirl.advantages import group_centered_advantages, group_relative_advantages
from minirl.kl import kl_k1, kl_k3
from minirl.losses.policy import grpo_loss
from minirl.masking import fixed_length_mean, sequence_mean, token_mean
from minirl.model import Transformer, TransformerConfig
from minirl.pretrained import load_pretrained
from minirl.rollout import rule_scorer
from minirl.run import Run
from minirl.tasks import DATA, digit_sum
from minirl.train import critic_free, grpo
from minirl.train.settings import DIGIT_SUM

ROOM, BATCH, STEPS, LR = 8, 64, 150, 0.03  # the table policy
DIVISIONS = {"sequence": sequence_mean, "token": token_mean, "fixed": fixed_length_mean(ROOM)}
GROUP_SIZES = [2, 8, 32]
NETWORK = {"width": 32, "layers": 1, "heads": 4, "ffn": 64, "max_length": 12, "positions": "learned"}
NETWORK_RUN = {"steps": 100, "prompts": 32, "group_size": 8, "minibatch": 256, "max_new_tokens": ROOM, "lr": 3e-4}
DIGIT_STEPS, LAST = 40, 10  # what is averaged at the end
BETA, LEASH_STEPS, PAYDAYS, LEASH_BATCH, LEASH_LR = 0.4, 120, 40, 16, 1.0
SEEDS = {
    "table": range(30, 38),
    "network": range(30, 33),
    "digits": range(30, 33),
    "leash": range(30, 38),
    "long": range(10, 13),
}
SETTINGS = [
    (ROOM, BATCH, STEPS, LR),
    list(DIVISIONS),
    GROUP_SIZES,
    NETWORK,
    NETWORK_RUN,
    (DIGIT_STEPS, LAST),
    (BETA, LEASH_STEPS, PAYDAYS, LEASH_BATCH, LEASH_LR),
    {kind: list(seeds) for kind, seeds in SEEDS.items()},
    exact_world.SETTINGS,
]

# The game: words six and five, and the stop, eight at most. An examiner reads the first word only, and six is right.

game = exact.World(3, ROOM)
right, wrong = game.tokens[:, 0] == 1, game.tokens[:, 0] == 2
lengths = game.mask.sum(1)
# All that the table policy sees: the first word, and how many words there are. 15 situations.
first = torch.tensor([prefix[0] if prefix else 0 for prefix in game.prefixes])
situation = torch.where(first == 0, 0, (first - 1) * (ROOM - 1) + game.depth)


def measured(p: torch.Tensor) -> dict:
    """Exactly, from the probability of every answer."""
    means = {
        name: float((p * lengths)[rows].sum() / p[rows].sum()) for name, rows in (("right", right), ("wrong", wrong))
    }
    return {"score": float(p[right].sum())} | means


def table_run(seed: int, division: str, group_size: int) -> dict:
    dice = torch.Generator().manual_seed(seed)
    theta = torch.zeros(2 * ROOM - 1, 3, dtype=torch.float64)
    theta[:, 0], theta[0, 0] = -1.0, -2.0  # the stop is rarer than a word
    optimizer = torch.optim.Adam([theta.requires_grad_()], lr=LR)
    for _ in range(STEPS):
        logprobs = exact.token_logprobs(game, theta[situation])
        drawn = torch.multinomial(logprobs.detach().sum(1).exp(), BATCH, replacement=True, generator=dice)
        now, mask = logprobs[drawn], game.mask[drawn]
        advantages = group_relative_advantages(right[drawn].double(), group_size)
        loss, _ = grpo_loss(now, now.detach(), None, advantages, mask, kl_coef=0.0, reduce=DIVISIONS[division])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return measured(exact.sequence_logprobs(game, theta.detach()[situation]).exp())


def network_run(seed: int, division: str) -> dict:
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig(vocab_size=3, **NETWORK))
    with torch.no_grad():
        model.head.weight.mul_(0.5)  # nearly even at the start
    reduce = {"sequence": critic_free.per_sequence, "token": critic_free.per_token, "fixed": critic_free.per_budget}
    row, config = replace(critic_free.GRPO, reduce=reduce[division]), grpo.GRPOConfig(**NETWORK_RUN, seed=seed)
    grpo.train(model, None, game.tokenizer(), game.prompts, game.scorer(right.float()), config, quiet(), row=row)
    with torch.no_grad():
        return measured(exact.sequence_logprobs(game, exact.policy_logits(game, model).double()).exp())


DIGIT_ROWS = {
    "grpo": critic_free.GRPO,
    "no std": replace(critic_free.GRPO, advantages=group_centered_advantages),
    "token mean": replace(critic_free.GRPO, reduce=critic_free.per_token),
    "fixed": replace(critic_free.GRPO, reduce=critic_free.per_budget),
    "live groups": replace(critic_free.DR_GRPO, keep=critic_free.live_groups),
}


def digits_run(seed: int, variant: str) -> dict:
    model, tokenizer = load_pretrained(DATA / "weights" / "digit_sum_sft")
    rule, run, answers = rule_scorer(digit_sum.score, tokenizer), quiet(), 0

    def score(prompts, rollout):
        nonlocal answers
        answers += len(rollout)
        return rule(prompts, rollout)

    config = replace(DIGIT_SUM["grpo"], steps=DIGIT_STEPS, seed=seed)
    grpo.train(model, None, tokenizer, digit_sum.prompts, score, config, run, row=DIGIT_ROWS[variant])
    early, late = run.records[:LAST], run.records[-LAST:]
    return {
        "score": accuracy(model, tokenizer, seed),
        "dead_early": mean(early, "dead_groups"),
        "dead_late": mean(late, "dead_groups"),
        "length": mean(late, "length_mean"),
        "answers": answers,
    }


def accuracy(model: Transformer, tokenizer, seed: int) -> float:
    """Share of right answers to 1,024 new questions."""
    config = grpo.GRPOConfig(prompts=1024, group_size=1, max_new_tokens=12)
    dice = torch.Generator().manual_seed(1000 + seed)
    rule = rule_scorer(digit_sum.score, tokenizer)
    _, _, scores, _ = grpo.sample_groups(model, tokenizer, digit_sum.prompts, rule, config, critic_free.REINFORCE, dice)
    return float(scores.mean())


def mean(records: list[dict], name: str) -> float:
    return sum(record[name] for record in records) / len(records)


def quiet() -> Run:
    return Run(progress=False)


# The leash: 64 answers of three words. After PAYDAYS steps every score is 0, so that only the penalty is left.

PENALTIES = {  # (logprobs, ref_logprobs, old_logprobs) -> what a token is charged
    "none": lambda now, ref, old: 0 * now,
    "sound": lambda now, ref, old: kl_k3(now, ref),
    "subtracted": lambda now, ref, old: -kl_k3(now, ref),
    "to the old policy": lambda now, ref, old: kl_k3(now, old),
    "k1": lambda now, ref, old: kl_k1(now, ref),
}


def leash_run(seed: int, mistake: str) -> dict:
    dice = torch.Generator().manual_seed(seed)
    world = exact.World(4, 3, eos=None)
    start = 0.7 * torch.randn(world.child.shape, generator=dice, dtype=torch.float64)
    scores = torch.linspace(-1.7, 1.7, len(world), dtype=torch.float64)[torch.randperm(len(world), generator=dice)]
    ref = exact.token_logprobs(world, start)
    theta = start.clone().requires_grad_()
    optimizer, kls = torch.optim.SGD([theta], lr=LEASH_LR), []
    for step in range(LEASH_STEPS + 1):
        logprobs = exact.token_logprobs(world, theta)
        logp = logprobs.detach().sum(1)
        kls.append(float(exact.kl(logp, ref.sum(1))))
        drawn = torch.multinomial(logp.exp(), LEASH_BATCH, replacement=True, generator=dice)
        now, mask, paid = logprobs[drawn], world.mask[drawn], scores[drawn] * (step < PAYDAYS)
        loss, _ = grpo_loss(now, now.detach(), None, group_relative_advantages(paid, 8), mask, kl_coef=0.0)
        loss = loss + BETA * sequence_mean(PENALTIES[mistake](now, ref[drawn], now.detach()), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = torch.tensor(kls[PAYDAYS:])
    return {"kl_paid": kls[PAYDAYS], "kl_end": kls[-1], "moved": float((after - after[0]).abs().max())}


LONG = {"rloo": critic_free.RLOO, "no std": exact_world.CENTERED}  # both with the KL in the reward


def long_run(seed: int, variant: str) -> dict:
    return {"tv": exact_world.by_row(exact_world.Setting("long", seed), LONG[variant])["tv"]}


def row(kind: str, variant: str, seed: int, group_size: int | str = "") -> dict:
    runs = {"table": table_run, "network": network_run, "digits": digits_run, "leash": leash_run, "long": long_run}
    knobs = (group_size,) if kind == "table" else ()
    return {"kind": kind, "variant": variant, "group_size": group_size, "seed": seed} | runs[kind](
        seed, variant, *knobs
    )


def plan() -> list[tuple]:
    rows = [("table", name, seed, size) for size in GROUP_SIZES for name in DIVISIONS for seed in SEEDS["table"]]
    rows += [("network", name, seed) for name in DIVISIONS for seed in SEEDS["network"]]
    rows += [("digits", name, seed) for name in DIGIT_ROWS for seed in SEEDS["digits"]]
    rows += [("leash", name, seed) for name in PENALTIES for seed in SEEDS["leash"]]
    return rows + [("long", name, seed) for name in LONG for seed in SEEDS["long"]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = []
    for i, wanted in enumerate(plan()):
        rows.append(row(*wanted))
        if i % 20 == 0:
            print(i, rows[-1], flush=True)
    write("grpo", rows, SETTINGS)
