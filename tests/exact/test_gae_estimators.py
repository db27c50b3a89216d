"""GAE in a world that can be enumerated: what it is on average, how much it scatters, and what it teaches.

Text is deterministic: token a in state s leads to one next state. So the TD error of the exact critic is the exact
advantage, and everything below follows from what a wrong critic, a discount, a cut or a pad adds to that. Every
expectation is a sum over all sequences.
"""

from itertools import pairwise
from statistics import median

import pytest
import torch
from batches import equal, gradient, leaf, normal
from torch import Tensor

from minirl.advantages import discounted_returns, gae
from minirl.exact import (
    World,
    along,
    choice_rewards,
    expected_gradient,
    objective,
    token_logprobs,
    values,
)
from minirl.kl import kl_k1
from minirl.losses.policy import reinforce_loss
from minirl.masking import blank, fixed_length_mean, masked_whiten, sequence_mean, token_mean
from minirl.rewards import kl_shaped_rewards

SEEDS = range(10)
BETA = 0.3
UNBIASED = fixed_length_mean(1)
LAMBDAS = [0.0, 0.5, 0.9, 1.0]
WORLDS = {"all of length 3": World(3, 3, eos=None), "with an end token": World(3, 4, eos=0)}
worlds = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
every_lambda = pytest.mark.parametrize("lam", LAMBDAS)


class Case:
    """A policy, a reference, scores, and the rewards they make; `error` is what a wrong critic adds to the exact one."""

    def __init__(self, world: World, seed: int):
        shape = world.child.shape
        self.world, self.mask = world, world.mask
        self.logits, self.ref_logits = leaf(normal(seed, *shape)), normal(seed + 100, *shape)
        self.tokens, self.ref_tokens = token_logprobs(world, self.logits), token_logprobs(world, self.ref_logits)
        self.scores, self.error = normal(seed + 200, len(world)), normal(seed + 300, shape[0])
        self.p = self.tokens.sum(1).exp().detach()
        kl = kl_k1(self.tokens, self.ref_tokens).detach()
        self.rewards = kl_shaped_rewards(self.scores, kl, self.mask, kl_coef=BETA)  # (Y, L), as the loops make them
        self.v, self.q = self.solved()

    def solved(self, gamma: float = 1.0) -> tuple[Tensor, Tensor]:
        logits = self.logits.detach()
        kl = logits.log_softmax(1) - self.ref_logits.log_softmax(1)
        return values(self.world, logits, choice_rewards(self.world, self.scores, kl, kl_coef=BETA), gamma=gamma)

    def exact(self, gamma: float = 1.0) -> Tensor:
        """The advantages Q - V themselves, token by token (Y, L)."""
        v, q = self.solved(gamma)
        return along(self.world, q - v.unsqueeze(1))

    def gae(self, v: Tensor, *, lam: float, gamma: float = 1.0, **knobs) -> Tensor:
        return gae(self.rewards, along(self.world, v), self.mask, gamma=gamma, lam=lam, **knobs)[0]

    def wanted(self) -> Tensor:
        """grad J, J = E[score] - beta KL."""
        logp, ref = self.tokens.sum(1), self.ref_tokens.sum(1)
        return gradient(objective(logp, ref, self.scores, beta=BETA), self.logits)

    def loss_of(self, advantages: Tensor, reduce=UNBIASED):
        """The loss of a few rows, for `expected_gradient`."""

        def loss(rows: Tensor) -> Tensor:
            tokens = token_logprobs(self.world, self.logits)
            return reinforce_loss(tokens[rows], advantages[rows], self.mask[rows], reduce=reduce)[0]

        return loss

    def taught(self, advantages: Tensor) -> Tensor:
        """Minus the expected gradient of reinforce_loss: every row's sum over its tokens, weighted by p. Linear in the
        advantages, hence one backward pass over all rows instead of one a row."""
        weighted = advantages * (len(self.p) * self.p).unsqueeze(1)
        loss, _ = reinforce_loss(self.tokens, weighted, self.mask, reduce=UNBIASED)
        return -gradient(loss, self.logits)

    def noise(self, advantages: Tensor) -> float:
        """The variance of one row's gradient, summed over its entries, from grad log pi(a|s) = onehot(a) - pi."""
        world, pi = self.world, self.logits.detach().softmax(1)
        of_token = torch.nn.functional.one_hot(world.tokens, world.vocab_size) - pi[world.states]
        of_row = torch.zeros(len(world), *pi.shape, dtype=pi.dtype)
        rows = torch.arange(len(world)).unsqueeze(1).expand_as(world.states)
        of_row.index_put_((rows, world.states), blank(advantages, self.mask).unsqueeze(2) * of_token, accumulate=True)
        mean = torch.einsum("y,ysv->sv", self.p, of_row)
        return float(torch.einsum("y,ysv->", self.p, of_row**2) - (mean**2).sum())

    def per_choice(self, x: Tensor) -> Tensor:
        """E[x_t | s_t, a_t] (S, V): what follows a choice is averaged out."""
        return self.averaged(
            x, self.world.states * self.world.vocab_size + self.world.tokens, self.logits.numel()
        ).view(self.logits.shape)

    def per_state(self, x: Tensor) -> Tensor:
        """E[x_t | s_t] (S,)."""
        return self.averaged(x, self.world.states, len(self.logits))

    def averaged(self, x: Tensor, index: Tensor, n: int) -> Tensor:
        weight = self.p.unsqueeze(1).expand_as(x)[self.mask]
        total = torch.zeros(n, dtype=x.dtype).index_add(0, index[self.mask], weight * x[self.mask])
        return total / torch.zeros(n, dtype=x.dtype).index_add(0, index[self.mask], weight)


