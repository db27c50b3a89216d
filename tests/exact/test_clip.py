"""The clipped surrogate in a world that can be enumerated: what it teaches on average when the policy has moved away from
the one that sampled, beside importance weights without a clip and no weights at all. Nothing is sampled.
"""

from itertools import pairwise
from statistics import median

import pytest
import torch
from batches import equal, gradient, leaf, normal
from torch import Tensor

from minirl.exact import World, along, choice_rewards, expected_gradient, sequence_logprobs, token_logprobs, values
from minirl.losses.policy import ppo_clip_loss, reinforce_loss
from minirl.masking import fixed_length_mean

SEEDS = range(20)
UNBIASED = fixed_length_mean(1)
DISTANCES = [0.0, 0.1, 0.3, 1.0, 3.0]  # the norm of the move of each state's logits
UNCLIPPED = 1e6  # clip_eps_high, and the lower edge is 0
WORLDS = {"all of length 3": World(3, 3, eos=None), "with an end token": World(3, 4, eos=0)}
worlds = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


class Case:
    """Scores, a policy that sampled (old) and one that has moved in a random direction since, `distance` from it."""

    def __init__(self, world: World, seed: int, distance: float):
        shape = world.child.shape
        old_logits, direction = normal(seed, *shape), normal(seed + 100, *shape)
        direction = direction - direction.mean(1, keepdim=True)
        moved = old_logits + distance * direction / direction.norm(dim=1, keepdim=True)
        self.world, self.mask, self.logits = world, world.mask, leaf(moved)
        self.tokens, self.old_tokens = token_logprobs(world, self.logits), token_logprobs(world, old_logits)
        self.p = self.old_tokens.sum(1).exp()  # how often each sequence is sampled
        self.scores = normal(seed + 200, len(world))
        rewards = choice_rewards(world, self.scores)
        v, q = values(world, old_logits, rewards)
        self.advantages = along(world, q - v.unsqueeze(1))  # of the policy that sampled, exact
        v, q = values(world, moved, rewards)
        self.advantages_now = along(world, q - v.unsqueeze(1))  # of the policy that has moved

    def wanted(self) -> Tensor:
        """grad E[score] where the policy is now."""
        return gradient((self.tokens.sum(1).exp() * self.scores).sum(), self.logits)

    def taught(self, loss_of) -> Tensor:
        """Minus the expected gradient of loss_of(advantages): each row's advantages weighted by its probability, which is
        what `expected_gradient` does row by row, since the surrogates scale with the advantages."""
        weighted = self.advantages * (len(self.p) * self.p).unsqueeze(1)
        return -gradient(loss_of(weighted)[0], self.logits)

    def clip(self, advantages: Tensor, **knobs) -> tuple[Tensor, dict]:
        return ppo_clip_loss(self.tokens, self.old_tokens, advantages, self.mask, reduce=UNBIASED, **knobs)

    def free(self, advantages: Tensor) -> tuple[Tensor, dict]:
        return self.clip(advantages, clip_eps=1.0, clip_eps_high=UNCLIPPED)

    def stale(self, advantages: Tensor) -> tuple[Tensor, dict]:
        return reinforce_loss(self.tokens, advantages, self.mask, reduce=UNBIASED)

    def of_sequences(self) -> Tensor:
        """Each row's score times the ratio of its whole probability."""
        ratio = (self.tokens.sum(1) - self.old_tokens.sum(1)).exp()
        return gradient((self.p * ratio * self.scores).sum(), self.logits)

    def ratio(self) -> Tensor:
        return (self.tokens - self.old_tokens).exp().detach()

    def variance(self, weights: Tensor) -> float:
        """Of one row's gradient, sum_t weights_t grad log pi(a_t | s_t), summed over its entries."""
        world, pi = self.world, self.logits.detach().softmax(1)
        of_token = torch.nn.functional.one_hot(world.tokens, world.vocab_size) - pi[world.states]
        of_row = torch.zeros(len(world), *pi.shape, dtype=pi.dtype)
        rows = torch.arange(len(world)).unsqueeze(1).expand_as(world.states)
        weights = weights.masked_fill(~self.mask, 0.0)
        of_row.index_put_((rows, world.states), weights.unsqueeze(2) * of_token, accumulate=True)
        mean = torch.einsum("y,ysv->sv", self.p, of_row)
        return float(torch.einsum("y,ysv->", self.p, of_row**2) - (mean**2).sum())


