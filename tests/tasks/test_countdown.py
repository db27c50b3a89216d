"""Countdown: Python's own arithmetic against the parser, an independent enumeration, hostile answers, the held-out split."""

import ast
import operator
import re
from itertools import combinations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirl.rewards import format_bonus
from minirl.tasks import countdown

PROMPT = "<user>3,4,2=14<assistant>"
SEARCH = "<think>4*2=8,8+3=11;3+4=7,7*2=14</think><answer>(3+4)*2</answer>"
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def right(answer: str, prompt: str = PROMPT) -> float:
    return countdown.score([prompt], [answer]).item()


def pythons_value(expression: str) -> int:
    """The value by Python's grammar, written independently of the task's parser."""

    def value(node) -> int:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        return node.value

    return value(ast.parse(expression, mode="eval").body)


def reachable(numbers: list[int]) -> set[int]:
    """Every positive number that three signs make of them."""
    return {t for signs in product((1, -1), repeat=3) if (t := sum(map(operator.mul, signs, numbers))) > 0}


def parts(prompt: str) -> tuple[list[int], int]:
    *numbers, target = map(int, re.findall("[0-9]+", prompt))
    return numbers, target


# The checker


@pytest.mark.parametrize(
    "expression",
    ["(3+4)*2", "2*(4+3)", "2*3+2*4-0", "4*3+2", "(4*3)+2", "((4)*(3))+2", "2+3*4", "2-(0-3)*4", "3*4+2"],
)
def test_right_is_what_python_computes_with_each_number_once(expression):
    used = sorted(map(int, re.findall("[0-9]+", expression)))
    assert right(f"<answer>{expression}</answer>") == (pythons_value(expression) == 14 and used == [2, 3, 4])


HOSTILE = [
    "",
    "14",
    "<answer></answer>",
    "<answer>14</answer>",
    "<answer>7*2</answer>",  # 7 is not given
    "<answer>(3+4)*2+0</answer>",
    "<answer>(3+4)*2*1</answer>",
    "<answer>3+4+2</answer>",  # 9
    "<answer>(3+4)</answer>",
    "<answer>3+4*2</answer>",  # 11, not 14
    "<answer>(3+4)*2",
    "(3+4)*2</answer>",
    "<answer>(3+4)*2</answer>.",
    "<answer>(3+4)*2</answer><answer>(3+4)*2</answer>",
    "<answer>1</answer><answer>(3+4)*2</answer>",
    "<answer><answer>(3+4)*2</answer>",
    "</answer><answer>(3+4)*2</answer>",
    "<answer>(3+4)*2=14</answer>",
    "<answer>(3+4)2</answer>",
    "<answer>(3+4*2</answer>",
    "<answer>(3+4))*2</answer>",
    "<answer>()(3+4)*2</answer>",
    "<answer>3+4)*2(</answer>",
    "<answer>+(3+4)*2</answer>",
    "<answer>(3++4)*2</answer>",
    "<answer>(3+4)**2</answer>",
    "<answer>(3+4)*2 </answer>",
    "<answer>(3+4)*2\n</answer>",
    "<answer>(\uff13+4)*2</answer>",
    "<answer>(3+4)/2</answer>",
    "<answer>34-2</answer>",
    "<answer>__import__('os').getcwd()</answer>",
    "<answer>9**9**9**9</answer>",
    "<answer>" + "(" * 100_000 + "</answer>",
    "<answer>" + "(" * 1000 + "(3+4)*2" + ")" * 1000 + "</answer>",
    "<answer>" + "9" * 5000 + "</answer>",
    "<answer>" + "9*" * 5000 + "9</answer>",
    "<answer>" * 100_000,
    "<ANSWER>(3+4)*2</ANSWER>",
    "<think>(3+4)*2</think>",
]


@pytest.mark.parametrize("response", HOSTILE)
def test_hostile_answers_are_wrong(response):
    assert right(response) == 0


def test_a_large_target_is_no_exponent_and_order_does_not_matter():
    assert right("<answer>(8+1)*11</answer>", "<user>11,8,1=99<assistant>") == 1
    assert right("<think>nonsense</think> and <answer>(3+4)*2</answer>") == 1  # the thinking is not judged


TOKENS = st.lists(st.sampled_from(["2", "3", "4", "12", "+", "-", "*", "(", ")"]), max_size=15).map("".join)


@given(TOKENS)
def test_the_parser_agrees_with_pythons(expression):
    found = countdown.evaluate(expression)
    try:
        value = pythons_value(expression)
    except (SyntaxError, AttributeError, KeyError):  # no expression, a sign in front, a call, **
        assert found is None
        return
    assert found is None or found == (value, sorted(map(int, re.findall("[0-9]+", expression))))
    assert found is not None or re.search("[(]-|^-|[-+*]{2}|[0-9)][(]|[)][0-9]|[(][)]|[+]$", expression) or not value


def build(depth: int):
    """Expressions that are right by construction."""
    number = st.integers(1, 12).map(str)
    if depth == 0:
        return number
    one = build(depth - 1)
    return st.one_of(number, st.tuples(one, st.sampled_from("+-*"), one).map(lambda x: f"({''.join(x)})"))


