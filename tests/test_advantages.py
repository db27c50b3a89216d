import itertools
import math

import pytest
import torch
from batches import GARBAGE, equal, gradient, leaf, masks, normal, random_mask, spoil
from hypothesis import given
from hypothesis import strategies as st

from minirl.advantages import (
    discounted_returns,
    exponential_weights,
    gae,
    group_centered_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
    top_fraction,
)


def naive_returns(rewards, gamma):
    """Over one packed row."""
    return [sum(gamma ** (s - t) * rewards[s] for s in range(t, len(rewards))) for t in range(len(rewards))]


def naive_gae(rewards, values, last_value, gamma, lam):
    """The O(T^2) sum over one packed row: A_t = sum over l of (gamma lam)^l delta_{t+l}."""
    ahead = [*values[1:], last_value]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, ahead, strict=True)]
    return [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(deltas))) for t in range(len(deltas))]


def unpacked(rows, mask):
    """The entries of the packed rows at the counted positions of each row, 0 elsewhere."""
    out = [[torch.zeros((), dtype=torch.float64) for _ in range(mask.shape[1])] for _ in range(mask.shape[0])]
    for b, row in enumerate(rows):
        for position, entry in zip(mask[b].nonzero().flatten().tolist(), row, strict=True):
            out[b][position] = entry
    return torch.stack([torch.stack(row) for row in out])


def naive_gae_batch(rewards, values, mask, last_values, gamma, lam):
    rows = [
        naive_gae(list(rewards[b][mask[b]]), list(values[b][mask[b]]), last_values[b], gamma, lam)
        if mask[b].any()
        else []
        for b in range(len(mask))
    ]
    advantages = unpacked(rows, mask)
    return advantages, advantages + torch.where(mask, values, 0)


full = torch.ones(4, 6, dtype=torch.bool)


# Discounted returns


@pytest.mark.parametrize("gamma", [0.0, 0.7, 1.0])
def test_returns_by_their_definition(gamma):
    mask, rewards, weights = random_mask(0), leaf(normal(0, 6, 7)), normal(1, 6, 7)
    actual = discounted_returns(rewards, mask, gamma=gamma)
    expected = unpacked([naive_returns(list(rewards[b][mask[b]]), gamma) for b in range(6)], mask)
    assert equal(actual, expected)
    assert equal(gradient((actual * weights).sum(), rewards), gradient((expected * weights).sum(), rewards))


def test_returns_by_hand():
    # backwards over 4, 2, 1: 4, then 2 + 4/2 = 4, then 1 + 4/2 = 3; the gap is stepped over and costs no discount
    rewards = torch.tensor([[1.0, 2.0, 99.0, 4.0, 99.0]])
    mask = torch.tensor([[True, True, False, True, False]])
    assert discounted_returns(rewards, mask, gamma=0.5).tolist() == [[3, 4, 0, 4, 0]]


def test_undiscounted_returns_are_what_is_still_to_come():
    rewards = normal(0, 4, 6)
    returns = discounted_returns(rewards, full, gamma=1)
    assert equal(returns[:, 0], rewards.sum(1))
    assert equal(returns[:, 4], rewards[:, 4] + rewards[:, 5])
    assert equal(discounted_returns(rewards, full, gamma=0), rewards)


