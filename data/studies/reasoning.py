"""R1-Zero at home, measured: GRPO on a rule, in three worlds, from a base that answers at once. Each seed from 30 to 34
trains its base again. Then short runs on the digits' stored weights, seeds 30 to 32: a price for each token, a bonus for a
form, a careless checker, two reward models as judges, and questions longer than the base has seen. Settings were chosen on
seeds 0 to 2. About 35 minutes on one CPU core, most of them for addition and countdown.

python data/studies/reasoning.py
"""

import copy
from dataclasses import replace
from functools import partial
from math import comb

import torch
from store import write

from minirl.model import RewardModel, Transformer, last_token, summed
from minirl.pretrained import load_pretrained
from minirl.rewards import format_bonus, length_penalty
from minirl.rollout import model_scorer, preference_pairs, responses_text, roll_out, rule_scorer
from minirl.run import Run
from minirl.tasks import DATA, addition, countdown, digit_sum
from minirl.train import grpo, pretrain, reward_model, sft
from minirl.train.settings import ADDITION, COUNTDOWN, DIGIT_SUM, tiny_transformer

WORLDS = {"digits": (digit_sum, DIGIT_SUM), "addition": (addition, ADDITION), "countdown": (countdown, COUNTDOWN)}
AT_ONCE = {"digits": ":", "addition": ":", "countdown": "<think></think>"}  # how an answer without working begins
PROMPTS, SAMPLES = 128, 64  # of an evaluation
KS = [1, 2, 4, 8, 16, 32, 64]
WINDOW = 5  # steps that a point of a curve averages
PRICES = [0.05, 0.1, 0.15, 0.2, 0.3]  # of a token, in right answers
BONUSES = [0.25, 0.5, 1.0]  # for a bare answer, of the form BARE
BARE = ":[0-9]"
STEPS = 40  # of the runs with a price or a bonus, and of those with a checker
CHECKERS = [("lax", 10), ("strict", 10), ("lax", 6)]  # and the digits of the questions
UNSEEN = 7  # digits of questions that no base was shown
JUDGES = {"last": last_token, "sum": summed}  # how a reward model makes one score of a text
PAIRS, MISLABELLED, JUDGE_STEPS = 1000, 0.1, 60  # what a judge learns from, and the GRPO steps against it
SEEDS = {"digits": range(30, 35), "addition": range(30, 35), "countdown": range(30, 35), "short": range(30, 33)}
SETTINGS = [
    {world: [settings[stage] for stage in ("pretrain", "sft", "grpo")] for world, (_, settings) in WORLDS.items()},
    DIGIT_SUM["reward_model"],
    (PROMPTS, SAMPLES, KS, WINDOW),
    (PRICES, BONUSES, BARE, STEPS, CHECKERS, UNSEEN),
    (list(JUDGES), PAIRS, MISLABELLED, JUDGE_STEPS),
    {name: list(seeds) for name, seeds in SEEDS.items()},
]


def quiet() -> Run:
    return Run(progress=False)


def questions(world: str):
    """Where answers are judged: in countdown on instances that no training has seen."""
    task = WORLDS[world][0]
    return (lambda n, dice: countdown.prompts(n, dice, held_out=True)) if world == "countdown" else task.prompts


def base(world: str, seed: int) -> Transformer:
    """The world's base, trained again: the skill first, then the habit of answering at once."""
    task, settings = WORLDS[world]
    torch.manual_seed(seed)
    model = Transformer(tiny_transformer(task.tokenizer().vocab_size))
    first, second = (replace(settings[stage], seed=seed) for stage in ("pretrain", "sft"))
    pretrain.train(model, task.tokenizer(), task.pretraining_examples, first, quiet())
    sft.train(model, task.tokenizer(), task.demonstrations, second, quiet())
    return model


def pass_at_k(n: int, right: int, k: int) -> float:
    """1 - C(n - right, k) / C(n, k): the chance that k of the n samples hold a right one (Chen et al. 2021)."""
    return 1 - comb(n - right, k) / comb(n, k)


