"""REINFORCE and its baselines in worlds that can be enumerated: what each estimator is on average and how much it scatters.

A group is n answers drawn independently from the policy, and every group is enumerated, so that baselines made of the other
answers are treated rightly. S is the gradient of log pi(y), r the score, g the gradient of E[r]. Nothing is sampled.
"""

from itertools import pairwise
from math import comb, sqrt
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from batches import equal, gradient, leaf, normal
from torch import Tensor

from minirl.advantages import (
    discounted_returns,
    group_centered_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
)
from minirl.exact import World, along, expected_gradient, objective, token_logprobs
from minirl.losses.policy import reinforce_loss
from minirl.masking import blank, fixed_length_mean, sequence_mean, token_mean
from minirl.rewards import kl_shaped_rewards
from minirl.train import critic_free

SEEDS = range(10)
SIZES = [2, 3, 4]
UNBIASED = fixed_length_mean(1)
WORLDS = {"all of length 2": World(2, 2, eos=None), "with an end token": World(2, 3, eos=0)}
worlds = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
group_sizes = pytest.mark.parametrize("n", SIZES)


class Case:
    """A policy and scores; `slopes` (Y, L, S * V) are the gradients of each token's log-probability, onehot(a) - pi."""

    def __init__(self, world: World, seed: int, *, logits: Tensor | None = None, scores: Tensor | None = None):
        self.world, self.mask = world, world.mask
        self.logits = leaf(normal(seed, *world.child.shape) if logits is None else logits)
        self.tokens = token_logprobs(world, self.logits)
        self.p = self.tokens.sum(1).exp().detach()
        self.scores = normal(seed + 200, len(world)) if scores is None else scores
        onehot = torch.nn.functional.one_hot(world.tokens, world.vocab_size)
        of_token = onehot - self.logits.detach().softmax(1)[world.states]
        at = torch.nn.functional.one_hot(world.states, len(self.logits)).double()
        self.slopes = (torch.einsum("yls,ylv->ylsv", at, of_token) * self.mask[:, :, None, None]).flatten(2)
        self.s = self.slopes.sum(1)  # (Y, P): the gradients of log pi(y)
        self.mean_score = float(self.p @ self.scores)

    def wanted(self) -> Tensor:
        """g, the gradient of E[score]."""
        return gradient((self.tokens.sum(1).exp() * self.scores).sum(), self.logits).flatten()

    def groups(self, n: int) -> tuple[Tensor, Tensor]:
        """(rows (groups, n), chance (groups,)): every group of n answers."""
        rows = torch.cartesian_prod(*[torch.arange(len(self.p))] * n).view(-1, n)
        return rows, self.p[rows].prod(1)

    def gradients(self, rows: Tensor, advantages: Tensor, reduce=UNBIASED) -> Tensor:
        """(groups, P): minus the gradient of reinforce_loss of every group, with advantages (groups, n, L).

        Under UNBIASED one call takes all groups at once, since all rows are then divided by the same number.
        """
        of_token = leaf(self.tokens[rows])
        if reduce is UNBIASED:
            flat = reinforce_loss(
                of_token.flatten(0, 1), advantages.flatten(0, 1), self.mask[rows].flatten(0, 1), reduce=reduce
            )
            loss = len(rows) * flat[0]
        else:
            each = zip(of_token, advantages, self.mask[rows], strict=True)
            loss = sum(reinforce_loss(logp, a, mask, reduce=reduce)[0] for logp, a, mask in each)
        return -torch.einsum("gnl,gnlp->gp", gradient(loss, of_token), self.slopes[rows])

    def grouped(self, rows: Tensor, advantages_of) -> Tensor:
        """(groups, n, L): one advantage an answer, from the library's function, which gets all groups at once."""
        advantages = advantages_of(self.scores[rows].flatten(), rows.shape[1]).view(*rows.shape, 1)
        return advantages.expand(*rows.shape, self.world.max_length)

    def estimate(self, advantages_of, n: int, reduce=UNBIASED) -> tuple[Tensor, float]:
        """(mean, variance) of the gradient over all groups of n."""
        rows, chance = self.groups(n)
        return moments(chance, self.gradients(rows, self.grouped(rows, advantages_of), reduce))

    def single(self, advantages: Tensor, reduce=UNBIASED) -> tuple[Tensor, float]:
        """(mean, variance) for one answer at a time, with advantages (Y,) or (Y, L)."""
        table = advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand_as(self.tokens)
        rows, chance = self.groups(1)
        return moments(chance, self.gradients(rows, table.detach().unsqueeze(1), reduce))