@given(build(2), st.sampled_from("+-*"), build(2))
def test_every_expression_in_reach_is_read(left, op, second):
    expression = left + op + second
    assert countdown.evaluate(expression)[0] == pythons_value(expression)


# The search


@pytest.mark.parametrize(
    ("response", "worked", "formed", "tries"),
    [
        (SEARCH, 1, 1, 2),
        ("<think>3+4=7,7*2=14</think><answer>3+4+2</answer>", 1, 1, 1),  # the search hits and the answer does not
        ("<think></think><answer>(3+4)*2</answer>", 0, 1, 0),
        ("<answer>(3+4)*2</answer>", 0, 0, 0),
        ("<think>4*2=8,8+3=11</think><answer>(4*2)+3</answer>", 0, 1, 1),  # it ends without a hit
        ("<think>3+4=7,7*2=14;4*2=8,8+3=11</think><answer>(3+4)*2</answer>", 0, 1, 2),  # and it goes on after one
        ("<think>3+4=7,7+2=14</think><answer>(3+4)*2</answer>", 0, 1, 1),  # miscounted
        ("<think>3+4=6,7*2=14</think><answer>(3+4)*2</answer>", 0, 1, 1),
        ("<think>4*2=7,7*2=14</think><answer>(3+4)*2</answer>", 0, 1, 1),
        ("<think>3+4=7,2*7=14</think><answer>(3+4)*2</answer>", 1, 1, 1),
        ("<think>7*2=14,14*1=14</think><answer>(3+4)*2</answer>", 0, 1, 1),  # other numbers
        ("<think>3*4=12,4+2=6;3+4=7,7*2=14</think><answer>(3+4)*2</answer>", 0, 1, 2),  # 4 twice, 12 forgotten
        ("<think>3+4=7,7*2=14;</think><answer>(3+4)*2</answer>", 0, 0, 2),
        ("<think>hm</think><answer>(3+4)*2</answer>", 0, 0, 1),
        ("<think>3+4=7,7*2=14</think>", 1, 0, 1),
        (SEARCH + " ", 1, 0, 2),
        (" " + SEARCH, 0, 0, 0),
        (SEARCH * 2, 1, 0, 2),
        ("", 0, 0, 0),
        ("<think>" + "9" * 100_000 + "*1=1,1*1=14</think><answer>1</answer>", 0, 1, 1),
    ],
)
def test_what_counts_as_worked_and_well_formed(response, worked, formed, tries):
    assert countdown.is_worked([PROMPT], [response]).tolist() == [worked]
    assert countdown.is_well_formed([PROMPT], [response]).tolist() == [formed]
    assert countdown.tries([PROMPT], [response]).tolist() == [tries]
    bonus = format_bonus(torch.zeros(1), [response], pattern=countdown.FORM, bonus=0.5)
    assert bonus.tolist() == [0.5 * formed]  # the form as a reward


def test_a_bad_form_takes_linear_time():
    for text in ("3+4=7,7*2=14;" * 100_000, "3" * 1_000_000, "(" * 1_000_000):
        assert countdown.is_well_formed([PROMPT], ["<think>" + text]).tolist() == [0]
        assert countdown.is_well_formed([PROMPT], ["<think></think><answer>" + text]).tolist() == [0]


def test_the_authors_search_is_true_and_ends_in_a_hit():
    prompts, responses = countdown.examples(1000, seeded(), worked_share=1.0)
    for rule in (countdown.score, countdown.is_worked, countdown.is_well_formed):
        assert rule(prompts, responses).min() == 1
    counts = countdown.tries(prompts, responses)
    assert set(counts.tolist()) == {1, 2, 3, 4}
    assert 2.36 < counts.mean() < 2.64  # one way of four hits: 2.5, standard deviation .035
    for prompt, response in zip(prompts, responses, strict=True):
        numbers, target = parts(prompt)
        *missed, last = re.findall(r"([0-9]+)([-+*])([0-9]+)=([0-9]+),([0-9]+)([-+*])([0-9]+)=([0-9]+)", response)
        for a, x, b, first, c, y, d, result in [*missed, last]:
            assert pythons_value(a + x + b) == int(first) and pythons_value(c + y + d) == int(result)
            assert sorted(map(int, (a, b, c, d))) == sorted([*numbers, int(first)])
        assert all(int(one[-1]) != target for one in missed)
        assert pythons_value(re.search("<answer>(.*)</answer>", response)[1]) == target == int(last[-1])
        assert len({(a, b, y) for a, _, b, _, _, y, _, _ in [*missed, last]}) == len(missed) + 1  # nothing twice


