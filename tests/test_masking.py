import math

import pytest
import torch
from batches import GARBAGE, equal, gradient, leaf, masks, normal, packed, random_mask, spoil
from hypothesis import given
from hypothesis import strategies as st

from minirl.masking import (
    blank,
    fixed_length_mean,
    masked_mean,
    masked_sum_over,
    masked_whiten,
    sequence_mean,
    token_mean,
)


def rows_of(x, mask):
    """The counted entries of each row, as lists of scalars: all that a reducer may know."""
    return [[x[b, t] for t in range(x.shape[1]) if mask[b, t]] for b in range(x.shape[0])]


def naive_token_mean(rows):
    entries = [entry for row in rows for entry in row]
    return sum(entries) / len(entries)


def naive_sequence_mean(rows):
    means = [sum(row) / len(row) for row in rows if row]
    return sum(means) / len(means)


def naive_fixed_length_mean(rows):
    return sum(sum(row) for row in rows) / (5 * len(rows))


def naive_sum_over(rows):
    return sum(sum(row) for row in rows) / 11


REDUCERS = {
    "token_mean": (token_mean, naive_token_mean),
    "sequence_mean": (sequence_mean, naive_sequence_mean),
    "fixed_length_mean": (fixed_length_mean(5), naive_fixed_length_mean),
    "masked_sum_over": (masked_sum_over(11), naive_sum_over),
    "masked_mean": (masked_mean, naive_token_mean),
}
reducers = pytest.mark.parametrize("reduce, naive", REDUCERS.values(), ids=REDUCERS)


# Definitions


@reducers
def test_reducers_by_their_definition(reduce, naive):
    for seed in range(5):
        mask, x = random_mask(seed), leaf(normal(seed, 6, 7))
        expected = naive(rows_of(x, mask))
        assert equal(reduce(x, mask), expected)
        assert equal(gradient(reduce(x, mask), x), gradient(expected, x))


@reducers
def test_gradients_of_reducers_by_finite_differences(reduce, naive):
    mask = random_mask(0, 3, 4)
    assert torch.autograd.gradcheck(lambda x: reduce(x, mask), leaf(normal(0, 3, 4)))


