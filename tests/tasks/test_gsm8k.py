"""GSM8K: every reference is accepted, hostile outputs are not, no text takes long, and a bad file is named."""

import json
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minirl.tasks import gsm8k

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k"
there = pytest.mark.skipif(not DATA.is_dir(), reason="the GSM8K files are not here")

REFERENCE = "She has 20 - 2 = <<20-2=18>>18 left.\n#### 18"


# The checker

RIGHT = [
    "#### 18",
    "####18",
    "#### 18.",
    "#### 18.00",
    "#### 018",
    "#### +18",
    "#### $18",
    "#### \\$18",
    "#### 18%",
    "#### 18 \\%",
    "#### 18 dollars",
    "#### 18kg",
    "#### 18 m2",
    "#### 18 m^2",
    "#### **18**",
    "#### `18`",
    "#### (18)",
    "#### $18$",
    "#### 18 (she had 20)",
    "#### The answer is 18",
    "#### 5 + 13 = 18",
    "#### x = 18 eggs",
    "####\n18",
    "########## 18",
    "#### 1.8e1",
    "#### 36/2",
    "#### 17 2/2",
    "#### 0.018k",
    "#### \\boxed{18}",
    "#### Solution\nTwo are sold, so 18",
    "#### 18\n#### 18.0",
    "First 20, then \\boxed{18}.",
    "\\boxed{17} no, \\boxed{18}, out of 20",
    "\\boxed{\\text{18 dollars}}",
    "\\boxed{\\frac{36}{2}}",
    "\\boxed{\\{18\\}}",
    "\\boxed{x = {18}}",
    "20 eggs minus 2 eggs leaves 18 eggs.",
    "I think it is 18",
    "18",
    "Sold at $18.",
    "20-2=18",
    "#### 18 " + "x" * 10_000,
    "7 " * 10_000 + "18",
    "\\boxed{7} #### 18",
    "#### 18, not \\boxed{7}",
    "#### \uff11\uff18 or, in other digits, 18",
]

WRONG = [
    "",
    " \n\t",
    "####",
    "It is 18.\n####",
    "#### 18\n####",
    "#### eighteen",
    "It is 18. #### eighteen",
    "#### inf",
    "It is 18 #### nan",
    "#### -18",
    "#### \u221218",
    "#### - 18",
    "#### 81",
    "#### 1 8",
    "#### 18.5",
    "#### 18.000001",
    "#### 118",
    "#### 180",
    "#### 17\n#### 18",
    "#### 18\n#### 17",
    "#### 17 #### 18 #### 17",
    "#### 17 or 18",
    "#### 18 or 19",
    "#### 18 eggs or 19 eggs",
    "#### 18, 19, 20",
    "#### 18/19",
    "#### 18 and 19",
    "#### 18 - 19",
    "#### 9*2",
    "#### 9**2",
    "#### 36/0",
    "#### 18k",
    "#### 18 thousand",
    "#### 1,8",
    "#### 18e400",
    "#### 18e99999999999",
    "#### 1\uff18",
    "#### \uff11\uff18",
    "#### ١٨",
    "#### 18½",
    "#### 18²",
    "#### 0x12",
    "#### __import__('os').getpid()",
    "\\boxed{}, since 18",
    "18 \\boxed{17",
    "\\boxed{18} \\boxed{17}",
    "\\boxed{17, 18}",
    "\\boxed{9 \\cdot 2}",
    "18 of the 20",
    "Section x18",
    "18 #### 17",
    "#### 17 \\boxed{18}",
    "#### 18 " * 200,
    "#### " + "18" * 100,
    "18" + "0" * 60,
    "#### 18 \\boxed{7}, or 17",
]


@pytest.mark.parametrize("output", RIGHT)
def test_right_however_it_is_written(output):
    assert gsm8k.is_correct(output, REFERENCE)


@pytest.mark.parametrize("output", WRONG)
def test_wrong_whatever_it_looks_like(output):
    assert not gsm8k.is_correct(output, REFERENCE)


@pytest.mark.parametrize(
    ("output", "number"),
    [
        ("#### 1,234", 1234),
        ("#### 1,00,000", 100_000),
        ("#### 1{,}234", 1234),
        ("#### 1\\,234\\,567 ", 1_234_567),  # LaTeX's thin space
        ("#### -3", -3),
        ("#### \u22123", -3),
        ("#### \u20133", -3),
        ("#### -$3", -3),
        ("#### $-3", -3),
        ("#### (-3)", -3),
        ("#### 10-3", None),
        ("10-3", 3),
        ("10 -3", -3),
        ("#### .5", Fraction(1, 2)),
        ("#### 1/3", Fraction(1, 3)),
        ("#### -1/3", Fraction(-1, 3)),
        ("#### 3 1/2", Fraction(7, 2)),
        ("#### 1.5 million", 1_500_000),
        ("#### 1e3", 1000),
        ("#### 2.5E-1", Fraction(1, 4)),
        ("#### 1_000", 1),
        ("#### 5,", 5),
        ("#### 12,34", None),
        ("#### 1,2345", None),
        ("#### 12:30", None),
        ("#### 1/2/2020", None),
        ("#### " + "9" * 40, 10**40 - 1),
        ("#### " + "9" * 41, None),
    ],
)
def test_values(output, number):
    assert gsm8k.extract_answer(output) == number