def test_the_author_begins_with_each_way_and_goes_round():
    prompt, ways = (
        "<user>9,4,20=33<assistant>",
        ["9+4=13,13+20=33", "9+4=13,20-13=7", "9+20=29,29-4=25", "4+20=24,24-9=15"],
    )
    for first in range(4):
        tries = re.search("<think>(.*)</think>", countdown.search(prompt, first))[1].split(";")
        assert tries == (ways[first:] + ways[:1] if first else ways[:1])
    guesses = [countdown.guess(prompt, first) for first in range(4)]
    assert guesses == [f"<think></think><answer>{x}</answer>" for x in ("(9+4)+20", "20-(9+4)", "(9+20)-4", "(4+20)-9")]
    assert countdown.search("<user>9,4,20=7<assistant>", 1).endswith("<answer>20-(9+4)</answer>")


# Prompts


def test_every_prompt_can_be_answered():
    for held_out in (False, True):
        for prompt in countdown.prompts(300, seeded(), held_out=held_out):
            numbers, target = parts(prompt)
            assert len(set(numbers)) == 3 and all(1 <= n <= 15 for n in numbers) and 1 <= target <= 42
            assert target in reachable(numbers)


def test_what_is_held_out_is_never_shown():
    shown, kept = (set(countdown.prompts(5000, seeded(1), held_out=flag)) for flag in (False, True))
    assert not any(map(countdown.is_held_out, shown)) and all(map(countdown.is_held_out, kept))
    instances = [{(*sorted(parts(p)[0]), parts(p)[1]) for p in prompts} for prompts in (shown, kept)]
    assert not instances[0] & instances[1]
    assert 0.15 < len(countdown._instances(True)) / len(countdown._instances(False)) < 0.3
    for examples in (countdown.pretraining_examples, countdown.demonstrations):
        assert not any(map(countdown.is_held_out, examples(2000, seeded(2))[0]))
    assert countdown.is_held_out("<user>3,4,2=14<assistant>") == countdown.is_held_out("<user>2,3,4=14<assistant>")


def test_exactly_one_way_of_the_four_hits():
    for prompt in countdown.prompts(300, seeded()):
        guesses = [countdown.guess(prompt, first) for first in range(4)]
        assert countdown.score([prompt] * 4, guesses).sum() == 1


def test_together_the_two_halves_are_all_there_is():
    everything = {(n, t) for n in combinations(range(1, 16), 3) for t in reachable(list(n))}
    halves = [set(countdown._instances(flag)) for flag in (False, True)]
    assert halves[0] | halves[1] == everything and not halves[0] & halves[1]


def test_prompts_are_decided_by_the_generator():
    assert countdown.prompts(50, seeded()) == countdown.prompts(50, seeded())
    assert countdown.prompts(50, seeded()) != countdown.prompts(50, seeded(1))
    assert countdown.prompts(0, seeded()) == []
    orders = {tuple(torch.tensor(parts(p)[0]).argsort().tolist()) for p in countdown.prompts(300, seeded())}
    assert len(orders) == 6


def test_pretraining_shows_searches_and_demonstrations_the_bad_habit():
    for examples, share in ((countdown.pretraining_examples, 0.8), (countdown.demonstrations, 0.15)):
        prompts, responses = examples(2000, seeded(1))
        assert countdown.is_well_formed(prompts, responses).min() == 1
        thinks, scores = countdown.tries(prompts, responses) > 0, countdown.score(prompts, responses)
        assert abs(thinks.float().mean().item() - share) < 0.04
        assert scores[thinks].min() == 1
        assert 0.16 < scores[~thinks].mean() < 0.34  # one way of four; standard deviation .022 at most


def test_tags_and_numbers_are_one_token_each_and_texts_fit():
    tokenizer = countdown.tokenizer()
    assert tokenizer is countdown.tokenizer()
    assert len(tokenizer.encode(SEARCH)) == 30
    assert tokenizer.encode("<end>") == [tokenizer.eos_id]
    prompts, responses = countdown.examples(1000, seeded(), worked_share=0.8)
    for prompt, response in zip(prompts, responses, strict=True):
        assert tokenizer.decode([*tokenizer.encode(prompt + response), tokenizer.eos_id]) == prompt + response
        assert len(tokenizer.encode(response)) + 1 <= countdown.MAX_NEW_TOKENS
        assert len(tokenizer.encode(prompt)) + countdown.MAX_NEW_TOKENS <= 64
    with pytest.raises(ValueError, match="'100' is not in the vocabulary"):
        tokenizer.encode("<think>100")


def test_bad_input_is_named():
    for prompt in ("3,4,2=14", "<user>3,4=14<assistant>", "<user>3,4,2=100<assistant>", PROMPT + "\n"):
        for rule in (countdown.score, countdown.is_worked, countdown.is_well_formed, countdown.tries):
            with pytest.raises(ValueError, match="prompts: wanted three numbers and a target"):
                rule([prompt], [SEARCH])
    with pytest.raises(ValueError, match="responses: wanted one for each of 2 prompts, got 1"):
        countdown.score([PROMPT, PROMPT], [SEARCH])
    with pytest.raises(ValueError, match="worked_share"):
        countdown.examples(3, seeded(), worked_share=-0.1)
    with pytest.raises(ValueError, match="n: wanted"):
        countdown.prompts(-1, seeded())
