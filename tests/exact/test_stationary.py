"""Which losses rest at the optimum? At pi* = pi_ref exp(r / beta) / Z the expected gradient of a loss that aims there is
zero, and that of one that misses it by design is not. Every expectation is a sum over all sequences, or all pairs of them,
with both labels weighted by their Bradley-Terry probability."""

import pytest
import torch
from torch.testing import assert_close

from minirl import exact
from minirl.advantages import gae, group_centered_advantages, leave_one_out_advantages
from minirl.kl import kl_k1
from minirl.logprobs import average_logprobs
from minirl.losses.policy import cispo_loss, grpo_loss, gspo_loss, ppo_clip_loss, reinforce_loss, weighted_logprob_loss
from minirl.losses.preference import (
    bradley_terry_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
)
from minirl.masking import fixed_length_mean
from minirl.rewards import kl_shaped_rewards

BETA, FLIPPED = 0.6, 0.15
WORLD = exact.World(3, 2)
MASK, Y = WORLD.mask, len(WORLD)
SUM = fixed_length_mean(1)


class Optimum:
    """A world with random scores, and a table of logits that stands at its optimum and asks for a gradient."""

    def __init__(self, seed: int):
        dice = torch.Generator().manual_seed(seed)
        self.ref = torch.randn(WORLD.child.shape, generator=dice, dtype=torch.float64)
        self.scores = torch.randn(Y, generator=dice, dtype=torch.float64)
        self.ref_logp = exact.sequence_logprobs(WORLD, self.ref)
        best, _ = exact.optimum(self.ref_logp, self.scores, beta=BETA)
        self.at(best)

    def at(self, logp: torch.Tensor) -> None:
        self.logits = exact.table_of(WORLD, logp).requires_grad_()
        self.tokens = exact.token_logprobs(WORLD, self.logits)
        self.logp = self.tokens.sum(1)
        self.ref_tokens = exact.token_logprobs(WORLD, self.ref)

    def slope(self, loss: torch.Tensor) -> float:
        """The largest entry of the gradient."""
        (gradient,) = torch.autograd.grad(loss, self.logits, retain_graph=True)
        return float(gradient.abs().max())


@pytest.fixture(params=range(2))
def world(request):
    return Optimum(request.param)


def expected(world: Optimum, loss) -> torch.Tensor:
    """sum_y pi(y) loss(rows [y]), the sampler's probabilities without gradient."""
    weights = world.logp.detach().exp()
    return sum(weights[y] * loss(torch.tensor([y])) for y in range(Y))


# Losses that sample.


def charged_scores(world: Optimum) -> torch.Tensor:
    """r - beta log(pi / ref): the same for every answer at the optimum."""
    return world.scores - BETA * kl_k1(world.tokens.detach(), world.ref_tokens).sum(1)


@pytest.mark.parametrize("baseline", [leave_one_out_advantages, group_centered_advantages])
def test_with_kl_in_the_reward_critic_free_losses_rest(world, baseline):
    a = baseline(charged_scores(world), Y)
    old = world.tokens.detach()
    for loss in (
        lambda i: weighted_logprob_loss(world.tokens[i], a[i], MASK[i], reduce=SUM)[0],
        lambda i: grpo_loss(world.tokens[i], old[i], None, a[i], MASK[i], kl_coef=0.0, reduce=SUM)[0],
        lambda i: gspo_loss(world.tokens[i], old[i], a[i], MASK[i])[0],
        lambda i: cispo_loss(world.tokens[i], old[i], a[i], MASK[i], reduce=SUM)[0],
    ):
        assert world.slope(expected(world, loss)) < 1e-12


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_ppo_with_kl_in_the_reward_and_its_own_critic_rests(world, lam):
    kl = kl_k1(world.tokens.detach(), world.ref_tokens)
    rewards = kl_shaped_rewards(world.scores, kl, MASK, kl_coef=BETA)
    k1 = world.logits.detach().log_softmax(1) - world.ref.log_softmax(1)
    v, _ = exact.values(WORLD, world.logits.detach(), exact.choice_rewards(WORLD, world.scores, k1, kl_coef=BETA))
    advantages, _ = gae(rewards, exact.along(WORLD, v), MASK, gamma=1.0, lam=lam)
    for loss in (ppo_clip_loss, lambda new, old, a, mask, reduce: reinforce_loss(new, a, mask, reduce=reduce)):
        terms = expected(
            world,
            lambda i, loss=loss: loss(world.tokens[i], world.tokens[i].detach(), advantages[i], MASK[i], reduce=SUM)[0],
        )
        assert world.slope(terms) < 1e-12


def test_ppo_with_gamma_below_one_does_not_rest(world):
    kl = kl_k1(world.tokens.detach(), world.ref_tokens)
    rewards = kl_shaped_rewards(world.scores, kl, MASK, kl_coef=BETA)
    advantages, _ = gae(rewards, torch.zeros_like(rewards), MASK, gamma=0.9, lam=1.0)
    loss = expected(world, lambda i: reinforce_loss(world.tokens[i], advantages[i], MASK[i], reduce=SUM)[0])
    assert world.slope(loss) > 1e-3


