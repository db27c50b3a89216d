"""Countdown: reach a target from three numbers, each used once, with + and -. A right answer has to be searched for.

    <user>3,9,4=8<assistant><think></think><answer>(9+3)-4</answer><end>                             a guess
    <user>3,9,4=8<assistant><think>9+4=13,13-3=10;3+9=12,12-4=8</think><answer>(3+9)-4</answer><end> by search

There are four ways: add all three, or add two of them and take the difference to the third. To try one is easy, and so is
to see that it hits the target; which one will hit is hard to say beforehand, so that thinking pays. The author of the texts
either guesses, any of the four, or begins with any of them and goes round until one hits.

Tags and numbers are one token each, and so is `=8`, an equals sign with its number: a hit is then the same token as in the
prompt. With `=` and `8` apart, the small model learned true tries in 500 to 800 steps, but not to see that one had hit, and
GRPO taught it to guess. A richer world with * as well failed in the same way; the checker knows * nevertheless.

A fifth of the instances, chosen by a hash, is held out: no prompt shows them unless it is asked for.
"""

import re
import zlib
from functools import cache
from itertools import combinations

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from minirl.tokenizer import Tokenizer
from minirl.types import Float, Tensor, check_generator, check_knob, check_size, check_texts

MAX_NEW_TOKENS = 52  # four tries of 9 tokens and three semicolons, four tags, an answer of 7 tokens, the end: 51
TRIES = 4  # as many as there are ways
NUMBERS, LARGEST = range(1, 16), 42  # what is given, three different ones, and the largest sum

Step = tuple[int, str, int, int]  # a, operator, b, result
TAGS = ("<user>", "<assistant>", "<think>", "</think>", "<answer>", "</answer>")
TRY = r"[0-9]+[-+*][0-9]+=[0-9]+,[0-9]+[-+*][0-9]+=[0-9]+"
FORM = rf"<think>(?:{TRY}(?:;{TRY})*)?</think><answer>[-+*()0-9]+</answer>"  # for minirl.rewards.format_bonus


@cache
def tokenizer() -> Tokenizer:
    words = ["<end>", *TAGS, *"+-*,;()"]
    words += [f"{sign}{number}" for sign in ("", "=") for number in range(LARGEST + 1)]
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"</?[a-z]+>|=?[0-9]+|[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    return Tokenizer(backend, eos="<end>")


def prompts(n: int, generator: torch.Generator, *, held_out: bool = False) -> list[str]:
    """n questions, uniform over the instances (three numbers, a target they can reach) that are not held out, or
    over those that are."""
    check_size("n", n, 0)
    check_generator(generator)
    instances = _instances(held_out)
    picked = torch.randint(len(instances), (n,), generator=generator, device=generator.device).tolist()
    order = torch.rand(n, 3, generator=generator, device=generator.device).argsort(1).tolist()
    return [_prompt([instances[i][0][k] for k in row], instances[i][1]) for i, row in zip(picked, order, strict=True)]


def is_held_out(prompt: str) -> bool:
    """Whether this instance is kept for evaluation. The order of its numbers does not matter."""
    numbers, target = _read(prompt)
    return zlib.crc32(_prompt(sorted(numbers), target).encode()) % 5 == 0


def score(prompts: list[str], responses: list[str]) -> Float[Tensor, " B"]:
    """1 where the one `<answer>...</answer>` ends the response and its expression reaches the target with each number used
    exactly once, 0 elsewhere. What comes before the answer is not looked at."""
    return _judge(prompts, responses, _is_right)


def is_worked(prompts: list[str], responses: list[str]) -> Float[Tensor, " B"]:
    """1 where the thinking is a search that succeeds: tries in true arithmetic, each with every number once, of which the
    last and no other reaches the target. The answer is not looked at."""
    return _judge(prompts, responses, _is_search)