def cases(world: World, distance: float) -> list[Case]:
    return [Case(world, seed, distance) for seed in SEEDS]


def miss(actual: Tensor, wanted: Tensor) -> float:
    return float((actual - wanted).norm() / wanted.norm())


@worlds
@pytest.mark.parametrize("distance", [0.0, 1.0])
def test_the_shortcut_of_this_file(world, distance):
    """One backward pass over weighted rows against `expected_gradient`, which takes row after row."""
    case = Case(world, 0, distance)

    def loss(rows: Tensor) -> Tensor:
        tokens, old = token_logprobs(world, case.logits)[rows], case.old_tokens[rows]
        return ppo_clip_loss(tokens, old, case.advantages[rows], case.mask[rows], reduce=UNBIASED)[0]

    assert equal(case.taught(case.clip), -expected_gradient(loss, case.logits, case.p)[0])


# At ratio 1


@worlds
@pytest.mark.parametrize("clip_eps", [0.01, 0.2, 1.0])
def test_at_ratio_1_it_is_the_policy_gradient_whatever_the_clip(world, clip_eps):
    for case in cases(world, 0.0):
        assert equal(case.taught(lambda a, case=case: case.clip(a, clip_eps=clip_eps)), case.wanted())
        assert equal(case.taught(case.stale), case.wanted())
        assert equal(case.of_sequences(), case.wanted())


@worlds
def test_at_ratio_1_the_value_of_the_loss_says_nothing(world):
    """Its mean is E[advantage] = 0 for exact advantages, while the gradient is not."""
    for case in cases(world, 0.0):
        loss, stats = case.clip(case.advantages * (len(case.p) * case.p).unsqueeze(1))
        assert abs(loss.item()) < 1e-12 and stats["clip_fraction"] == 0
        assert case.wanted().norm() > 0.01


# Further out


@worlds
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_sequence_ratio_is_right_at_any_distance(world, distance):
    for case in cases(world, distance):
        assert equal(case.of_sequences(), case.wanted())


@worlds
def test_token_ratios_forget_how_often_the_state_is_reached_and_what_happens_after(world):
    """They are exact with the ratios of all earlier tokens and the advantages of the policy now; one alone does not do."""
    for case in cases(world, 1.0):
        before = case.ratio().log().cumsum(1).exp() / case.ratio()  # how much more often the state is reached now
        weight = (len(case.p) * case.p).unsqueeze(1)

        def taught(advantages, case=case, weight=weight):
            return -gradient(case.free(advantages * weight)[0], case.logits)

        assert equal(taught(before * case.advantages_now), case.wanted())
        for advantages in (case.advantages, case.advantages_now, before * case.advantages):
            assert miss(taught(advantages), case.wanted()) > 0.02


@worlds
def test_the_bias_grows_with_the_distance(world):
    """Medians over the seeds; relative to the gradient wanted where the policy is now."""
    off = {name: [] for name in ("clip", "free", "stale")}
    for distance in DISTANCES:
        found = cases(world, distance)
        for name in off:
            off[name].append(median(miss(case.taught(getattr(case, name)), case.wanted()) for case in found))
    for row in off.values():
        assert row[0] < 1e-10 and all(a < b for a, b in pairwise(row))
    assert 0.02 < off["free"][1] < 0.1 and off["free"][3] > 0.3
    assert all(free < clip for free, clip in zip(off["free"][2:4], off["clip"][2:4], strict=True))
    assert off["clip"][4] == pytest.approx(1, abs=0.05)  # hardly a gradient is left


@worlds
def test_without_a_clip_the_bias_is_linear_near_the_old_policy(world):
    """Halve a small move and the error of the gradient halves: right to first order, as TRPO's bound needs it."""
    for seed in SEEDS:
        far, near = (Case(world, seed, distance) for distance in (0.002, 0.001))
        far_off, near_off = (case.taught(case.free) - case.wanted() for case in (far, near))
        assert far_off.norm() / near_off.norm() == pytest.approx(2, rel=0.02)


@worlds
def test_inside_the_interval_the_clip_does_nothing(world):
    for case in cases(world, 0.1):
        assert ((case.ratio() - 1).abs() < 0.2)[case.mask].all()
        assert equal(case.taught(case.clip), case.taught(case.free))