def cases(world: World) -> list[Case]:
    return [Case(world, seed) for seed in SEEDS]


def miss(actual: Tensor, wanted: Tensor) -> float:
    return float((actual - wanted).norm() / wanted.norm())


def powers(base: float, exponents: Tensor) -> Tensor:
    return torch.tensor(base, dtype=torch.float64) ** exponents


def strictly(values: list[float], *, rise: bool) -> bool:
    return all((b > a) if rise else (b < a) for a, b in pairwise(values))


@worlds
def test_the_shortcuts_of_this_file(world):
    """One backward pass and the closed form of the noise against `expected_gradient`, which takes row after row."""
    case = Case(world, 0)
    advantages = case.gae(case.v + case.error, lam=0.7)
    mean, variance = expected_gradient(case.loss_of(advantages), case.logits, case.p)
    assert equal(case.taught(advantages), -mean)
    assert case.noise(advantages) == pytest.approx(variance.item(), rel=1e-10)


# With an exact critic


@worlds
@every_lambda
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_with_an_exact_critic_every_lambda_is_unbiased(world, lam, gamma):
    for case in cases(world):
        v, q = case.solved(gamma)
        estimate = case.gae(v, lam=lam, gamma=gamma)
        assert equal(case.per_choice(estimate), q - v.unsqueeze(1))
        assert lam > 0 or equal(estimate, case.exact(gamma))  # one TD error: no luck left in it


@worlds
@every_lambda
def test_with_an_exact_critic_every_lambda_teaches_the_exact_gradient(world, lam):
    for case in cases(world):
        assert equal(case.taught(case.gae(case.v, lam=lam)), case.wanted())


@worlds
def test_with_an_exact_critic_the_variance_is_what_the_later_tokens_add(world):
    """TD errors of the exact critic are uncorrelated: Var A_t = sum_{l > 0} (gamma lam)^(2 l) E[A_{t+l}^2]. It rises."""
    for case in cases(world):
        exact, before = case.exact(), -1.0
        for lam in LAMBDAS:
            estimate = case.gae(case.v, lam=lam)
            squared = discounted_returns(exact**2, case.mask, gamma=lam**2) - exact**2
            of_choice = case.per_choice((estimate - exact) ** 2)
            assert equal(of_choice, case.per_choice(squared))
            assert of_choice.sum() > before
            before = of_choice.sum()
        assert equal(case.gae(case.v, lam=0.0), exact)


@worlds
def test_with_an_exact_critic_the_noise_of_the_gradient_rises_with_lambda(world):
    for case in cases(world):
        assert strictly([case.noise(case.gae(case.v, lam=lam)) for lam in LAMBDAS], rise=True)


