import functools
import inspect
import itertools
import math

import pytest
import torch
from batches import GARBAGE, are_stats, equal, gradient, leaf, masks, normal, packed, random_mask, spoil
from hypothesis import given
from hypothesis import strategies as st

from minirl.advantages import group_centered_advantages, group_relative_advantages
from minirl.losses.policy import (
    cispo_loss,
    grpo_loss,
    gspo_loss,
    ppo_clip_loss,
    reinforce_loss,
    value_clip_loss,
    value_loss,
    weighted_logprob_loss,
)
from minirl.masking import fixed_length_mean, masked_sum_over, sequence_mean, token_mean

# The definitions, for one token at a time


def naive_surrogate(ratio, advantage, low, high):
    """PPO's clip as its four cases, each sign of the advantage and each side of the interval."""
    if advantage >= 0:
        return -advantage * ratio if ratio <= high else -advantage * high
    return -advantage * ratio if ratio >= low else -advantage * low


def naive_reinforce(logprobs, advantages):
    return -advantages * logprobs


def naive_ppo(logprobs, old_logprobs, advantages, low=0.8, high=1.2):
    return naive_surrogate((logprobs - old_logprobs).exp(), advantages, low, high)


def naive_value(values, returns):
    return (values - returns) ** 2 / 2


def naive_value_clip(values, old_values, returns, eps=0.2):
    if values > old_values + eps:
        held = old_values + eps
    elif values < old_values - eps:
        held = old_values - eps
    else:
        held = values
    return max((values - returns) ** 2, (held - returns) ** 2) / 2


def naive_grpo(logprobs, old_logprobs, ref_logprobs, advantages):
    surrogate = naive_surrogate((logprobs - old_logprobs).exp(), advantages, 0.8, 1.2)
    p, ref = logprobs.exp(), ref_logprobs.exp()
    return surrogate + 0.04 * (ref / p - torch.log(ref / p) - 1)


def naive_cispo(logprobs, old_logprobs, advantages):
    weight = min((logprobs - old_logprobs).exp().item(), 1.2)  # a number: no gradient flows through it
    return -weight * advantages * logprobs


def naive_weighted(logprobs, weights):
    return -weights * logprobs


NAIVE = {
    reinforce_loss: naive_reinforce,
    ppo_clip_loss: naive_ppo,
    value_loss: naive_value,
    value_clip_loss: naive_value_clip,
    grpo_loss: naive_grpo,
    cispo_loss: naive_cispo,
    weighted_logprob_loss: naive_weighted,
}
PER_ROW = {grpo_loss, gspo_loss, cispo_loss, weighted_logprob_loss}  # their advantages, or weights, are (B,)
losses = pytest.mark.parametrize("loss", [*NAIVE, gspo_loss], ids=lambda loss: loss.__name__)
token_losses = pytest.mark.parametrize("loss", NAIVE, ids=lambda loss: loss.__name__)

REDUCERS = {
    "token_mean": (token_mean, lambda rows: sum(sum(row) for row in rows) / sum(len(row) for row in rows)),
    "sequence_mean": (sequence_mean, lambda rows: sum(sum(r) / len(r) for r in rows if r) / sum(bool(r) for r in rows)),
    "fixed_length_mean": (fixed_length_mean(5), lambda rows: sum(sum(row) for row in rows) / (5 * len(rows))),
    "masked_sum_over": (masked_sum_over(11), lambda rows: sum(sum(row) for row in rows) / 11),
}
DEFAULT = {grpo_loss: "sequence_mean"}  # the others: token_mean


def names_of(loss):
    """The tensors of a loss, in the order of its signature; the first one carries the gradient."""
    parameters = inspect.signature(loss).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "mask"]


def is_per_row(loss, name):
    return name in ("advantages", "weights") and loss in PER_ROW


def tensors_for(loss, seed, rows=6, length=7):
    """Random inputs with ratios and values on both sides of the clip, as leaves."""
    shapes = {name: (rows,) if is_per_row(loss, name) else (rows, length) for name in names_of(loss)}
    scale = 0.003 if loss is gspo_loss else 1.0  # its clip is at +-3e-4
    by_name = {}
    for i, (name, shape) in enumerate(shapes.items()):
        x = normal(10 * seed + i, *shape)
        by_name[name] = leaf(-2 + (0.3 * scale) * x if "logprobs" in name else 0.3 * x if "values" in name else x)
    return by_name


def naive_rows(loss, tensors, mask, naive=None):
    """The terms of every row at its counted positions."""
    naive = naive or NAIVE[loss]
    return [
        [
            naive(**{name: x[b] if is_per_row(loss, name) else x[b, t] for name, x in tensors.items()})
            for t in range(mask.shape[1])
            if mask[b, t]
        ]
        for b in range(mask.shape[0])
    ]


