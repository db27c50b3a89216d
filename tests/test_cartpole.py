"""The loop of notebook 02: what follows a fall and what follows a cut, by hand; a run that learns; errors that say what to do."""

import builtins
from dataclasses import replace

import pytest
import torch

from minirl.train.cartpole import (
    LIMIT,
    ActorCritic,
    CartPoleConfig,
    Carts,
    Steps,
    advantages_of,
    evaluate,
    play,
    sampled,
    train_ppo,
    train_reinforce,
    what_follows,
)

SMALL = CartPoleConfig(total_steps=2_048, environments=8, length=32, seed=3)


def right(states):
    return torch.ones(len(states), dtype=torch.int64)


def steps_of(rewards, terminated, truncated) -> Steps:
    """One cart; the states do not matter."""
    rewards = torch.tensor([rewards], dtype=torch.float64)
    flags = [torch.tensor([flag], dtype=torch.bool) for flag in (terminated, truncated)]
    states = torch.zeros(1, rewards.shape[1], 4, dtype=torch.float64)
    return Steps(states, torch.zeros(1, rewards.shape[1], dtype=torch.int64), rewards, states, *flags)


def by_definition(steps: Steps, values, next_values, gamma: float, lam: float):
    """Sums of (gamma lam)^l delta_{t+l} up to the end of the part, one cart at a time."""
    ends = steps.terminated | steps.truncated
    advantages = torch.zeros_like(values)
    for i, t in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist():
        for later in range(t, values.shape[1]):
            ahead = 0.0 if steps.terminated[i, later] else next_values[i, later]
            delta = steps.rewards[i, later] + gamma * ahead - values[i, later]
            advantages[i, t] += (gamma * lam) ** (later - t) * delta
            if ends[i, later]:
                break
    return advantages


@pytest.mark.parametrize(
    "terminated, truncated, advantages, returns",
    [
        ([0, 0, 1], [0, 0, 0], [-0.5, -1.0, -2.0], [4.5, 3.0, 1.0]),  # a fall: nothing follows
        ([0, 0, 0], [0, 0, 1], [0.25, 0.5, 1.0], [5.25, 4.5, 4.0]),  # the clock: V = 3 follows
        ([0, 0, 0], [0, 0, 0], [0.25, 0.5, 1.0], [5.25, 4.5, 4.0]),  # the end of our stretch: V = 3 follows as well
        ([0, 0, 1], [0, 0, 1], [-0.5, -1.0, -2.0], [4.5, 3.0, 1.0]),  # both at once is a fall
    ],
)
def test_three_steps_by_hand(terminated, truncated, advantages, returns):
    """r = 1, V = 5, 4, 3, gamma = 1, lambda = 1/2."""
    values, ahead = torch.tensor([[5.0, 4.0, 3.0]]).double(), torch.tensor([[4.0, 3.0, 3.0]]).double()
    got = advantages_of(steps_of([1.0] * 3, terminated, truncated), values, ahead, gamma=1.0, lam=0.5)
    torch.testing.assert_close(got[0], torch.tensor([advantages]).double())
    torch.testing.assert_close(got[1], torch.tensor([returns]).double())


@pytest.mark.parametrize("seed", range(5))
def test_several_episodes_in_a_row_do_not_know_each_other(seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 12)
    rewards, values, ahead = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    terminated, truncated = torch.rand(2, *shape, generator=generator) < 0.2
    goes_on = ~(terminated | truncated)[:, :-1]
    ahead[:, :-1][goes_on] = values[:, 1:][goes_on]  # within an episode the next state is the next row's state
    states = torch.zeros(*shape, 4, dtype=torch.float64)
    steps = Steps(states, torch.zeros(shape, dtype=torch.int64), rewards, states, terminated, truncated)
    advantages, returns = advantages_of(steps, values, ahead, gamma=0.9, lam=0.8)
    torch.testing.assert_close(advantages, by_definition(steps, values, ahead, 0.9, 0.8))
    torch.testing.assert_close(returns, advantages + values)


def test_the_critics_view_of_a_fallen_pole_is_never_used():
    steps = steps_of([1.0, 1.0], [1, 0], [0, 0])
    assert what_follows(torch.tensor([[7.0, 8.0]]), steps).tolist() == [[0.0, 8.0]]


def test_next_states_belong_to_the_episode_that_ended():
    """Autoreset hands out the first state of the next episode; what a step led to is the fallen pole."""
    steps = Carts(2, seed=0).steps(right, 40)
    ends = steps.terminated
    assert 4 <= ends.sum() <= 12  # pushing one way falls after nine or ten steps
    assert (steps.next_states[ends][:, 2].abs() > 0.2).all()  # 12 degrees are .209
    after = steps.states[:, 1:][ends[:, :-1]]
    assert (after.abs() <= 0.05).all()  # and each episode begins upright
    goes_on = ~ends[:, :-1]
    assert torch.equal(steps.next_states[:, :-1][goes_on], steps.states[:, 1:][goes_on])


