"""Reward hacking and what helps: GRPO on the stories against a learned reward, one remedy or one mistake at a time, best-of-n,
and a small real model that is paid for a word by PPO. Seeds 30, 31, 32, and 50, 51, 52 for the real model, others than those
on which the settings were chosen (0, 1, 2).

python data/studies/reward_hacking.py

For the real model the least score asserted (0.6) was set after a look at its rows. About 17 minutes on one CPU core. The rows
of the real model need the 260k-parameter Llama in shared/data/stories260k beside the checkout.
"""

import copy
import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import torch
from store import write

from minirl.model import PolicyWithValue, RewardModel, Transformer, summed
from minirl.pretrained import load_pretrained
from minirl.road import copy_of
from minirl.rollout import (
    best_of_kl_bound,
    centred_scorer,
    ensemble_scorer,
    join,
    mean_entropy,
    model_scorer,
    preference_pairs,
    responses_text,
    roll_out,
    rule_scorer,
    sequence_kl,
)
from minirl.run import Run
from minirl.tasks import DATA, stories
from minirl.train import grpo, ppo, reward_model
from minirl.train.critic_free import GRPO_KL_IN_REWARD
from minirl.train.grpo import GRPOConfig
from minirl.train.ppo import PPOConfig

SEEDS = (30, 31, 32)
LABELS = 1920  # comparisons that a run may buy, whatever its remedy
JUDGE, EPOCHS = reward_model.RewardModelConfig(pairs=32, lr=2e-3), 3
CONFIG = GRPOConfig(steps=32, prompts=8, group_size=8, minibatch=32, epochs=2, max_new_tokens=40, lr=6e-4)
BETA, MAX_KL, MEMBERS = 0.3, 2.0, 3
FIRST, ROUND = 1152, 8  # labels before the run, and steps between fresh ones: 256 pairs of the run itself, three times
AGAIN = 0.5  # what a three-word run costs that the story has had before
GROUPS, GROUP = 24, 256  # best-of-n: stories to one prompt
NS = (1, 2, 4, 8, 16, 32, 64, 128)
RUNS = {  # name: what differs from GRPO with a fixed SFT reference, one reward model and beta 0
    "nothing": {},
    "beta 0.1": {"beta": 0.1},
    "beta 0.3": {"beta": BETA},
    "beta 1": {"beta": 1.0},
    "stop at 2 nats": {"max_kl": MAX_KL},
    "clipped score": {"scorer": "clipped"},
    "mean of 3": {"scorer": "ensemble", "caution": 0.0},
    "mean - 1 std": {"scorer": "ensemble", "caution": 1.0},
    "mean - 3 std": {"scorer": "ensemble", "caution": 3.0},
    "mean - 1 std, raw": {"scorer": "raw", "caution": 1.0},
    "fine for repeats": {"scorer": "patched"},
    "fresh labels": {"scorer": "fresh"},
    "fresh labels, beta 0.1": {"scorer": "fresh", "beta": 0.1},
    "pretrained reference": {"beta": BETA, "reference": "pretrained"},
    "reference renewed every 8 steps": {"beta": BETA, "reference": 8},
    "mistake: reference renewed every step": {"beta": BETA, "reference": 1},
    "mistake: KL with the wrong sign": {"beta": -BETA},
    "mistake: padding is scored": {"beta": BETA, "scorer": "padded"},
}
CURVES = ("nothing", "beta 0.3", *(name for name in RUNS if name.startswith("mistake")))  # kept step by step
REAL = {"prompt": "Once upon a time", "word": "girl"}
REAL_SIZES = {"batch": 32, "minibatch": 16, "max_new_tokens": 24}
GENTLE = dict(steps=15, epochs=2, lr=5e-4)
REAL_RUNS = {  # the sixth step in haste was the best on seeds 0 to 2
    "in haste": dict(steps=6, epochs=4, lr=1e-3, kl_coef=0.0),
    "no KL": dict(**GENTLE, kl_coef=0.0),
    "beta 0.2": dict(**GENTLE, kl_coef=0.2),
}
REAL_SEEDS = (50, 51, 52)
REAL_MODEL = Path(__file__).resolve().parents[3] / "shared" / "data" / "stories260k"
SETTINGS = [
    (SEEDS, LABELS, asdict(JUDGE), EPOCHS, asdict(CONFIG)),
    (FIRST, ROUND, AGAIN, GROUPS, GROUP, NS),
    RUNS,
    (REAL, REAL_SIZES, REAL_RUNS, REAL_SEEDS),
]

ref, tokenizer = load_pretrained(DATA / "weights" / "stories_sft")
pretrained, _ = load_pretrained(DATA / "weights" / "stories_pretrain")
ref.requires_grad_(False), pretrained.requires_grad_(False)
gold = rule_scorer(stories.gold, tokenizer)


# Comparisons and judges