def naive_gspo(tensors, mask, low=1 - 3e-4, high=1 + 3e-4):
    terms = []
    for b in range(mask.shape[0]):
        if mask[b].any():
            ratios = [(tensors["logprobs"][b, t] - tensors["old_logprobs"][b, t]).exp() for t in mask[b].nonzero()]
            geometric_mean = math.prod(ratios) ** (1 / len(ratios))
            terms.append(naive_surrogate(geometric_mean, tensors["advantages"][b], low, high))
    return (sum(terms) / len(terms)).squeeze()


def naive_loss(loss, tensors, mask, reducer="token_mean"):
    if loss is gspo_loss:
        return naive_gspo(tensors, mask)
    return REDUCERS[reducer][1](naive_rows(loss, tensors, mask))


def first(tensors):
    return next(iter(tensors.values()))


# Definitions


@token_losses
@pytest.mark.parametrize("reducer", REDUCERS)
def test_value_and_gradient_by_definition(loss, reducer):
    mask, tensors = random_mask(0), tensors_for(loss, 0)
    actual, _ = loss(**tensors, mask=mask, reduce=REDUCERS[reducer][0])
    expected = naive_loss(loss, tensors, mask, reducer)
    assert equal(actual, expected)
    assert equal(gradient(actual, first(tensors)), gradient(expected, first(tensors)))


def test_gspo_value_and_gradient_by_definition():
    for seed in range(4):
        mask, tensors = random_mask(seed), tensors_for(gspo_loss, seed)
        actual, stats = gspo_loss(**tensors, mask=mask)
        expected = naive_gspo(tensors, mask)
        assert equal(actual, expected)
        assert equal(gradient(actual, tensors["logprobs"]), gradient(expected, tensors["logprobs"]))
        assert 0 < stats["clip_fraction"] < 1


@losses
def test_default_knobs_and_reducer(loss):
    mask, tensors = random_mask(1), tensors_for(loss, 1)
    assert equal(loss(**tensors, mask=mask)[0], naive_loss(loss, tensors, mask, DEFAULT.get(loss, "token_mean")))


@pytest.mark.parametrize("loss", [ppo_clip_loss, grpo_loss])
def test_both_ends_of_the_clip_can_be_set(loss):
    mask, tensors = random_mask(2, 20), tensors_for(loss, 2, 20)
    surrogate = {name: x for name, x in tensors.items() if name != "ref_logprobs"}
    expected = naive_rows(loss, surrogate, mask, functools.partial(naive_ppo, low=0.9, high=1.28))
    knobs = {"clip_eps": 0.1, "clip_eps_high": 0.28, "reduce": token_mean}
    if loss is grpo_loss:
        knobs["kl_coef"] = 0
    actual, _ = loss(**tensors, mask=mask, **knobs)
    assert equal(actual, REDUCERS["token_mean"][1](expected))
    assert not torch.equal(actual, loss(**tensors, mask=mask, **knobs | {"clip_eps_high": None})[0])


def test_both_ends_of_the_clip_of_gspo_can_be_set():
    mask, tensors = random_mask(2, 20), tensors_for(gspo_loss, 2, 20)
    actual, _ = gspo_loss(**tensors, mask=mask, clip_eps=1e-4, clip_eps_high=5e-4)
    assert equal(actual, naive_gspo(tensors, mask, 1 - 1e-4, 1 + 5e-4), 1e-12)


@losses
def test_gradient_by_finite_differences(loss):
    mask, tensors = random_mask(0, 3, 3), tensors_for(loss, 3, 3, 3)
    if loss is cispo_loss:  # where the weight is held at the ceiling it has no gradient to stop
        tensors["old_logprobs"] = tensors["logprobs"].detach() - 0.5
    constants = [x.detach() for x in tensors.values()][1:]
    assert torch.autograd.gradcheck(lambda x: loss(x, *constants, mask)[0], leaf(first(tensors)))


@losses
def test_only_the_first_tensor_carries_a_gradient(loss):
    mask, tensors = random_mask(0), tensors_for(loss, 0)
    loss(**tensors, mask=mask)[0].backward()
    carries, *rest = tensors
    assert tensors[carries].grad.abs().max() > 0
    assert [name for name in rest if tensors[name].grad is not None] == []


# Worked by hand


def test_reinforce_by_hand():
    # -(2 * -1 + -3 * -2) / 2 = -2, and the gradient is -A / 2; the third token does not count
    logprobs = leaf(torch.tensor([[-1.0, -2.0, -4.0]]))
    loss, _ = reinforce_loss(logprobs, torch.tensor([[2.0, -3.0, 9.0]]), torch.tensor([[True, True, False]]))
    assert loss.item() == -2
    assert gradient(loss, logprobs).tolist() == [[-1, 1.5, 0]]


