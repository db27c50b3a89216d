"""The road of DeepSeek-R1 on the digits: cold start, GRPO, rejection sampling, a second round, distillation; then process
rewards, languages, examples in the prompt. The base, which hardly ever works a sum out, is in r1_base.py.

Settings were chosen on seed 0, the seeds of the rows were looked at afterwards. About 15 minutes on one CPU core. (On seed 0
the student came out poorer than on any of the three, and the lead of its teacher over RL was 0.5; do not expect that: a lead
above .2 was to be asserted, did not hold on the three, and what is asserted now was written after they had been seen.)

python data/studies/r1_road.py
"""

import copy
import time
from dataclasses import replace
from functools import partial

import torch
from r1_base import (
    COLD,
    COLD_SIZE,
    EVERY,
    HABIT,
    HABIT_WORKED,
    MISBELIEF,
    RL_STEPS,
    SAMPLED,
    SLIP,
    TEXTS,
    TEXTS_WORKED,
    TOKENIZER,
    VOTERS,
    VOTES,
    asked_and_answered,
    base,
    believed,
    cold_started,
    curve,
    dice,
    from_list,
    kept,
    learned,
    measured,
    outcome,
    quiet,
    texts,
    tuned,
    votes,
)
from store import write

from minirl.generate import generate
from minirl.model import Transformer
from minirl.pretrained import load_pretrained
from minirl.rewards import language_bonus
from minirl.rollout import responses_text, roll_out, rule_scorer
from minirl.tasks import DATA, digit_sum
from minirl.tokenizer import character_tokenizer
from minirl.train import pretrain, sft
from minirl.train.settings import DIGIT_SUM, tiny_transformer
from minirl.types import Rollout

SEEDS = [30, 31, 32]
COLD_SIZES = [0, 4, 64]  # 16 is on the road itself
SECOND_STEPS = 30
KEPT = {"steps": 40, "batch": 128, "lr": 1e-3}  # SFT on kept answers
ROUNDS = 3
STUDENT = {"width": 32, "ffn": 88}
STUDENT_TEXTS = {"steps": 500, "lr": 8e-3}
ALONE, TAUGHT = [60, 180], [40, 160]  # RL steps of the student, one after the other; SFT steps on the teacher's answers
BONUS, LETTERS, LETTER_SHARE, LANGUAGE_TEXTS = 0.5, "abcdefghij", 0.8, {"steps": 100, "lr": 2e-3}
EXAMPLES, SHOT_TEXTS, SHOT_WORKED = 2, {"steps": 250, "batch": 64, "lr": 2e-3}, 0.5
STEP_PAY = 1.0  # what the careless process reward pays for a step
BACK, BACK_TEXTS = 0.5, {"size": 256, "steps": 60}  # share of traces that take a wrong step back
SETTINGS = [
    SEEDS, MISBELIEF, SLIP, TEXTS, HABIT, TEXTS_WORKED, HABIT_WORKED, COLD, COLD_SIZES, COLD_SIZE, RL_STEPS,
    SECOND_STEPS, EVERY, KEPT, SAMPLED, ROUNDS, STUDENT, STUDENT_TEXTS, ALONE, TAUGHT, BONUS, LETTERS, LETTER_SHARE,
    LANGUAGE_TEXTS, EXAMPLES, SHOT_TEXTS, SHOT_WORKED, STEP_PAY, BACK, BACK_TEXTS, VOTES, VOTERS, DIGIT_SUM["grpo"],
]  # fmt: skip

# The parts. Each gives the rows of one seed.


def road_rows(seed: int) -> list[dict]:
    """R1's stages, and RL from the base for comparison."""
    rows, start = [], base(seed)

    def note(name: str, model: Transformer) -> Transformer:
        rows.append({"kind": "road", "variant": name, "seed": seed} | measured(model, seed))
        return model

    note("base", start)
    cold = note("cold start", cold_started(copy.deepcopy(start), seed))
    rows.extend(votes(cold, "cold start", seed))
    expert, records = learned(cold, seed)
    note("RL", expert)
    rows.extend(curve(records, kind="sizes", variant=COLD_SIZE, seed=seed))
    rows.extend(votes(expert, "RL", seed))
    again = note("rejection", tuned(copy.deepcopy(start), from_list(*kept(expert, 3000 + seed)), seed, KEPT))
    note("second RL", learned(again, 100 + seed, SECOND_STEPS)[0])
    note("longer RL", learned(expert, 100 + seed, SECOND_STEPS)[0])  # the same steps more, without the detour
    return rows