def is_well_formed(prompts: list[str], responses: list[str]) -> Float[Tensor, " B"]:
    """1 where the response has the form of the template, whatever it says: a thinking part, empty or a list of tries, then
    an answer part, and nothing else. A format reward: score(...) + 0.1 * is_well_formed(...)."""
    return _judge(prompts, responses, lambda prompt, response: re.fullmatch(FORM, response) is not None)


def tries(prompts: list[str], responses: list[str]) -> Float[Tensor, " B"]:
    """How many tries the thinking part lists, right or wrong; 0 without one."""
    return _judge(prompts, responses, lambda prompt, response: len(_tries(response)))


def examples(n: int, generator: torch.Generator, *, worked_share: float) -> tuple[list[str], list[str]]:
    """n prompts and the author's responses: a right one after a search with probability `worked_share`, otherwise a guess,
    which is right once in four times: no two ways lead to one target."""
    check_knob("worked_share", worked_share, 0, 1)
    questions = prompts(n, generator)
    chances = torch.rand(n, 2, generator=generator, device=generator.device).tolist()
    firsts = [int(TRIES * chance) for _, chance in chances]
    write = [search if chance < worked_share else guess for chance, _ in chances]
    return questions, [f(question, first) for f, question, first in zip(write, questions, firsts, strict=True)]


def pretraining_examples(n: int, generator: torch.Generator) -> tuple[list[str], list[str]]:
    """Mostly searches: the skill is learned here."""
    return examples(n, generator, worked_share=0.8)


def demonstrations(n: int, generator: torch.Generator) -> tuple[list[str], list[str]]:
    """Mostly guesses: SFT on these gives the model a bad habit, for reinforcement learning to break."""
    return examples(n, generator, worked_share=0.15)


def guess(prompt: str, first: int = 0) -> str:
    """An answer without thinking: this one of the ways, right or wrong."""
    numbers, _ = _read(prompt)
    return f"<think></think><answer>{_expression(*_round(numbers, first)[0])}</answer>"


def search(prompt: str, first: int = 0) -> str:
    """The author's search: this one of the ways first."""
    numbers, target = _read(prompt)
    tried = []
    for steps in _round(numbers, first):
        tried.append(steps)
        if steps[1][3] == target:
            break
    texts = [",".join(f"{a}{op}{b}={result}" for a, op, b, result in steps) for steps in tried]
    return f"<think>{';'.join(texts)}</think><answer>{_expression(*tried[-1])}</answer>"


def _prompt(numbers: list[int] | tuple[int, ...], target: int) -> str:
    return f"<user>{','.join(map(str, numbers))}={target}<assistant>"


@cache
def _read(prompt: str) -> tuple[tuple[int, ...], int]:
    found = re.fullmatch(r"<user>([1-9][0-9]?),([1-9][0-9]?),([1-9][0-9]?)=([1-9][0-9]?)<assistant>", prompt)
    if found is None:
        raise ValueError(f"prompts: wanted three numbers and a target, '<user>3,4,2=14<assistant>', got {prompt!r}")
    *numbers, target = map(int, found.groups())
    return tuple(numbers), target


@cache
def _instances(held_out: bool) -> list[tuple[tuple[int, ...], int]]:
    """Every three numbers with every target that they can reach."""
    found = []
    for numbers in combinations(NUMBERS, 3):
        targets = {second[3] for _, second in _round(numbers, 0)} - {0}
        found += [(numbers, target) for target in sorted(targets) if is_held_out(_prompt(numbers, target)) == held_out]
    return found


def _round(numbers: tuple[int, ...], first: int) -> list[tuple[Step, Step]]:
    """The four ways to join the numbers, from this one on and round again."""
    a, b, c = numbers
    ways = [_try(a, b, "+", c), _try(a, b, "-", c), _try(a, c, "-", b), _try(b, c, "-", a)]
    first %= TRIES
    return ways[first:] + ways[:first]