# Generalised advantage estimation


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (0.5, 0.9), (1.0, 1.0), (0.8, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("cut_off", [False, True])
def test_gae_by_its_definition(gamma, lam, cut_off):
    mask, weights = random_mask(1), normal(3, 6, 7)
    rewards, values, last_values = leaf(normal(0, 6, 7)), leaf(normal(1, 6, 7)), leaf(normal(2, 6))
    after = last_values if cut_off else torch.zeros(6, dtype=torch.float64)
    actual = gae(rewards, values, mask, gamma=gamma, lam=lam, last_values=last_values if cut_off else None)
    expected = naive_gae_batch(rewards, values, mask, after, gamma, lam)
    for got, wanted in zip(actual, expected, strict=True):
        assert equal(got, wanted)
        for x in (rewards, values, last_values) if cut_off else (rewards, values):
            assert equal(gradient((got * weights).sum(), x), gradient((wanted * weights).sum(), x))


def test_gae_gradients_by_finite_differences():
    mask = random_mask(0, 3, 4)
    inputs = leaf(normal(0, 3, 4)), leaf(normal(1, 3, 4)), leaf(normal(2, 3))
    assert torch.autograd.gradcheck(lambda r, v, last: gae(r, v, mask, gamma=0.9, lam=0.8, last_values=last), inputs)
    assert torch.autograd.gradcheck(lambda r: discounted_returns(r, mask, gamma=0.9), inputs[0])


def test_gae_by_hand():
    # gamma 1/2, lam 1/2, values 2, 4, 8, and 16 after the end
    # delta: 1 + 2 - 2 = 1,   0 + 4 - 4 = 0,   8 + 8 - 8 = 8
    # A:     8,   0 + 8/4 = 2,   1 + 2/4 = 1.5      (from the right)
    rewards = torch.tensor([[1.0, 0.0, 8.0]])
    values = torch.tensor([[2.0, 4.0, 8.0]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5, last_values=torch.tensor([16.0]))
    assert advantages.tolist() == [[1.5, 2, 8]]
    assert returns.tolist() == [[3.5, 6, 16]]
    # with nothing after the end the last delta is 8 + 0 - 8 = 0
    assert gae(rewards, values, mask, gamma=0.5, lam=0.5)[0].tolist() == [[1, 0, 0]]


def test_the_defaults_are_those_of_text():
    rewards, values = normal(0, 4, 6), normal(1, 4, 6)
    nothing = torch.zeros(4, dtype=torch.float64)
    assert equal(gae(rewards, values, full), naive_gae_batch(rewards, values, full, nothing, 1.0, 0.95))


def test_lam_0_is_the_td_error():
    rewards, values = normal(0, 4, 6), normal(1, 4, 6)
    next_values = torch.cat([values[:, 1:], torch.zeros(4, 1)], dim=1)
    assert equal(gae(rewards, values, full, gamma=0.9, lam=0)[0], rewards + 0.9 * next_values - values)


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_lam_1_is_the_return_minus_the_value(gamma):
    mask, rewards, values = random_mask(2), normal(0, 6, 7), normal(1, 6, 7)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=1)
    expected = unpacked([naive_returns(list(rewards[b][mask[b]]), gamma) for b in range(6)], mask)
    assert equal(returns, expected)
    assert equal(advantages, expected - torch.where(mask, values, 0))


def test_a_perfect_critic_leaves_no_advantage():
    rewards = normal(0, 4, 6)
    values = discounted_returns(rewards, full, gamma=0.9)
    for lam in (0.0, 0.5, 1.0):
        advantages, returns = gae(rewards, values, full, gamma=0.9, lam=lam)
        assert equal(advantages, torch.zeros(4, 6, dtype=torch.float64))
        assert equal(returns, values)


def test_the_last_value_stands_for_the_rest_of_an_episode():
    rewards, values = normal(0, 4, 6), normal(1, 4, 6)
    whole, _ = gae(rewards, values, full, gamma=0.9, lam=0.0)
    first, _ = gae(rewards[:, :3], values[:, :3], full[:, :3], gamma=0.9, lam=0.0, last_values=values[:, 3])
    assert equal(first, whole[:, :3])


@given(mask=masks(), seed=st.integers(0, 99), garbage=st.sampled_from(GARBAGE))
def test_padding_never_reaches_gae_or_its_gradient(mask, seed, garbage):
    counted = mask.any(1)
    rewards, values, last_values = leaf(normal(seed, 4, 5)), leaf(normal(seed + 1, 4, 5)), leaf(normal(seed + 2, 4))
    spoiled = spoil(rewards, mask, garbage), spoil(values, mask, garbage), spoil(last_values, counted, garbage)
    results = gae(*spoiled[:2], mask, gamma=0.9, lam=0.8, last_values=spoiled[2])
    results += (discounted_returns(spoiled[0], mask, gamma=0.9),)
    wanted = naive_gae_batch(rewards, values, mask, last_values, 0.9, 0.8)
    wanted += (unpacked([naive_returns(list(rewards[b][mask[b]]), 0.9) for b in range(4)], mask),)
    for got, expected in zip(results, wanted, strict=True):
        assert equal(got, expected)  # 0 at padding
    for of_spoiled, of_clean in zip(spoiled, (rewards, values, last_values), strict=True):
        assert equal(gradient(results[1].sum(), of_spoiled), gradient(wanted[1].sum(), of_clean))


@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
def test_each_row_is_on_its_own(order, seed):
    mask, rewards, values, last = random_mask(seed), normal(seed, 6, 7), normal(seed + 1, 6, 7), normal(seed + 2, 6)
    together = gae(rewards, values, mask, last_values=last)
    for got, wanted in zip(
        gae(rewards[order], values[order], mask[order], last_values=last[order]), together, strict=True
    ):
        assert torch.equal(got, wanted[order])


# Groups


def naive_group(rewards, group_size):
    return [list(rewards[i : i + group_size]) for i in range(0, len(rewards), group_size)]


def naive_relative(group):
    mean = sum(group) / len(group)
    std = (sum((r - mean) ** 2 for r in group) / (len(group) - 1)) ** 0.5
    return [(r - mean) / (std + 1e-4) for r in group]


def naive_centered(group):
    return [r - sum(group) / len(group) for r in group]


def naive_leave_one_out(group):
    return [r - sum(s for j, s in enumerate(group) if j != i) / (len(group) - 1) for i, r in enumerate(group)]


GROUPS = {
    "relative": (group_relative_advantages, naive_relative),
    "centered": (group_centered_advantages, naive_centered),
    "leave one out": (leave_one_out_advantages, naive_leave_one_out),
}
group_advantages = pytest.mark.parametrize("advantages_of, naive", GROUPS.values(), ids=GROUPS)


@group_advantages
@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_group_advantages_by_their_definition(advantages_of, naive, group_size):
    rewards, weights = leaf(normal(0, 12)), normal(1, 12)
    actual = advantages_of(rewards, group_size)
    expected = torch.stack([a for group in naive_group(rewards, group_size) for a in naive(group)])
    assert equal(actual, expected)
    assert equal(gradient((actual * weights).sum(), rewards), gradient((expected * weights).sum(), rewards))
    assert torch.autograd.gradcheck(lambda rewards: advantages_of(rewards, group_size), leaf(rewards))


def test_group_advantages_by_hand():
    # rewards 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, unbiased variance 7; the means of the others are 4, 3.5 and 1.5
    rewards = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    root = math.sqrt(7)
    assert equal(group_relative_advantages(rewards, 3, eps=0), torch.tensor([-2, -1, 3], dtype=torch.float64) / root)
    assert equal(
        group_relative_advantages(rewards, 3, eps=1), torch.tensor([-2, -1, 3], dtype=torch.float64) / (root + 1)
    )
    assert group_centered_advantages(rewards, 3).tolist() == [-2, -1, 3]
    assert leave_one_out_advantages(rewards, 3).tolist() == [-3, -1.5, 4.5]


def test_a_group_of_two_gives_plus_and_minus_root_half():
    advantages = group_relative_advantages(torch.tensor([1.0, 0.0]), 2)
    assert equal(advantages, torch.tensor([math.sqrt(0.5), -math.sqrt(0.5)]), 2e-4)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -1000.1])