def size_rows(seed: int, size: int) -> list[dict]:
    """RL after a cold start of `size` worked answers (0: none at all)."""
    model = base(seed)
    if size:
        cold_started(model, seed, size)
    labels = {"variant": size, "seed": seed}
    rows = [{"kind": "size", "step": "before"} | labels | measured(model, seed)]
    model, records = learned(model, seed)
    return [
        *rows,
        {"kind": "size", "step": "after"} | labels | measured(model, seed),
        *curve(records, kind="sizes", **labels),
    ]


MISTAKES = ["sound", "all", "base", "prompt"]


def round_rows(seed: int, mistake: str) -> list[dict]:
    """Rejection sampling ROUNDS times over, each round into a fresh base, with a mistake."""
    start = base(seed)
    model = cold_started(copy.deepcopy(start), seed)
    rows = [{"kind": "rounds", "variant": mistake, "seed": seed, "step": 0} | measured(model, seed)]
    for step in range(1, ROUNDS + 1):
        asked, answers = kept(
            start if mistake == "base" else model, 3000 + 10 * seed + step, all_of_them=mistake == "all"
        )
        model = copy.deepcopy(start)
        if mistake == "prompt":
            config = replace(DIGIT_SUM["pretrain"], seed=seed, warmup=10, weight_decay=0.0, **KEPT)
            pretrain.train(model, TOKENIZER, from_list(asked, answers), config, quiet())
        else:
            tuned(model, from_list(asked, answers), seed, KEPT)
        rows.append({"kind": "rounds", "variant": mistake, "seed": seed, "step": step} | measured(model, seed))
    return rows


def student(seed: int) -> Transformer:
    """A smaller model, brought up on the same texts from random weights."""
    torch.manual_seed(seed)
    model = Transformer(replace(tiny_transformer(TOKENIZER.vocab_size), **STUDENT))
    draw = partial(digit_sum.examples, worked_share=0.95)
    pretrain.train(model, TOKENIZER, draw, replace(DIGIT_SUM["pretrain"], seed=seed, **STUDENT_TEXTS), quiet())
    return tuned(tuned(model, texts(TEXTS_WORKED), seed, TEXTS), texts(HABIT_WORKED), seed, HABIT)


def distillation_rows(seed: int) -> list[dict]:
    """The student on its own and after a teacher; CPU seconds and steps count what was spent on the student alone."""
    small, rows = student(seed), []

    def note(name: str, model: Transformer, steps: int = 0, since: float | None = None) -> Transformer:
        spent = {} if since is None else {"step": steps, "seconds": time.process_time() - since}
        rows.append({"kind": "distillation", "variant": name, "seed": seed} | spent | measured(model, seed))
        return model

    note("student", small)
    note("RL", learned(copy.deepcopy(small), seed)[0])
    cold = note("cold start", cold_started(copy.deepcopy(small), seed))
    start, done = time.process_time(), 0
    for part, steps in enumerate(ALONE):
        learned(cold, seed + 100 * part, steps)
        done += steps
        note("cold start + RL", cold, done, start)
    large, start = base(seed), time.process_time()
    teacher, _ = learned(cold_started(large, seed), seed)
    questions, answers = kept(teacher, 3000 + seed)
    note("teacher", teacher, RL_STEPS, start)
    for steps in TAUGHT:
        start = time.process_time()
        taught = tuned(copy.deepcopy(small), from_list(questions, answers), seed, KEPT | {"steps": steps})
        note("distilled", taught, steps, start)
        if steps == KEPT["steps"]:
            note("distilled + RL", learned(taught, 100 + seed, SECOND_STEPS)[0])
    return rows


def fair_share(prompt: str, answer: str) -> float:
    """Of the six things to write, five sums and the answer, the share that is right: at most 1, however long."""
    true = digit_sum.worked_answer(prompt)
    working, _, final = answer.rpartition(":")
    right = sum(a == b for a, b in zip(working, true[:-2], strict=False))
    return (right + (final == true[-1])) / 6


def careless(prompt: str, answer: str) -> float:
    """The answer, and a little for every written step that occurs in the right working, however often."""
    true = digit_sum.worked_answer(prompt)
    final = ":" in answer and answer.rpartition(":")[2] == true[-1]
    return final + STEP_PAY * sum(step in true[:-2] for step in answer.rpartition(":")[0] or answer)


PAYMENTS = {"process": fair_share, "careless": careless}  # paid for the outcome alone: the road's own RL


def process_rows(seed: int, payment: str) -> list[dict]:
    model, rule = cold_started(base(seed), seed), PAYMENTS[payment]
    paid = rule_scorer(lambda asked, answers: [rule(q, a) for q, a in zip(asked, answers, strict=True)], TOKENIZER)
    model, records = learned(model, seed, score=paid, watch=outcome)
    for record in records:  # what is watched is what is compared
        record["paid"], record["reward_mean"] = record["reward_mean"], record["gold_mean"]
    labels = {"kind": "process", "variant": payment, "seed": seed}
    asked, answers, _ = asked_and_answered(model, 4, 5000 + seed)
    end = {"step": "after", "paid": records[-1]["paid"], "sample": asked[0] + answers[0]}
    return [labels | end | measured(model, seed), *curve(records, **labels)]