def test_ppo_by_hand_in_the_four_cases_of_the_minimum():
    # ratio 1.5, A 1: clipped to 1.2, no gradient      ratio 0.5, A 1: stays 0.5, gradient -0.5
    # ratio 1.5, A -1: stays 1.5, gradient 1.5          ratio 0.5, A -1: clipped to 0.8, no gradient
    ratios = torch.tensor([[1.5, 0.5, 1.5, 0.5]], dtype=torch.float64)
    logprobs = leaf(ratios.log() - 3)
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    loss, stats = ppo_clip_loss(logprobs, torch.full_like(ratios, -3), advantages, torch.ones(1, 4, dtype=torch.bool))
    assert equal(loss, torch.tensor((-1.2 - 0.5 + 1.5 + 0.8) / 4, dtype=torch.float64))
    assert equal(gradient(loss, logprobs), torch.tensor([[0, -0.5, 1.5, 0]], dtype=torch.float64) / 4)
    assert equal(stats["clip_fraction"], torch.tensor(0.5, dtype=torch.float64))
    assert equal(stats["ratio_mean"], torch.tensor(1.0, dtype=torch.float64))


def test_values_by_hand():
    # return 1, old value 0, clip 0.2. Value 0.1: error 0.9 both ways. 0.5: held at 0.2, error 0.8, no gradient.
    # -0.5: held at -0.2, whose error 1.2 is smaller than 1.5: the free one stays.
    values, mask = leaf(torch.tensor([[0.1, 0.5, -0.5]], dtype=torch.float64)), torch.ones(1, 3, dtype=torch.bool)
    old, returns = torch.zeros_like(values), torch.ones_like(values)
    free, _ = value_loss(values, returns, mask)
    held, stats = value_clip_loss(values, old, returns, mask)
    assert equal(free, torch.tensor((0.81 + 0.25 + 2.25) / 6, dtype=torch.float64))
    assert equal(held, torch.tensor((0.81 + 0.64 + 2.25) / 6, dtype=torch.float64))
    assert equal(gradient(free, values), torch.tensor([[-0.9, -0.5, -1.5]], dtype=torch.float64) / 3)
    assert equal(gradient(held, values), torch.tensor([[-0.9, 0, -1.5]], dtype=torch.float64) / 3)
    assert equal(stats["clip_fraction"], torch.tensor(1 / 3, dtype=torch.float64))


