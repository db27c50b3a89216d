"""k1, k2 and k3 in a world that can be enumerated: what they are on average as values, and what they do on average as
gradients, in the loss, in the reward and with ratios. Nothing is sampled: every expectation is a sum over all sequences.
"""

import math
from statistics import median

import pytest
import torch
from batches import equal, gradient, leaf, normal
from torch import Tensor

from minirl import exact
from minirl.exact import World, expected_gradient, objective, optimum, sequence_logprobs, token_logprobs
from minirl.kl import kl_exact, kl_k1, kl_k2, kl_k3
from minirl.masking import blank, sequence_mean
from minirl.rewards import kl_shaped_rewards

ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
SEEDS = range(20)
WORLDS = {"all of length 3": World(3, 3, eos=None), "with an end token": World(3, 3, eos=0)}
worlds = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
every = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS)


class Case:
    """A policy, a reference and a policy that sampled, each with logits of standard deviation 1."""

    def __init__(self, world: World, seed: int):
        shape = world.child.shape
        self.world, self.mask = world, world.mask
        self.logits, ref_logits = leaf(normal(seed, *shape)), normal(seed + 100, *shape)
        self.tokens, self.ref_tokens = token_logprobs(world, self.logits), token_logprobs(world, ref_logits)
        self.old_tokens = token_logprobs(world, normal(seed + 200, *shape))
        self.logp, self.ref, self.old = self.tokens.sum(1), self.ref_tokens.sum(1), self.old_tokens.sum(1)
        self.p = self.logp.exp().detach()  # how often each sequence is sampled; the loss does not look through it
        self.scores = normal(seed + 300, len(world))
        self.ref_logits = ref_logits

    def kl(self) -> float:
        return exact.kl(self.logp, self.ref).item()

    def per_token(self, estimate) -> Tensor:
        return blank(estimate(self.tokens, self.ref_tokens), self.mask)  # (Y, L)

    def grad(self, scalar: Tensor) -> Tensor:
        return gradient(scalar, self.logits)

    def loss_gradient(self, per_sequence: Tensor, sampler: Tensor | None = None) -> Tensor:
        """What a loss of sampled sequences teaches on average: sum_y p(y) grad loss(y)."""
        return self.grad(((self.p if sampler is None else sampler) * per_sequence).sum())

    def reward_gradient(self, estimate, *, immediate: bool = False) -> Tensor:
        """The estimate as a charge in the reward: each token's logprob times the charges from there on (or only its own)."""
        charge = self.per_token(estimate).detach()
        rewards = kl_shaped_rewards(torch.zeros_like(self.logp).detach(), charge, self.mask, kl_coef=1.0)
        to_come = rewards if immediate else rewards.flip(1).cumsum(1).flip(1)
        return self.loss_gradient(-(to_come * self.tokens).sum(1))

    def reverse(self) -> Tensor:
        """grad KL(pi || ref), of sequences: what a leash should pull along."""
        return self.grad(exact.kl(self.logp, self.ref))

    def forward(self) -> Tensor:
        """grad KL(ref || pi), of sequences."""
        return self.grad(exact.kl(self.ref, self.logp))

    def myopic(self, *, forward: bool = False) -> Tensor:
        """The gradient of the KL of the next token in each state, states visited as now: no token answers for where it leads."""
        logp, ref = self.logits.log_softmax(1), self.ref_logits.log_softmax(1)
        of_state = ((ref.exp() * (ref - logp)) if forward else (logp.exp() * (logp - ref))).sum(1)  # (S,)
        return self.loss_gradient(exact.along(self.world, of_state).sum(1))


def cases(world: World) -> list[Case]:
    return [Case(world, seed) for seed in SEEDS]


def miss(actual: Tensor, wanted: Tensor) -> float:
    return float((actual - wanted).norm() / wanted.norm())


# Values. One token: pi = (.7, .2, .1), ref = (.2, .3, .5)

PI, REF = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]], dtype=torch.float64)


def mean(x: Tensor, p: Tensor) -> float:
    return float((p * x).sum())


def variance(x: Tensor, p: Tensor) -> float:
    return mean((x - mean(x, p)) ** 2, p)


def test_one_token_as_values():
    # KL = .7 log 3.5 + .2 log(2/3) + .1 log .2
    assert 0.7 * math.log(3.5) + 0.2 * math.log(2 / 3) + 0.1 * math.log(0.2) == pytest.approx(0.634897, abs=1e-6)
    k1, k2, k3 = (estimate(PI.log(), REF.log()) for estimate in ESTIMATORS.values())
    assert mean(k1, PI) == pytest.approx(0.634897, abs=1e-6)
    assert mean(k3, PI) == pytest.approx(0.634897, abs=1e-6)
    assert mean(k2, PI) == pytest.approx(0.695250, abs=1e-6)  # bias +.0604
    assert variance(k1, PI) == pytest.approx(0.987405, abs=1e-6)
    assert variance(k2, PI) == pytest.approx(0.116755, abs=1e-6)
    assert variance(k3, PI) == pytest.approx(0.373142, abs=1e-6)