@worlds
def test_a_critic_takes_noise_away_that_a_constant_cannot(world):
    """At lambda 1 all are unbiased, and a better baseline has less noise: one off by 2, the mean return, the exact critic."""
    off_by_2, constant, critic = [], [], []
    for case in cases(world):
        mean = case.v[0].expand_as(case.v)
        for found, v in ((off_by_2, mean - 2), (constant, mean), (critic, case.v)):
            estimate = case.gae(v, lam=1.0)
            assert equal(case.taught(estimate), case.wanted())
            found.append(case.noise(estimate))
    assert 1.05 * median(critic) < median(constant) and 2 * median(constant) < median(off_by_2)


# With a wrong one


@worlds
@every_lambda
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_what_a_wrong_critic_adds(world, lam, gamma):
    """-e(s_t) for its own state, and gamma (1 - lam) (gamma lam)^(l-1) e(s_{t+l}) for each later one."""
    for case in cases(world):
        v, q = case.solved(gamma)
        bias = case.per_choice(case.gae(v + case.error, lam=lam, gamma=gamma)) - (q - v.unsqueeze(1))
        e = along(world, case.error)
        to_come = discounted_returns(e, case.mask, gamma=gamma * lam)
        later = torch.cat([to_come[:, 1:], torch.zeros_like(to_come[:, :1])], dim=1)
        assert equal(bias, case.per_choice(gamma * (1 - lam) * later) - case.error.unsqueeze(1))


@worlds
def test_at_lambda_1_the_bias_is_the_error_of_the_states_own_value(world):
    for case in cases(world):
        bias = case.per_choice(case.gae(case.v + case.error, lam=1.0)) - (case.q - case.v.unsqueeze(1))
        assert equal(bias, -case.error.unsqueeze(1).expand_as(bias))  # the same for every token: a baseline
        assert bias.abs().max() > 0.1


@worlds
def test_the_bias_that_tells_tokens_apart_grows_as_lambda_falls(world):
    """Without its mean over the tokens of a state, which teaches nothing."""
    found = []
    for case in cases(world):
        pi, sizes = case.logits.detach().softmax(1), []
        for lam in LAMBDAS:
            bias = case.per_choice(case.gae(case.v + case.error, lam=lam)) - case.q
            bias = bias - (pi * bias).sum(1, keepdim=True)
            sizes.append(float((pi * bias**2).sum(1).mean().sqrt()))
        assert sizes[0] > sizes[2] > sizes[3] and sizes[3] < 1e-12
        found.append(sizes)
    assert strictly([median(sizes) for sizes in zip(*found, strict=True)], rise=False)


@worlds
def test_at_lambda_1_any_critic_teaches_the_exact_gradient_and_at_lambda_0_a_wrong_one_does_not(world):
    found = []
    for case in cases(world):
        for size in (0.1, 1.0, 10.0):
            assert equal(case.taught(case.gae(case.v + size * case.error, lam=1.0)), case.wanted())
        found.append([miss(case.taught(case.gae(case.v + case.error, lam=lam)), case.wanted()) for lam in LAMBDAS])
        assert found[-1][0] > 0.2 and found[-1][0] > found[-1][2]
    middle = [median(row) for row in zip(*found, strict=True)]
    assert strictly(middle, rise=False) and middle[0] > 0.5 and middle[3] < 1e-10


@worlds
def test_the_bias_of_the_gradient_is_linear_in_the_error_of_the_critic(world):
    for case in cases(world):
        once, twice = (case.taught(case.gae(case.v + k * case.error, lam=0.5)) - case.wanted() for k in (1, 2))
        assert equal(twice, 2 * once) and once.norm() > 1e-3


@worlds
def test_a_constant_added_to_the_critic_is_no_constant_at_the_end(world):
    """After the last token the value is 0 and not c: at lambda < 1 the tokens that end an answer lose c (1 - lam). Where all
    answers are equally long, every token of the last step loses it, and nothing is biased."""
    for case in cases(world):
        taught = case.taught(case.gae(case.v + 1.0, lam=0.5))
        if world.eos is None:
            assert equal(taught, case.wanted())
        else:
            assert miss(taught, case.wanted()) > 0.05


# What the critic is trained on


@worlds
@every_lambda
def test_the_exact_critic_is_where_the_returns_leave_it(world, lam):
    for case in cases(world):
        _, returns = gae(case.rewards, along(world, case.v), case.mask, lam=lam)
        assert equal(case.per_state(returns), case.v)