def _try(a: int, b: int, op: str, c: int) -> tuple[Step, Step]:
    """The sum of a and b, then the third number; of a difference, the larger number comes first."""
    joined = a + b
    if op == "+":
        return (a, "+", b, joined), (joined, "+", c, joined + c)
    larger, smaller = max(joined, c), min(joined, c)
    return (a, "+", b, joined), (larger, "-", smaller, larger - smaller)


def _expression(first: Step, second: Step) -> str:
    """(a op b) op c, or c - (a op b). The second step names the result of the first on either side."""
    joined = f"({first[0]}{first[1]}{first[2]})"
    a, op, b, _ = second
    return f"{joined}{op}{b}" if a == first[3] else f"{a}{op}{joined}"


def _judge(prompts: list[str], responses: list[str], rule) -> Float[Tensor, " B"]:
    check_texts(prompts=prompts, responses=responses)
    for prompt in prompts:
        _read(prompt)
    verdicts = [rule(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    return torch.tensor(verdicts, dtype=torch.float32)


def _is_right(prompt: str, response: str) -> bool:
    numbers, target = _read(prompt)
    before, opened, rest = response.partition("<answer>")
    expression, closed, after = rest.partition("</answer>")
    if not opened or not closed or after or "</answer>" in before:
        return False
    return evaluate(expression) == (target, sorted(numbers))


def evaluate(expression: str) -> tuple[int, list[int]] | None:
    """The value of an expression in + - * and parentheses, and the numbers in it, sorted; None where it is none.

    A parser of its own, since `eval` would run whatever a model writes. An expression of three numbers needs 7 to 10 characters;
    more than 40 are not read, which bounds the depth and the size of the numbers.
    """
    if len(expression) > 40 or not re.fullmatch(r"[-+*()0-9]+", expression):
        return None
    tokens, numbers = [*re.findall(r"[0-9]+|[-+*()]", expression), ""], []
    try:
        value = _sum(tokens, numbers)
    except ValueError:
        return None
    return (value, sorted(numbers)) if tokens == [""] else None


def _sum(tokens: list[str], numbers: list[int]) -> int:
    """Reads product {+|- product} from the front of `tokens`, which end in "", and notes the numbers on the way."""
    value = _product(tokens, numbers)
    while tokens[0] in ("+", "-"):
        sign = 1 if tokens.pop(0) == "+" else -1
        value += sign * _product(tokens, numbers)
    return value


def _product(tokens: list[str], numbers: list[int]) -> int:
    value = _factor(tokens, numbers)
    while tokens[0] == "*":
        tokens.pop(0)
        value *= _factor(tokens, numbers)
    return value


def _factor(tokens: list[str], numbers: list[int]) -> int:
    if tokens[0] != "(":
        numbers.append(int(tokens[0]))  # ValueError for whatever is no number, the end included
        tokens.pop(0)
        return numbers[-1]
    tokens.pop(0)
    value = _sum(tokens, numbers)
    if tokens[0] != ")":
        raise ValueError
    tokens.pop(0)
    return value


def _tries(response: str) -> list[str]:
    thought = re.match(r"<think>([^<]+)</think>", response)
    return [] if thought is None else thought[1].split(";")


def _is_search(prompt: str, response: str) -> bool:
    numbers, target = _read(prompt)
    reached = [_result(one, numbers) for one in _tries(response)]
    return bool(reached) and reached[-1] == target and None not in reached and target not in reached[:-1]


def _result(text: str, numbers: tuple[int, ...]) -> int | None:
    """What a try reaches; None where it miscounts, or uses other numbers than the three given and its own result."""
    if len(text) > 40 or not re.fullmatch(TRY, text):
        return None
    (a, x, b, first), (c, y, d, last) = (
        (int(a), op, int(b), int(result)) for a, op, b, result in re.findall(r"([0-9]+)([-+*])([0-9]+)=([0-9]+)", text)
    )
    for (p, op, q), result in (((a, x, b), first), ((c, y, d), last)):
        if {"+": p + q, "-": p - q, "*": p * q}[op] != result:
            return None
    return last if sorted([a, b, c, d]) == sorted([*numbers, first]) else None
