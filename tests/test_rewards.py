import math

import pytest
import torch
from batches import GARBAGE, equal, gradient, leaf, normal, random_mask, spoil
from hypothesis import given
from hypothesis import strategies as st

from minirl.advantages import discounted_returns
from minirl.kl import kl_k1
from minirl.rewards import format_bonus, kl_shaped_rewards, language_bonus, length_penalty, missing_eos_penalty


def masks_without_empty_rows(rows=4, length=5):
    row = st.lists(st.booleans(), min_size=length, max_size=length).filter(any)
    return st.lists(row, min_size=rows, max_size=rows).map(torch.tensor)


# KL-shaped rewards


def naive_kl_shaped_rewards(scores, kl, mask, kl_coef):
    rewards = torch.zeros_like(kl)
    for b in range(len(mask)):
        counted = [t for t in range(mask.shape[1]) if mask[b, t]]
        for t in counted:
            rewards[b, t] = -kl_coef * kl[b, t] + (scores[b] if t == counted[-1] else 0)
    return rewards


@given(mask=masks_without_empty_rows(), seed=st.integers(0, 99), garbage=st.sampled_from(GARBAGE))
def test_shaped_rewards_by_their_definition_whatever_the_padding_holds(mask, seed, garbage):
    scores, kl, weights = leaf(normal(seed, 4)), leaf(normal(seed + 1, 4, 5)), normal(seed + 2, 4, 5)
    spoiled = spoil(kl, mask, garbage)
    actual = kl_shaped_rewards(scores, spoiled, mask, kl_coef=0.3)
    expected = naive_kl_shaped_rewards(scores, kl, mask, 0.3)
    assert equal(actual, expected)  # 0 at padding
    assert equal(gradient((actual * weights).sum(), spoiled), gradient((expected * weights).sum(), kl))
    assert equal(gradient((actual * weights).sum(), scores), gradient((expected * weights).sum(), scores))


def test_shaped_rewards_gradients_by_finite_differences():
    mask = random_mask(0, 3, 4, empty_row=False)
    inputs = leaf(normal(0, 3)), leaf(normal(1, 3, 4))
    assert torch.autograd.gradcheck(lambda scores, kl: kl_shaped_rewards(scores, kl, mask, kl_coef=0.3), inputs)


def test_shaped_rewards_by_hand():
    # a finished row, a truncated one, one with a gap before its last token
    kl = torch.tensor([[2.0, 4.0, 99.0], [2.0, -4.0, 6.0], [2.0, 99.0, 4.0]])
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, True]])
    rewards = kl_shaped_rewards(torch.tensor([10.0, 20.0, 30.0]), kl, mask, kl_coef=0.5)
    assert rewards.tolist() == [[-1, 8, 0], [-1, 2, 17], [-1, 0, 28]]


def test_the_rewards_of_a_row_sum_to_the_objective():
    mask, scores = random_mask(0, empty_row=False), normal(0, 6)
    logprobs, ref_logprobs = -normal(1, 6, 7).abs(), -normal(2, 6, 7).abs()
    rewards = kl_shaped_rewards(scores, kl_k1(logprobs, ref_logprobs), mask, kl_coef=0.3)
    for b in range(6):
        log_ratio = logprobs[b][mask[b]].sum() - ref_logprobs[b][mask[b]].sum()
        assert equal(rewards[b].sum(), scores[b] - 0.3 * log_ratio)
    returns = discounted_returns(rewards, mask, gamma=1)
    first = mask.int().argmax(1, keepdim=True)
    assert equal(returns.gather(1, first).squeeze(1), rewards.sum(1))


def test_without_kl_only_the_last_counted_token_is_paid():
    mask, scores = random_mask(1, empty_row=False), 5 + normal(0, 6).abs()
    rewards = kl_shaped_rewards(scores, normal(1, 6, 7), mask, kl_coef=0)
    assert (rewards != 0).sum(1).tolist() == [1] * 6
    for b in range(6):
        assert rewards[b, mask[b].nonzero().max()] == scores[b]


def test_an_empty_row_is_refused_because_its_score_would_vanish(unhooked):
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    with pytest.raises(ValueError, match=r"^mask: row 2 has nothing counted"):
        kl_shaped_rewards(torch.zeros(3), torch.zeros(3, 2), mask, kl_coef=0.1)


# Rules


def test_a_response_that_never_ended_pays_the_penalty():
    scores, finished = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, True])
    assert missing_eos_penalty(scores, finished, penalty=0.5).tolist() == [1, 1.5, 3]