def test_one_token_with_the_arguments_swapped():
    k1, k2, k3 = (estimate(REF.log(), PI.log()) for estimate in ESTIMATORS.values())
    chi2 = float((PI**2 / REF).sum()) - 1  # 2.45 + .1333 + .02 - 1
    assert chi2 == pytest.approx(1.603333, abs=1e-6)
    assert mean(k1, PI) == pytest.approx(-0.634897, abs=1e-6)  # minus the KL
    assert mean(k2, PI) == pytest.approx(0.695250, abs=1e-6)  # k2 cannot tell
    assert mean(k3, PI) == pytest.approx(1.603333 - 0.634897, abs=1e-6)  # chi2 - KL


def test_samples_of_the_reference_measure_something_else():
    forward = mean(REF.log() - PI.log(), REF)
    assert mean(kl_k1(PI.log(), REF.log()), REF) == pytest.approx(-forward)
    chi2 = float((REF**2 / PI).sum()) - 1
    assert mean(kl_k3(PI.log(), REF.log()), REF) == pytest.approx(chi2 - forward)
    assert forward > 0.6 and chi2 > 2  # neither of them is the KL


def test_k3_is_quieter_near_the_reference_and_louder_far_from_it():
    """Var k1 is 2 KL + O(d^3) near the reference, Var k3 of fourth order; where ref / pi is large its square is worse."""
    direction, base = torch.tensor([1.0, -0.5, -1.0]).double(), REF.log()
    near, far = ((base + step * direction).log_softmax(0) for step in (0.1, 3.0))
    kl = mean(kl_k1(near, base), near.exp())
    assert variance(kl_k1(near, base), near.exp()) == pytest.approx(2 * kl, rel=0.05)
    assert variance(kl_k3(near, base), near.exp()) < 0.01 * variance(kl_k1(near, base), near.exp())
    assert variance(kl_k3(far, base), far.exp()) > 10 * variance(kl_k1(far, base), far.exp())


@worlds
def test_sequences_as_values(world):
    """The sum over tokens of k1 or k3 is unbiased for the KL of sequences, whatever their length; k2's is off by up to 70%."""
    bias = []
    for case in cases(world):
        kl = case.kl()
        k1, k2, k3 = (case.per_token(estimate).sum(1).detach() for estimate in ESTIMATORS.values())
        assert mean(k1, case.p) == pytest.approx(kl, rel=1e-10)
        assert mean(k3, case.p) == pytest.approx(kl, rel=1e-10)
        of_sequence = kl_k3(case.logp, case.ref).detach()
        assert mean(of_sequence, case.p) == pytest.approx(kl, rel=1e-10)
        bias.append(mean(k2, case.p) / kl - 1)
        of_states = blank(kl_exact(case.logits[world.states], case.ref_logits[world.states]), world.mask).sum(1)
        assert mean(of_states.detach(), case.p) == pytest.approx(kl, rel=1e-10)
        assert variance(of_states.detach(), case.p) < variance(k1, case.p)  # no luck in the choice of the token
        assert k1.min() < 0 <= k3.min()  # some sequences say that the KL is negative
    assert -0.2 < min(bias) and 0.1 < median(bias) < 0.4 and 0.5 < max(bias) < 1.0


@worlds
def test_sequences_with_the_arguments_swapped(world):
    for case in cases(world):
        kl = case.kl()
        chi2 = (2 * case.logp - case.ref).exp().sum().item() - 1
        swapped = blank(kl_k1(case.ref_tokens, case.tokens), case.mask).sum(1).detach()
        assert mean(swapped, case.p) == pytest.approx(-kl, rel=1e-10)
        assert mean(kl_k3(case.ref, case.logp).detach(), case.p) == pytest.approx(chi2 - kl, rel=1e-10)


@worlds
def test_another_sampler_biases_every_value_until_the_sequence_ratio_repairs_two(world):
    for case in cases(world):
        kl, sampler, ratio = case.kl(), case.old.exp(), (case.logp - case.old).exp().detach()
        for name, estimate in ESTIMATORS.items():
            value = case.per_token(estimate).sum(1).detach()
            assert abs(mean(value, sampler) / kl - 1) > 0.01
            assert (abs(mean(ratio * value, sampler) / kl - 1) < 1e-10) == (name != "k2")