@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_equal_rewards_in_a_group_teach_nothing(reward, eps):
    # 0 and no rounding error, in float64 as well: Adam would take full steps along 1e-8 where every group is like this one
    for dtype in (torch.float32, torch.float64):
        rewards = torch.tensor([reward] * 3 + [0.0, 1.0, 0.0], dtype=dtype)
        assert (group_relative_advantages(rewards, 3, eps=eps)[:3] == 0).all()
        assert group_relative_advantages(rewards, 3, eps=eps)[3:].abs().min() > 0.5
        for advantages_of in (group_centered_advantages, leave_one_out_advantages):
            assert (advantages_of(rewards, 3)[:3] == 0).all()
            assert advantages_of(rewards, 3)[3:].abs().min() > 0.3


def test_leave_one_out_is_centred_times_g_over_g_minus_1():
    rewards = normal(0, 12)
    for size in (2, 3, 4, 6, 12):
        assert equal(
            leave_one_out_advantages(rewards, size), group_centered_advantages(rewards, size) * size / (size - 1)
        )


def test_leave_one_out_gives_an_unbiased_policy_gradient_and_centring_a_shrunk_one():
    # every pair of draws from three answers, weighted by its probability
    logits, scores = leaf(normal(0, 3)), normal(1, 3)
    logp = logits.log_softmax(0)
    of_objective = gradient((logp.exp() * scores).sum(), logits)
    for advantages_of, share in [(leave_one_out_advantages, 1), (group_centered_advantages, 1 / 2)]:
        estimate = torch.zeros(3, dtype=torch.float64)
        for i, j in itertools.product(range(3), repeat=2):
            advantages = advantages_of(torch.stack([scores[i], scores[j]]), 2)
            surrogate = (advantages[0] * logp[i] + advantages[1] * logp[j]) / 2
            estimate += (logp[i] + logp[j]).exp().detach() * gradient(surrogate, logits)
        assert equal(estimate, share * of_objective)