def moments(chance: Tensor, gradients: Tensor) -> tuple[Tensor, float]:
    mean = chance @ gradients
    return mean, float((chance @ gradients**2 - mean**2).sum())


def score(scores: Tensor, group_size: int) -> Tensor:
    """No baseline."""
    return scores


def whole_batch(scores: Tensor, group_size: int) -> Tensor:
    """critic_free.batch_centered, which knows no groups: every group is a batch of its own."""
    return torch.cat([critic_free.batch_centered(batch, group_size) for batch in scores.view(-1, group_size)])


def cases(world: World) -> list[Case]:
    return [Case(world, seed) for seed in SEEDS]


def approx(value: float):
    return pytest.approx(value, rel=1e-9, abs=1e-12)


def miss(actual: Tensor, wanted: Tensor) -> float:
    return float((actual - wanted).norm() / wanted.norm())


def cosine(x: Tensor, y: Tensor) -> float:
    return float(torch.cosine_similarity(x, y, dim=0))


@worlds
@pytest.mark.parametrize("reduce", [UNBIASED, token_mean, sequence_mean], ids=["sum", "token", "sequence"])
def test_the_shortcut_of_this_file(world, reduce):
    """Closed-form slopes and all groups in one call, against `expected_gradient`, which differentiates group after group."""
    case = Case(world, 0)

    def loss(rows: Tensor) -> Tensor:
        advantages = leave_one_out_advantages(case.scores[rows], len(rows)).unsqueeze(1).expand(-1, world.max_length)
        return reinforce_loss(token_logprobs(world, case.logits)[rows], advantages, case.mask[rows], reduce=reduce)[0]

    mean, variance = expected_gradient(loss, case.logits, case.p, batch=3)
    ours, noise = case.estimate(leave_one_out_advantages, 3, reduce)
    assert equal(ours, -mean.flatten())
    assert noise == approx(variance.item())


# The slope of an answer


@worlds
def test_the_slope_of_an_answer_is_the_sum_of_its_tokens_slopes(world):
    case = Case(world, 0)
    for y, logp in enumerate(case.tokens.sum(1)):
        assert equal(gradient(logp, case.logits).flatten(), case.s[y])


@worlds
def test_slopes_average_to_zero_and_those_of_two_tokens_are_uncorrelated(world):
    """Hence noise adds up token by token: E|S|^2 = sum_t E[1 - sum_a pi(a | s_t)^2]."""
    for case in cases(world):
        assert equal(case.p @ case.s, torch.zeros_like(case.s[0]))
        together = torch.einsum("y,ytp,yup->tu", case.p, case.slopes, case.slopes)
        assert equal(together, together.diag().diag())
        spread = 1 - (case.logits.detach().softmax(1) ** 2).sum(1)
        assert float(together.sum()) == approx(float(case.p @ along(world, spread).sum(1)))


def test_the_noise_of_a_constant_score_grows_with_the_length():
    """Uniform over V tokens: E|S|^2 = L (1 - 1 / V), and the gradient is 0."""
    for length in (1, 2, 3, 4):
        world = World(3, length, eos=None)
        case = Case(world, 0, logits=torch.zeros(world.child.shape, dtype=torch.float64))
        mean, noise = case.single(torch.ones_like(case.p))
        assert equal(mean, torch.zeros_like(mean)) and noise == approx(length * (1 - 1 / 3))