def test_reducers_by_hand():
    # counted: 1 and 3 in the first row, 8 in the second, nothing in the third
    x = torch.tensor([[1.0, 3.0, 100.0], [100.0, 8.0, 100.0], [100.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
    assert token_mean(x, mask) == 4  # (1 + 3 + 8) / 3
    assert sequence_mean(x, mask) == 5  # (2 + 8) / 2, the third row left out
    assert fixed_length_mean(2)(x, mask) == 2  # 12 / (3 rows * 2)
    assert fixed_length_mean(1)(x, mask) == 4  # 12 / 3 rows
    assert masked_sum_over(24)(x, mask) == 0.5
    assert masked_sum_over(torch.tensor(24))(x, mask) == 0.5


def test_whitening_by_hand():
    # 1, 3, 5, 7: mean 4, squares of the distances 9 + 1 + 1 + 9, population variance 5
    x = torch.tensor([[1.0, 3.0, -50.0], [50.0, 5.0, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    expected = torch.tensor([[-3.0, -1.0, 0.0], [0.0, 1.0, 3.0]], dtype=torch.float64)
    assert equal(masked_whiten(x, mask, eps=0), expected / math.sqrt(5))
    assert equal(masked_whiten(x, mask, eps=4), expected / 3)  # eps stands under the root


def test_whitening_by_its_definition():
    mask, x = random_mask(0), leaf(normal(0, 6, 7))
    entries = [entry for row in rows_of(x, mask) for entry in row]
    mean = sum(entries) / len(entries)
    variance = sum((entry - mean) ** 2 for entry in entries) / len(entries)
    weights = normal(1, 6, 7)
    whitened = masked_whiten(x, mask, eps=0.3)
    expected = torch.where(mask, (x - mean) / (variance + 0.3) ** 0.5, 0)
    assert equal(whitened, expected)
    assert equal(gradient((whitened * weights).sum(), x), gradient((expected * weights).sum(), x))
    assert torch.autograd.gradcheck(lambda x: masked_whiten(x, mask, eps=0.3), leaf(x))


def test_whitening_standardises_what_counts():
    mask, x = random_mask(1), 100 + 30 * normal(1, 6, 7)
    counted = masked_whiten(x, mask)[mask]
    assert equal(counted.mean(), torch.zeros((), dtype=torch.float64))
    assert equal(counted.var(correction=0), torch.ones((), dtype=torch.float64))
    assert equal(masked_whiten(7 * x - 3, mask), masked_whiten(x, mask))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1000.1, -3e7])
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_whitening_equal_entries_gives_zero(constant, eps):
    mask = random_mask(0)
    x = spoil(torch.full((6, 7), constant), mask, 5.0)
    assert torch.equal(masked_whiten(x, mask, eps=eps), torch.zeros(6, 7))


def test_any_shape_can_be_averaged_and_whitened():
    x, mask = torch.tensor([1.0, 5.0, 9.0]), torch.tensor([True, False, True])
    assert masked_mean(x, mask) == 5
    assert equal(masked_whiten(x, mask), torch.tensor([-1.0, 0.0, 1.0]), 1e-6)


# Identities


def test_all_means_agree_at_equal_lengths():
    x = normal(0, 4, 6)
    mask = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(b)) < 3 for b in range(4)])
    assert equal(token_mean(x, mask), sequence_mean(x, mask))
    assert equal(token_mean(x, mask), fixed_length_mean(3)(x, mask))


def test_a_token_mean_weighs_long_answers_more_and_a_sequence_mean_does_not():
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [-1.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    assert token_mean(x, mask) == 3 / 5 and sequence_mean(x, mask) == 0


def test_over_a_fixed_length_every_counted_token_pulls_alike():
    mask, x = random_mask(0), leaf(normal(0, 6, 7))
    assert equal(gradient(fixed_length_mean(5)(x, mask), x), mask.double() / 30)


def test_micro_batches_add_up_to_the_batch():
    mask, x = random_mask(3), leaf(normal(3, 6, 7))
    whole = token_mean(x, mask)
    reduce = masked_sum_over(int(mask.sum()))
    parts = sum(reduce(x[rows], mask[rows]) for rows in ([0, 1, 2], [3], [4, 5]))
    assert equal(parts, whole)
    assert equal(gradient(parts, x), gradient(whole, x))


@reducers
@given(mask=masks(), order=st.permutations(range(4)), seed=st.integers(0, 99))
def test_the_order_of_rows_does_not_matter(reduce, naive, mask, order, seed):
    x = normal(seed, 4, 5)
    assert equal(reduce(x[order], mask[order]), reduce(x, mask))


def test_a_row_with_nothing_counted_adds_nothing():
    x, mask = normal(0, 3, 4), random_mask(0, 3, 4, empty_row=False)
    longer, empty = torch.cat([x, normal(1, 1, 4)]), torch.cat([mask, torch.zeros(1, 4, dtype=torch.bool)])
    for reduce in (token_mean, sequence_mean, masked_sum_over(9)):
        assert equal(reduce(longer, empty), reduce(x, mask))
    assert equal(fixed_length_mean(5)(longer, empty), fixed_length_mean(5)(x, mask) * 3 / 4)  # counted in B


# Padding


@reducers
@given(mask=masks(), seed=st.integers(0, 99), garbage=st.sampled_from(GARBAGE))
def test_padding_never_reaches_a_mean_or_its_gradient(reduce, naive, mask, seed, garbage):
    x = leaf(normal(seed, 4, 5))
    expected = naive([list(packed(x, mask, b)[0]) for b in range(4)])
    spoiled = spoil(x, mask, garbage)
    assert equal(reduce(spoiled, mask), expected)
    assert equal(gradient(reduce(spoiled, mask), spoiled), gradient(expected, x))


@given(mask=masks(), seed=st.integers(0, 99), garbage=st.sampled_from(GARBAGE))
def test_padding_never_reaches_whitened_numbers_or_their_gradient(mask, seed, garbage):
    x, weights = leaf(normal(seed, 4, 5)), normal(seed + 1, 4, 5)
    spoiled = spoil(x, mask, garbage)
    whitened = masked_whiten(spoiled, mask, eps=0.1)
    alone = masked_whiten(x[mask], torch.ones(int(mask.sum()), dtype=torch.bool), eps=0.1)
    assert equal(whitened[mask], alone)
    assert (whitened[~mask] == 0).all()
    assert equal(gradient((whitened * weights).sum(), spoiled), gradient((alone * weights[mask]).sum(), x))


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_blank_has_no_gradient(garbage):
    mask = random_mask(0)
    x = spoil(leaf(normal(0, 6, 7)), mask, garbage)
    assert torch.equal(blank(x, mask), torch.where(mask, x, 0))
    assert torch.equal(gradient(blank(x, mask).sum(), x), mask.double())
    assert (blank(x, mask, -1.0)[~mask] == -1).all()


# Numerics


@reducers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_averaged_in_float32(reduce, naive, dtype):
    mask, x = random_mask(0), normal(0, 6, 7).to(dtype)
    assert torch.equal(reduce(x, mask), reduce(x.float(), mask))
    assert reduce(x, mask).dtype == torch.float32
    assert torch.equal(masked_whiten(x, mask), masked_whiten(x.float(), mask))


def test_a_long_sum_of_halves_neither_sticks_nor_overflows():
    mask = torch.ones(4, 1000, dtype=torch.bool)
    assert token_mean(torch.ones(4, 1000, dtype=torch.bfloat16), mask) == 1  # in bfloat16, 256 + 1 = 256
    assert sequence_mean(torch.full((4, 1000), 100, dtype=torch.float16), mask) == 100  # in half, 65,504 is the end


@reducers
def test_float64_stays_float64(reduce, naive):
    mask = random_mask(0)
    assert reduce(normal(0, 6, 7), mask).dtype == torch.float64
    assert masked_whiten(normal(0, 6, 7), mask).dtype == torch.float64


# Errors

x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
CALLS = {
    "masked_mean": masked_mean,
    "masked_whiten": masked_whiten,
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "fixed_length_mean": fixed_length_mean(2),
    "masked_sum_over": masked_sum_over(2),
}
BAD_MASKS = {
    "one row": (torch.ones(1, 3, dtype=torch.bool), r"mask: wanted shape \(2, 3\)"),
    "one column": (torch.ones(2, 1, dtype=torch.bool), r"mask: wanted shape \(2, 3\)"),
    "another length": (torch.ones(2, 4, dtype=torch.bool), r"mask: wanted shape \(2, 3\)"),
    "integers": (torch.ones(2, 3, dtype=torch.int64), "mask: wanted a torch.bool"),
    "floats": (torch.ones(2, 3), "mask: wanted a torch.bool"),
    "all False": (torch.zeros(2, 3, dtype=torch.bool), "mask: nothing is counted"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("bad, message", BAD_MASKS.values(), ids=BAD_MASKS)
def test_a_bad_mask_is_refused(call, bad, message, unhooked):
    with pytest.raises(ValueError, match=message):
        call(x, bad)


ERRORS = {
    "token_mean of one row": (lambda: token_mean(x[0], mask[0]), "x: wanted 2 dimensions"),
    "sequence_mean of one row": (lambda: sequence_mean(x[0], mask[0]), "x: wanted 2 dimensions"),
    "fixed_length_mean of one row": (lambda: fixed_length_mean(2)(x[0], mask[0]), "x: wanted 2 dimensions"),
    "masked_sum_over of one row": (lambda: masked_sum_over(2)(x[0], mask[0]), "x: wanted 2 dimensions"),
    "a mask of one dimension": (lambda: token_mean(x, mask[0]), "mask: wanted 2 dimensions"),
    "no rows": (lambda: token_mean(x[:0], mask[:0]), "mask: nothing is counted"),
    "no columns": (lambda: sequence_mean(x[:, :0], mask[:, :0]), "mask: nothing is counted"),
    "length 0": (lambda: fixed_length_mean(0), r"length: wanted .*\[1, inf\), got 0"),
    "denominator 0": (lambda: masked_sum_over(0), r"denominator: wanted .*\(0, inf\), got 0"),
    "denominator nan": (lambda: masked_sum_over(math.nan), "denominator: wanted .*got nan"),
    "denominator a tensor of 0": (lambda: masked_sum_over(torch.tensor(0)), "denominator: wanted .*got 0"),
    "a denominator a row": (
        lambda: masked_sum_over(torch.ones(2)),
        r"denominator: wanted 0 dimensions, got shape \(2,\)",
    ),
    "negative eps": (lambda: masked_whiten(x, mask, eps=-1e-8), "eps: wanted .*got -1e-08"),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS)
def test_bad_input_is_refused_by_name(call, message, unhooked):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