@group_advantages
def test_group_advantages_sum_to_zero_and_ignore_a_constant_reward(advantages_of, naive):
    rewards = normal(0, 12)
    advantages = advantages_of(rewards, 4)
    assert equal(advantages.view(3, 4).sum(1), torch.zeros(3, dtype=torch.float64))
    assert equal(advantages_of(rewards + 5, 4), advantages)


@group_advantages
@given(within=st.permutations(range(4)), seed=st.integers(0, 99))
def test_order_within_a_group_does_not_matter_and_groups_do_not_mix(advantages_of, naive, within, seed):
    rewards = normal(seed, 8)
    order = [*within, *range(4, 8)]
    assert equal(advantages_of(rewards[order], 4), advantages_of(rewards, 4)[order])
    changed = torch.cat([rewards[:4], 10 * rewards[4:]])
    assert torch.equal(advantages_of(changed, 4)[:4], advantages_of(rewards, 4)[:4])


def test_dividing_by_the_spread_forgets_the_scale_and_centring_keeps_it():
    rewards = normal(0, 12)
    assert equal(group_relative_advantages(100 * rewards, 4, eps=0), group_relative_advantages(rewards, 4, eps=0))
    assert equal(group_centered_advantages(100 * rewards, 4), 100 * group_centered_advantages(rewards, 4))


# Weights


def test_exponential_weights_by_their_definition():
    scores, by = leaf(normal(0, 8)), normal(1, 8)
    for beta in (0.3, 1.0, 4.0):
        odds = [(score / beta).exp() for score in scores]
        expected = torch.stack([8 * odd / sum(odds) for odd in odds])
        actual = exponential_weights(scores, beta=beta)
        assert equal(actual, expected)
        assert equal(actual.mean(), torch.ones((), dtype=torch.float64))
        assert equal(gradient((actual * by).sum(), scores), gradient((expected * by).sum(), scores))
    assert torch.autograd.gradcheck(lambda scores: exponential_weights(scores, beta=0.5), leaf(scores))