def test_grpo_as_published_does_not_rest(world):
    """The score alone in the advantage, k3 in the loss."""
    a = world.scores - (world.logp.exp() * world.scores).sum().detach()
    loss = expected(
        world,
        lambda i: grpo_loss(
            world.tokens[i], world.tokens[i].detach(), world.ref_tokens[i], a[i], MASK[i], kl_coef=BETA, reduce=SUM
        )[0],
    )
    assert world.slope(loss) > 0.01


# Losses on pairs.


def pairs(world: Optimum, flipped: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(first, second, probability that the label says the first is better), over all ordered pairs."""
    first, second = torch.cartesian_prod(torch.arange(Y), torch.arange(Y)).unbind(1)
    p = (world.scores[first] - world.scores[second]).sigmoid()
    return first, second, (1 - flipped) * p + flipped * (1 - p)


def over_pairs(world: Optimum, loss, flipped: float = 0.0) -> torch.Tensor:
    """The mean of loss(chosen rows, rejected rows) with every label weighted by its probability."""
    first, second, p = pairs(world, flipped)
    return sum(
        weight * loss(torch.tensor([a]), torch.tensor([b]))
        for a, b, weight in zip(first.tolist(), second.tolist(), p.tolist(), strict=True)
        if a != b
    ) / len(first)


def test_bradley_terry_rests_at_the_true_scores(world):
    scores = world.scores.clone().requires_grad_()
    loss = over_pairs(world, lambda c, r: bradley_terry_loss(scores[c], scores[r])[0])
    assert float(torch.autograd.grad(loss, scores)[0].abs().max()) < 1e-12
    off = (world.scores * 1.2).requires_grad_()
    loss = over_pairs(world, lambda c, r: bradley_terry_loss(off[c], off[r])[0])
    assert float(torch.autograd.grad(loss, off)[0].abs().max()) > 1e-3


def preference(world: Optimum, function, **knobs):
    return lambda c, r: function(world.logp[c], world.logp[r], world.ref_logp[c], world.ref_logp[r], **knobs)[0]


def test_dpo_rests(world):
    assert world.slope(over_pairs(world, preference(world, dpo_loss, beta=BETA))) < 1e-12


def test_dpo_with_another_beta_does_not(world):
    assert world.slope(over_pairs(world, preference(world, dpo_loss, beta=1.3 * BETA))) > 1e-3


def test_robust_dpo_rests_where_labels_were_flipped_as_often_as_it_is_told_and_cdpo_does_not(world):
    robust = preference(world, robust_dpo_loss, beta=BETA, label_smoothing=FLIPPED)
    smoothed = preference(world, dpo_loss, beta=BETA, label_smoothing=FLIPPED)
    assert world.slope(over_pairs(world, robust, FLIPPED)) < 1e-12
    assert world.slope(over_pairs(world, smoothed, FLIPPED)) > 1e-3
    assert world.slope(over_pairs(world, robust)) > 1e-3
    assert world.slope(over_pairs(world, smoothed)) > 1e-3


def test_ipo_misses_it_by_design(world):
    assert world.slope(over_pairs(world, preference(world, ipo_loss, beta=BETA))) > 1e-3


def test_losses_without_a_reference_miss_it_by_design(world):
    mean = average_logprobs(world.tokens, MASK)
    assert world.slope(over_pairs(world, lambda c, r: simpo_loss(mean[c], mean[r], beta=1 / BETA)[0])) > 1e-3
    assert world.slope(over_pairs(world, lambda c, r: orpo_loss(mean[c], mean[r])[0])) > 1e-3


def test_kto_misses_it_by_design(world):
    good = torch.ones(1, dtype=torch.bool)
    kl = float(exact.kl(world.logp, world.ref_logp).detach())
    loss = over_pairs(
        world,
        lambda c, r: (
            kto_loss(world.logp[c], world.ref_logp[c], good, kl, beta=BETA)[0]
            + kto_loss(world.logp[r], world.ref_logp[r], ~good, kl, beta=BETA)[0]
        ),
    )
    assert world.slope(loss) > 1e-3


def averaged_optimum(world: Optimum) -> torch.Tensor:
    """Where DPO on length-averaged log-probabilities rests: log pi = log ref + length (r / beta + c), c so that it sums to 1."""
    length, low, high = MASK.sum(1), -50.0, 50.0
    for _ in range(200):
        c = (low + high) / 2
        logp = world.ref_logp + length * (world.scores / BETA + c)
        low, high = (low, c) if logp.logsumexp(0) > 0 else (c, high)
    return logp


def test_dpo_on_averaged_logprobs_rests_elsewhere(world):
    def loss(c, r):
        ours, theirs = average_logprobs(world.tokens, MASK), average_logprobs(world.ref_tokens, MASK)
        return dpo_loss(ours[c], ours[r], theirs[c], theirs[r], beta=BETA)[0]

    assert world.slope(over_pairs(world, loss)) > 1e-3
    best, elsewhere = world.logp.detach(), averaged_optimum(world)
    world.at(elsewhere)
    assert world.slope(over_pairs(world, loss)) < 1e-9
    assert exact.total_variation(elsewhere, best) > 0.1


def test_at_the_optimum_the_charged_score_is_the_same_for_every_answer(world):
    charged = charged_scores(world)
    assert_close(charged, charged[0].expand(Y))