@pytest.mark.parametrize(
    "bulk",
    [
        "7",
        "#",
        "{",
        "\\boxed{",
        "#### ",
        "#### 1 ",
        "1,",
        "1,22,",
        "1 ",
        "1/",
        "1e",
        "-",
        ".",
        "$",
        " ",
        "\n",
        "½",
        "\\frac{",
        "or ",
    ],
)
def test_ten_megabytes_take_less_than_a_second(bulk):
    for text in (bulk * (10_000_000 // len(bulk)), "#### " + bulk * (10_000_000 // len(bulk))):
        start = time.process_time()
        assert not gsm8k.is_correct(text, REFERENCE)
        assert time.process_time() - start < 1


NUMBERS = st.one_of(
    st.integers(-(10**9), 10**9).map(Fraction), st.builds(Fraction, st.integers(-(10**6), 10**6), st.just(100))
)
WAYS = [
    lambda x: f"{x:.2f}",
    lambda x: f"{x:,.2f}",
    lambda x: f"${x:.2f}",
    lambda x: f"{x:.2f}%",
    lambda x: f"{x:.3f} apples",
    lambda x: f"**{x:,.2f}**",
    lambda x: f"{x * 100:.0f}/100",
    lambda x: f"{x * 10:.3f}e-1",
    lambda x: f"{x:.2f}".replace("-", "\u2212"),
    lambda x: f"\\boxed{{{x:.2f}}}",
]
PLACES = ["#### {}", "First 4, then 5.\n#### {}\n", "So the answer is {}", "It is {}, I am sure.", "\\boxed{{{}}} of 7"]


@given(st.data(), NUMBERS, st.sampled_from(WAYS))
def test_one_number_in_many_ways(data, number, way):
    written = way(_exact(number))
    place = data.draw(st.sampled_from(PLACES))
    if "boxed" in written:
        place = "#### {}"
    reference = f"working 1 + 1 = 2\n#### {_exact(number)}"
    assert gsm8k.is_correct(place.format(written), reference)
    other = data.draw(NUMBERS.filter(lambda x: x != number))
    assert not gsm8k.is_correct(place.format(written), f"#### {_exact(other)}")


def _exact(number: Fraction) -> Decimal:
    return Decimal(number.numerator) / Decimal(number.denominator)


@given(st.text(max_size=200))
def test_any_text_gets_a_verdict(text):
    for output in (text, "####" + text, "\\boxed{" + text, text + "#### 3" + text):
        assert gsm8k.is_correct(output, "#### 18") in (True, False)


@given(st.text("0123456789.,-+/e#$ k\\{}\n", max_size=40))
def test_no_text_of_the_alphabet_of_numbers_breaks_it(text):
    number = gsm8k.extract_answer("#### " + text)
    assert number is None or isinstance(number, Fraction)


def test_references():
    assert gsm8k.reference_number("so 3\n#### 1,234") == 1234
    assert gsm8k.reference_number("18") == 18
    for bad in ("", "####", "#### many", "so 18 it is", "#### 1 2", "#### " + "9" * 500):
        with pytest.raises(ValueError, match="reference: wanted '#### number' at its end"):
            gsm8k.is_correct("#### 18", bad)


@there
def test_every_reference_is_accepted_and_its_neighbour_is_not():
    problems = gsm8k.load(DATA) + gsm8k.load(DATA, split="test")
    assert len(problems) == 8792
    for problem in problems:
        answer = problem["answer"]
        number = int(answer.rpartition("####")[2].replace(",", ""))
        assert gsm8k.is_correct(answer, answer)
        assert gsm8k.extract_answer(gsm8k.worked_answer(answer)) == number != gsm8k.extract_answer(f"#### {number + 1}")


# The file


def test_a_problem_becomes_a_prompt_and_its_answer_a_demonstration(tmp_path):
    rows = [
        {"question": f"What is {n} + {n}?", "answer": f"<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}"} for n in range(5)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    world = gsm8k.task(tmp_path)
    texts, answers = world.demonstrations(40, torch.Generator().manual_seed(0))
    assert set(texts) == {gsm8k.prompt(row["question"]) for row in rows}
    assert all("####" in text and text.endswith("\nAnswer:") for text in texts)
    assert set(answers) == {f" {2 * n}\n#### {2 * n}" for n in range(5)}
    assert world.score(texts, answers).tolist() == [1.0] * 40
    assert world.score(texts, ["#### 3"] * 40).sum() == 0
    assert world.prompts(9, torch.Generator().manual_seed(0)) == texts[:9]
    assert len(gsm8k.load(tmp_path / "train.jsonl")) == 5


def test_scores_go_row_by_row():
    score = gsm8k.scorer([{"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "#### 2"}])
    a, b = gsm8k.prompt("a"), gsm8k.prompt("b")
    assert score([a, b, b], ["1", "1", "2"]).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="responses: wanted one for each of 2 prompts, got 1"):
        score([a, b], ["1"])
    with pytest.raises(ValueError, match="prompts: wanted those of the problems given, got 'c'"):
        score(["c"], ["1"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "Expecting property name"),
        ("[1]", "got list"),
        ('{"question": "q"}', "no text under answer"),
        ('{"question": 3, "answer": "#### 3"}', "no text under question"),
        ('{"question": " ", "answer": "#### 3"}', "no text under question"),
        ('{"question": "q", "answer": "3"}', "no #### in the answer"),
        ('{"question": "q", "answer": "#### three"}', "wanted '#### number'"),
        ("", "Expecting value"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "q", "answer": "#### 3"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"mine\.jsonl, line 2: wanted ") as error:
        gsm8k.load(path)
    assert says in str(error.value)


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"path: no file .*train\.jsonl"):
        gsm8k.load(tmp_path)
    with pytest.raises(ValueError, match=r"path: no file .*test\.jsonl"):
        gsm8k.load(tmp_path, split="test")
    (tmp_path / "train.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train\.jsonl: holds no problems"):
        gsm8k.load(tmp_path)
    (tmp_path / "train.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(ValueError, match=r"train\.jsonl, line 1"):
        gsm8k.load(tmp_path)