@pytest.mark.parametrize("considered", [2, 4, 8])
def test_noise_counts_the_tokens_the_policy_considers_and_not_those_there_are(considered):
    """One good token among `considered` equally likely ones: noise / |g|^2 = considered - 1, in any vocabulary."""
    for vocabulary in (8, 26):
        world = World(vocabulary, 1, eos=None)
        logits = torch.full((1, vocabulary), -60.0, dtype=torch.float64)
        logits[0, :considered] = 0.0
        good = torch.zeros(vocabulary, dtype=torch.float64)
        good[0] = 1.0
        mean, noise = Case(world, 0, logits=logits, scores=good).estimate(score, 1)
        assert noise / float(mean.square().sum()) == approx(considered - 1)


# No baseline


@worlds
@group_sizes
def test_without_a_baseline_it_is_unbiased_and_its_noise_is_that_of_one_answer_over_n(world, n):
    for case in cases(world):
        mean, noise = case.estimate(score, n)
        g, square = case.wanted(), (case.s**2).sum(1)
        assert equal(mean, g)
        assert noise == approx(float(case.p @ (case.scores**2 * square) - g @ g) / n)


@worlds
def test_all_scores_raised_by_a_constant_change_nothing_but_the_noise(world):
    """With baselines taken from the group, not even that."""
    for case in cases(world):
        g, (_, noise) = case.wanted(), case.estimate(score, 2)
        raised = Case(world, 0, logits=case.logits.detach(), scores=case.scores + 10)
        mean, more = raised.estimate(score, 2)
        assert equal(mean, g) and more > 5 * noise
        for advantages_of in (leave_one_out_advantages, group_centered_advantages):
            before, after = case.estimate(advantages_of, 2), raised.estimate(advantages_of, 2)
            assert equal(before[0], after[0]) and before[1] == approx(after[1])


# The mean of the batch


@worlds
@group_sizes
@pytest.mark.parametrize("centred", [group_centered_advantages, whole_batch])
def test_a_mean_that_holds_the_answer_itself_shrinks_the_gradient_by_exactly_one_in_n(world, n, centred):
    """Each answer pays 1 / n of its own score back. The direction stays."""
    for case in cases(world):
        mean, _ = case.estimate(centred, n)
        assert equal(mean, (1 - 1 / n) * case.wanted())


@worlds
def test_an_answer_that_is_its_own_baseline_teaches_nothing(world):
    case = Case(world, 0)
    mean, noise = case.estimate(whole_batch, 1)
    assert not mean.any() and noise == 0


# Leave one out


@worlds
@group_sizes
def test_leave_one_out_is_unbiased(world, n):
    for case in cases(world):
        mean, _ = case.estimate(leave_one_out_advantages, n)
        assert equal(mean, case.wanted())


@worlds
@group_sizes
def test_leave_one_out_is_the_centred_estimate_stretched(world, n):
    """n / (n - 1) in every single group: another learning rate, and neither is the noisier per step."""
    for case in cases(world):
        rows, _ = case.groups(n)
        stretched, centred = (
            case.gradients(rows, case.grouped(rows, f)) for f in (leave_one_out_advantages, group_centered_advantages)
        )
        assert equal(stretched, n / (n - 1) * centred)


@worlds
@group_sizes
def test_leave_one_out_is_the_sample_covariance_of_scores_and_slopes(world, n):
    """g = Cov(r, S), since E[S] = 0; leave-one-out is its unbiased estimate (divide by n - 1)."""
    case = Case(world, 0)
    rows, _ = case.groups(n)
    r, s = case.scores[rows], case.s[rows]
    r, s = r - r.mean(1, keepdim=True), s - s.mean(1, keepdim=True)
    covariance = torch.einsum("gn,gnp->gp", r, s) / (n - 1)
    assert equal(case.gradients(rows, case.grouped(rows, leave_one_out_advantages)), covariance)