def test_returns_are_counted_across_stretches():
    carts = Carts(1, seed=0)
    ends = torch.cat([carts.steps(right, 7).terminated for _ in range(6)], dim=1)[0].nonzero().squeeze(1)
    assert list(carts.returns) == (ends - torch.tensor([-1, *ends.tolist()])[:-1]).tolist()


def test_play_gives_whole_episodes():
    steps, mask = play(right, 5, seed=1)
    assert mask.sum(1).min() >= 8 and mask.shape[1] == mask.sum(1).max()
    for row, length in enumerate(mask.sum(1).tolist()):
        assert mask[row, :length].all() and steps.terminated[row, length - 1]
        assert not steps.terminated[row, : length - 1].any()


def test_the_clock_truncates_and_does_not_terminate():
    def balance(states):
        return (states[:, 2] + 0.5 * states[:, 3] + 0.05 * states[:, 0] + 0.1 * states[:, 1] > 0).long()

    steps, mask = play(balance, 2, seed=0)
    assert mask.shape[1] == LIMIT and mask.all()
    assert steps.truncated[:, -1].all() and not steps.terminated.any()


def test_a_short_run_learns():
    model, records = train_ppo(replace(SMALL, total_steps=16_384, environments=16, length=64))
    fresh = ActorCritic(generator=torch.Generator().manual_seed(3))
    assert evaluate(fresh, seed=7) < 40
    assert evaluate(model, seed=7) > 80
    assert records[-1]["reward_mean"] > 2 * records[0]["reward_mean"]


def test_reinforce_learns_and_counts_its_steps():
    model, records = train_reinforce(CartPoleConfig(total_steps=9_000, lr=1e-2, seed=3))
    assert evaluate(model, seed=7) > 35
    assert records[-1]["step"] >= 9_000 > records[-2]["step"]


@pytest.mark.parametrize("train", [train_ppo, train_reinforce])
def test_a_seed_gives_the_same_bits(train):
    (first, records), (again, same) = train(SMALL), train(SMALL)
    assert records == same
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    other, _ = train(replace(SMALL, seed=4))
    assert not torch.equal(other.actor[0].weight, first.actor[0].weight)


def test_sampled_follows_the_probabilities():
    model = ActorCritic()
    torch.nn.init.zeros_(model.actor[-1].weight)
    model.actor[-1].bias.data = torch.tensor([0.0, 1.0])
    chosen = sampled(model, torch.Generator().manual_seed(0))(torch.zeros(20_000, 4))
    assert abs(chosen.float().mean() - torch.sigmoid(torch.tensor(1.0))) < 0.012  # three and a half standard errors


def test_values_are_in_units_of_a_hundred():
    one, hundred = (ActorCritic(value_unit=u, generator=torch.Generator().manual_seed(0)) for u in (1.0, 100.0))
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(hundred(states)[1], 100 * one(states)[1])
    assert hundred(states)[0].shape == (3, 5, 2) and hundred(states)[1].shape == (3, 5)


@pytest.mark.parametrize(
    "knobs, named",
    [
        ({"environments": 0}, "environments"),
        ({"length": 0}, "length"),
        ({"total_steps": 100}, "total_steps"),
        ({"epochs": 0}, "epochs"),
        ({"minibatch": 4096}, "minibatch"),
        ({"lr": 0.0}, "lr"),
    ],
)
def test_knobs_out_of_range(knobs, named):
    with pytest.raises(ValueError, match=f"{named}: wanted a finite number"):
        CartPoleConfig(**knobs)


def test_a_policy_of_the_wrong_shape(unhooked):
    with pytest.raises(ValueError, match=r"actions: wanted one number a row, shape \(2,\), got \(1,\)"):
        Carts(2, seed=0).steps(lambda states: right(states)[:1], 1)


def test_values_of_the_wrong_shape(unhooked):
    steps = steps_of([1.0, 1.0], [0, 0], [0, 0])
    with pytest.raises(ValueError, match="next_values: wanted shape"):
        advantages_of(steps, torch.zeros(1, 2), torch.zeros(1, 3), gamma=0.9, lam=0.9)


def test_without_gymnasium(monkeypatch):
    def no_gymnasium(name, *args, real=builtins.__import__, **kwargs):
        if name == "gymnasium":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_gymnasium)
    with pytest.raises(ImportError, match="pip install gymnasium"):
        Carts(1, seed=0)