@worlds
def test_outside_it_drops_what_moved_the_right_way_and_keeps_what_moved_the_wrong_way(world):
    """By the definition: a token loses its gradient where ratio > 1 + eps and A > 0, or ratio < 1 - eps and A < 0."""
    dropped_share = []
    for case in cases(world, 1.0):
        ratio, good = case.ratio(), case.advantages > 0
        dropped = ((ratio > 1.2) & good) | ((ratio < 0.8) & ~good)
        kept = case.advantages.masked_fill(dropped, 0.0) * case.p.unsqueeze(1)
        assert equal(
            case.taught(case.clip), gradient((kept * (case.tokens - case.old_tokens).exp()).sum(), case.logits)
        )
        dropped_share.append(dropped[case.mask].double().mean())
        both = ((ratio > 1.2) & ~good & case.mask).any() and ((ratio < 0.8) & good & case.mask).any()
        assert both  # moved the wrong way beyond the interval, and still felt
    assert 0.2 < median(dropped_share) < 0.5


@worlds
@pytest.mark.parametrize("distance", DISTANCES[1:])
def test_the_clipped_objective_is_a_lower_bound_of_the_unclipped(world, distance):
    """Token by token, hence on average; equal where nothing is clipped."""
    for case in cases(world, distance):
        weighted = case.advantages * (len(case.p) * case.p).unsqueeze(1)
        clip, free = -case.clip(weighted)[0], -case.free(weighted)[0]
        assert clip <= free + 1e-12
        assert distance > 0.1 or equal(clip, free)


@worlds
def test_ascending_it_stops_where_ascending_the_unclipped_one_runs_on(world):
    """25 steps on one set of exact samples: every clipped ratio ends near the interval, the unclipped ones far beyond."""
    for seed in (0, 1):
        case, ends = Case(world, seed, 0.0), {}
        for name in ("clip", "free"):
            logits = leaf(Case(world, seed, 0.0).logits)
            optimizer = torch.optim.Adam([logits], lr=0.1)
            for _ in range(25):
                case.logits, case.tokens = logits, token_logprobs(world, logits)
                logits.grad = -case.taught(getattr(case, name))
                optimizer.step()
            case.tokens = token_logprobs(world, logits)
            ends[name] = (case.ratio().log().abs() * case.mask).max().exp()
        assert ends["free"] > 3 and ends["clip"] < 0.6 * ends["free"]


@worlds
def test_the_exactness_of_the_sequence_ratio_is_paid_for_in_noise(world):
    """Each further token can only raise the second moment of the product. The variance of one row's gradient, medians over
    the seeds: near the old policy all are alike; further off the clip is quietest, and the sequence ratio loudest where
    answers are equally long."""

    def medians(distance: float) -> list[float]:
        found = []
        for case in cases(world, distance):
            ratio, good = case.ratio(), case.advantages > 0
            products = ratio.cumprod(1)
            assert all(a <= b + 1e-12 for a, b in pairwise((case.p.unsqueeze(1) * products**2).sum(0)))
            assert equal((case.p.unsqueeze(1) * products).sum(0), torch.ones(world.max_length, dtype=ratio.dtype))
            dropped = ((ratio > 1.2) & good) | ((ratio < 0.8) & ~good)
            weights = [products[:, -1:], ratio, ratio.masked_fill(dropped, 0.0)]
            found.append([case.variance(weight * case.advantages) for weight in weights])
        return [median(column) for column in zip(*found, strict=True)]

    sequence, token, clip = medians(0.001)
    assert sequence == pytest.approx(token, rel=0.01) and token == pytest.approx(clip, rel=0.01)
    sequence, token, clip = medians(1.0)
    assert token > 1.5 * clip
    assert sequence > (1.3 if world.eos is None else 1.0) * token


# The sampler's own probabilities


@worlds
def test_old_logprobs_must_be_those_of_the_sampler(world):
    """Sampled at temperature 1, scored at 1.5: a ratio that is not 1 and a gradient that is not the policy's."""
    for case in cases(world, 0.0):
        case.old_tokens = token_logprobs(world, case.logits.detach() / 1.5)
        assert miss(case.taught(case.clip), case.wanted()) > 0.05


def test_sequence_probabilities_are_products_of_the_tokens():
    for world in WORLDS.values():
        case = Case(world, 0, 1.0)
        assert equal(case.ratio().prod(1), (sequence_logprobs(world, case.logits) - case.old_tokens.sum(1)).exp())