@worlds
@group_sizes
def test_the_noise_of_leave_one_out_in_closed_form(world, n):
    """n Var = limit + (pair - limit) / (n - 1): `limit` has E[r] itself as baseline, `pair` is twice the noise of a group of
    two. What it costs not to know E[r] is paid off as 1 / (n - 1)."""
    for case in cases(world):
        _, limit = case.single(case.scores - case.mean_score)
        _, of_two = case.estimate(leave_one_out_advantages, 2)
        _, noise = case.estimate(leave_one_out_advantages, n)
        assert n * noise == approx(limit + (2 * of_two - limit) / (n - 1))
        assert 2 * of_two > limit


@worlds
def test_leave_one_out_beats_no_baseline_where_scores_are_far_from_zero(world):
    for case in cases(world):
        raised = Case(world, 0, logits=case.logits.detach(), scores=case.scores + 5)
        for n in SIZES:
            assert raised.estimate(leave_one_out_advantages, n)[1] < raised.estimate(score, n)[1] / 3


@worlds
@group_sizes
def test_a_group_of_equal_scores_teaches_nothing(world, n):
    """Of right and wrong answers, p^n + (1 - p)^n of the groups are such, and no others have a gradient of 0 advantages."""
    case = Case(world, 0, scores=torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64))
    rows, chance = case.groups(n)
    p = case.mean_score
    for advantages_of in (leave_one_out_advantages, group_centered_advantages, group_relative_advantages):
        dead = (case.grouped(rows, advantages_of) == 0).all(2).all(1)
        assert not case.gradients(rows, case.grouped(rows, advantages_of))[dead].any()
        assert float(chance[dead].sum()) == approx(p**n + (1 - p) ** n)


# Constant baselines


@worlds
def test_any_constant_is_an_unbiased_baseline_and_the_noise_is_a_parabola_in_it(world):
    """Least at c* = E[r |S|^2] / E[|S|^2], a mean of the scores in which rare answers weigh more, and not at E[r]."""
    for case in cases(world):
        g, square = case.wanted(), (case.s**2).sum(1)
        steep = float(case.p @ square)
        best = float(case.p @ (case.scores * square)) / steep
        _, least = case.single(case.scores - best)
        for c in (-3.0, 0.0, case.mean_score, best, 2.0):
            mean, noise = case.single(case.scores - c)
            assert equal(mean, g)
            assert noise == approx(least + (c - best) ** 2 * steep)
        assert abs(best - case.mean_score) > 1e-3


def test_with_two_tokens_the_best_constant_swaps_the_weights_and_leaves_no_noise():
    """c* = p(b) r(a) + p(a) r(b). A policy that is nearly sure of the better token is served worse by E[r] than by nothing."""
    world = World(2, 1, eos=None)
    for p, mean_helps in ((0.5, True), (0.9, False), (0.1, True)):
        logits = torch.tensor([[p, 1 - p]], dtype=torch.float64).log()
        case = Case(world, 0, logits=logits, scores=torch.tensor([1.0, 0.0], dtype=torch.float64))
        none, with_mean, best = (case.single(case.scores - c) for c in (0.0, case.mean_score, 1 - p))
        for mean, _ in (none, with_mean, best):
            assert equal(mean, case.wanted())
        assert best[1] == pytest.approx(0, abs=1e-15)
        assert (with_mean[1] < none[1]) == mean_helps


# Baselines of the state


@worlds
def test_any_function_of_the_state_is_an_unbiased_baseline(world):
    for case in cases(world):
        for size in (0.1, 1.0, 10.0):
            values = along(world, size * normal(7, len(case.logits)))
            mean, _ = case.single(case.scores.unsqueeze(1) - values)
            assert equal(mean, case.wanted())


