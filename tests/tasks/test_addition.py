"""Addition: an example worked by hand, Python's own sum for all the others, and what no longer counts as right."""

import re

import pytest
import torch

from minirl.tasks import addition


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_example_worked_by_hand():
    """7 + 9 = 16, carry 1; 5 + 8 + 1 = 14, carry 1; 4 + 3 + 1 = 8: 846."""
    assert addition.worked_answer("457+389=") == "7+9+0=16,5+8+1=14,4+3+1=08:0846"
    assert addition.direct_answer("457+389=") == ":0846"
    assert addition.worked_answer("999+001=") == "9+1+0=10,9+0+1=10,9+0+1=10:1000"


@pytest.mark.parametrize("digits", [1, 2, 3, 4])
def test_the_working_is_true_line_by_line_and_spells_the_sum(digits):
    for prompt in addition.prompts(200, seeded(), digits=digits):
        a, b = prompt[:-1].split("+")
        total = int(a) + int(b)
        assert int(addition.direct_answer(prompt)[1:]) == total
        working, answer = addition.worked_answer(prompt).split(":")
        assert len(answer) == digits + 1 and int(answer) == total
        columns = [re.fullmatch(r"(\d)\+(\d)\+(\d)=(\d)(\d)", column).groups() for column in working.split(",")]
        for x, y, carry, tens, ones in columns:
            assert int(x) + int(y) + int(carry) == 10 * int(tens) + int(ones)
        assert "".join(column[0] for column in columns) == a[::-1]
        assert "".join(column[1] for column in columns) == b[::-1]
        assert [column[2] for column in columns] == ["0"] + [column[3] for column in columns[:-1]]
        assert columns[-1][3] + "".join(column[4] for column in reversed(columns)) == answer


@pytest.mark.parametrize(
    ("response", "right", "worked"),
    [
        (":0846", 1, 0),
        ("7+9+0=16,5+8+1=14,4+3+1=08:0846", 1, 1),
        ("7+9+0=16,5+8+1=14,4+3+1=08:0847", 0, 1),  # the working is right and the answer is not
        ("7+9+0=16,5+8+1=14,4+3+1=08:", 0, 1),
        ("7+9+0=15,5+8+1=14,4+3+1=08:0846", 1, 0),  # right by other ways
        ("5+8+1=14,4+3+1=08:0846", 1, 0),
        ("7+9+0=16,5+8+1=14,4+3+1=080846", 0, 0),  # no colon
        (":846", 0, 0),  # one width, so that there is one right answer
        (":00846", 0, 0),
        (":0846:", 0, 0),
        (":0845:0846", 1, 0),  # the last colon counts
        (":+846", 0, 0),
        (": 0846", 0, 0),
        (":٠٨٤٦", 0, 0),
        ("0846", 0, 0),
        ("", 0, 0),
        (":" * 10_000, 0, 0),
    ],
)
def test_what_counts_as_right_and_as_worked(response, right, worked):
    assert addition.score(["457+389="], [response]).tolist() == [right]
    assert addition.is_worked(["457+389="], [response]).tolist() == [worked]


def test_score_goes_row_by_row():
    scores = addition.score(["457+389=", "000+001=", "457+389="], [":0001", ":0001", ":0846"])
    assert scores.dtype == torch.float32 and scores.tolist() == [0, 1, 1]


def test_prompts_are_uniform_digits_and_decided_by_the_generator():
    prompts = addition.prompts(3000, seeded())
    assert all(re.fullmatch("[0-9]{3}[+][0-9]{3}=", p) for p in prompts)
    for place in (0, 2, 4, 6):
        counts = [sum(p[place] == d for p in prompts) for d in "0123456789"]
        assert min(counts) > 230 and max(counts) < 370  # 300 each, standard deviation 16
    assert prompts == addition.prompts(3000, seeded())
    assert prompts != addition.prompts(3000, seeded(1))
    assert addition.prompts(0, seeded()) == []


def test_pretraining_shows_the_skill_and_demonstrations_the_bad_habit():
    for examples, share in ((addition.pretraining_examples, 0.8), (addition.demonstrations, 0.15)):
        prompts, responses = examples(2000, seeded(1))
        assert addition.score(prompts, responses).min() == 1
        worked = addition.is_worked(prompts, responses)
        assert abs(worked.mean().item() - share) < 0.04  # standard deviation .009 at most
        assert {r[0] for r, w in zip(responses, worked, strict=True) if not w} == {":"}


def test_texts_are_made_of_the_tokenizers_characters_and_fit():
    tokenizer = addition.tokenizer()
    assert tokenizer is addition.tokenizer()
    for digits in (3, 4):
        prompts, responses = addition.examples(100, seeded(), worked_share=0.5, digits=digits)
        for prompt, response in zip(prompts, responses, strict=True):
            ids = tokenizer.encode(prompt + response)
            assert len(ids) == len(prompt + response) < 64
            assert tokenizer.decode([*ids, tokenizer.eos_id]) == prompt + response
            assert digits == 4 or len(tokenizer.encode(response)) + 1 <= addition.MAX_NEW_TOKENS


def test_bad_input_is_named():
    for prompt in ("12", "12+3=", "12345+12345=", "1+1", "٣+٣=", "1+1=\n"):
        with pytest.raises(ValueError, match="prompts: wanted two numbers of equally many digits"):
            addition.score([prompt], [":3"])
    with pytest.raises(ValueError, match="responses: wanted one for each of 2 prompts, got 1"):
        addition.score(["12+12=", "13+13="], [":3"])
    with pytest.raises(ValueError, match="worked_share"):
        addition.examples(3, seeded(), worked_share=1.5)
    for digits in (0, 5):
        with pytest.raises(ValueError, match="digits"):
            addition.prompts(3, seeded(), digits=digits)