def test_length_is_charged_beyond_the_free_length():
    mask = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
    scores = torch.tensor([1.0, 2.0, 3.0])
    assert length_penalty(scores, mask, coef=0.5).tolist() == [-0.5, 1, 3]
    assert length_penalty(scores, mask, coef=0.5, free_length=2).tolist() == [0.5, 2, 3]
    assert length_penalty(scores, mask, coef=-0.5, free_length=1).tolist() == [2, 2.5, 3]  # pays for thinking


def test_rules_compute_in_the_precision_of_the_scores():
    scores, mask = torch.zeros(1, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    assert equal(length_penalty(scores, mask, coef=0.1), torch.tensor([-0.3], dtype=torch.float64), 1e-15)
    a_third = language_bonus(scores, ["a b c"], words={"a"}, bonus=0.1)
    assert equal(a_third, torch.tensor([0.1 / 3], dtype=torch.float64), 1e-15)


def test_the_format_has_to_match_as_a_whole():
    responses = ["<a>1</a>", "well: <a>1</a>", "<a>1</a>.", "<a>two\nlines</a>", "", "<A>1</A>"]
    scores = torch.arange(6.0)
    bonus = format_bonus(scores, responses, pattern=r"<a>.*</a>", bonus=0.5) - scores
    assert bonus.tolist() == [0.5, 0, 0, 0.5, 0, 0]
    assert format_bonus(scores, responses, pattern=r"<a>.*</a>").tolist() == [1, 1, 2, 4, 4, 5]


def test_the_language_bonus_is_the_share_of_words():
    responses = ["The cat", "the, gato!", "el gato", "", "42 the the the"]
    bonus = language_bonus(torch.zeros(5), responses, words={"the", "cat"}, bonus=2)
    assert bonus.tolist() == [2, 1, 0, 0, 1.5]
    assert language_bonus(torch.ones(5), responses, words={"the", "cat"}).tolist() == [2, 1.5, 1, 1, 1.75]


def test_rules_compose():
    scores, finished = torch.tensor([1.0, 2.0]), torch.tensor([True, False])
    mask, responses = torch.tensor([[True, False], [True, True]]), ["yes", "no no"]
    paid = missing_eos_penalty(length_penalty(scores, mask, coef=0.25), finished, penalty=1)
    paid = language_bonus(format_bonus(paid, responses, pattern="yes"), responses, words={"no"}, bonus=4)
    # 1 - 0.25 - 0 + 1 + 0,   2 - 0.5 - 1 + 0 + 4
    assert paid.tolist() == [1.75, 4.5]


# Numerics

RULES = {
    "kl_shaped_rewards": lambda scores: kl_shaped_rewards(
        scores, normal(1, 6, 7).to(scores.dtype), random_mask(0, empty_row=False), kl_coef=0.3
    ),
    "missing_eos_penalty": lambda scores: missing_eos_penalty(scores, random_mask(0)[:, 3], penalty=0.3),
    "length_penalty": lambda scores: length_penalty(scores, random_mask(0), coef=0.3),
    "format_bonus": lambda scores: format_bonus(scores, ["a", "b"] * 3, pattern="a", bonus=0.3),
    "language_bonus": lambda scores: language_bonus(scores, ["a b c", "b"] * 3, words={"a"}, bonus=0.3),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_halves_compute_in_float32_and_float64_stays(rule):
    scores = normal(0, 6)
    for dtype in (torch.bfloat16, torch.float16):
        assert rule(scores.to(dtype)).dtype == torch.float32
    assert rule(scores).dtype == torch.float64
    assert equal(rule(scores).float(), rule(scores.float()), 1e-6)


def test_half_scores_and_kl_are_rounded_once():
    mask, scores, kl = random_mask(0, empty_row=False), normal(0, 6).bfloat16(), normal(1, 6, 7).bfloat16()
    rewards = kl_shaped_rewards(scores, kl, mask, kl_coef=0.3)
    assert torch.equal(rewards, kl_shaped_rewards(scores.float(), kl.float(), mask, kl_coef=0.3))


# Errors

x, row, mask = torch.zeros(4, 3), torch.zeros(4), torch.ones(4, 3, dtype=torch.bool)
nan, texts, flags = torch.full((4,), math.nan), ["a"] * 4, torch.ones(4, dtype=torch.bool)
ERRORS = {
    "shaped: scores (B, T)": (
        lambda: kl_shaped_rewards(x, x, mask, kl_coef=0),
        r"scores: wanted .*\(4,\), got \(4, 3\)",
    ),
    "shaped: one score": (
        lambda: kl_shaped_rewards(row[:1], x, mask, kl_coef=0),
        r"scores: wanted .*\(4,\), got \(1,\)",
    ),
    "shaped: kl (B,)": (lambda: kl_shaped_rewards(row, row, mask, kl_coef=0), "kl: wanted 2 dimensions"),
    "shaped: another mask": (lambda: kl_shaped_rewards(row, x, mask[:, :2], kl_coef=0), r"mask: wanted shape \(4, 3\)"),
    "shaped: integers": (lambda: kl_shaped_rewards(row, x, mask.long(), kl_coef=0), "mask: wanted a torch.bool"),
    "shaped: all False": (lambda: kl_shaped_rewards(row, x, ~mask, kl_coef=0), "mask: nothing is counted"),
    "shaped: no rows": (lambda: kl_shaped_rewards(row[:0], x[:0], mask[:0], kl_coef=0), "mask: nothing is counted"),
    "shaped: nan scores": (lambda: kl_shaped_rewards(nan, x, mask, kl_coef=0), "scores: wanted finite"),
    "shaped: nan kl": (lambda: kl_shaped_rewards(row, x + math.nan, mask, kl_coef=0), "kl: wanted finite"),
    "shaped: negative kl_coef": (
        lambda: kl_shaped_rewards(row, x, mask, kl_coef=-1),
        r"kl_coef: wanted .*\[0, inf\), got -1",
    ),
    "eos: scores (B, T)": (lambda: missing_eos_penalty(x, flags, penalty=1), "scores: wanted 1 dimension"),
    "eos: one flag": (lambda: missing_eos_penalty(row, flags[:1], penalty=1), r"finished: wanted .*\(4,\), got \(1,\)"),
    "eos: integers": (lambda: missing_eos_penalty(row, flags.long(), penalty=1), "finished: wanted a torch.bool"),
    "eos: nan": (lambda: missing_eos_penalty(nan, flags, penalty=1), "scores: wanted finite"),
    "eos: negative penalty": (lambda: missing_eos_penalty(row, flags, penalty=-1), "penalty: wanted"),
    "length: scores (B, T)": (lambda: length_penalty(x, mask, coef=1), "scores: wanted 1 dimension"),
    "length: one score": (lambda: length_penalty(row[:1], mask, coef=1), "scores: wanted one number a row"),
    "length: mask (B,)": (lambda: length_penalty(row, flags, coef=1), "mask: wanted 2 dimensions"),
    "length: integers": (lambda: length_penalty(row, mask.long(), coef=1), "mask: wanted a torch.bool"),
    "length: all False": (lambda: length_penalty(row, ~mask, coef=1), "mask: nothing is counted"),
    "length: nan": (lambda: length_penalty(nan, mask, coef=1), "scores: wanted finite"),
    "length: coef nan": (lambda: length_penalty(row, mask, coef=math.nan), "coef: wanted"),
    "length: negative free_length": (lambda: length_penalty(row, mask, coef=1, free_length=-1), "free_length: wanted"),
    "format: too few responses": (
        lambda: format_bonus(row, texts[:3], pattern="a"),
        "responses: wanted one a score, 4, got 3",
    ),
    "format: scores (B, T)": (lambda: format_bonus(x, texts, pattern="a"), "scores: wanted 1 dimension"),
    "format: nan": (lambda: format_bonus(nan, texts, pattern="a"), "scores: wanted finite"),
    "format: infinite bonus": (lambda: format_bonus(row, texts, pattern="a", bonus=math.inf), "bonus: wanted"),
    "language: too many responses": (
        lambda: language_bonus(row[:3], texts, words={"a"}),
        "responses: wanted one a score, 3, got 4",
    ),
    "language: nan": (lambda: language_bonus(nan, texts, words={"a"}), "scores: wanted finite"),
    "language: bonus nan": (lambda: language_bonus(row, texts, words={"a"}, bonus=math.nan), "bonus: wanted"),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS)
def test_bad_input_is_refused_by_name(call, message, unhooked):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_scores_may_be_more_precise_than_the_kl():
    scores, kl = torch.tensor([1.5], dtype=torch.float64), torch.tensor([[0.5, 0.25]])
    rewards = kl_shaped_rewards(scores, kl, torch.ones(1, 2, dtype=torch.bool), kl_coef=1.0)
    assert rewards.dtype == torch.float32 and rewards.tolist() == [[-0.5, 1.25]]


def test_a_response_of_one_word_earns_the_whole_bonus():
    assert language_bonus(torch.zeros(1), ["yes"], words={"yes"}, bonus=0.5).item() == 0.5