@worlds
def test_the_noise_is_a_parabola_in_the_value_of_every_state(world):
    """Least at E[r |slope|^2 | s] / E[|slope|^2 | s]: the policy is a table, so that the noise of its states adds up. The
    true value is not the least: in some of these worlds it is noisier than the best constant, in others calmer."""
    gains = []
    for case in cases(world):
        index, square = world.states[case.mask], (case.slopes**2).sum(2)
        weight = (case.p.unsqueeze(1) * square)[case.mask]
        scores = case.scores.unsqueeze(1).expand_as(square)[case.mask]
        visits = case.p.unsqueeze(1).expand_as(square)[case.mask]

        def total(x, index=index, case=case):
            return torch.zeros(len(case.logits), dtype=x.dtype).index_add(0, index, x)

        steep = total(weight)
        best, true = total(weight * scores) / steep, total(visits * scores) / total(visits)
        constant = float((best * steep).sum() / steep.sum())
        noise = {}
        for name, values in {"best": best, "true": true, "constant": constant + 0 * best}.items():
            mean, noise[name] = case.single(case.scores.unsqueeze(1) - along(world, values))
            assert equal(mean, case.wanted())
        for name, values in {"true": true, "constant": constant}.items():
            assert noise[name] == approx(noise["best"] + float((steep * (values - best) ** 2).sum()))
        assert noise["best"] < min(noise["true"], noise["constant"])
        gains.append(noise["constant"] - noise["true"])
    assert min(gains) < 0 < max(gains)


@worlds
def test_a_baseline_that_sees_the_action_takes_away_what_it_knows(world):
    """The bias is minus its own policy gradient; one that is right about every choice leaves nothing."""
    for case in cases(world):
        peeking = along(world, normal(8, *case.logits.shape))  # (Y, L), a function of state and token
        mean, _ = case.single(case.scores.unsqueeze(1) - peeking)
        theirs = torch.einsum("y,yl,ylp->p", case.p, peeking, case.slopes)
        assert equal(mean, case.wanted() - theirs) and theirs.norm() > 1e-3
        own = case.scores.unsqueeze(1).expand_as(case.tokens)
        mean, noise = case.single(own - own)
        assert not mean.any() and noise == 0


# Reward to go


def paid_by_token(case: Case, size: float) -> Tensor:
    return along(case.world, size * normal(9, *case.logits.shape))


@worlds
def test_with_one_score_at_the_end_every_token_hears_the_whole_score(world):
    case = Case(world, 0)
    rewards = kl_shaped_rewards(case.scores, torch.zeros_like(case.tokens).detach(), case.mask, kl_coef=0.0)
    to_go = discounted_returns(rewards, case.mask, gamma=1.0)
    assert equal(to_go, blank(case.scores.unsqueeze(1).expand_as(to_go), case.mask))
    assert equal(case.single(to_go)[0], case.wanted())


@worlds
def test_where_every_token_is_paid_what_came_before_teaches_nothing_and_adds_noise(world):
    """Reward to go, the whole sum, and the past alone: g, g and 0. Cutting a token's own reward off is a bias."""
    saved = []
    for case in cases(world):
        rewards = paid_by_token(case, 1.0)
        paid = Case(world, 0, logits=case.logits.detach(), scores=rewards.sum(1))
        to_go = discounted_returns(rewards, case.mask, gamma=1.0)
        whole = rewards.sum(1, keepdim=True).expand_as(rewards)
        (exact, noise), (same, more), (nothing, _) = map(paid.single, (to_go, whole, whole - to_go))
        assert equal(exact, paid.wanted()) and equal(same, exact) and equal(nothing, torch.zeros_like(exact))
        assert miss(paid.single(to_go - rewards)[0], exact) > 0.05
        saved.append(more - noise)
    assert median(saved) > 0


# Division by the standard deviation