# Gradients of one token, or of the sequence as one choice


@pytest.mark.parametrize("world", [World(4, 1, eos=None), *WORLDS.values()], ids=["one token", *WORLDS])
def test_of_one_choice_k1_teaches_nothing_k2_the_kl_and_k3_the_kl_the_other_way_round(world):
    for case in cases(world):
        k1, k2, k3 = (estimate(case.logp, case.ref) for estimate in ESTIMATORS.values())
        assert equal(case.loss_gradient(k1), torch.zeros_like(case.logits))
        assert equal(case.loss_gradient(k2), case.reverse())
        assert equal(case.loss_gradient(k3), case.forward())
        assert miss(case.forward(), case.reverse()) > 0.05  # and these two are not the same


def test_with_the_arguments_swapped_k3_pulls_along_half_chi2():
    for case in cases(World(4, 1, eos=None)):
        half_chi2 = ((2 * case.logp - case.ref).exp().sum() - 1) / 2
        assert equal(case.loss_gradient(kl_k3(case.ref, case.logp)), case.grad(half_chi2))
        assert equal(case.loss_gradient(kl_k1(case.ref, case.logp)), torch.zeros_like(case.logits))


def test_one_token_with_k3_in_the_loss_stands_still_at_the_forward_optimum():
    """beta grad KL(ref || pi) = grad E[r] where pi = beta ref / (lambda - r), and nowhere near pi*."""
    world, beta = World(4, 1, eos=None), 0.5
    for seed in SEEDS:
        case = Case(world, seed)
        low, high = case.scores.max(), case.scores.max() + beta  # lambda by bisection: the probabilities sum to 1
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if (beta * case.ref.exp() / (middle - case.scores)).sum() > 1 else (low, middle)
        case.logits = leaf((beta * case.ref.exp() / (high - case.scores)).log().unsqueeze(0))
        case.logp = sequence_logprobs(world, case.logits)
        loss = beta * kl_k3(case.logp, case.ref) - case.scores * case.logp
        assert case.loss_gradient(loss, case.logp.exp().detach()).abs().max() < 1e-10
        best, _ = optimum(case.ref, case.scores, beta=beta)
        assert exact.total_variation(case.logp, best) > 0.02


# Gradients of sequences, token by token, in the loss


@worlds
def test_token_by_token_k2_and_k3_do_not_see_where_a_token_leads(world):
    """In the loss each token answers for its own KL only, and not for the KL that follows it: exactly the gradient with the
    visits of the states held fixed. Off by about half of the right gradient, from under a tenth to more than all of it."""
    off_k2, off_k3 = [], []
    for case in cases(world):
        k1, k2, k3 = (case.per_token(estimate).sum(1) for estimate in ESTIMATORS.values())
        assert equal(case.loss_gradient(k1), torch.zeros_like(case.logits))
        assert equal(case.loss_gradient(k2), case.myopic())
        assert equal(case.loss_gradient(k3), case.myopic(forward=True))
        off_k2.append(miss(case.loss_gradient(k2), case.reverse()))
        off_k3.append(miss(case.loss_gradient(k3), case.forward()))
    assert 0.05 < min(off_k2) and 0.3 < median(off_k2) < 0.6 and 0.5 < max(off_k2) < 2.0
    assert 0.10 < min(off_k3) and 0.3 < median(off_k3) < 0.6 and 0.5 < max(off_k3) < 1.2


@worlds
def test_the_token_ratio_makes_k1_and_k3_as_short_sighted_as_k2(world):
    for case in cases(world):
        ratio = (case.tokens - case.tokens.detach()).exp()  # 1, with the gradient of the logprob
        for estimate in (kl_k1, kl_k3):
            assert equal(case.loss_gradient((ratio * case.per_token(estimate)).sum(1)), case.myopic())


@worlds
def test_the_sequence_ratio_is_exact_on_and_off_policy(world):
    """A sampler that is not the policy: exp(log pi - log old) of the whole sequence times the summed k1 or k3."""
    token_off, k2_off = [], []
    for case in cases(world):
        for estimate in (kl_k1, kl_k3):
            per_token = case.per_token(estimate)
            on_policy = (case.logp - case.logp.detach()).exp() * per_token.sum(1)
            off_policy = (case.logp - case.old).exp() * per_token.sum(1)
            assert equal(case.loss_gradient(on_policy), case.reverse())
            assert equal(case.loss_gradient(off_policy, case.old.exp()), case.reverse())
            token_ratio = (case.tokens - case.old_tokens).exp()
            token_off.append(miss(case.loss_gradient((token_ratio * per_token).sum(1), case.old.exp()), case.reverse()))
        k2 = (case.logp - case.old).exp() * case.per_token(kl_k2).sum(1)
        k2_off.append(miss(case.loss_gradient(k2, case.old.exp()), case.reverse()))
    assert 0.1 < min(token_off) and 0.4 < median(token_off) < 1.0
    assert 0.1 < min(k2_off) and 0.3 < median(k2_off) < 1.0


