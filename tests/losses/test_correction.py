import math

import pytest
import torch
from batches import equal, normal, random_mask, spoil
from hypothesis import given
from hypothesis import strategies as st

from minirl.losses.correction import sampling_gap, truncated_importance_weights, weighted
from minirl.losses.policy import ppo_clip_loss, reinforce_loss
from minirl.masking import fixed_length_mean, sequence_mean, token_mean

BOTH = torch.tensor([[True, True]])


def naive_weights(logprobs, sampler_logprobs, mask, cap):
    table = [[0.0] * mask.shape[1] for _ in range(len(mask))]
    for i, t in mask.nonzero().tolist():
        table[i][t] = min(math.exp(logprobs[i, t].item() - sampler_logprobs[i, t].item()), cap)
    return torch.tensor(table, dtype=torch.float64)


@given(st.integers(0, 10_000), st.floats(1.0, 5.0))
def test_weights_are_the_truncated_ratio_of_each_counted_token(seed, cap):
    generator = torch.Generator().manual_seed(seed)
    logprobs, sampler = (torch.rand(3, 5, generator=generator, dtype=torch.float64).log() for _ in range(2))
    mask = torch.rand(3, 5, generator=generator) < 0.7
    mask[0, 0] = True
    weights = truncated_importance_weights(logprobs, sampler, mask, cap=cap)
    assert torch.allclose(weights, naive_weights(logprobs, sampler, mask, cap), atol=1e-12)


def bandit(seed=0, actions=5):
    """One token: what the sampler does (q), what the trainer's policy is (p), the advantage of each action."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(actions, generator=generator, dtype=torch.float64).softmax(0)
    logits = torch.randn(actions, generator=generator, dtype=torch.float64, requires_grad=True)
    return q, logits, torch.randn(actions, 1, generator=generator, dtype=torch.float64)


def expected_gradient(probs, logits, advantages, weights):
    """The mean gradient of the loss when action a is sampled with probs[a]: every action once, weighed by it."""
    logprobs = logits.log_softmax(0)[:, None]
    mask = torch.ones_like(advantages, dtype=torch.bool)
    reduce = weighted(fixed_length_mean(1), weights)
    scaled = len(probs) * probs[:, None] * advantages  # fixed_length_mean divides by the number of rows
    loss, _ = reinforce_loss(logprobs, scaled, mask, reduce=reduce)
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("seed", range(5))
def test_for_one_token_the_uncapped_correction_is_exact(seed):
    """Sampled by q and weighed, the expected gradient is that of sampling from the policy itself; unweighed it is not."""
    q, logits, advantages = bandit(seed)
    logprobs = logits.detach().log_softmax(0)[:, None]
    mask, nothing = torch.ones_like(advantages, dtype=torch.bool), torch.ones_like(advantages)
    weights = truncated_importance_weights(logprobs, q.log()[:, None], mask, cap=1e6)
    right = expected_gradient(logprobs.exp()[:, 0], logits, advantages, nothing)
    assert torch.allclose(expected_gradient(q, logits, advantages, weights), right, atol=1e-12)
    assert not torch.allclose(expected_gradient(q, logits, advantages, nothing), right, atol=1e-2)
    # the ratio the wrong way round, and one that is not capped where it should be, are other numbers
    upside_down = truncated_importance_weights(q.log()[:, None], logprobs, mask, cap=1e6)
    assert not torch.allclose(expected_gradient(q, logits, advantages, upside_down), right, atol=1e-2)


def test_the_cap_bounds_what_one_token_can_do():
    weights = truncated_importance_weights(torch.tensor([[-1.0, -1.0]]), torch.tensor([[-9.0, -1.0]]), BOTH)
    assert equal(weights, torch.tensor([[2.0, 1.0]]))


@pytest.mark.parametrize("reduce", [token_mean, sequence_mean, fixed_length_mean(4)])
def test_engines_that_agree_change_nothing(reduce):
    mask = random_mask(0, 3, 4)
    logprobs, advantages = normal(1, 3, 4) - 3, normal(2, 3, 4)
    weights = truncated_importance_weights(logprobs, logprobs, mask)
    plain, _ = ppo_clip_loss(logprobs, logprobs - 0.1, advantages, mask, reduce=reduce)
    corrected, _ = ppo_clip_loss(logprobs, logprobs - 0.1, advantages, mask, reduce=weighted(reduce, weights))
    assert torch.allclose(plain, corrected, rtol=1e-6)
    assert sampling_gap(logprobs, logprobs, mask) == 0


def test_the_divisor_is_the_number_of_tokens():
    """And not the sum of the weights: a batch the sampler finds likelier than the trainer does counts less."""
    x, mask = torch.tensor([[1.0, 3.0]]), BOTH
    assert weighted(token_mean, torch.tensor([[0.5, 0.5]]))(x, mask) == 1.0


def test_weights_are_data():
    logprobs = torch.zeros(1, 2, requires_grad=True)
    weights = truncated_importance_weights(logprobs, torch.zeros(1, 2), BOTH)
    assert not weights.requires_grad
    x = torch.ones(1, 2, requires_grad=True)
    scale = torch.ones(1, 2, requires_grad=True)
    weighted(token_mean, scale)(x, BOTH).backward()
    assert scale.grad is None


def test_padding_never_reaches_the_result():
    mask = torch.tensor([[True, False], [True, True]])
    logprobs, sampler, x = -torch.rand(2, 2), -torch.rand(2, 2), torch.rand(2, 2)
    weights = truncated_importance_weights(logprobs, sampler, mask)
    for rubbish in (float("nan"), float("inf"), -float("inf")):
        bad = spoil(logprobs, mask, rubbish), spoil(sampler, mask, rubbish)
        assert equal(truncated_importance_weights(*bad, mask), weights) and weights[0, 1] == 0
        assert sampling_gap(*bad, mask) == sampling_gap(logprobs, sampler, mask)
        assert weighted(token_mean, weights)(spoil(x, mask, rubbish), mask) == weighted(token_mean, weights)(x, mask)


def test_the_gap_is_the_mean_absolute_difference():
    mask = torch.tensor([[True, True, False]])
    assert sampling_gap(torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-1.5, -1.0, 9.0]]), mask) == 0.75


def test_bad_input_is_named(unhooked):
    mask, zeros = BOTH, torch.zeros(1, 2)
    with pytest.raises(ValueError, match="cap"):
        truncated_importance_weights(zeros, zeros, mask, cap=0.5)
    with pytest.raises(ValueError, match="sampler_logprobs"):
        truncated_importance_weights(zeros, torch.zeros(1), mask)
    with pytest.raises(ValueError, match="sampler_logprobs: wanted finite"):
        truncated_importance_weights(zeros, zeros - torch.inf, mask)
    with pytest.raises(ValueError, match="mask"):
        truncated_importance_weights(zeros, zeros, ~mask)
    with pytest.raises(ValueError, match="weights"):
        weighted(token_mean, torch.ones(1, 3))(zeros, mask)
