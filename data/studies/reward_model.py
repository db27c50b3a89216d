"""Reward models of the stories on seeds 3, 4, 5, others than those on which the settings were chosen: more or fewer pairs, two
heads, margins, three labellers, and ensembles on texts of four kinds: under four minutes on one CPU core.

python data/studies/reward_model.py
"""

import re
from dataclasses import asdict, replace

import torch
import torch.nn.functional as F
from store import write

from minirl.model import RewardModel, last_token, summed
from minirl.pretrained import load_pretrained
from minirl.road import copy_of
from minirl.rollout import (
    encode_examples,
    model_scorer,
    preference_pairs,
    responses_text,
    roll_out,
    rule_scorer,
)
from minirl.run import Run
from minirl.tasks import DATA, stories
from minirl.train import reward_model

CONFIG = reward_model.RewardModelConfig(pairs=32, lr=2e-3)
EPOCHS, PAIRS, TEST_PAIRS = 3, (160, 320, 640, 1280, 1920), 600
SMALL, LARGE, MARGINS, MEMBERS = 640, 1280, (0.0, 1.0, 2.0), 3
PER_TOKEN = 0.1  # what the labeller who likes length adds to gold
WORDS = (6, 12, 24, 36, 48)
SETTINGS = [asdict(CONFIG), EPOCHS, PAIRS, TEST_PAIRS, SMALL, LARGE, MARGINS, MEMBERS, PER_TOKEN, WORDS]

student, tokenizer = load_pretrained(DATA / "weights" / "stories_sft")