@torch.no_grad()
def measured(model: Transformer, world: str, seed: int) -> dict:
    """Accuracy, how many answers work, how often either kind is right, length, pass@k: on SAMPLES answers to each prompt."""
    task, _ = WORLDS[world]
    tokenizer, dice = task.tokenizer(), torch.Generator().manual_seed(1000 + seed)
    scores, works, long = [], [], []
    for _ in range(PROMPTS // 16):
        asked = questions(world)(16, dice)
        texts, rollout = roll_out(
            model, tokenizer, asked, max_new_tokens=task.MAX_NEW_TOKENS, group_size=SAMPLES, generator=dice
        )
        answers = responses_text(rollout, tokenizer)
        scores.append(task.score(texts, answers))
        works.append(torch.tensor([not answer.startswith(AT_ONCE[world]) for answer in answers]))
        long.append(rollout.mask.sum(1).float())
    scores, works, long = torch.cat(scores), torch.cat(works), torch.cat(long)
    right = scores.view(PROMPTS, SAMPLES).sum(1).int().tolist()
    return {
        "accuracy": float(scores.mean()),
        "works": float(works.float().mean()),
        "right_worked": float(scores[works].mean()) if works.any() else None,
        "right_direct": float(scores[~works].mean()) if not works.all() else None,
        "length": float(long.mean()),
        "length_worked": float(long[works].mean()) if works.any() else None,
        "length_direct": float(long[~works].mean()) if not works.all() else None,
    } | {f"pass_{k}": sum(pass_at_k(SAMPLES, c, k) for c in right) / PROMPTS for k in KS}


def works_scorer(world: str):
    return rule_scorer(
        lambda _, answers: [not a.startswith(AT_ONCE[world]) for a in answers], WORLDS[world][0].tokenizer()
    )


def curve(records: list[dict], *, gold: str) -> list[dict]:
    """Means over WINDOW steps each; `gold` says what was watched."""
    names = {"reward": "reward_mean", gold: "gold_mean", "length": "length_mean", "entropy": "entropy"}
    parts = [records[i : i + WINDOW] for i in range(0, len(records), WINDOW)]
    return [
        {"step": part[0]["step"]} | {name: sum(r[of] for r in part) / len(part) for name, of in names.items()}
        for part in parts
    ]


def r1_rows(world: str, seed: int) -> list[dict]:
    """Before and after GRPO on the rule alone, and the way there."""
    task, settings = WORLDS[world]
    model, labels = base(world, seed), {"kind": "r1", "world": world, "seed": seed}
    rows = [labels | {"variant": "before"} | measured(model, world, seed)]
    run, config = quiet(), replace(settings["grpo"], seed=seed)
    rule = rule_scorer(task.score, task.tokenizer())
    grpo.train(model, None, task.tokenizer(), task.prompts, rule, config, run, watch=works_scorer(world))
    rows.append(labels | {"variant": "after"} | measured(model, world, seed))
    return rows + [labels | {"kind": "curve"} | row for row in curve(run.records, gold="works")]


# The short runs: the stored weights of the digits, and another reward.

TOKENIZER = digit_sum.tokenizer()
RULE = rule_scorer(digit_sum.score, TOKENIZER)


def stored() -> Transformer:
    return load_pretrained(DATA / "weights" / "digit_sum_sft")[0]


def short_rows(kind: str, variant: str, seed: int, score, *, steps: int = STEPS, digits: int = 6) -> list[dict]:
    """GRPO on this score; the records hold the accuracy by the rule as gold_mean. The last row of the curve is the end."""
    model, run = stored(), quiet()
    config, asked = replace(DIGIT_SUM["grpo"], steps=steps, seed=seed), partial(digit_sum.prompts, digits=digits)
    grpo.train(model, None, TOKENIZER, asked, score, config, run, watch=RULE)
    labels = {"kind": kind, "world": "digits", "seed": seed, "variant": variant, "digits": digits}
    dice = torch.Generator().manual_seed(1000 + seed)
    texts, rollout = roll_out(model, TOKENIZER, asked(1024, dice), max_new_tokens=12, generator=dice)
    end = {
        "step": steps,
        "reward": float(score(texts, rollout).mean()),
        "accuracy": float(RULE(texts, rollout).mean()),
        "works": float(works_scorer("digits")(texts, rollout).mean()),
        "length": float(rollout.mask.sum(1).float().mean()),
        "sample": texts[0] + responses_text(rollout[:1], TOKENIZER)[0],
    }
    return [labels | row for row in curve(run.records, gold="accuracy")] + [labels | end]


def priced(price: float):
    """right - price * tokens"""
    return lambda texts, rollout: length_penalty(RULE(texts, rollout), rollout.mask, coef=price)


def with_bonus(bonus: float):
    """right + bonus for a bare answer"""

    def rule(texts: list[str], answers: list[str]):
        return format_bonus(digit_sum.score(texts, answers), answers, pattern=BARE, bonus=bonus)

    return rule_scorer(rule, TOKENIZER)


def anywhere(texts: list[str], answers: list[str]) -> list[float]:
    """A careless checker: the right digit stands somewhere in the answer."""
    return [float(digit_sum.direct_answer(q)[1] in answer) for q, answer in zip(texts, answers, strict=True)]


def judge(seed: int, pool: str) -> RewardModel:
    """A reward model, learned from PAIRS pairs of the base's answers, one right and one wrong; some are mislabelled."""
    model, dice = stored(), torch.Generator().manual_seed(seed)
    asked = digit_sum.prompts(4 * PAIRS, dice)
    texts, rollout = roll_out(model, TOKENIZER, asked, max_new_tokens=12, group_size=2, generator=dice)
    right = RULE(texts, rollout).view(-1, 2)
    mixed = (right[:, 0] != right[:, 1]).nonzero().squeeze(1)[:PAIRS]
    rows = torch.stack([2 * mixed, 2 * mixed + 1], 1).view(-1)
    mistaken = torch.rand(len(mixed), generator=dice) < MISLABELLED
    pairs = preference_pairs(rollout[rows], (right[mixed, 0] > right[mixed, 1]) ^ mistaken)
    model = RewardModel(copy.deepcopy(model), JUDGES[pool])
    return reward_model.train(model, pairs, replace(DIGIT_SUM["reward_model"], seed=seed), quiet())


def short(kind: str, variant, seed: int) -> list[dict]:
    if kind == "price":
        return short_rows(kind, variant, seed, priced(variant))
    if kind == "bonus":
        return short_rows(kind, variant, seed, with_bonus(variant))
    if kind == "unseen":
        return short_rows(kind, "strict", seed, RULE, digits=variant)
    if kind == "riddle":
        name, digits = variant
        score = RULE if name == "strict" else rule_scorer(anywhere, TOKENIZER)
        return short_rows(kind, name, seed, score, digits=digits)
    score = RULE if variant == "rule" else model_scorer(judge(seed, variant))
    return short_rows(kind, variant, seed, score, steps=JUDGE_STEPS)


def plan() -> list[tuple]:
    rows = [("riddle", checker, seed) for checker in CHECKERS for seed in SEEDS["short"]]
    rows += [("judge", name, seed) for name in ("rule", *JUDGES) for seed in SEEDS["short"]]
    rows += [("price", price, seed) for price in PRICES for seed in SEEDS["short"]]
    rows += [("bonus", bonus, seed) for bonus in BONUSES for seed in SEEDS["short"]]
    return rows + [("unseen", UNSEEN, seed) for seed in SEEDS["short"]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = []
    for wanted in plan():
        rows += short(*wanted)
        print(rows[-1], flush=True)
    for world in WORLDS:
        for seed in SEEDS[world]:
            rows += r1_rows(world, seed)
            print(rows[-1], flush=True)
    write("reasoning", rows, SETTINGS)