@group_sizes
@pytest.mark.parametrize("right", [1, 2, 3])
def test_of_right_and_wrong_the_division_keeps_the_direction_and_stretches_it(n, right):
    """By sum_k P(k of n right) (k (n - k) / n^2) / std_k / (p (1 - p)): about 1 / sqrt(p (1 - p)) in large groups, more for
    hard and for easy prompts, and 1 / sqrt(2) for every prompt in groups of two."""
    world = WORLDS["with an end token"]
    scores = (torch.arange(len(world)) < right).double()
    for seed in SEEDS:
        case = Case(world, seed, scores=scores)
        p, stretch = case.mean_score, 0.0
        for k in range(1, n):
            std = sqrt(k * (n - k) / (n * (n - 1)))
            stretch += comb(n, k) * p**k * (1 - p) ** (n - k) * k * (n - k) / n**2 / (std + 1e-4) / (p * (1 - p))
        mean, _ = case.estimate(group_relative_advantages, n)
        assert equal(mean, stretch * case.wanted())
        if n == 2:
            assert stretch == pytest.approx(sqrt(0.5), rel=1e-3)


def test_the_division_favours_hard_and_easy_prompts():
    """Two tokens, one right, with probability p: the stretch in groups of four at p = .02, .1, .5, .9, .98."""
    world, stretches = World(2, 1, eos=None), []
    for p in (0.02, 0.1, 0.5, 0.9, 0.98):
        logits = torch.tensor([[p, 1 - p]], dtype=torch.float64).log()
        case = Case(world, 0, logits=logits, scores=torch.tensor([1.0, 0.0], dtype=torch.float64))
        stretches.append(float(case.estimate(group_relative_advantages, 4)[0].norm() / case.wanted().norm()))
        centred = float(case.estimate(group_centered_advantages, 4)[0].norm() / case.wanted().norm())
        assert centred == approx(3 / 4)
    assert equal(torch.tensor(stretches), torch.tensor(stretches[::-1]), 1e-6)
    assert stretches[0] > stretches[1] > stretches[2] > 1.1 * 3 / 4


@worlds
def test_in_groups_of_two_the_division_teaches_to_win_against_oneself(world):
    """sign(r - r') / sqrt(2): the score has become the share of the policy's own answers that are worse, minus the better."""
    for case in cases(world):
        wins = torch.sign(case.scores.unsqueeze(1) - case.scores) @ case.p
        wanted = torch.einsum("y,y,yp->p", case.p, wins, case.s) / sqrt(2)
        assert equal(case.estimate(group_relative_advantages, 2)[0], wanted, 0.05)  # eps is not nothing for near ties


@worlds
def test_of_other_scores_the_division_turns_the_gradient_and_forgets_their_scale(world):
    """Scores ten times as large give ten times the gradient with centring, and the same with division."""
    turned = []
    for case in cases(world):
        large = Case(world, 0, logits=case.logits.detach(), scores=10 * case.scores)
        for f, grows in ((group_centered_advantages, 10), (group_relative_advantages, 1)):
            assert equal(large.estimate(f, 3)[0], grows * case.estimate(f, 3)[0], 1e-2 if grows == 1 else 1e-9)
        turned.append(1 - cosine(case.estimate(group_relative_advantages, 3)[0], case.wanted()))
    assert min(turned) > 0 and 1e-3 < median(turned) < 0.3


@worlds
def test_an_outlier_is_capped_by_the_division(world):
    """Nobody can be more than (n - 1) / sqrt(n) standard deviations above the mean of n that holds him."""
    case = Case(world, 0, scores=torch.tensor([1000.0, 0.0, 1.0, 2.0], dtype=torch.float64))
    for n in SIZES:
        rows, _ = case.groups(n)
        most = float(case.grouped(rows, group_relative_advantages).max())
        assert most == pytest.approx((n - 1) / sqrt(n), rel=1e-3)
        assert float(case.grouped(rows, group_centered_advantages).max()) == approx(1000 * (n - 1) / n)