# Two alphabets


BOTH = character_tokenizer("0123456789=:" + LETTERS, eos="$")


def plain(answer: str) -> str:
    return answer.translate(str.maketrans(LETTERS, "0123456789"))


def mixed(answer: str, dice: torch.Generator) -> str:
    """Most of the working in letters, the colon and the answer as they are."""
    working, spared = answer[:-2], torch.rand(len(answer) - 2, generator=dice) >= LETTER_SHARE
    return (
        "".join(c if keep else LETTERS[int(c)] for c, keep in zip(working, spared.tolist(), strict=True)) + answer[-2:]
    )


def bilingual(seed: int) -> Transformer:
    """The stored model with ten letters more, which begin as copies of the digits, after texts that mix the two."""
    model, _ = load_pretrained(DATA / "weights" / "digit_sum_pretrain")
    wide = Transformer(replace(model.config, vocab_size=BOTH.vocab_size))
    old = {token: TOKENIZER.encode(token)[0] for token in "0123456789=:$"}
    weights = model.state_dict()
    for name in ("embed.weight", "head.weight"):
        rows = torch.zeros(BOTH.vocab_size, model.config.width)
        for token in "0123456789=:$" + LETTERS:
            rows[BOTH.encode(token)[0]] = weights[name][old[plain(token)]]
        weights[name] = rows
    wide.load_state_dict(weights)

    def draw(n: int, dice: torch.Generator) -> tuple[list[str], list[str]]:
        asked, answers = texts(1.0)(n, dice)
        return asked, [mixed(answer, dice) for answer in answers]

    config = replace(DIGIT_SUM["sft"], seed=seed, **LANGUAGE_TEXTS)
    return sft.train(wide, BOTH, draw, config, quiet())


def rightness(asked: list[str], answers: list[str]):
    return digit_sum.score(asked, [plain(a) for a in answers])


def working_in_digits(asked: list[str], answers: list[str]):
    """The share of the working that is written in digits."""
    apart = [" ".join(a.rpartition(":")[0] or a) for a in answers]
    return language_bonus(torch.zeros(len(answers)), apart, words=set("0123456789"))


LANGUAGE = {"outcome": None, "bonus": working_in_digits}


def language_rows(seed: int, variant: str) -> list[dict]:
    model, bonus = bilingual(seed), LANGUAGE[variant]

    def paid(asked: list[str], answers: list[str]):
        return rightness(asked, answers) + (0 if bonus is None else BONUS * bonus(asked, answers))

    def both(asked: list[str], rollout: Rollout):  # digits before the point, rightness behind it: watched together
        answers = responses_text(rollout, BOTH)
        seen.append((float(rightness(asked, answers).mean()), float(working_in_digits(asked, answers).mean())))
        return torch.zeros(len(answers))

    seen = []
    model, records = learned(model, seed, score=rule_scorer(paid, BOTH), watch=both, tokenizer=BOTH)
    for record, (right, digits) in zip(records, seen, strict=True):
        record["reward_mean"], record["gold_mean"] = right, digits
    rows = curve(records, kind="language", variant=variant, seed=seed)  # here `works` is the share in digits
    asked, rollout = roll_out(
        model, BOTH, digit_sum.prompts(1024, dice(5000 + seed)), max_new_tokens=12, generator=dice(5001 + seed)
    )
    answers = responses_text(rollout, BOTH)
    return [
        {"kind": "language", "variant": variant, "seed": seed, "step": "after"}
        | {"accuracy": float(rightness(asked, answers).mean())}
        | {"works": float(working_in_digits(asked, answers).mean())},
        *rows,
    ]


# Examples in the prompt


def shots(n: int, dice: torch.Generator, *, count: int, worked: bool | None, sound: bool) -> list[str]:
    """n runs of `count` solved questions. worked None: all of one text in the same manner, SHOT_WORKED of them worked."""
    style = torch.rand(n, generator=dice) < SHOT_WORKED if worked is None else torch.full((n,), worked)
    solve = (lambda q: digit_sum.worked_answer(q)) if sound else (lambda q: believed(q, dice))
    found = []
    for works in style.tolist():
        asked = digit_sum.prompts(count, dice)
        found.append("".join(q + (solve(q) if works else digit_sum.direct_answer(q)) + "$" for q in asked))
    return found


