"""The digit sum: examples worked by hand, and an independent sum for all the others."""

import pytest
import torch

from minirl.tasks import digit_sum


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_example_worked_by_hand():
    """3+8=11, 11+5=16, 16+2=18, 18+9=27, 27+1=28: last digits 1 6 8 7 8."""
    assert digit_sum.worked_answer("385291=") == "16878:8"
    assert digit_sum.direct_answer("385291=") == ":8"


def test_answers_agree_with_the_sum_of_the_digits():
    for prompt in digit_sum.prompts(200, seeded()):
        digits = [int(d) for d in prompt[:-1]]
        sums = [sum(digits[: i + 1]) % 10 for i in range(1, len(digits))]
        assert digit_sum.worked_answer(prompt) == "".join(map(str, sums)) + f":{sums[-1]}"
        assert digit_sum.direct_answer(prompt) == f":{sum(digits) % 10}"


@pytest.mark.parametrize(
    ("response", "right", "worked"),
    [
        (":8", 1, 0),
        ("16878:8", 1, 1),
        ("16878:7", 0, 1),  # the working is right and the answer is not
        ("99999:8", 1, 0),  # right by other ways
        ("6878:8", 1, 0),
        ("116878:8", 1, 0),
        ("8", 0, 0),  # no colon, no answer
        ("16878", 0, 0),
        ("16878:", 0, 1),
        ("16878:88", 0, 1),
        ("16878:8:", 0, 1),
        (":7:8", 1, 0),  # the last colon counts
        ("", 0, 0),
    ],
)
def test_what_counts_as_right_and_as_worked(response, right, worked):
    assert digit_sum.score(["385291="], [response]).tolist() == [right]
    assert digit_sum.is_worked(["385291="], [response]).tolist() == [worked]


def test_score_goes_row_by_row():
    scores = digit_sum.score(["385291=", "000001=", "385291="], [":1", ":1", ":8"])
    assert scores.dtype == torch.float32 and scores.tolist() == [0, 1, 1]


def test_prompts_are_uniform_digits_and_decided_by_the_generator():
    prompts = digit_sum.prompts(3000, seeded())
    assert all(len(p) == 7 and p[-1] == "=" and p[:-1].isdecimal() for p in prompts)
    counts = [sum(p[0] == d for p in prompts) for d in "0123456789"]
    assert min(counts) > 230 and max(counts) < 370  # 300 each, standard deviation 16
    assert prompts == digit_sum.prompts(3000, seeded())
    assert prompts != digit_sum.prompts(3000, seeded(1))
    assert digit_sum.prompts(0, seeded()) == []
    assert len(digit_sum.prompts(1, seeded(), digits=10)[0]) == 11


def test_examples_are_right_and_worked_as_often_as_asked():
    for share in (0.0, 0.2, 0.8, 1.0):
        prompts, responses = digit_sum.examples(2000, seeded(), worked_share=share)
        assert digit_sum.score(prompts, responses).min() == 1
        worked = digit_sum.is_worked(prompts, responses)
        assert {len(r) for r, w in zip(responses, worked, strict=True) if w} <= {7}
        assert {r[0] for r, w in zip(responses, worked, strict=True) if not w} <= {":"}
        assert abs(worked.mean().item() - share) < 0.04  # standard deviation .009 at most


def test_pretraining_shows_the_skill_and_demonstrations_the_bad_habit():
    for examples, share in ((digit_sum.pretraining_examples, 0.8), (digit_sum.demonstrations, 0.15)):
        prompts, responses = examples(2000, seeded(1))
        assert digit_sum.score(prompts, responses).min() == 1
        assert abs(digit_sum.is_worked(prompts, responses).mean().item() - share) < 0.04


def test_texts_are_made_of_the_tokenizers_characters():
    tokenizer = digit_sum.tokenizer()
    assert tokenizer is digit_sum.tokenizer()
    assert tokenizer.vocab_size == 13
    prompts, responses = digit_sum.examples(100, seeded(), worked_share=0.5, digits=10)
    for prompt, response in zip(prompts, responses, strict=True):
        ids = tokenizer.encode(prompt + response)
        assert len(ids) == len(prompt + response)
        assert tokenizer.decode([*ids, tokenizer.eos_id]) == prompt + response
        assert len(tokenizer.encode(response)) + 1 <= digit_sum.MAX_NEW_TOKENS
    assert tokenizer.encode("$") == [tokenizer.eos_id]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"prompts: wanted digits and an equals sign.*'12'"):
        digit_sum.score(["12"], [":3"])
    with pytest.raises(ValueError, match="responses: wanted one for each of 2 prompts, got 1"):
        digit_sum.score(["12=", "13="], [":3"])
    with pytest.raises(ValueError, match="worked_share"):
        digit_sum.examples(3, seeded(), worked_share=1.5)
    with pytest.raises(ValueError, match="digits"):
        digit_sum.prompts(3, seeded(), digits=1)
