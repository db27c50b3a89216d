"""GSM8K (Cobbe et al. 2021): grade-school word problems, for a real model. You bring the file; this module reads it, asks, and
judges what comes back.

A line of the file is {"question": ..., "answer": ...}; an answer ends in `#### number`. A reward is as good as its checker,
and a policy finds whatever it lets through, so the rules are spelled out (see `extract_answer`) and nothing is evaluated.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import torch

from minirl.files import check_path, parse_json
from minirl.types import Float, Tensor, check_generator, check_size, check_texts

MAX_NEW_TOKENS = 256
TEMPLATE = "Question: {question}\nThink step by step. End with a line '#### number'.\nAnswer:"

MOST_MARKS = 100  # a text with more of them answers nothing
MOST_DIGITS = 40  # in a number
WINDOW = 400  # characters that are looked at around an answer, so that any text takes linear time

MAGNITUDES = {"hundred": 100, "thousand": 10**3, "k": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
NUMBER = re.compile(
    r"""(?<![0-9A-Za-z_.,^]) (?P<sign> (?<![)\]]) [-+] )?            # the 2 of m2 and of x^2 is no answer
        (?: (?P<whole>[0-9]+)[ ](?=[0-9]+/[0-9]) )?                  # the 3 of 3 1/2
        (?P<digits> [0-9][0-9,]* (?:\.[0-9]*)? | \.[0-9]+ )
        (?: [eE](?P<exponent>[-+]?[0-9]+)(?![0-9A-Za-z]) )?
        (?: [ ]?/[ ]?(?P<denominator>[0-9]+) )?
        (?: [ ]?(?P<magnitude>hundred|thousand|million|billion|trillion)\b | (?P<k>[kK])\b )?""",
    re.VERBOSE,
)
GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}")  # 1,234 and, as in India, 1,00,000; but not 3,5
SECOND = re.compile(
    r"[\s,;:/|&+*x\u00d7\u00b7\u00f7^~.-]*(?:(?:or|and|to)\s+)?[0-9]|[^0-9]{0,40}\bor\b[^0-9]{0,40}[0-9]"
)
BEFORE = re.compile(r"[\s(\[{\"'~*]*")  # what may stand between the mark and its number


# Reading the file


def load(path: str | Path, *, split: str = "train") -> list[dict[str, str]]:
    """The problems of a .jsonl file, or of SPLIT.jsonl in a folder. ValueError, naming file and line, for a line that is no
    {"question", "answer"} with a `#### number` at its end."""
    path = check_path("path", path)
    if path.is_dir():
        path = path / f"{split}.jsonl"
    if not path.is_file():
        raise ValueError(f"path: no file {path}")
    problems = []
    with open(path, "rb") as file:
        for line_number, line in enumerate(file, start=1):
            try:
                problems.append(_problem(line))
            except ValueError as error:
                raise ValueError(
                    f'{path}, line {line_number}: wanted {{"question": "...", "answer": "... #### number"}} ({error})'
                ) from None
    if not problems:
        raise ValueError(f"{path}: holds no problems")
    return problems


def _problem(line: bytes) -> dict[str, str]:
    found = parse_json(line)
    if not isinstance(found, dict):
        raise ValueError(f"got {type(found).__name__}")
    for key in ("question", "answer"):
        if not isinstance(found.get(key), str) or not found[key].strip():
            raise ValueError(f"no text under {key}")
    if "####" not in found["answer"]:
        raise ValueError("no #### in the answer")
    reference_number(found["answer"])
    return {key: found[key] for key in ("question", "answer")}


def prompt(question: str) -> str:
    return TEMPLATE.format(question=question.strip())


def worked_answer(answer: str) -> str:
    """An answer field as a response: with a space in front, and without the <<16-3=13>> marks for a calculator."""
    return " " + re.sub(r"<<[^<>]*>>", "", answer).strip()


def task(path: str | Path, *, split: str = "train") -> SimpleNamespace:
    """The problems as a world to train in: prompts, score, demonstrations and pretraining_examples, MAX_NEW_TOKENS."""
    problems = load(path, split=split)

    def picked(n: int, generator: torch.Generator) -> list[dict[str, str]]:
        check_size("n", n, 0)
        check_generator(generator)
        return [
            problems[i]
            for i in torch.randint(len(problems), (n,), generator=generator, device=generator.device).tolist()
        ]

    def prompts(n: int, generator: torch.Generator) -> list[str]:
        return [prompt(problem["question"]) for problem in picked(n, generator)]

    def demonstrations(n: int, generator: torch.Generator) -> tuple[list[str], list[str]]:
        rows = picked(n, generator)
        return [prompt(row["question"]) for row in rows], [worked_answer(row["answer"]) for row in rows]

    return SimpleNamespace(
        prompts=prompts,
        score=scorer(problems),
        demonstrations=demonstrations,
        pretraining_examples=demonstrations,
        MAX_NEW_TOKENS=MAX_NEW_TOKENS,
        __name__="gsm8k",
    )


def scorer(problems: list[dict[str, str]]) -> Callable[[list[str], list[str]], Tensor]:
    """A rule score(prompts, responses) -> (B,), 1 for a right answer, for prompts that were made of these problems."""
    references = {prompt(problem["question"]): reference_number(problem["answer"]) for problem in problems}

    def score(prompts: list[str], responses: list[str]) -> Float[Tensor, " B"]:
        check_texts(prompts=prompts, responses=responses)
        for text in prompts:
            if text not in references:
                raise ValueError(f"prompts: wanted those of the problems given, got {text[:80]!r}")
        right = [extract_answer(answer) == references[q] for q, answer in zip(prompts, responses, strict=True)]
        return torch.tensor(right, dtype=torch.float32)

    return score


# The checker


def is_correct(output: str, reference: str) -> bool:
    """Whether a model's text ends in the number of a GSM8K answer field. ValueError if the field itself has none."""
    check_texts(output=[output], reference=[reference])
    return extract_answer(output) == reference_number(reference)