def reader_of_lists(seed: int) -> Transformer:
    """A base that has read texts of one to three solved questions, all in the same manner."""
    model, _ = load_pretrained(DATA / "weights" / "digit_sum_pretrain")

    def draw(n: int, dice: torch.Generator) -> tuple[list[str], list[str]]:
        count = 1 + EXAMPLES - int(torch.rand((), generator=dice) < 0.3)
        lists = shots(n, dice, count=count, worked=None, sound=False)
        return [text[:7] for text in lists], [text[7:-1] for text in lists]

    return tuned(model, draw, seed, SHOT_TEXTS)


def with_examples(model: Transformer, seed: int, count: int, worked: bool) -> dict:
    prompts = digit_sum.prompts(512, dice(5000 + seed))
    before = shots(512, dice(5500 + seed), count=count, worked=worked, sound=True) if count else [""] * 512
    ids = [TOKENIZER.encode(b + q) for b, q in zip(before, prompts, strict=True)]
    rollout = generate(model, ids, max_new_tokens=12, eos=TOKENIZER.eos_id, generator=dice(5600 + seed))
    answers = responses_text(rollout, TOKENIZER)
    return {
        "accuracy": float(digit_sum.score(prompts, answers).mean()),
        "works": sum(not a.startswith(":") for a in answers) / 512,
    }


def shot_rows(seed: int) -> list[dict]:
    model, rows = reader_of_lists(seed), []
    for when in ("before", "after"):
        if when == "after":
            learned(model, seed)
        for count, manner in ((0, ""), (1, "worked"), (2, "worked"), (1, "direct"), (2, "direct")):
            labels = {"kind": "shots", "variant": f"{count} {manner}".strip(), "seed": seed, "step": when}
            rows.append(labels | with_examples(model, seed, count, manner == "worked"))
    return rows


# Self-correction


def stepping_back(prompt: str, dice: torch.Generator) -> str:
    """A worked answer in which, BACK of the time, one step is first written wrongly and taken back: 1=, then the right one."""
    answer = digit_sum.worked_answer(prompt)
    luck, place, error = torch.rand(3, generator=dice).tolist()
    if luck > BACK:
        return answer
    place = int(5 * place)
    wrong = (int(answer[place]) + 1 + int(9 * error)) % 10
    return answer[:place] + f"{wrong}=" + answer[place:]


def correction_rows(seed: int) -> list[dict]:
    """`works` is the share of answers that step back, `noticed` the share that do so right after a step made wrong."""
    model, texts_dice, rows = base(seed), dice(2200 + seed), []
    asked = digit_sum.prompts(BACK_TEXTS["size"], dice(2000 + seed))
    told = from_list(asked, [stepping_back(q, texts_dice) for q in asked])
    tuned(model, told, seed, COLD | {"steps": BACK_TEXTS["steps"]})
    for when in ("before", "after"):
        if when == "after":
            learned(model, seed)
        questions, answers, _ = asked_and_answered(model, 1024, 5000 + seed)
        right, back = digit_sum.score(questions, answers), torch.tensor(["=" in answer for answer in answers])
        keys = [digit_sum.worked_answer(q) for q in questions]
        spoilt = [q + key[0] + str((int(key[1]) + 1) % 10) for q, key in zip(questions, keys, strict=True)]
        _, rollout = roll_out(model, TOKENIZER, spoilt, max_new_tokens=12, generator=dice(5800 + seed))
        noticed = [text.startswith("=") for text in responses_text(rollout, TOKENIZER)]
        rows.append(
            {"kind": "correction", "variant": "", "seed": seed, "step": when, "accuracy": float(right.mean())}
            | {"works": float(back.float().mean()), "noticed": sum(noticed) / len(noticed)}
            | {"right_worked": float(right[back].mean()) if back.any() else None}
        )
    return rows


def plan() -> list[tuple]:
    """(function, arguments), the most important first."""
    jobs = [(road_rows, seed) for seed in SEEDS] + [(distillation_rows, seed) for seed in SEEDS]
    jobs += [(size_rows, seed, size) for size in COLD_SIZES for seed in SEEDS]
    jobs += [(round_rows, seed, mistake) for mistake in MISTAKES for seed in SEEDS]
    jobs += [(shot_rows, seed) for seed in SEEDS] + [(correction_rows, seed) for seed in SEEDS]
    jobs += [(language_rows, seed, variant) for variant in LANGUAGE for seed in SEEDS]
    return jobs + [(process_rows, seed, payment) for payment in PAYMENTS for seed in SEEDS]


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = []
    for make, *arguments in plan():
        rows += make(*arguments)
        print(make.__name__, *arguments, rows[-1], flush=True)
    write("r1_road", rows, SETTINGS)