@worlds
@every
def test_without_a_ratio_another_sampler_spoils_every_gradient(world, estimate):
    for case in cases(world):
        assert miss(case.loss_gradient(case.per_token(estimate).sum(1), case.old.exp()), case.reverse()) > 0.1


# In the reward


@worlds
def test_in_the_reward_only_k1_is_exact(world):
    off = {"k2": [], "k3": []}
    for case in cases(world):
        assert equal(case.reward_gradient(kl_k1), case.reverse())
        for name in off:
            off[name].append(miss(case.reward_gradient(ESTIMATORS[name]), case.reverse()))
    assert 0.1 < min(off["k2"]) and 0.5 < median(off["k2"]) < 1.1
    assert 0.4 < min(off["k3"]) and 0.8 < median(off["k3"]) < 1.3


@worlds
def test_in_the_reward_k1_of_a_token_must_be_charged_to_the_tokens_before_it(world):
    for case in cases(world):
        assert equal(case.reward_gradient(kl_k1, immediate=True), case.myopic())  # gamma = 0 is short-sighted again


@worlds
def test_k1_in_the_reward_is_the_gradient_of_the_objective(world):
    """Score and charge together, through kl_shaped_rewards, and batches of two taken one by one."""
    for case in cases(world)[:2]:
        beta, k1 = 0.5, case.per_token(kl_k1).detach()
        rewards = kl_shaped_rewards(case.scores, k1, case.mask, kl_coef=beta)
        to_come = rewards.flip(1).cumsum(1).flip(1)
        wanted = case.grad(objective(case.logp, case.ref, case.scores, beta=beta))
        assert equal(case.loss_gradient((to_come * case.tokens).sum(1)), wanted)

        def loss(rows, case=case, to_come=to_come):
            return (to_come * token_logprobs(case.world, case.logits))[rows].sum() / 2

        of_pairs, noise = expected_gradient(loss, case.logits, case.p, batch=2)
        assert equal(of_pairs, wanted) and noise > 0


# Where each way of charging comes to rest


@worlds
def test_only_k1_in_the_reward_rests_at_the_optimum(world):
    """At pi* the gradient of k1 in the reward is zero. k3 in the loss pulls on there, and k1 in the loss charges nothing."""
    beta = 0.5
    for case in cases(world):
        best, _ = optimum(case.ref, case.scores, beta=beta)
        case.logits = leaf(exact.table_of(world, best))
        case.tokens = token_logprobs(world, case.logits)
        case.logp = case.tokens.sum(1)
        case.p = case.logp.exp().detach()
        score = case.loss_gradient(case.scores * case.logp)
        assert score.norm() > 0.01
        assert (score - beta * case.reward_gradient(kl_k1)).norm() < 1e-9
        assert (score - beta * case.loss_gradient(case.per_token(kl_k3).sum(1))).norm() > 0.1 * score.norm()
        assert equal(score - beta * case.loss_gradient(case.per_token(kl_k1).sum(1)), score)


# Divided by the length


def test_divided_by_its_length_k1_lengthens_answers():
    """sum_t k1_t / |y| has the gradient of E[1 / |y|]: the reference is not in it, and a step against it adds tokens."""
    world = World(3, 4, eos=0)
    lengths = world.mask.sum(1)
    for case in cases(world):
        averaged = case.per_token(kl_k1).sum(1) / lengths
        taught = case.loss_gradient(averaged)
        assert equal(taught, case.grad((case.logp.exp() / lengths).sum()))
        assert taught.norm() > 0.01
        longer = sequence_logprobs(world, case.logits.detach() - 0.1 * taught).exp()
        assert mean(lengths, longer) > mean(lengths, case.p)

        def loss(rows, case=case):  # as the library's reducer does it
            tokens = token_logprobs(world, case.logits)
            return sequence_mean(kl_k1(tokens, case.ref_tokens)[rows], world.mask[rows])

        of_library, _ = expected_gradient(loss, case.logits, case.p)
        assert equal(of_library, taught)


def test_divided_by_a_constant_k1_stays_at_zero():
    world = World(3, 4, eos=0)
    for case in cases(world):
        assert equal(case.loss_gradient(case.per_token(kl_k1).sum(1) / 4), torch.zeros_like(case.logits))
