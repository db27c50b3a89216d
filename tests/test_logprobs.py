import math

import pytest
import torch
from batches import GARBAGE, equal, gradient, leaf, masks, normal, packed, random_mask, spoil
from hypothesis import given
from hypothesis import strategies as st

from minirl.logprobs import average_logprobs, entropy, response_slice, sequence_logprobs, token_logprobs


def tokens_in(vocabulary, seed, *shape):
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def log_softmax(scores):
    """The log-sum written out, over a list of scalars."""
    log_sum = sum(score.exp() for score in scores).log()
    return [score - log_sum for score in scores]


def naive_token_logprobs(logits, tokens):
    rows = [
        [log_softmax(list(at))[token] for at, token in zip(*row, strict=True)]
        for row in zip(logits, tokens, strict=True)
    ]
    return torch.stack([torch.stack(row) for row in rows])


def naive_entropy(logits):
    def at(scores):
        return -sum(logp.exp() * logp for logp in log_softmax(list(scores)))

    return torch.stack([torch.stack([at(scores) for scores in row]) for row in logits])


# Definitions


def test_token_logprobs_by_their_definition():
    logits, tokens, weights = leaf(normal(0, 3, 4, 5)), tokens_in(5, 0, 3, 4), normal(1, 3, 4)
    actual, expected = token_logprobs(logits, tokens), naive_token_logprobs(logits, tokens)
    assert equal(actual, expected)
    assert equal(gradient((actual * weights).sum(), logits), gradient((expected * weights).sum(), logits))


def test_entropy_by_its_definition():
    logits, weights = leaf(3 * normal(0, 3, 4, 5)), normal(1, 3, 4)
    actual, expected = entropy(logits), naive_entropy(logits)
    assert equal(actual, expected)
    assert equal(gradient((actual * weights).sum(), logits), gradient((expected * weights).sum(), logits))


def test_gradients_by_finite_differences():
    logits, tokens, mask = leaf(normal(0, 2, 3, 4)), tokens_in(4, 0, 2, 3), random_mask(0, 3, 4)
    assert torch.autograd.gradcheck(lambda logits: token_logprobs(logits, tokens), logits)
    assert torch.autograd.gradcheck(entropy, logits)
    assert torch.autograd.gradcheck(lambda x: sequence_logprobs(x, mask), leaf(normal(0, 3, 4)))
    assert torch.autograd.gradcheck(lambda x: average_logprobs(x, mask), leaf(normal(0, 3, 4)))


def test_token_logprobs_and_entropy_by_hand():
    # odds 1 : 2 : 5 are probabilities 1/8, 1/4, 5/8; odds 3 : 1 : 0 are 3/4, 1/4 and never
    logits = torch.tensor([[[1.0, 2.0, 5.0], [3.0, 1.0, 0.0]]], dtype=torch.float64).log()
    logp = token_logprobs(logits, torch.tensor([[2, 1]]))
    assert equal(logp, torch.tensor([[math.log(5 / 8), math.log(1 / 4)]], dtype=torch.float64))
    first = math.log(8) / 8 + math.log(4) / 4 - 5 / 8 * math.log(5 / 8)
    second = -3 / 4 * math.log(3 / 4) + math.log(4) / 4  # 0 log 0 = 0
    assert equal(entropy(logits), torch.tensor([[first, second]], dtype=torch.float64))


def test_sequence_logprobs_by_hand():
    logprobs = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, -16.0, -32.0], [-1.0, -1.0, -1.0]])
    mask = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    assert sequence_logprobs(logprobs, mask).tolist() == [-5, -16, 0]  # the sum
    assert average_logprobs(logprobs, mask).tolist() == [-2.5, -16, 0]


def test_each_counted_token_moves_sequence_logprobs_alike():
    logprobs, mask = leaf(normal(0, 6, 7)), random_mask(0)
    assert equal(gradient(sequence_logprobs(logprobs, mask).sum(), logprobs), mask.double())


# Alignment


def test_the_response_slice_starts_one_before_the_response_and_ends_one_before_its_end():
    # p0 p1 p2 r0 r1: r0 is predicted at p2, r1 at r0
    positions = torch.arange(5.0).expand(2, 5)
    assert response_slice(positions, 2).tolist() == [[2, 3], [2, 3]]
    assert response_slice(positions, 4).tolist() == [[0, 1, 2, 3]] * 2
    assert torch.equal(response_slice(normal(0, 2, 5, 3), 1), normal(0, 2, 5, 3)[:, 3:4])


