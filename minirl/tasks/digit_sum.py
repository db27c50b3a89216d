"""The running digit sum: add up the digits of a number, modulo 10. Right answers can be checked by a rule.

    385291=:8$               the direct answer
    385291=16878:8$          the worked answer: the running sums from the second digit on, then the answer

3 + 8 = 11 gives 1, + 5 gives 6, + 2 gives 8, + 9 = 17 gives 7, + 1 gives 8. To answer at once, a small network would
have to add six digits in its few layers, and does little better than chance; with the working, each step adds one digit
to the sum before it. One token a character; `$` ends the answer.
"""

import re
from functools import cache

import torch

from minirl.tokenizer import Tokenizer, character_tokenizer
from minirl.types import Float, Tensor, check_generator, check_knob, check_size, check_texts

MAX_NEW_TOKENS = 12  # a worked answer to 10 digits: nine sums, the colon, the answer, the end token


@cache
def tokenizer() -> Tokenizer:
    return character_tokenizer("0123456789=:", eos="$")


def prompts(n: int, generator: torch.Generator, *, digits: int = 6) -> list[str]:
    """n questions such as `385291=`, every digit uniform."""
    check_size("n", n, 0)
    check_generator(generator)
    check_size("digits", digits, 2)
    rows = torch.randint(10, (n, digits), generator=generator, device=generator.device).tolist()
    return ["".join(map(str, row)) + "=" for row in rows]


def direct_answer(prompt: str) -> str:
    return ":" + _running_sums(prompt)[-1]


def worked_answer(prompt: str) -> str:
    sums = _running_sums(prompt)
    return sums[1:] + ":" + sums[-1]


def score(prompts: list[str], responses: list[str]) -> Float[Tensor, " B"]:
    """1 where what follows the last colon is the right digit and nothing else, 0 elsewhere."""
    _check_pairs(prompts, responses)
    pairs = zip(prompts, responses, strict=True)
    right = [":" in answer and answer.rpartition(":")[2] == _running_sums(q)[-1] for q, answer in pairs]
    return torch.tensor(right, dtype=torch.float32)


def is_worked(prompts: list[str], responses: list[str]) -> Float[Tensor, " B"]:
    """1 where the right working is written out before the colon, whatever the answer after it, 0 elsewhere."""
    _check_pairs(prompts, responses)
    pairs = zip(prompts, responses, strict=True)
    return torch.tensor([answer.startswith(_running_sums(q)[1:] + ":") for q, answer in pairs], dtype=torch.float32)


def examples(
    n: int, generator: torch.Generator, *, worked_share: float, digits: int = 6
) -> tuple[list[str], list[str]]:
    """n prompts and right answers; each answer is worked with probability `worked_share`, otherwise direct."""
    check_knob("worked_share", worked_share, 0, 1)
    questions = prompts(n, generator, digits=digits)
    worked = torch.rand(n, generator=generator, device=generator.device) < worked_share
    pairs = zip(questions, worked.tolist(), strict=True)
    return questions, [worked_answer(q) if w else direct_answer(q) for q, w in pairs]


def pretraining_examples(n: int, generator: torch.Generator) -> tuple[list[str], list[str]]:
    """Mostly worked answers: the skill is learned here."""
    return examples(n, generator, worked_share=0.8)


def demonstrations(n: int, generator: torch.Generator) -> tuple[list[str], list[str]]:
    """Mostly direct answers: SFT on these gives the model a bad habit, for reinforcement learning to break."""
    return examples(n, generator, worked_share=0.15)


def _running_sums(prompt: str) -> str:
    if not re.fullmatch("[0-9]+=", prompt):
        raise ValueError(f"prompts: wanted digits and an equals sign, such as '385291=', got {prompt!r}")
    total, sums = 0, ""
    for digit in prompt[:-1]:
        total = (total + int(digit)) % 10
        sums += str(total)
    return sums


def _check_pairs(prompts: list[str], responses: list[str]) -> None:
    check_texts(prompts=prompts, responses=responses)