def reference_number(reference: str) -> Fraction:
    """The number after the last `####` of an answer field, or the field itself where it is nothing but a number."""
    field = reference.rpartition("####")[2].strip()
    match = NUMBER.fullmatch(_plain(field)) if len(field) <= WINDOW else None
    number = None if match is None else _value(match)
    if number is None:
        raise ValueError(f"reference: wanted '#### number' at its end, got {reference[-80:]!r}")
    return number


def extract_answer(output: str) -> Fraction | None:
    """The number that a text answers with, or None. The first of these that there is decides, and no other is tried:

    1. the number right behind the last `####`; if another `####` is followed by a different number, there is no answer;
    2. the last boxed answer, `\\boxed{...}`;
    3. the last number.

    Where no number stands right behind the last `####` (it is a heading, or empty), 2 and 3 see only what follows it: a
    mark with nothing behind it is a wrong answer, whatever was found before.

    Of a number, these do not matter: commas between groups of digits, a currency sign, %, a unit behind it, zeros at
    either end (18.00 is 18, 018 too). 1/2, 3 1/2, 1.5e3, 2 thousand and 2k have their values. ASCII digits alone count:
    a number that touches another script's digits (or ½, ²) is refused, and so are infinity, nan, words, numbers of more
    than 40 digits, division by 0, an expression (9*2), and two answers for one (17 or 18; 17, 18).
    """
    marks, last = [], 0
    for mark in re.finditer("#{4,}", output):
        marks.append(_number_at_start(output[mark.end() : mark.end() + WINDOW]))
        last = mark.end()
        if len(marks) > MOST_MARKS:
            return None
    if marks and marks[-1] is not NO_NUMBER:
        numbers = {number for number in marks if number is not NO_NUMBER}
        return marks[-1] if len(numbers) == 1 else None
    boxed = output.rfind("\\boxed{")
    if boxed >= last:
        return _number_in(_inside_braces(output[boxed + len("\\boxed{") :][:WINDOW]))
    return _last_number(output[last:] if last else output)


NO_NUMBER = object()  # nothing there that could be one; None is a number that is refused


def _number_at_start(text: str):
    line = _plain(text.partition("####")[0].lstrip().partition("\n")[0])
    line = re.sub(r"^- +(?=[.0-9])", "-", line)  # in this place it is no sign of subtraction
    for part in (line.rpartition("=")[2], line):  # 5 + 13 = 18 gives 18
        match = NUMBER.match(part, BEFORE.match(part).end())
        if match is not None:
            return _alone(match)
    return NO_NUMBER


def _number_in(text: str) -> Fraction | None:
    found = _number_at_start(text)
    return _last_number(text) if found is NO_NUMBER else found


def _last_number(text: str) -> Fraction | None:
    end = max(text.rfind(digit) for digit in "0123456789") + 1
    if end == 0:
        return None
    start = max(0, end - WINDOW)
    matches = list(NUMBER.finditer(_plain(text[start : end + 20])))
    if not matches or (start > 0 and matches[-1].start() == 0):  # the window may have cut it
        return None
    return _value(matches[-1])


def _alone(match: re.Match) -> Fraction | None:
    return None if SECOND.match(match.string, match.end()) else _value(match)


def _value(match: re.Match) -> Fraction | None:
    around = match.string[max(0, match.start() - 1) : match.start()] + match.string[match.end() : match.end() + 1]
    digits, exponent = match["digits"].rstrip(","), match["exponent"] or "0"
    whole, _, decimals = digits.partition(".")
    if "," in whole and GROUPED.fullmatch(whole[:WINDOW]) is None:
        return None
    parts = [whole.replace(",", ""), decimals, match["whole"] or "", match["denominator"] or ""]
    if sum(map(len, parts)) > MOST_DIGITS or len(exponent) > 3 or abs(int(exponent)) > MOST_DIGITS:
        return None
    if any(character.isnumeric() for character in around):  # 1８, 18½, 18²
        return None
    denominator = int(parts[3] or 1)
    if denominator == 0:
        return None
    value = Fraction(f"{parts[0] or 0}.{decimals or 0}") * Fraction(10) ** int(exponent) / denominator
    value += int(parts[2] or 0)
    value *= MAGNITUDES[(match["magnitude"] or match["k"] or "").lower()] if match["magnitude"] or match["k"] else 1
    return -value if match["sign"] == "-" else value


def _inside_braces(text: str) -> str:
    """What comes before the brace that closes; nothing if none does."""
    depth = 1
    for i, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:i]
    return ""


def _plain(text: str) -> str:
    """Typography and LaTeX out of the way: minus signs, currency, thin spaces, \\frac{1}{2}, \\text{...}, bold."""
    text = re.sub("[\u2212\u2013\uff0d]", "-", text)
    text = re.sub(r"\\[dt]?frac\{([^{}]{1,60})\}\{([^{}]{1,60})\}", r"\1/\2", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf|boxed)\{|\\[,!;: ]|\{(?=,\})|(?<=,)\}", "", text)
    text = text.replace("\u202f", " ").replace("\u00a0", " ").replace("\\%", "%")
    text = re.sub(r"(?<![0-9])\\?[$€£¥₹] ?", "", text)
    return re.sub(r"\*\*|`|\\?[$€£¥₹]", " ", text)