def test_grpo_by_hand():
    # row 0, A 1: one token, ratio 1, ref twice as likely: -1 + 0.5 (2 - 1 - log 2)
    # row 1, A -1: two tokens, ratios 1 and 2, ref equal: (1 + 2) / 2
    log2 = math.log(2)
    old = torch.tensor([[-1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    logprobs = old + torch.tensor([[0.0, 0.0], [0.0, log2]], dtype=torch.float64)
    ref = logprobs + torch.tensor([[log2, 0.0], [0.0, 0.0]], dtype=torch.float64)
    mask, advantages = torch.tensor([[True, False], [True, True]]), torch.tensor([1.0, -1.0], dtype=torch.float64)
    loss, stats = grpo_loss(logprobs, old, ref, advantages, mask, kl_coef=0.5)
    k3 = 1 - log2
    assert equal(loss, torch.tensor((-1 + 0.5 * k3 + 1.5) / 2, dtype=torch.float64))
    assert equal(stats["kl"], torch.tensor(k3 / 2, dtype=torch.float64))


def test_gspo_by_hand():
    # row 0, A 1: ratios 4 and 1, geometric mean 2, clipped to 1.5; row 1, A -1: one ratio 4, not clipped
    ratios = torch.tensor([[4.0, 1.0], [4.0, 9.0]], dtype=torch.float64)
    mask, advantages = torch.tensor([[True, True], [True, False]]), torch.tensor([1.0, -1.0], dtype=torch.float64)
    loss, stats = gspo_loss(ratios.log() - 9, torch.full_like(ratios, -9), advantages, mask, clip_eps=0.5)
    assert equal(loss, torch.tensor((-1.5 + 4) / 2, dtype=torch.float64))
    assert equal(stats["ratio_mean"], torch.tensor((2 + 4) / 2, dtype=torch.float64))
    assert equal(stats["clip_fraction"], torch.tensor(0.5, dtype=torch.float64))


def test_cispo_by_hand():
    # ratios 3 and 1/2, ceiling 1.5, A 2: weights 1.5 and 0.5, logprobs log(0.3) and log(0.1)
    logprobs = leaf(torch.tensor([[0.3, 0.1]], dtype=torch.float64).log())
    old = torch.tensor([[0.1, 0.2]], dtype=torch.float64).log()
    advantages = torch.tensor([2.0], dtype=torch.float64)
    loss, stats = cispo_loss(logprobs, old, advantages, torch.ones(1, 2, dtype=torch.bool), clip_eps_high=0.5)
    expected = -(1.5 * 2 * math.log(0.3) + 0.5 * 2 * math.log(0.1)) / 2
    assert equal(loss, torch.tensor(expected, dtype=torch.float64))
    assert equal(gradient(loss, logprobs), torch.tensor([[-1.5, -0.5]], dtype=torch.float64))
    assert equal(stats["clip_fraction"], torch.tensor(0.5, dtype=torch.float64))


def test_weighted_logprobs_by_hand():
    # weight 1 is SFT, weight 0 drops the row: -(-1 + -2) / 3
    logprobs = torch.tensor([[-1.0, -2.0], [-4.0, -8.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert weighted_logprob_loss(logprobs, torch.tensor([1.0, 0.0]), mask)[0].item() == 1


# Identities


def advantages_like(loss, tensors):
    return tensors["advantages"].unsqueeze(1) if loss in PER_ROW else tensors["advantages"]


@pytest.mark.parametrize("loss", [ppo_clip_loss, cispo_loss, grpo_loss], ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("reduce", [token_mean, sequence_mean, fixed_length_mean(1)])
def test_at_ratio_one_the_gradient_is_the_policy_gradient(loss, reduce):
    mask, tensors = random_mask(0), tensors_for(loss, 0)
    tensors["old_logprobs"] = tensors["logprobs"].detach()
    knobs = {"kl_coef": 0} if loss is grpo_loss else {}
    surrogate, stats = loss(**tensors, mask=mask, reduce=reduce, **knobs)
    policy_gradient, _ = reinforce_loss(
        tensors["logprobs"], advantages_like(loss, tensors).expand(6, 7), mask, reduce=reduce
    )
    assert equal(gradient(surrogate, tensors["logprobs"]), gradient(policy_gradient, tensors["logprobs"]))
    assert stats["ratio_mean"] == 1 and stats["clip_fraction"] == 0 and stats["approx_kl"] == 0


def test_at_ratio_one_gspo_is_the_policy_gradient_of_each_answer_alike():
    mask, tensors = random_mask(0), tensors_for(gspo_loss, 0)
    tensors["old_logprobs"] = tensors["logprobs"].detach()
    surrogate, _ = gspo_loss(**tensors, mask=mask)
    policy_gradient, _ = weighted_logprob_loss(tensors["logprobs"], tensors["advantages"], mask, reduce=sequence_mean)
    assert equal(gradient(surrogate, tensors["logprobs"]), gradient(policy_gradient, tensors["logprobs"]))


def test_reinforce_over_length_one_is_the_unbiased_policy_gradient():
    # every sequence of two tokens out of three, weighted by its probability under the policy
    logits, scores = leaf(normal(0, 3)), normal(1, 3, 3)
    logp, every, once = logits.log_softmax(0), torch.ones(1, 2, dtype=torch.bool), fixed_length_mean(1)
    of_objective = gradient(((logp.unsqueeze(1) + logp).exp() * scores).sum(), logits)
    estimate = torch.zeros(3, dtype=torch.float64)
    for i, j in itertools.product(range(3), repeat=2):
        logprobs = torch.stack([logp[i], logp[j]]).unsqueeze(0)
        loss, _ = reinforce_loss(logprobs, scores[i, j].expand(1, 2), every, reduce=once)
        estimate -= logprobs.sum().exp().detach() * gradient(loss, logits)
    assert equal(estimate, of_objective)


def test_ratios_correct_for_the_policy_that_sampled():
    # one token drawn from another policy, every one of four in turn: unclipped, the gradient is still the objective's
    logits, old, scores = leaf(normal(0, 4)), normal(1, 4).log_softmax(0), normal(2, 4)
    logp, every = logits.log_softmax(0), torch.ones(1, 1, dtype=torch.bool)
    of_objective = gradient((logp.exp() * scores).sum(), logits)
    estimate = torch.zeros(4, dtype=torch.float64)
    for a in range(4):
        inputs = logp[a].view(1, 1), old[a].view(1, 1), scores[a].view(1, 1)
        loss, _ = ppo_clip_loss(*inputs, every, clip_eps=1, clip_eps_high=1e6)
        estimate -= old[a].exp() * gradient(loss, logits)
    assert equal(estimate, of_objective)


def test_cispo_keeps_the_gradient_where_ppo_clips():
    logprobs, old, every = leaf(torch.tensor([[-1.0]])), torch.tensor([[-2.0]]), torch.ones(1, 1, dtype=torch.bool)
    clipped, _ = ppo_clip_loss(logprobs, old, torch.tensor([[2.0]]), every)
    weighed, _ = cispo_loss(logprobs, old, torch.tensor([2.0]), every)
    assert gradient(clipped, logprobs).item() == 0
    assert gradient(weighed, logprobs).item() == pytest.approx(-1.2 * 2)


@pytest.mark.parametrize("advantages_of", [group_relative_advantages, group_centered_advantages])
def test_grpo_starts_at_zero_with_a_gradient_that_is_not(advantages_of):
    mask, tensors = random_mask(0, empty_row=False), tensors_for(grpo_loss, 0)
    tensors["old_logprobs"] = tensors["ref_logprobs"] = tensors["logprobs"].detach()
    tensors["advantages"] = advantages_of(normal(1, 6), 3)
    loss, stats = grpo_loss(**tensors, mask=mask)
    assert equal(loss, torch.zeros((), dtype=torch.float64), 1e-12)
    assert gradient(loss, tensors["logprobs"]).abs().max() > 0.01
    assert stats["kl"] == 0
    assert grpo_loss(**tensors, mask=mask, reduce=token_mean)[0].abs() > 0.01  # lengths differ


def test_groups_of_equal_rewards_leave_grpo_without_a_gradient():
    mask, tensors = random_mask(0), tensors_for(grpo_loss, 0)
    advantages = group_relative_advantages(torch.tensor([0.1] * 6, dtype=torch.float64), 3)
    loss, _ = grpo_loss(**tensors | {"advantages": advantages}, mask=mask, kl_coef=0)
    assert loss == 0 and (gradient(loss, tensors["logprobs"]) == 0).all()


def test_grpo_is_ppo_with_one_advantage_a_response():
    mask, tensors = random_mask(0), tensors_for(grpo_loss, 0)
    repeated = tensors["advantages"].unsqueeze(1).expand(6, 7)
    ppo, _ = ppo_clip_loss(tensors["logprobs"], tensors["old_logprobs"], repeated, mask, reduce=sequence_mean)
    grpo, stats = grpo_loss(**tensors | {"ref_logprobs": None}, mask=mask, kl_coef=0)
    assert equal(grpo, ppo)
    assert "kl" not in stats
    watched, stats = grpo_loss(**tensors, mask=mask, kl_coef=0)  # a reference that only measures
    assert torch.equal(watched, grpo) and stats["kl"] > 0


def test_gspo_with_one_token_a_response_is_ppo():
    tensors, mask = tensors_for(gspo_loss, 0, 6, 1), torch.ones(6, 1, dtype=torch.bool)
    gspo, stats = gspo_loss(**tensors, mask=mask)
    per_token = tensors | {"advantages": tensors["advantages"].unsqueeze(1)}
    ppo, ppo_stats = ppo_clip_loss(**per_token, mask=mask, clip_eps=3e-4)
    assert equal(gspo, ppo)
    assert equal(gradient(gspo, tensors["logprobs"]), gradient(ppo, tensors["logprobs"]))
    assert stats.keys() == ppo_stats.keys() and all(equal(stats[name], ppo_stats[name]) for name in stats)


def test_sft_is_the_weight_one():
    mask, tensors = random_mask(0), tensors_for(weighted_logprob_loss, 0)
    loss, _ = weighted_logprob_loss(tensors["logprobs"], torch.ones(6, dtype=torch.float64), mask)
    assert equal(loss, -tensors["logprobs"][mask].mean())


def test_clipping_the_value_never_lowers_its_loss_and_a_wide_clip_does_nothing():
    mask, tensors = random_mask(0), tensors_for(value_clip_loss, 0)
    free, _ = value_loss(tensors["values"], tensors["returns"], mask)
    assert value_clip_loss(**tensors, mask=mask)[0] > free
    wide, stats = value_clip_loss(**tensors, mask=mask, clip_eps=100)
    assert equal(wide, free) and stats["clip_fraction"] == 0


@token_losses
def test_micro_batches_add_up_to_the_batch(loss):
    mask, tensors = random_mask(0), tensors_for(loss, 0)
    whole, _ = loss(**tensors, mask=mask, reduce=token_mean)
    reduce = masked_sum_over(mask.sum())
    parts = sum(
        loss(**{name: x[rows] for name, x in tensors.items()}, mask=mask[rows], reduce=reduce)[0]
        for rows in ([0, 1, 2], [3], [4, 5])
    )
    assert equal(parts, whole)
    assert equal(gradient(parts, first(tensors)), gradient(whole, first(tensors)))


@losses
@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
def test_the_order_of_rows_does_not_matter(loss, order, seed):
    mask, tensors = random_mask(seed), tensors_for(loss, seed)
    shuffled = {name: leaf(x[order]) for name, x in tensors.items()}
    ordered, permuted = loss(**tensors, mask=mask)[0], loss(**shuffled, mask=mask[order])[0]
    assert equal(permuted, ordered)
    assert equal(gradient(permuted, first(shuffled)), gradient(ordered, first(tensors))[order])


# Padding


def spoiled(loss, tensors, mask, garbage):
    counted = mask.any(1)
    return {name: spoil(x, counted if is_per_row(loss, name) else mask, garbage) for name, x in tensors.items()}


@losses
@given(mask=masks(), seed=st.integers(0, 99), garbage=st.sampled_from(GARBAGE))
def test_padding_never_reaches_a_loss_or_its_gradient(loss, mask, seed, garbage):
    # each row packed on its own, summed without any reducer of the library, and put together by hand
    tensors = tensors_for(loss, seed, 4, 5)
    bad = spoiled(loss, tensors, mask, garbage)
    actual, stats = loss(**bad, mask=mask)
    rows, plain_sum = [], {} if loss is gspo_loss else {"reduce": lambda x, mask: x.sum()}
    for b in mask.any(1).nonzero().flatten().tolist():
        row = {name: x[[b]] if is_per_row(loss, name) else packed(x, mask, b) for name, x in tensors.items()}
        count = int(mask[b].sum())
        rows.append((loss(**row, mask=torch.ones(1, count, dtype=torch.bool), **plain_sum)[0], count))
    if loss is gspo_loss:
        expected = sum(total for total, _ in rows) / len(rows)
    elif loss is grpo_loss:
        expected = sum(total / count for total, count in rows) / len(rows)
    else:
        expected = sum(total for total, _ in rows) / sum(count for _, count in rows)
    assert equal(actual, expected)
    of_padded = gradient(actual, first(bad))
    assert (of_padded[~mask] == 0).all()
    assert equal(of_padded, gradient(expected, first(tensors)))
    assert are_stats(stats)


@token_losses
@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_never_reaches_any_reducer(loss, reducer, garbage):
    mask, tensors = random_mask(4), tensors_for(loss, 4)
    bad = spoiled(loss, tensors, mask, garbage)
    actual, _ = loss(**bad, mask=mask, reduce=REDUCERS[reducer][0])
    expected = naive_loss(loss, tensors, mask, reducer)
    assert equal(actual, expected)
    assert equal(gradient(actual, first(bad)), gradient(expected, first(tensors)))


@token_losses
@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_reducer_of_your_own_is_handed_no_garbage(loss, garbage):
    mask, terms = random_mask(0), []
    loss(
        **spoiled(loss, tensors_for(loss, 0), mask, garbage),
        mask=mask,
        reduce=lambda x, mask: terms.append(x) or x.sum(),
    )
    assert terms[0].isfinite().all()


@losses
def test_a_row_with_nothing_counted_contributes_nothing(loss):
    tensors, mask = tensors_for(loss, 0), random_mask(0, empty_row=False)
    with_empty = {name: torch.cat([x, torch.full_like(x[:1], math.nan)]) for name, x in tensors.items()}
    longer = torch.cat([mask, torch.zeros(1, 7, dtype=torch.bool)])
    alone, padded = loss(**tensors, mask=mask), loss(**with_empty, mask=longer)
    assert equal(padded[0], alone[0])
    for name in alone[1]:
        assert equal(padded[1][name], alone[1][name])
    if loss is not gspo_loss:
        reduce = fixed_length_mean(4)
        diluted = loss(**with_empty, mask=longer, reduce=reduce)[0]
        assert equal(diluted, loss(**tensors, mask=mask, reduce=reduce)[0] * 6 / 7)


# Statistics


@losses
def test_stats_are_detached_scalars_of_the_shared_vocabulary(loss):
    mask, tensors = random_mask(0), tensors_for(loss, 0)
    value, stats = loss(**tensors, mask=mask)
    assert are_stats(stats)
    assert torch.equal(stats["loss"], value.detach())


@pytest.mark.parametrize("loss", [ppo_clip_loss, grpo_loss, cispo_loss], ids=lambda loss: loss.__name__)
def test_stats_of_the_ratio_by_definition(loss):
    mask, tensors = random_mask(3), tensors_for(loss, 3)
    _, stats = loss(**tensors, mask=mask)
    log_ratio = (tensors["logprobs"] - tensors["old_logprobs"])[mask].detach()
    advantages = advantages_like(loss, tensors).expand(6, 7)[mask].detach()
    ratio = log_ratio.exp()
    clipped = ratio > 1.2 if loss is cispo_loss else torch.where(advantages > 0, ratio > 1.2, ratio < 0.8)
    assert 0 < clipped.double().mean() < 1
    assert equal(stats["ratio_mean"], ratio.mean())
    assert equal(stats["clip_fraction"], clipped.double().mean())
    assert equal(stats["approx_kl"], (ratio - 1 - log_ratio).mean())


@pytest.mark.parametrize("loss", [ppo_clip_loss, grpo_loss, cispo_loss, gspo_loss], ids=lambda loss: loss.__name__)
def test_approx_kl_averages_to_the_kl_from_the_sampler(loss):
    """Ten tokens in just the sampler's proportions: their mean is its expectation, and that is KL(old || new)."""
    old = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    new = torch.tensor([0.4, 0.35, 0.25], dtype=torch.float64).log()
    tokens = torch.tensor([0] * 6 + [1] * 3 + [2]).unsqueeze(1)
    given = {"ref_logprobs": None} if loss is grpo_loss else {}
    given["advantages"] = torch.ones(tokens.shape if loss is ppo_clip_loss else 10, dtype=torch.float64)
    knobs = {"kl_coef": 0.0} if loss is grpo_loss else {}
    mask = torch.ones_like(tokens, dtype=torch.bool)
    _, stats = loss(logprobs=new[tokens], old_logprobs=old[tokens], mask=mask, **given, **knobs)
    assert equal(stats["approx_kl"], (old.exp() * (old - new)).sum(), 1e-12)  # .1054, and .0917 the other way round


def test_approx_kl_of_gspo_is_per_token():
    mask, tensors = random_mask(3), tensors_for(gspo_loss, 3)
    _, stats = gspo_loss(**tensors, mask=mask)
    log_ratio = (tensors["logprobs"] - tensors["old_logprobs"])[mask].detach()
    assert equal(stats["approx_kl"], (log_ratio.exp() - 1 - log_ratio).mean(), 1e-12)


def test_the_kl_of_grpo_is_summed_over_tokens_and_averaged_over_responses():
    mask, tensors = random_mask(3), tensors_for(grpo_loss, 3)
    _, stats = grpo_loss(**tensors, mask=mask)
    d = (tensors["ref_logprobs"] - tensors["logprobs"]).detach()
    expected = (d.exp() - 1 - d)[mask].sum() / 5  # six rows, one with nothing counted
    assert equal(stats["kl"], expected)


@pytest.mark.parametrize("loss", [value_loss, value_clip_loss], ids=lambda loss: loss.__name__)
def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one(loss):
    mask, returns = random_mask(0), normal(0, 6, 7)
    rest = [returns] if loss is value_loss else [normal(1, 6, 7), returns]
    one, half = torch.ones((), dtype=torch.float64), torch.full((6, 7), 0.5, dtype=torch.float64)
    assert equal(loss(returns, *rest, mask)[1]["explained_variance"], one)
    assert equal(loss(half, *rest, mask)[1]["explained_variance"], 0 * one)
    assert equal(loss(half * returns, *rest, mask)[1]["explained_variance"], 0.75 * one)


# Numerics


@losses
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_compute_in_float32(loss, dtype):
    mask = random_mask(0)
    halves = {name: x.detach().to(dtype) for name, x in tensors_for(loss, 0).items()}
    actual, stats = loss(**halves, mask=mask)
    expected, wanted = loss(**{name: x.float() for name, x in halves.items()}, mask=mask)
    assert actual.dtype == torch.float32 and torch.equal(actual, expected)
    assert all(x.dtype == torch.float32 for x in stats.values())
    assert stats == wanted


@losses
def test_float64_stays_float64(loss):
    value, stats = loss(**tensors_for(loss, 0), mask=random_mask(0))
    assert value.dtype == torch.float64
    assert all(x.dtype == torch.float64 for x in stats.values())


@pytest.mark.parametrize("loss", [ppo_clip_loss, grpo_loss, gspo_loss], ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("log_ratio", [1000.0, -1000.0, 20.5, -20.5])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_log_ratios_far_away_stay_finite_without_gradient(loss, log_ratio, advantage):
    logprobs, old = leaf(torch.tensor([[log_ratio - 1001]])), torch.tensor([[-1001.0]])
    advantages = torch.tensor([advantage]) if loss in PER_ROW else torch.tensor([[advantage]])
    reference = [old] if loss is grpo_loss else []
    value, stats = loss(logprobs, old, *reference, advantages, torch.ones(1, 1, dtype=torch.bool))
    assert value.isfinite() and are_stats(stats)
    assert gradient(value, logprobs).item() == 0


@pytest.mark.parametrize("log_ratio", [1000.0, -1000.0])
def test_the_weight_of_cispo_stays_finite_far_away(log_ratio):
    logprobs, old = leaf(torch.tensor([[log_ratio - 1001]])), torch.tensor([[-1001.0]])
    value, stats = cispo_loss(logprobs, old, torch.ones(1), torch.ones(1, 1, dtype=torch.bool))
    assert value.isfinite() and are_stats(stats)
    assert gradient(value, logprobs).item() == pytest.approx(-1.2 if log_ratio > 0 else 0, rel=1e-6, abs=1e-8)


def test_a_log_ratio_of_nineteen_is_not_clamped():
    logprobs, old = leaf(torch.tensor([[-1.0]], dtype=torch.float64)), torch.tensor([[-20.0]], dtype=torch.float64)
    loss, _ = ppo_clip_loss(logprobs, old, torch.full_like(old, -1), torch.ones(1, 1, dtype=torch.bool))
    assert equal(loss, torch.tensor(math.exp(19), dtype=torch.float64))
    assert equal(gradient(loss, logprobs), torch.tensor([[math.exp(19)]], dtype=torch.float64))


# Errors

every = torch.ones(4, 3, dtype=torch.bool)


def arguments(loss, **changes):
    shapes = {name: (4,) if is_per_row(loss, name) else (4, 3) for name in names_of(loss)}
    return {name: torch.zeros(shape) for name, shape in shapes.items()} | {"mask": every} | changes


@losses
def test_the_arguments_of_the_error_tests_are_accepted_as_they_are(loss, unhooked):
    loss(**arguments(loss))


BAD_MASKS = {
    "another length": (every[:, :2], r"mask: wanted shape \(4, 3\)|wanted shape .* got \(4, 2\)"),
    "one row": (every[:1], r"(mask|advantages|weights): wanted"),
    "(B,)": (every[:, 0], "mask: wanted 2 dimensions"),
    "integers": (every.long(), "mask: wanted a torch.bool"),
    "floats": (every.float(), "mask: wanted a torch.bool"),
    "all False": (~every, "mask: nothing is counted"),
}


@losses
@pytest.mark.parametrize("mask, message", BAD_MASKS.values(), ids=BAD_MASKS)
def test_a_bad_mask_is_refused(loss, mask, message, unhooked):
    with pytest.raises(ValueError, match=f"^({message})"):
        loss(**arguments(loss, mask=mask))


@losses
def test_an_empty_batch_is_refused(loss, unhooked):
    for part in (lambda x: x[:0], lambda x: x[:, :0] if x.dim() == 2 else x):
        with pytest.raises(ValueError, match=r"^mask: nothing is counted"):
            loss(**{name: part(x) for name, x in arguments(loss).items()})


EACH_TENSOR = [(loss, name) for loss in [*NAIVE, gspo_loss] for name in names_of(loss)]


@pytest.mark.parametrize("loss, name", EACH_TENSOR, ids=[f"{loss.__name__}-{name}" for loss, name in EACH_TENSOR])
def test_a_tensor_of_the_wrong_shape_or_not_finite_is_refused_by_name(loss, name, unhooked):
    x = arguments(loss)[name]
    smaller = [x[:1], x.unsqueeze(1)] if is_per_row(loss, name) else [x[:1], x[:, :1], x[:, 0]]
    for wrong in smaller:
        # the first tensor sets the shape for the others, so that one of them may be named in its place
        named = name if name != names_of(loss)[0] or wrong.dim() == 1 else r"\w+"
        with pytest.raises(ValueError, match=f"^{named}: wanted"):
            loss(**arguments(loss, **{name: wrong}))
    for garbage in GARBAGE:
        with pytest.raises(ValueError, match=f"^{name}: wanted finite numbers, got {garbage}"):
            loss(**arguments(loss, **{name: torch.full_like(x, garbage)}))


KNOBS = [
    (ppo_clip_loss, {"clip_eps": 0}, r"clip_eps: wanted .*\(0, 1\], got 0"),
    (ppo_clip_loss, {"clip_eps": 1.1}, "clip_eps: wanted"),
    (ppo_clip_loss, {"clip_eps_high": 0}, r"clip_eps_high: wanted .*\(0, inf\), got 0"),
    (ppo_clip_loss, {"clip_eps": math.nan}, "clip_eps: wanted"),
    (value_clip_loss, {"clip_eps": 0}, r"clip_eps: wanted .*\(0, inf\), got 0"),
    (grpo_loss, {"clip_eps": -0.2}, "clip_eps: wanted"),
    (grpo_loss, {"clip_eps_high": -0.2}, "clip_eps_high: wanted"),
    (grpo_loss, {"kl_coef": -0.1}, r"kl_coef: wanted .*\[0, inf\), got -0.1"),
    (grpo_loss, {"ref_logprobs": None}, "ref_logprobs: wanted .* kl_coef = 0.04, got None"),
    (gspo_loss, {"clip_eps": 0}, "clip_eps: wanted"),
    (gspo_loss, {"clip_eps_high": 0}, "clip_eps_high: wanted"),
    (cispo_loss, {"clip_eps_high": 0}, "clip_eps_high: wanted"),
    (cispo_loss, {"clip_eps_high": math.inf}, "clip_eps_high: wanted"),
]


@pytest.mark.parametrize("loss, knob, message", KNOBS, ids=[f"{loss.__name__}-{knob}" for loss, knob, _ in KNOBS])
def test_a_knob_out_of_range_is_refused_by_name(loss, knob, message, unhooked):
    with pytest.raises(ValueError, match=f"^{message}"):
        loss(**arguments(loss, **knob))