def test_exponential_weights_by_hand():
    # beta 2: exp(0), exp(log 3), exp(log 4) over their sum 8, times 3 rows
    scores = 2 * torch.tensor([1.0, 3.0, 4.0], dtype=torch.float64).log()
    assert equal(exponential_weights(scores, beta=2), torch.tensor([3 / 8, 9 / 8, 12 / 8], dtype=torch.float64))


def test_small_beta_listens_to_the_best_and_large_beta_to_all():
    scores = torch.tensor([1.0, 3.0, 2.0])
    assert exponential_weights(scores, beta=1e-3).tolist() == [0, 3, 0]
    assert equal(exponential_weights(scores, beta=1e6), torch.ones(3), 1e-5)
    assert exponential_weights(1e30 * scores, beta=1e-30).tolist() == [0, 3, 0]


@pytest.mark.parametrize(
    "fraction, kept", [(1.0, [0, 1, 2, 3, 4]), (0.6, [0, 2, 4]), (0.4, [2, 4]), (0.2, [2]), (0.01, [2])]
)
def test_the_best_share_is_kept_with_mean_weight_one(fraction, kept):
    weights = top_fraction(torch.tensor([2.0, 0.0, 9.0, 1.0, 4.0]), fraction=fraction)
    assert weights.nonzero().flatten().tolist() == kept
    assert equal(weights[kept], torch.full((len(kept),), 5 / len(kept)), 1e-6)


# Numerics

PER_TOKEN = {
    "gae": lambda x: torch.stack(gae(x, x.flip(0), random_mask(0))),
    "discounted_returns": lambda x: discounted_returns(x, random_mask(0), gamma=0.9),
    "group_relative_advantages": lambda x: group_relative_advantages(x[:, 0], 3),
    "group_centered_advantages": lambda x: group_centered_advantages(x[:, 0], 3),
    "leave_one_out_advantages": lambda x: leave_one_out_advantages(x[:, 0], 3),
    "exponential_weights": lambda x: exponential_weights(x[:, 0], beta=0.5),
    "top_fraction": lambda x: top_fraction(x[:, 0], fraction=0.5),
}


@pytest.mark.parametrize("function", PER_TOKEN.values(), ids=PER_TOKEN)
def test_halves_compute_in_float32_and_float64_stays(function):
    x = normal(0, 6, 7)
    for dtype in (torch.bfloat16, torch.float16):
        assert function(x.to(dtype)).dtype == torch.float32
        assert torch.equal(function(x.to(dtype)), function(x.to(dtype).float()))
    assert function(x).dtype == torch.float64


# Errors