@worlds
def test_from_any_critic_the_returns_lead_to_the_exact_one(world):
    """At lambda 1 at once, at lambda 0 one token further from the end with every sweep."""
    for case in cases(world):
        for lam, sweeps in ((1.0, 1), (0.5, world.max_length), (0.0, world.max_length)):
            v = case.v + case.error
            for sweep in range(sweeps):
                assert miss(v, case.v) > 1e-6, (lam, sweep)
                v = case.per_state(gae(case.rewards, along(world, v), case.mask, lam=lam)[1])
            assert equal(v, case.v)


@worlds
def test_returns_are_advantages_plus_values_and_at_lambda_below_1_not_the_sum_of_rewards(world):
    case = Case(world, 0)
    v = along(world, case.v + case.error)
    monte_carlo = discounted_returns(case.rewards, case.mask, gamma=1.0)
    for lam in LAMBDAS:
        advantages, returns = gae(case.rewards, v, case.mask, lam=lam)
        assert equal(returns, blank(advantages + v, case.mask))
        assert (miss(returns, monte_carlo) < 1e-12) == (lam == 1.0)


# gamma


@worlds
def test_a_discount_biases_the_gradient_of_text(world):
    """gamma .9 is not the gradient of J, with no critic, with the critic of gamma 1 and with that of gamma .9."""
    found = []
    for case in cases(world):
        discounted, _ = case.solved(0.9)
        for v in (0 * case.v, case.v, discounted):
            found.append(miss(case.taught(case.gae(v, lam=1.0, gamma=0.9)), case.wanted()))
            assert found[-1] > 0.01
    assert 0.05 < median(found) < 0.5


@worlds
def test_a_discount_shrinks_what_early_tokens_hear(world):
    """Without a critic: a score on the last of n tokens reaches token t as gamma^(n - 1 - t) of itself."""
    case = Case(world, 0)
    rewards = kl_shaped_rewards(case.scores, torch.zeros_like(case.rewards), case.mask, kl_coef=0.0)
    advantages, _ = gae(rewards, torch.zeros_like(rewards), case.mask, gamma=0.9, lam=1.0)
    ahead = case.mask.sum(1, keepdim=True) - 1 - torch.arange(world.max_length)
    assert equal(advantages, blank(case.scores.unsqueeze(1) * powers(0.9, ahead), case.mask))


@worlds
def test_the_discounted_objective_needs_another_gamma_to_the_t(world):
    """sum_t gamma^t grad log pi A_t is its gradient. Nobody writes gamma^t, so the usual update is that of no objective."""
    for case in cases(world):
        v, _ = case.solved(0.9)
        estimate = case.gae(v, lam=1.0, gamma=0.9)
        discount = powers(0.9, torch.arange(world.max_length))
        kl = blank(kl_k1(case.tokens, case.ref_tokens), case.mask)
        ends = discount[case.mask.sum(1) - 1]
        to_pay = case.scores * ends - BETA * (kl * discount).sum(1)
        wanted = gradient((case.tokens.sum(1).exp() * to_pay).sum(), case.logits)
        assert equal(case.taught(estimate * discount), wanted)
        assert miss(case.taught(estimate), wanted) > 0.01


def test_where_all_answers_are_equally_good_a_discount_teaches_to_stop():
    world = WORLDS["with an end token"]
    goes_on = world.depth < world.max_length - 1  # in the last step every token ends the answer
    for case in cases(world):
        rewards = kl_shaped_rewards(torch.ones_like(case.scores), 0 * case.rewards, case.mask, kl_coef=0.0)
        zero = torch.zeros_like(rewards)
        fair, hasty = (case.taught(gae(rewards, zero, case.mask, gamma=gamma, lam=1.0)[0]) for gamma in (1.0, 0.9))
        assert equal(fair, torch.zeros_like(fair))
        assert (hasty[goes_on, 0] > 0).all()  # token 0 ends an answer
        impatient = case.taught(gae(-rewards, zero, case.mask, gamma=0.9, lam=1.0)[0])
        assert (impatient[goes_on, 0] < 0).all()  # and where all are equally bad, to put off the end


# Where a row ends