class Stories:
    """n pairs of stories by the student, with their gold and what a written rule thinks of them."""

    def __init__(self, n: int, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        openings = stories.prompts(n, self.generator)
        self.prompts, self.told = roll_out(
            student, tokenizer, openings, max_new_tokens=40, group_size=2, generator=self.generator
        )
        self.texts = responses_text(self.told, tokenizer)
        self.gold = rule_scorer(stories.gold, tokenizer)(self.prompts, self.told)
        self.rule = torch.tensor([pleasantness(text) for text in self.texts])
        self.length = self.told.mask.sum(1).float()

    def pairs(self, first_is_better, keep):
        """The pairs numbered in keep."""
        rows = torch.stack([2 * keep, 2 * keep + 1], 1).flatten()
        return preference_pairs(self.told[rows], first_is_better[keep])


def gap(x):
    return x[::2] - x[1::2]


def pleasantness(text: str) -> float:
    """A rule for the judge: more pleasant words and fewer nasty ones."""
    words = re.findall(r"\w+", text)
    return float(sum((word in stories.POSITIVE) - (word in stories.NEGATIVE) for word in words))


def fit(pairs, pool, seed, margin=0.0):
    config = replace(CONFIG, steps=EPOCHS * len(pairs) // CONFIG.pairs, margin=margin, seed=seed)
    model = RewardModel(copy_of(student), pool)
    reward_model.train(model, pairs, config, Run(progress=False))
    return model.requires_grad_(False)


def measured(model, test: Stories) -> dict:
    """Accuracies are expectations over the labeller's dice, which are known: no noise of the test labels."""
    scores = model_scorer(model)(test.prompts, test.told)
    d, truth = gap(scores), gap(test.gold)
    p = torch.sigmoid(truth)
    right = torch.where(d > 0, p, 1 - p)
    order = (d > 0) == (truth > 0)
    disputed = truth * gap(test.rule) < 0  # gold and the rule disagree
    x = torch.stack([torch.ones_like(scores), test.gold, test.length], 1)
    return {
        "ceiling": float(torch.maximum(p, 1 - p).mean()),
        "accuracy": float(right.mean()),
        "clear": float(order[truth.abs() >= 1].float().mean()),
        "log_loss": float(-(p * F.logsigmoid(d) + (1 - p) * F.logsigmoid(-d)).mean()),
        "overconfidence": float((torch.sigmoid(d.abs()) - right).mean()),
        "rule_accuracy": float(((d > 0) == (gap(test.rule) > 0))[gap(test.rule) != 0].float().mean()),
        "disputed": float(order[disputed].float().mean()),
        "length_at_fixed_gold": at_fixed_gold(scores, test.length, test.gold),
        "score_per_token": float(torch.linalg.lstsq(x, scores[:, None]).solution[2]),
    }


def at_fixed_gold(scores, length, gold) -> float:
    """Correlation of score and length among stories of one and the same gold, averaged over the common values of gold."""
    values, counts = gold.unique(return_counts=True)
    same = [gold == value for value in values[counts >= 40]]
    return float(torch.stack([torch.corrcoef(torch.stack([scores[row], length[row]]))[0, 1] for row in same]).mean())


def scores_of(model, prompts, texts):
    tokens, mask, starts = encode_examples(tokenizer, prompts, texts)
    return model(tokens, mask, starts=starts)


def soup(words: int, n: int, seed: int) -> list[str]:
    """Texts of pleasant words and nothing else."""
    pleasant = sorted(stories.POSITIVE)
    picked = torch.randint(len(pleasant), (n, words), generator=torch.Generator().manual_seed(seed))
    return [" ".join(pleasant[i] for i in row) for row in picked.tolist()]


def again_and_again(text: str, words: int = 35) -> str:
    """The first sentence of a text, repeated to its length in words and full stops."""
    sentence = (text.partition(".")[0] + " .").split()
    return " ".join((sentence * words)[:words])


def shuffled(text: str, generator) -> str:
    words = text.replace(".", " .").split()
    return " ".join(words[i] for i in torch.randperm(len(words), generator=generator).tolist())


def rows_of_seed(seed: int) -> list[dict]:
    train, test = Stories(max(PAIRS), 1000 * seed + 1), Stories(TEST_PAIRS, 1000 * seed + 2)
    human = stories.label(train.gold[::2], train.gold[1::2], train.generator)
    liked = train.gold + PER_TOKEN * train.length
    longer = stories.label(liked[::2], liked[1::2], train.generator)
    decided = (gap(train.rule) != 0).nonzero().squeeze(1)
    small, rows = torch.arange(SMALL), []

    def keep(model, **names):
        rows.append({"seed": seed, "kind": "fit"} | names | measured(model, test))
        return model

    fits = {n: fit(train.pairs(human, torch.arange(n)), summed, seed) for n in PAIRS}
    for n, model in fits.items():
        keep(model, head="summed", pairs=n, margin=0.0, labels="human")
    heads = {"summed": fits[LARGE], "last_token": fit(train.pairs(human, torch.arange(LARGE)), last_token, seed)}
    keep(heads["last_token"], head="last_token", pairs=LARGE, margin=0.0, labels="human")
    for margin in MARGINS[1:]:
        model = fit(train.pairs(human, small), summed, seed, margin)
        keep(model, head="summed", pairs=SMALL, margin=margin, labels="human")
    model = fit(train.pairs(longer, small), summed, seed)
    keep(model, head="summed", pairs=SMALL, margin=0.0, labels="likes length")
    model = fit(train.pairs(gap(train.rule) > 0, decided[:SMALL]), summed, seed)
    keep(model, head="summed", pairs=SMALL, margin=0.0, labels="rule")

    openings = test.prompts[:128:2]
    for head, model in heads.items():
        for words in WORDS:
            score = float(scores_of(model, openings, soup(words, len(openings), seed)).mean())
            rows.append({"seed": seed, "kind": "words", "head": head, "words": words, "score": score})

    members = [fits[SMALL]]
    members += [fit(train.pairs(human, small + SMALL * i), summed, seed + 100 * i) for i in range(1, MEMBERS)]
    told = test.texts[:400]
    kinds = {
        "the student's stories": told,
        "words shuffled": [shuffled(text, test.generator) for text in told],
        "one sentence again and again": [again_and_again(text) for text in told],
        "pleasant words only": soup(24, len(told), seed),
    }
    constant = [float(scores_of(model, test.prompts[:400], told).mean()) for model in members]
    for kind, texts in kinds.items():
        each = [scores_of(m, test.prompts[:400], texts) - c for m, c in zip(members, constant, strict=True)]
        scores = torch.stack(each)
        apart, gold = scores.std(0).mean(), stories.gold(test.prompts[:400], texts).mean()
        rows.append(
            {"seed": seed, "kind": "ensemble", "texts": kind, "disagreement": float(apart)}
            | {"score": float(scores.mean()), "gold": float(gold)}
        )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    write("reward_model", [row for seed in (3, 4, 5) for row in rows_of_seed(seed)], SETTINGS)