x, row, mask = torch.zeros(4, 3), torch.zeros(4), torch.ones(4, 3, dtype=torch.bool)
nan, nans = torch.full((4,), math.nan), torch.full((4, 3), math.nan)
ERRORS = {
    "returns of (B,)": (lambda: discounted_returns(row, mask, gamma=1), "rewards: wanted 2 dimensions"),
    "returns under another mask": (lambda: discounted_returns(x, mask[:1], gamma=1), r"mask: wanted shape \(4, 3\)"),
    "returns under floats": (lambda: discounted_returns(x, mask.float(), gamma=1), "mask: wanted a torch.bool"),
    "returns of nothing": (lambda: discounted_returns(x, ~mask, gamma=1), "mask: nothing is counted"),
    "returns of no rows": (lambda: discounted_returns(x[:0], mask[:0], gamma=1), "mask: nothing is counted"),
    "returns of nan": (lambda: discounted_returns(nans, mask, gamma=1), r"rewards: wanted finite .*nan at \(0, 0\)"),
    "returns with gamma above 1": (
        lambda: discounted_returns(x, mask, gamma=1.01),
        r"gamma: wanted .*\[0, 1\], got 1.01",
    ),
    "gae with (B,) values": (lambda: gae(x, row, mask), "values: wanted 2 dimensions"),
    "gae with (B, 1) values": (lambda: gae(x, x[:, :1], mask), r"values: wanted shape \(4, 3\)"),
    "gae under another mask": (lambda: gae(x, x, mask[:, :2]), r"mask: wanted shape \(4, 3\)"),
    "gae under integers": (lambda: gae(x, x, mask.long()), "mask: wanted a torch.bool"),
    "gae of nothing": (lambda: gae(x, x, ~mask), "mask: nothing is counted"),
    "gae of nan rewards": (lambda: gae(nans, x, mask), "rewards: wanted finite"),
    "gae of infinite values": (lambda: gae(x, x + math.inf, mask), "values: wanted finite numbers, got inf"),
    "gae with negative gamma": (lambda: gae(x, x, mask, gamma=-0.1), "gamma: wanted"),
    "gae with gamma above 1": (lambda: gae(x, x, mask, gamma=1.1), "gamma: wanted"),
    "gae with lam above 1": (lambda: gae(x, x, mask, lam=1.1), "lam: wanted"),
    "gae with negative lam": (lambda: gae(x, x, mask, lam=-0.1), "lam: wanted"),
    "gae with last_values (B, 1)": (
        lambda: gae(x, x, mask, last_values=x[:, :1]),
        r"last_values: wanted .*\(4,\), got \(4, 1\)",
    ),
    "gae with one last_value": (
        lambda: gae(x, x, mask, last_values=row[:1]),
        r"last_values: wanted .*\(4,\), got \(1,\)",
    ),
    "gae with nan last_values": (lambda: gae(x, x, mask, last_values=nan), "last_values: wanted finite"),
    "relative with negative eps": (lambda: group_relative_advantages(row, 2, eps=-1), "eps: wanted"),
    "weights of (B, T)": (lambda: exponential_weights(x, beta=1), "scores: wanted 1 dimension"),
    "weights of nan": (lambda: exponential_weights(nan, beta=1), "scores: wanted finite"),
    "weights of nothing": (lambda: exponential_weights(row[:0], beta=1), "scores: wanted at least one"),
    "weights with beta 0": (lambda: exponential_weights(row, beta=0), r"beta: wanted .*\(0, inf\), got 0"),
    "share of (B, T)": (lambda: top_fraction(x, fraction=1), "scores: wanted 1 dimension"),
    "share of nan": (lambda: top_fraction(nan, fraction=1), "scores: wanted finite"),
    "share of nothing": (lambda: top_fraction(row[:0], fraction=1), "scores: wanted at least one"),
    "share 0": (lambda: top_fraction(row, fraction=0), r"fraction: wanted .*\(0, 1\], got 0"),
    "share above 1": (lambda: top_fraction(row, fraction=1.5), "fraction: wanted"),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS)
def test_bad_input_is_refused_by_name(call, message, unhooked):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


BAD_GROUPS = {
    "rewards a token": ((x, 2), "rewards: wanted 1 dimension"),
    "nan": ((nan, 2), "rewards: wanted finite numbers, got nan at 0"),
    "group of one": ((row, 1), r"group_size: wanted .*\[2, inf\), got 1"),
    "not a multiple": ((row, 3), "rewards: wanted a multiple of group_size = 3 rows, got 4"),
    "no rows": ((row[:0], 2), "rewards: wanted a multiple of group_size = 2 rows, got 0"),
}


@group_advantages
@pytest.mark.parametrize("arguments, message", BAD_GROUPS.values(), ids=BAD_GROUPS)
def test_bad_groups_are_refused_by_name(advantages_of, naive, arguments, message, unhooked):
    with pytest.raises(ValueError, match=f"^{message}"):
        advantages_of(*arguments)


def test_a_response_may_be_one_token_long():
    reward, value, mask = torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.ones(1, 1, dtype=torch.bool)
    assert discounted_returns(reward, mask, gamma=0.5).item() == 3
    advantages, returns = gae(reward, value, mask, gamma=0.5, lam=0.5)
    assert (advantages.item(), returns.item()) == (2, 3)