def test_gaps_and_garbage_between_the_tokens_change_nothing():
    """The tokens of each answer spread over a wider table, NaN in between: advantages and gradient as before."""
    world = WORLDS["with an end token"]
    generator = torch.Generator().manual_seed(0)
    width = 3 * world.max_length
    places = torch.stack(
        [torch.randperm(width, generator=generator)[: world.max_length].sort()[0] for _ in world.tokens]
    )
    mask = torch.zeros(len(world), width, dtype=torch.bool).scatter(1, places, world.mask)

    def spread(x: Tensor) -> Tensor:
        wide = torch.full((len(world), width), torch.nan, dtype=x.dtype).scatter(1, places, x)
        return wide.masked_fill(~mask, torch.nan)

    for case in cases(world):
        for lam in LAMBDAS:
            v = case.v + case.error
            advantages, _ = gae(spread(case.rewards), spread(along(world, v)), mask, lam=lam)
            assert equal(advantages.gather(1, places), case.gae(v, lam=lam))
            loss, _ = reinforce_loss(
                spread(case.tokens),
                spread(case.gae(v, lam=lam) * (len(world) * case.p).unsqueeze(1)),
                mask,
                reduce=UNBIASED,
            )
            assert equal(-gradient(loss, case.logits), case.taught(case.gae(v, lam=lam)))


@every_lambda
def test_a_value_read_at_a_pad_is_paid_to_whoever_stops(lam):
    """Without the mask, V of whatever stands in the padding (here the first state's) follows the end token. At lambda 1 and
    gamma 1 the values telescope and the mistake cannot be seen."""
    world = WORLDS["with an end token"]
    for case in cases(world):
        unmasked = case.v[world.states]  # the first state's value at padding
        leaking, _ = gae(case.rewards, unmasked, torch.ones_like(case.mask), lam=lam)
        lengths = case.mask.sum(1, keepdim=True)
        ahead = (lengths - 1 - torch.arange(world.max_length)).clamp(min=0)
        leak = case.v[0] * powers(lam, ahead) * (1 - powers(lam, world.max_length - lengths))
        assert equal(blank(leaking, case.mask), case.gae(case.v, lam=lam) + blank(leak, case.mask))
        off = case.taught(leaking) - case.wanted()
        if lam == 1.0:
            assert off.norm() < 1e-10
        else:
            assert off.norm() > 1e-3 * abs(case.v[0])
        if lam == 0.0:
            assert off[0, 0] * case.v[0] > 0  # a positive value pays for stopping at once, a negative one for going on


@every_lambda
def test_text_that_ran_out_of_room_gets_no_value_after_it(lam):
    """Its score was given for what is there. A value added behind the last token is a reward that nobody pays."""
    world = WORLDS["with an end token"]
    for case in cases(world):
        bootstrap = torch.where(world.finished, 0.0, case.v[world.states[:, -1]])
        assert equal(case.taught(case.gae(case.v, lam=lam)), case.wanted())
        assert miss(case.taught(case.gae(case.v, lam=lam, last_values=bootstrap)), case.wanted()) > 1e-3


@worlds
@every_lambda
def test_an_episode_whose_rest_was_not_seen_needs_the_value_of_the_state_it_was_cut_at(world, lam):
    """Two steps of every row, the rest and its rewards never played: what the first two tokens are taught is exact with the
    critic's value of the third state, and wrong without it."""
    for case in cases(world):
        mask, seen = case.mask.clone(), case.rewards.clone()
        mask[:, 2:], seen[:, 2:] = False, 0.0
        after = torch.where(case.mask[:, 2], case.v[world.states[:, 2]], 0.0)  # 0 where the episode was over by itself
        v = blank(along(world, case.v), mask)
        wanted = case.taught(blank(case.exact(), mask))
        with_value, _ = gae(seen, v, mask, lam=lam, last_values=after)
        without, _ = gae(seen, v, mask, lam=lam)
        assert equal(case.taught(with_value), wanted)
        assert miss(case.taught(without), wanted) > 0.01


# Whitening


def test_whitened_inside_one_answer_a_score_at_the_end_teaches_nothing():
    """No critic, gamma 1: every token hears the score, the mean is the score. With gamma .99 all scores > 0 sound alike."""
    case = Case(WORLDS["with an end token"], 0)

    def inside(scores: Tensor, gamma: float) -> Tensor:
        rewards = kl_shaped_rewards(scores, 0 * case.rewards, case.mask, kl_coef=0.0)
        returns = discounted_returns(rewards, case.mask, gamma=gamma)
        rows = [masked_whiten(row, counts) for row, counts in zip(returns, case.mask, strict=True)]
        return torch.stack(rows)

    assert (case.taught(inside(case.scores, 1.0)) == 0).all()
    one, five = (inside(torch.full_like(case.scores, score), 0.99) for score in (1.0, 5.0))
    assert one.abs().max() > 1 and equal(one, five, 1e-3)