def test_the_response_slice_hands_gradients_to_the_positions_it_keeps_and_no_other():
    logits = leaf(normal(0, 2, 5, 3))
    kept = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0]).view(1, 5, 1).expand(2, 5, 3).double()
    assert equal(gradient(response_slice(logits, 2).sum(), logits), kept)


def test_sliced_logits_predict_the_response_they_are_gathered_with():
    # a model that is sure of the next token at every position
    tokens = tokens_in(6, 0, 3, 8)
    logits = torch.zeros(3, 8, 6).scatter(-1, tokens.roll(-1, dims=1).unsqueeze(-1), 50.0)
    for length in (1, 4, 7):
        assert equal(token_logprobs(response_slice(logits, length), tokens[:, -length:]), torch.zeros(3, length), 1e-6)


# Identities


def test_logprobs_are_those_of_a_distribution():
    logits = normal(0, 1, 1, 5)
    every_token = torch.cat([token_logprobs(logits, torch.tensor([[token]])) for token in range(5)])
    assert equal(every_token.exp().sum(), torch.ones((), dtype=torch.float64))
    assert equal(entropy(logits), -(every_token.exp() * every_token).sum().view(1, 1))


def test_adding_a_constant_to_the_logits_changes_nothing():
    logits, tokens = normal(0, 2, 3, 4), tokens_in(4, 0, 2, 3)
    assert equal(token_logprobs(logits + 7, tokens), token_logprobs(logits, tokens))
    assert equal(entropy(logits - 7), entropy(logits))


def test_entropy_is_log_v_for_equal_logits_and_zero_for_a_certain_token():
    assert equal(entropy(torch.full((2, 3, 5), 4.0)), torch.full((2, 3), math.log(5)), 1e-6)
    assert (entropy(torch.tensor([[[0.0, 1000.0, -1000.0]]])) == 0).all()


def test_impossible_tokens_add_nothing_to_the_entropy_or_its_gradient():
    possible = leaf(normal(0, 2, 3, 4))
    logits = leaf(torch.cat([possible, torch.full((2, 3, 2), -torch.inf, dtype=torch.float64)], dim=-1))
    assert equal(entropy(logits), entropy(possible))
    expected = torch.cat([gradient(entropy(possible).sum(), possible), torch.zeros(2, 3, 2, dtype=torch.float64)], -1)
    assert equal(gradient(entropy(logits).sum(), logits), expected)


def test_the_order_of_rows_does_not_matter():
    logits, tokens, order = normal(0, 4, 3, 5), tokens_in(5, 0, 4, 3), [2, 0, 3, 1]
    assert equal(token_logprobs(logits[order], tokens[order]), token_logprobs(logits, tokens)[order])
    assert equal(entropy(logits[order]), entropy(logits)[order])


# Padding


@given(mask=masks(), seed=st.integers(0, 99), garbage=st.sampled_from(GARBAGE))
def test_padding_never_reaches_a_sequence_logprob_or_its_gradient(mask, seed, garbage):
    logprobs, weights = leaf(normal(seed, 4, 5)), normal(seed + 1, 4)
    spoiled = spoil(logprobs, mask, garbage)
    alone = torch.stack([packed(logprobs, mask, b).sum() for b in range(4)])
    lengths = mask.sum(1).clamp(min=1)
    for actual, expected in [
        (sequence_logprobs(spoiled, mask), alone),
        (average_logprobs(spoiled, mask), alone / lengths),
    ]:
        assert equal(actual, expected)
        assert equal(gradient((actual * weights).sum(), spoiled), gradient((expected * weights).sum(), logprobs))


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_one_position_of_the_logits_stays_there(garbage):
    logits, tokens = normal(0, 2, 3, 4), tokens_in(4, 0, 2, 3)
    spoiled = logits.clone()
    spoiled[0, 1] = garbage
    elsewhere = torch.tensor([[True, False, True], [True, True, True]])
    assert torch.equal(token_logprobs(spoiled, tokens)[elsewhere], token_logprobs(logits, tokens)[elsewhere])
    assert torch.equal(entropy(spoiled)[elsewhere], entropy(logits)[elsewhere])


