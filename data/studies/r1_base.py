"""What the parts of the study r1_road share: the base with its false belief, cold start, RL, and what is measured.

The base comes from data/weights/digit_sum_pretrain, which works sums out without a fault. It reads texts with two faults
in them: a digit 7 is mostly added as if it were 8, and now and then a step slips. Then it learns to answer at once.
"""

from dataclasses import replace

import store  # noqa: F401  so that a checkout that is not installed is found
import torch

from minirl.generate import generate_greedy
from minirl.model import Transformer
from minirl.pretrained import load_pretrained
from minirl.rollout import responses_text, roll_out, rule_scorer
from minirl.run import Run
from minirl.tasks import DATA, digit_sum
from minirl.train import grpo, sft
from minirl.train.settings import DIGIT_SUM
from minirl.types import Rollout

MISBELIEF, SLIP = 0.8, 0.04  # how often a 7 is added as 8, and how often any step is a random digit
TEXTS, HABIT = {"steps": 70, "lr": 1e-3}, {"steps": 40, "lr": 5e-4}
TEXTS_WORKED, HABIT_WORKED = 0.8, 0.0  # shares of worked answers
COLD, COLD_SIZE = {"steps": 30, "batch": 64, "lr": 1e-3}, 16
RL_STEPS, EVERY = 60, 5
SAMPLED = 2048
VOTES, VOTERS = [1, 3, 5, 9, 15], 15
TOKENIZER = digit_sum.tokenizer()


def quiet() -> Run:
    return Run(progress=False)