def test_whitened_over_a_batch_the_direction_stays():
    """All batches of 2 and 3 answers enumerated: shrunk and a little turned, the more so the smaller the batch."""
    world = World(2, 3, eos=0)
    turned = {2: [], 3: []}
    for case in cases(world)[:4]:
        advantages = case.gae(case.v, lam=0.9)
        for batch, found in turned.items():

            def loss(rows, case=case, advantages=advantages):
                whitened = masked_whiten(advantages[rows], case.mask[rows])
                tokens = token_logprobs(case.world, case.logits)
                return reinforce_loss(tokens[rows], whitened, case.mask[rows], reduce=UNBIASED)[0]

            mean, _ = expected_gradient(loss, case.logits, case.p, batch=batch)
            found.append(float(torch.cosine_similarity(-mean.flatten(), case.wanted().flatten(), dim=0)))
    assert min(turned[2] + turned[3]) > 0 and median(turned[3]) > 0.9


def test_whitening_counts_no_padding():
    """Ten more columns of padding: the counted mean and spread stay; those over all positions shrink towards the zeros."""
    world = WORLDS["with an end token"]
    case = Case(world, 0)
    advantages = case.gae(case.v, lam=1.0)
    wide = torch.cat([advantages, torch.zeros(len(world), 10, dtype=advantages.dtype)], dim=1)
    mask = torch.cat([case.mask, torch.zeros(len(world), 10, dtype=torch.bool)], dim=1)
    assert equal(masked_whiten(wide, mask)[:, : world.max_length], masked_whiten(advantages, case.mask))
    of_all = masked_whiten(wide, torch.ones_like(mask))[:, : world.max_length]
    assert blank(of_all, case.mask).norm() > 1.5 * masked_whiten(advantages, case.mask).norm()


# Which mean


def test_a_fixed_length_of_1_is_the_policy_gradient_and_other_lengths_scale_it():
    for world in WORLDS.values():
        case = Case(world, 0)
        advantages = case.gae(case.v, lam=0.9)
        for length in (1, 7):
            mean, _ = expected_gradient(case.loss_of(advantages, fixed_length_mean(length)), case.logits, case.p)
            assert equal(-length * mean, case.wanted())


def test_where_all_answers_are_equally_long_the_means_differ_by_that_length_only():
    world = WORLDS["all of length 3"]
    case = Case(world, 0)
    advantages = case.gae(case.v, lam=0.9)
    for reduce in (token_mean, sequence_mean):
        mean, _ = expected_gradient(case.loss_of(advantages, reduce), case.logits, case.p)
        assert equal(-3 * mean, case.wanted())


def test_where_lengths_differ_token_and_sequence_means_turn_the_gradient():
    """Of one answer both divide by its length. Over a batch, the token mean divides by one number for all, and turns less
    and less; the sequence mean stays as it is."""
    world = World(2, 3, eos=0)
    turned = {(reduce, batch): [] for reduce in (token_mean, sequence_mean) for batch in (1, 2, 3)}
    for case in cases(world)[:4]:
        advantages = case.gae(case.v, lam=1.0)
        lengths = case.mask.sum(1, keepdim=True)
        for (reduce, batch), found in turned.items():
            mean, _ = expected_gradient(case.loss_of(advantages, reduce), case.logits, case.p, batch=batch)
            if reduce is sequence_mean or batch == 1:
                assert equal(-mean, case.taught(advantages / lengths))
            found.append(1 - float(torch.cosine_similarity(-mean.flatten(), case.wanted().flatten(), dim=0)))
    of = {key: median(found) for key, found in turned.items()}
    assert of[token_mean, 1] == pytest.approx(of[sequence_mean, 3])
    assert of[token_mean, 1] > of[token_mean, 2] > of[token_mean, 3] > 1e-6
    assert of[token_mean, 3] < 0.6 * of[sequence_mean, 3]