def sampled(policy: Transformer, n: int, seed: int, group_size: int = 1):
    dice = torch.Generator().manual_seed(seed)
    openings = stories.prompts(n, dice)
    return roll_out(policy, tokenizer, openings, max_new_tokens=40, group_size=group_size, generator=dice)


def labels_of(texts, told, dice):
    """Which of rows 2i and 2i + 1 the labeller prefers."""
    taste = gold(texts, told)
    return stories.label(taste[::2], taste[1::2], dice)


def judge_of(pairs, seed: int) -> RewardModel:
    config = replace(JUDGE, steps=EPOCHS * len(pairs) // JUDGE.pairs, seed=seed)
    model = RewardModel(copy_of(ref), summed)
    return reward_model.train(model, pairs, config, Run(progress=False)).requires_grad_(False)


class Desk:
    """What a seed's runs share: labels, the judge that is trained on, an ensemble on thirds of the labels, a second judge
    on other labels, and reference stories."""

    def __init__(self, seed: int):
        self.seed = seed
        self.dice = torch.Generator().manual_seed(1000 * seed)
        self.texts, self.told = sampled(ref, LABELS, 1000 * seed + 1, 2)
        self.first = labels_of(self.texts, self.told, self.dice)
        pairs, third = preference_pairs(self.told, self.first), torch.arange(LABELS).chunk(MEMBERS)
        judges = [judge_of(pairs, seed), *(judge_of(pairs[rows], seed + 100 * i) for i, rows in enumerate(third))]
        texts, told = sampled(ref, LABELS, 1000 * seed + 2, 2)
        judges.append(judge_of(preference_pairs(told, labels_of(texts, told, self.dice)), seed))
        self.plain = sampled(ref, 512, 1000 * seed + 3)
        self.raw = [model_scorer(judge) for judge in judges[1:-1]]
        self.judge = judges[0]
        self.proxy, *self.members, self.second = (centred_scorer(model_scorer(j), *self.plain) for j in judges)
        self.best = self.proxy(self.texts, self.told).max()  # the best score among the labelled stories

    def scorer(self, name: str, caution: float):
        if name == "ensemble" or name == "raw":
            return ensemble_scorer(self.members if name == "ensemble" else self.raw, caution=caution)
        return {"": self.proxy, "clipped": self.clipped, "patched": self.patched, "padded": self.padded}.get(name) or (
            self.fresh()
        )

    def clipped(self, texts, told):
        return self.proxy(texts, told).clamp(max=self.best)

    def patched(self, texts, told):
        had = [trigrams(text) for text in responses_text(told, tokenizer)]
        return self.proxy(texts, told) - AGAIN * torch.tensor([float(len(row) - len(set(row))) for row in had])

    def padded(self, texts, told):
        return self.judge(told.tokens, torch.ones_like(told.mask), starts=told.starts)

    def fresh(self):
        """A judge on FIRST labels; after every ROUND steps the stories of these steps are labelled too and it learns anew."""
        dice = torch.Generator().manual_seed(1000 * self.seed + 4)
        kept, first, batches = [self.told[torch.arange(2 * FIRST)]], [self.first[:FIRST]], []
        current = [model_scorer(judge_of(preference_pairs(kept[0], first[0]), self.seed))]

        def score(texts, told):
            if len(batches) == ROUND:
                kept.append(join([told for _, told in batches]))
                first.append(labels_of([text for texts, _ in batches for text in texts], kept[-1], dice))
                pairs = preference_pairs(join(kept), torch.cat(first))
                current[0] = model_scorer(judge_of(pairs, self.seed + len(kept)))
                batches.clear()
            batches.append((texts, told))
            return current[0](texts, told)

        return score


# What can be seen without gold


def trigrams(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+|[.]", text)
    return list(zip(words, words[1:], words[2:], strict=False))


def signals(desk: Desk, texts: list[str], told) -> dict:
    """Of the runs of three words: the share that the same story has had before, the share of different ones in the batch.
    How far the members are apart, what a judge with other labels says, stories scored above all that were labelled."""
    runs = [trigrams(text) for text in responses_text(told, tokenizer)]
    every = [run for row in runs for run in row]
    again = 1 - sum(len(set(row)) for row in runs) / max(1, len(every))
    proxy = desk.proxy(texts, told)
    return {
        "again": again,
        "variety": len(set(every)) / max(1, len(every)),
        "apart": float(torch.stack([member(texts, told) for member in desk.members]).std(0).mean()),
        "second": float(desk.second(texts, told).mean()),
        "beyond": float((proxy > desk.best).float().mean()),
        "proxy": float(proxy.mean()),
    }


# Runs


def train(desk: Desk, name: str) -> list[dict]:
    how = {"beta": 0.0, "scorer": "", "caution": 1.0, "reference": "SFT", "max_kl": None} | RUNS[name]
    policy, anchor, seen = copy_of(ref), copy.deepcopy(pretrained if how["reference"] == "pretrained" else ref), []
    scorer, before = desk.scorer(how["scorer"], how["caution"]), [copy.deepcopy(ref)]

    def score(texts, told):
        if isinstance(how["reference"], int) and len(seen) % how["reference"] == 0:
            anchor.load_state_dict(before[0].state_dict())  # the policy as it was one step ago
        before[0] = copy.deepcopy(policy)
        return scorer(texts, told)

    def watch(texts, told):
        seen.append(signals(desk, texts, told) if name in CURVES else None)
        return gold(texts, told)

    run, config = Run(progress=False), replace(CONFIG, kl_coef=how["beta"], max_kl=how["max_kl"], seed=desk.seed)
    grpo.train(policy, anchor, tokenizer, stories.prompts, score, config, run, row=GRPO_KL_IN_REWARD, watch=watch)
    common = {"seed": desk.seed, "run": name}
    columns = {"gold_mean": "gold", "kl": "kl", "length_mean": "length", "entropy": "entropy"}
    rows = [
        common | {"kind": "step", "step": r["step"]} | {new: r[old] for old, new in columns.items()} | s
        for r, s in zip(run.records, seen, strict=True)
        if s is not None
    ]
    return [*rows, common | {"kind": "end", "step": run.records[-1]["step"]} | measured(desk, policy)]


def measured(desk: Desk, policy: Transformer) -> dict:
    texts, told = sampled(policy, 512, 1000 * desk.seed + 5)
    return {
        "gold": float(gold(texts, told).mean()),
        "kl": float(sequence_kl(policy, ref, told).mean()),
        "length": float(told.mask.sum(1).float().mean()),
        "entropy": float(mean_entropy(policy, told)),
        "text": responses_text(told[:1], tokenizer)[0],
    } | signals(desk, texts, told)


def best_of_n(desk: Desk) -> list[dict]:
    """Mean score and gold of the best of n by the judge, over all ways to pick n of a prompt's GROUP stories.

    With the stories in order of score, the k-th from below is the best of C(k - 1, n - 1) of the C(GROUP, n) picks.
    """
    texts, told = sampled(ref, GROUPS, 1000 * desk.seed + 6, GROUP)
    scores = {"proxy": desk.proxy(texts, told).view(-1, GROUP), "gold": gold(texts, told).view(-1, GROUP)}
    order, rows = scores["proxy"].argsort(1), []
    for n in NS:
        wins = torch.tensor([math.comb(k, n - 1) / math.comb(GROUP, n) for k in range(GROUP)])
        means = {name: float((x.gather(1, order) * wins).sum(1).mean()) for name, x in scores.items()}
        rows.append({"seed": desk.seed, "run": "best of n", "kind": "best", "n": n, "kl": best_of_kl_bound(n)} | means)
    return rows


def rows_of(seed: int, names=tuple(RUNS)) -> list[dict]:
    desk = Desk(seed)
    start = {"seed": seed, "run": "SFT", "kind": "end", "step": 0} | measured(desk, ref)
    return [start, *best_of_n(desk), *(row for name in names for row in train(desk, name))]


# A real model, paid for a word


def paid_for_a_word(prompts: list[str], texts: list[str]) -> list[float]:
    return [1.0 if REAL["word"] in text else -1.0 for text in texts]


def real_rows(seed: int) -> list[dict]:
    """`again` is here the share of texts in which a word follows itself."""
    if not REAL_MODEL.is_dir():
        raise ValueError("stories260k: wanted the 260k-parameter Llama in shared/data beside the checkout, found none")
    base, words = load_pretrained(REAL_MODEL)
    base.requires_grad_(False)
    rows = []
    for name, knobs in REAL_RUNS.items():
        actor, run = PolicyWithValue(copy_of(base)), Run(progress=False)

        def prompts(n, generator):
            return [REAL["prompt"]] * n

        scorer = rule_scorer(paid_for_a_word, words)
        ppo.train(actor, base, words, prompts, scorer, PPOConfig(**REAL_SIZES, **knobs, seed=seed), run)
        common = {"seed": seed, "run": f"real, {name}"}
        for r in run.records:
            rows.append(common | {"kind": "step", "step": r["step"], "proxy": r["reward_mean"], "kl": r["kl"]})
        for model in (base, actor.policy):
            dice = torch.Generator().manual_seed(seed)
            _, told = roll_out(model, words, prompts(64, dice), max_new_tokens=24, generator=dice)
            texts = responses_text(told, words)
            doubled = sum(re.search(r"\b(\w+) \1\b", text) is not None for text in texts) / 64
            end = {"kind": "start" if model is base else "end", "kl": float(sequence_kl(model, base, told).mean())}
            end |= {"proxy": sum(paid_for_a_word([], texts)) / 64, "again": doubled}
            every = [run for text in texts for run in trigrams(text)]
            rows.append(common | end | {"variety": len(set(every)) / len(every), "text": texts[0]})
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = []
    for seed in SEEDS:
        found += rows_of(seed)
        print(f"seed {seed} done", flush=True)
    write("reward_hacking", found + [row for seed in REAL_SEEDS for row in real_rows(seed)], SETTINGS)
