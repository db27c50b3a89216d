"""Addition with a scratchpad: a longer chain of thought than the digit sum, with a carry to take along. Checked by a rule.

    457+389=:0846$                                 the direct answer
    457+389=7+9+0=16,5+8+1=14,4+3+1=08:0846$       the worked answer: columns from the right, then the answer

A column is digit + digit + carry = two digits, of which the first is the next carry. The answer has a digit more than the
numbers. To answer at once, a small network has to find where the carries run before it writes the first digit; with the
working, each step is a small sum that it has seen before. One token a character; `$` ends the answer.
"""

import re
from functools import cache

import torch

from minirl.tokenizer import Tokenizer, character_tokenizer
from minirl.types import Float, Tensor, check_generator, check_knob, check_size, check_texts

MAX_NEW_TOKENS = 36  # a worked answer to 3 digits takes 32, the end token included
LONGEST = 4  # digits; five would fill the small model's 64 positions to the last: 12 of prompt, 52 of worked answer


@cache
def tokenizer() -> Tokenizer:
    return character_tokenizer("0123456789+=,:", eos="$")


def prompts(n: int, generator: torch.Generator, *, digits: int = 3) -> list[str]:
    """n questions such as `457+389=`, every digit uniform, the leading ones too."""
    check_size("n", n, 0)
    check_generator(generator)
    check_size("digits", digits)
    check_knob("digits", digits, 1, LONGEST)
    rows = torch.randint(10, (n, 2 * digits), generator=generator, device=generator.device).tolist()
    texts = ["".join(map(str, row)) for row in rows]
    return [f"{text[:digits]}+{text[digits:]}=" for text in texts]


def direct_answer(prompt: str) -> str:
    a, b = _numbers(prompt)
    return f":{int(a) + int(b):0{len(a) + 1}d}"


def worked_answer(prompt: str) -> str:
    return _working(prompt) + direct_answer(prompt)


def score(prompts: list[str], responses: list[str]) -> Float[Tensor, " B"]:
    """1 where what follows the last colon is the sum, with one digit more than the numbers have, 0 elsewhere."""
    _check_pairs(prompts, responses)
    pairs = zip(prompts, responses, strict=True)
    right = [":" in answer and ":" + answer.rpartition(":")[2] == direct_answer(q) for q, answer in pairs]
    return torch.tensor(right, dtype=torch.float32)


def is_worked(prompts: list[str], responses: list[str]) -> Float[Tensor, " B"]:
    """1 where the right working is written out before the colon, whatever the answer after it, 0 elsewhere."""
    _check_pairs(prompts, responses)
    pairs = zip(prompts, responses, strict=True)
    return torch.tensor([answer.startswith(_working(q) + ":") for q, answer in pairs], dtype=torch.float32)


def examples(
    n: int, generator: torch.Generator, *, worked_share: float, digits: int = 3
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


def _working(prompt: str) -> str:
    a, b = _numbers(prompt)
    carry, columns = 0, []
    for x, y in zip(reversed(a), reversed(b), strict=True):
        total = int(x) + int(y) + carry
        columns.append(f"{x}+{y}+{carry}={total:02d}")
        carry = total // 10
    return ",".join(columns)


def _numbers(prompt: str) -> tuple[str, str]:
    found = re.fullmatch(rf"([0-9]{{1,{LONGEST}}})\+([0-9]{{1,{LONGEST}}})=", prompt)
    if found is None or len(found[1]) != len(found[2]):
        raise ValueError(
            f"prompts: wanted two numbers of equally many digits, {LONGEST} at most, such as '457+389=', got {prompt!r}"
        )
    return found[1], found[2]


def _check_pairs(prompts: list[str], responses: list[str]) -> None:
    check_texts(prompts=prompts, responses=responses)