def dice(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The texts of the base, and the base


def believed(prompt: str, dice: torch.Generator) -> str:
    """A worked answer as the texts have it."""
    total, sums = int(prompt[0]), ""
    for digit in map(int, prompt[1:-1]):
        luck = torch.rand(3, generator=dice).tolist()
        total = (total + digit + (digit == 7 and luck[0] < MISBELIEF)) % 10
        total = int(10 * luck[2]) if luck[1] < SLIP else total
        sums += str(total)
    return sums + ":" + sums[-1]


def texts(worked_share: float):
    """Worked answers with the two faults, and answers at once, which are right."""

    def draw(n: int, dice: torch.Generator) -> tuple[list[str], list[str]]:
        asked = digit_sum.prompts(n, dice)
        worked = (torch.rand(n, generator=dice) < worked_share).tolist()
        return asked, [
            believed(q, dice) if w else digit_sum.direct_answer(q) for q, w in zip(asked, worked, strict=True)
        ]

    return draw


def tuned(model: Transformer, examples, seed: int, settings: dict) -> Transformer:
    return sft.train(model, TOKENIZER, examples, replace(DIGIT_SUM["sft"], seed=seed, **settings), quiet())


def base(seed: int) -> Transformer:
    model, _ = load_pretrained(DATA / "weights" / "digit_sum_pretrain")
    return tuned(tuned(model, texts(TEXTS_WORKED), seed, TEXTS), texts(HABIT_WORKED), seed, HABIT)


def from_list(prompts: list[str], answers: list[str]):
    """The same few examples again and again."""

    def draw(n: int, dice: torch.Generator) -> tuple[list[str], list[str]]:
        rows = torch.randint(len(prompts), (n,), generator=dice).tolist()
        return [prompts[i] for i in rows], [answers[i] for i in rows]

    return draw


def cold_started(model: Transformer, seed: int, size: int = COLD_SIZE) -> Transformer:
    """SFT on `size` worked answers: rightly worked, and therefore few."""
    asked = digit_sum.prompts(size, dice(2000 + seed))
    return tuned(model, from_list(asked, [digit_sum.worked_answer(q) for q in asked]), seed, COLD)


# Reinforcement learning and what it did

outcome = rule_scorer(digit_sum.score, TOKENIZER)
works = rule_scorer(lambda _, answers: [not answer.startswith(":") for answer in answers], TOKENIZER)


def learned(model: Transformer, seed: int, steps: int = RL_STEPS, score=outcome, watch=works, tokenizer=TOKENIZER):
    """(model, records) after GRPO."""
    run, config = quiet(), replace(DIGIT_SUM["grpo"], steps=steps, seed=seed)
    grpo.train(model, None, tokenizer, digit_sum.prompts, score, config, run, watch=watch)
    return model, run.records


def asked_and_answered(model: Transformer, n: int, seed: int) -> tuple[list[str], list[str], Rollout]:
    asked, rollout = roll_out(
        model, TOKENIZER, digit_sum.prompts(n, dice(seed)), max_new_tokens=12, generator=dice(seed + 1)
    )
    return asked, responses_text(rollout, TOKENIZER), rollout


def measured(model: Transformer, seed: int) -> dict:
    """On 1,024 new questions: accuracy, how often it works, how often a working is right, tokens an answer."""
    asked, answers, rollout = asked_and_answered(model, 1024, 5000 + seed)
    worked = torch.tensor([not answer.startswith(":") for answer in answers])
    scores = digit_sum.score(asked, answers)
    sums = digit_sum.is_worked(asked, answers)
    return {
        "accuracy": float(scores.mean()),
        "works": float(worked.float().mean()),
        "right_worked": float(scores[worked].mean()) if worked.any() else None,
        "sound": float(sums.mean()),
        "length": float(rollout.mask.sum(1).float().mean()),
    }


def curve(records: list[dict], **labels) -> list[dict]:
    """Means over EVERY steps each."""
    names = {"accuracy": "reward_mean", "works": "gold_mean", "length": "length_mean", "dead": "dead_groups"}
    parts = [records[i : i + EVERY] for i in range(0, len(records), EVERY)]
    return [
        labels | {"step": i * EVERY} | {name: sum(r[of] for r in part) / len(part) for name, of in names.items()}
        for i, part in enumerate(parts)
    ]


def kept(model: Transformer, seed: int, *, all_of_them: bool = False) -> tuple[list[str], list[str]]:
    """Rejection sampling: answers to SAMPLED questions, of which the right ones are kept."""
    asked, answers, rollout = asked_and_answered(model, SAMPLED, seed)
    good = (digit_sum.score(asked, answers) > 0) & rollout.finished | all_of_them
    pairs = [(q, a) for q, a, keep in zip(asked, answers, good.tolist(), strict=True) if keep]
    return [q for q, _ in pairs], [a for _, a in pairs]


def votes(model: Transformer, name: str, seed: int) -> list[dict]:
    """512 questions, VOTERS answers each: the majority, the most probable, any of the first k."""
    prompts = digit_sum.prompts(512, dice(7000 + seed))
    asked, rollout = roll_out(
        model, TOKENIZER, prompts, max_new_tokens=12, group_size=VOTERS, generator=dice(7100 + seed)
    )
    answers = responses_text(rollout, TOKENIZER)
    right = digit_sum.score(asked, answers).view(-1, VOTERS)
    final = torch.tensor([int(a[-1]) if a[-1:].isdigit() and ":" in a else -1 for a in answers]).view(-1, VOTERS)
    sure, long = rollout.logprobs.sum(1).view(-1, VOTERS), rollout.mask.sum(1).view(-1, VOTERS).float()
    truth = torch.tensor([int(digit_sum.direct_answer(q)[-1]) for q in prompts])
    rows = []
    for k in VOTES:
        counts = torch.stack([(final[:, :k] == digit).sum(1) for digit in range(10)], 1)
        best = sure[:, :k].argmax(1, keepdim=True)
        rows.append(
            {"kind": "votes", "variant": name, "seed": seed, "k": k, "tokens": float(long[:, :k].sum(1).mean())}
            | {"majority": float((counts.argmax(1) == truth).float().mean())}
            | {"surest": float(right.gather(1, best).mean()), "any": float(right[:, :k].amax(1).mean())}
        )
    greedy = generate_greedy(model, [TOKENIZER.encode(q) for q in prompts], max_new_tokens=12, eos=TOKENIZER.eos_id)
    rows[0]["greedy"] = float(digit_sum.score(prompts, responses_text(greedy, TOKENIZER)).mean())
    return rows