# Numerics


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_logprob_is_never_above_zero(scale, dtype):
    logits = (scale * normal(0, 50, 20, 30)).to(dtype)
    for tokens in (tokens_in(30, 0, 50, 20), logits.argmax(-1)):
        logp = token_logprobs(logits, tokens)
        assert (logp <= 0).all() and logp.isfinite().all()


def test_large_logits_lose_nothing():
    logits = torch.tensor([[[1e4, 1e4 - 1, -1e4]]])
    expected = -math.log(1 + math.exp(-1))
    assert equal(token_logprobs(logits, torch.tensor([[0]])), torch.tensor([[expected]]), 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_compute_in_float32(dtype):
    logits, tokens, mask = normal(0, 6, 7, 5).to(dtype), tokens_in(5, 0, 6, 7), random_mask(0)
    logprobs = -normal(1, 6, 7).abs().to(dtype)
    for function, x, *rest in [
        (token_logprobs, logits, tokens),
        (entropy, logits),
        (sequence_logprobs, logprobs, mask),
        (average_logprobs, logprobs, mask),
    ]:
        assert function(x, *rest).dtype == torch.float32
        assert torch.equal(function(x, *rest), function(x.float(), *rest)), function.__name__


def test_a_long_sequence_of_halves_is_summed_in_float32():
    logprobs = torch.full((1, 1000), -1.0, dtype=torch.bfloat16)
    assert sequence_logprobs(logprobs, torch.ones(1, 1000, dtype=torch.bool)) == -1000  # in bfloat16, 256 + 1 = 256


def test_tokens_may_be_of_any_integer_type():
    logits, tokens = normal(0, 2, 3, 4), tokens_in(4, 0, 2, 3)
    for dtype in (torch.int32, torch.int16):
        assert torch.equal(token_logprobs(logits, tokens.to(dtype)), token_logprobs(logits, tokens))


# Errors

logits, tokens = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64)
x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
ERRORS = {
    "logits of two dimensions": (lambda: token_logprobs(x, tokens), "logits: wanted 3 dimensions"),
    "tokens of a row": (lambda: token_logprobs(logits, tokens[0]), r"tokens: wanted shape \(2, 3\).*got \(3,\)"),
    "unsliced tokens": (lambda: token_logprobs(logits, tokens[:, :2]), r"tokens: wanted shape \(2, 3\).*got \(2, 2\)"),
    "labels of -100": (lambda: token_logprobs(logits, tokens - 100), r"tokens: wanted ids in \[0, 5\), got -100"),
    "a token past the vocabulary": (
        lambda: token_logprobs(logits, tokens + 5),
        r"tokens: wanted ids in \[0, 5\), got 5",
    ),
    "entropy of two dimensions": (lambda: entropy(x), "logits: wanted 3 dimensions"),
    "slice of length 0": (lambda: response_slice(x, 0), "length: wanted .* got 0"),
    "slice without a prompt": (lambda: response_slice(x, 3), r"x: wanted .* at least 4 positions.*got \(2, 3\)"),
    "slice of one dimension": (lambda: response_slice(x[0], 1), r"x: wanted .* got \(3,\)"),
    "sum of one row": (lambda: sequence_logprobs(x[0], mask), "logprobs: wanted 2 dimensions"),
    "sum under another mask": (lambda: sequence_logprobs(x, mask[:, :2]), r"mask: wanted shape \(2, 3\)"),
    "sum under a mask of one row": (lambda: sequence_logprobs(x, mask[:1]), r"mask: wanted shape \(2, 3\)"),
    "sum under integers": (lambda: sequence_logprobs(x, mask.long()), "mask: wanted a torch.bool"),
    "sum of nothing": (lambda: sequence_logprobs(x, ~mask), "mask: nothing is counted"),
    "average of nothing": (lambda: average_logprobs(x, ~mask), "mask: nothing is counted"),
    "sum of no rows": (lambda: sequence_logprobs(x[:0], mask[:0]), "mask: nothing is counted"),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS)
def test_bad_input_is_refused_by_name(call, message, unhooked):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_one_bad_token_is_named():
    one_bad = tokens.clone()
    one_bad[1, 2] = 7
    with pytest.raises(ValueError, match=r"^tokens: wanted ids in \[0, 5\), got 7 "):
        token_logprobs(logits, one_bad)


def test_tokens_with_a_fraction_are_refused(unhooked):
    with pytest.raises(ValueError, match=r"^tokens: wanted whole numbers, got torch.float32"):
        token_logprobs(logits, tokens.float())