# Which mean


@worlds
@pytest.mark.parametrize("n", [2, 3])
def test_only_the_sum_over_tokens_is_the_policy_gradient(world, n):
    """A fixed length divides it; a sequence mean is the gradient of E[(r - E r) / |y|], E r and |y| held: the same direction
    where all answers are equally long, and another where they are not."""
    for case in cases(world)[: 4 - n + 1]:
        g, lengths = case.wanted(), case.mask.sum(1)
        for length in (1, 7):
            mean, _ = case.estimate(leave_one_out_advantages, n, fixed_length_mean(length))
            assert equal(mean, g / length)
        tilted, _ = case.single((case.scores - case.mean_score) / lengths)
        by_row, _ = case.estimate(leave_one_out_advantages, n, sequence_mean)
        by_token, _ = case.estimate(leave_one_out_advantages, n, token_mean)
        assert equal(by_row, tilted)
        if world.eos is None:
            assert equal(by_row, g / 2) and equal(by_token, g / 2)
        else:
            assert min(1 - cosine(x, g) for x in (by_row, by_token)) > 1e-5


def test_without_a_baseline_a_sequence_mean_pays_for_brevity_when_scores_are_positive():
    """Every answer scores 1: the gradient is that of E[1 / |y|], towards the end token; every answer -1: away from it."""
    world = WORLDS["with an end token"]
    for case in cases(world):
        towards_the_end, _ = case.single(torch.ones_like(case.p), sequence_mean)
        assert equal(
            towards_the_end, gradient((case.tokens.sum(1).exp() / case.mask.sum(1)).sum(), case.logits).flatten()
        )
        away, _ = case.single(-torch.ones_like(case.p), sequence_mean)
        assert towards_the_end.view_as(case.logits)[0, 0] > 0 > away.view_as(case.logits)[0, 0]
        fair, _ = case.single(torch.ones_like(case.p))
        assert equal(fair, torch.zeros_like(fair))


# The rows of the critic-free table


@worlds
@group_sizes
@pytest.mark.parametrize(
    ("row", "lost"), [(critic_free.RLOO, 0), (critic_free.REINFORCE, 1)], ids=["rloo", "reinforce"]
)
def test_rloo_is_the_gradient_of_score_minus_kl_and_reinforce_one_in_n_less(world, n, row, lost):
    """Charge, advantages, loss and reduction as the loop puts them together; the KL in the reward is worth its gradient."""
    config = SimpleNamespace(max_new_tokens=world.max_length)
    for case in cases(world)[:4]:
        ref = token_logprobs(world, normal(55, *case.logits.shape))
        paid = row.charge(case.scores, (case.tokens - ref).detach(), case.mask, 0.3)
        rows, chance = case.groups(n)
        advantages = torch.cat([row.advantages(group, n) for group in paid[rows]])
        of_token = leaf(case.tokens[rows].flatten(0, 1))
        mask = case.mask[rows].flatten(0, 1)
        loss, _ = row.surrogate(of_token, of_token.detach(), advantages, mask, config, row.reduce(config))
        weights = gradient(loss, of_token).view(*rows.shape, -1) * len(rows)
        mean, _ = moments(chance, -torch.einsum("gnl,gnlp->gp", weights, case.slopes[rows]))
        logp = case.tokens.sum(1)
        wanted = gradient(objective(logp, ref.sum(1), case.scores, beta=0.3), case.logits).flatten()
        assert equal(mean, (1 - lost / n) * wanted)


def test_the_noise_falls_as_one_over_the_group_and_a_little_faster():
    """Leave-one-out: a group of four is less than half as noisy as a group of two."""
    for world in WORLDS.values():
        for case in cases(world):
            noise = [case.estimate(leave_one_out_advantages, n)[1] for n in SIZES]
            assert all(n * a > (n + 1) * b for (n, a), (_, b) in pairwise(zip(SIZES, noise, strict=True)))
