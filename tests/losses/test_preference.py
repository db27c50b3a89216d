import inspect
import itertools
import math

import pytest
import torch
from batches import GARBAGE, are_stats, equal, gradient, leaf, normal, random_mask
from hypothesis import given
from hypothesis import strategies as st

from minirl.logprobs import average_logprobs, sequence_logprobs
from minirl.losses.preference import (
    bradley_terry_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
)

# The definitions, for one pair at a time


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def naive_bradley_terry(chosen, rejected, margin=0.0):
    odds = torch.exp(chosen - rejected - margin)
    return -torch.log(odds / (1 + odds))


def implicit_reward_difference(chosen, rejected, ref_chosen, ref_rejected, beta):
    return beta * torch.log((chosen.exp() / ref_chosen.exp()) / (rejected.exp() / ref_rejected.exp()))


def naive_dpo(*pair, beta=0.1, label_smoothing=0.0):
    p = sigmoid(implicit_reward_difference(*pair, beta))
    return -(1 - label_smoothing) * torch.log(p) - label_smoothing * torch.log(1 - p)


def naive_robust_dpo(*pair, beta=0.1, label_smoothing):
    p = sigmoid(implicit_reward_difference(*pair, beta))
    return (-(1 - label_smoothing) * torch.log(p) + label_smoothing * torch.log(1 - p)) / (1 - 2 * label_smoothing)


def naive_ipo(*pair, beta=0.1):
    return (implicit_reward_difference(*pair, 1) - 0.5 / beta) ** 2


def naive_simpo(chosen, rejected, beta=2.0, gamma=1.0):
    return -torch.log(sigmoid(beta * chosen - beta * rejected - gamma))


def naive_orpo(chosen, rejected, lam=0.1):
    p, q = chosen.exp(), rejected.exp()
    odds_ratio = (p / (1 - p)) / (q / (1 - q))
    return -torch.log(p) - lam * torch.log(sigmoid(torch.log(odds_ratio)))


def naive_kto(logprobs, ref_logprobs, desirable, kl, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    z = kl if kl > 0 else 0.0
    h = logprobs - ref_logprobs
    if desirable:
        return desirable_weight * (1 - sigmoid(beta * (h - z)))
    return undesirable_weight * (1 - sigmoid(beta * (z - h)))


# each loss with its definition and some knobs; the inputs that carry a gradient come first, and then the data
CASES = {
    "bradley_terry": (bradley_terry_loss, naive_bradley_terry, {}),
    "bradley_terry with margin": (bradley_terry_loss, naive_bradley_terry, {"margin": 0.7}),
    "dpo": (dpo_loss, naive_dpo, {}),
    "dpo with knobs": (dpo_loss, naive_dpo, {"beta": 0.7, "label_smoothing": 0.2}),
    "robust dpo": (robust_dpo_loss, naive_robust_dpo, {"label_smoothing": 0.2}),
    "robust dpo with beta": (robust_dpo_loss, naive_robust_dpo, {"beta": 0.7, "label_smoothing": 0.45}),
    "ipo": (ipo_loss, naive_ipo, {}),
    "ipo with beta": (ipo_loss, naive_ipo, {"beta": 0.7}),
    "simpo": (simpo_loss, naive_simpo, {}),
    "simpo with knobs": (simpo_loss, naive_simpo, {"beta": 0.7, "gamma": 0.3}),
    "orpo": (orpo_loss, naive_orpo, {}),
    "orpo with lam": (orpo_loss, naive_orpo, {"lam": 2.0}),
    "kto": (kto_loss, naive_kto, {"kl": 0.3}),
    "kto with knobs": (kto_loss, naive_kto, {"kl": 1.5, "beta": 0.7, "desirable_weight": 3, "undesirable_weight": 0.5}),
    "kto below zero": (kto_loss, naive_kto, {"kl": -4.0, "beta": 0.7}),
}
cases = pytest.mark.parametrize("loss, naive, knobs", CASES.values(), ids=CASES)
CARRY_GRADIENT = ("chosen", "rejected", "logprobs")


def inputs_for(loss, seed, n=6):
    """Negative log-probabilities with h of both signs, as leaves, and labels where the loss takes them."""
    names = [p.name for p in inspect.signature(loss).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_name = {}
    for i, name in enumerate(names):
        if name == "desirable":
            by_name[name] = normal(10 * seed + i, n) > 0
        elif name != "kl":  # a number, among the knobs here
            by_name[name] = leaf(-normal(10 * seed + i, n).abs() - 0.1)
    return by_name


def carriers(inputs):
    return [x for name, x in inputs.items() if name in CARRY_GRADIENT]


def naive_mean(naive, inputs, knobs):
    n = len(next(iter(inputs.values())))
    return sum(naive(*(x[i] for x in inputs.values()), **knobs) for i in range(n)) / n


# Definitions


@cases
def test_value_and_gradient_by_definition(loss, naive, knobs):
    for seed in range(3):
        inputs = inputs_for(loss, seed)
        actual, expected = loss(**inputs, **knobs)[0], naive_mean(naive, inputs, knobs)
        assert equal(actual, expected)
        for x in carriers(inputs):
            assert equal(gradient(actual, x), gradient(expected, x))


@cases
def test_gradient_by_finite_differences(loss, naive, knobs):
    inputs = inputs_for(loss, 3, 3)
    names = [name for name in inputs if name in CARRY_GRADIENT]
    data = {name: x.detach() for name, x in inputs.items() if name not in names}
    assert torch.autograd.gradcheck(
        lambda *xs: loss(**dict(zip(names, xs, strict=True)), **data, **knobs)[0], carriers(inputs)
    )


@cases
def test_the_reference_gets_no_gradient(loss, naive, knobs):
    inputs = inputs_for(loss, 0)
    if loss is kto_loss:
        knobs = knobs | {"kl": leaf(torch.tensor(knobs["kl"], dtype=torch.float64))}
    loss(**inputs, **knobs)[0].backward()
    assert all(x.grad.abs().min() > 0 for x in carriers(inputs))
    data = [x for name, x in (inputs | knobs).items() if name not in CARRY_GRADIENT and isinstance(x, torch.Tensor)]
    assert all(x.grad is None for x in data)


def test_a_margin_may_be_one_a_pair():
    inputs, margin = inputs_for(bradley_terry_loss, 0), normal(5, 6)
    expected = sum(naive_bradley_terry(c, r, m) for c, r, m in zip(*inputs.values(), margin, strict=True)) / 6
    assert equal(bradley_terry_loss(**inputs, margin=margin)[0], expected)


# Worked by hand: every answer is a plain number

log = math.log


def of(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


BY_HAND = {
    # a difference of log 3 is a probability of 3/4
    "bradley_terry": (lambda: bradley_terry_loss(of(log(6)), of(log(2))), -log(3 / 4)),
    # a margin of log 3 takes it back
    "bradley_terry with margin": (lambda: bradley_terry_loss(of(log(6)), of(log(2)), margin=log(3)), log(2)),
    # h = (-1 + 2) - (-5 + 2) = 4, beta h = 1/4 * 4 log 3 with everything in units of log 3
    "dpo": (lambda: dpo_loss(*(log(3) * of(*x) for x in ([-1], [-5], [-2], [-2])), beta=0.25), -log(3 / 4)),
    # the same, a fifth of the labels wrong: 0.8 of 3/4 and 0.2 of 1/4
    "cdpo": (
        lambda: dpo_loss(*(log(3) * of(*x) for x in ([-1], [-5], [-2], [-2])), beta=0.25, label_smoothing=0.2),
        -0.8 * log(3 / 4) - 0.2 * log(1 / 4),
    ),
    "robust dpo": (
        lambda: robust_dpo_loss(*(log(3) * of(*x) for x in ([-1], [-5], [-2], [-2])), beta=0.25, label_smoothing=0.2),
        (-0.8 * log(3 / 4) + 0.2 * log(1 / 4)) / 0.6,
    ),
    # h = 4 and 0, target 1 / (2 * 0.25) = 2: (4 + 4) / 2
    "ipo": (lambda: ipo_loss(of(-1, -3), of(-5, -3), of(-2, -4), of(-2, -4), beta=0.25), 4),
    # 2 (log 6 - log 2) - log 3 = log 3
    "simpo": (lambda: simpo_loss(of(log(6)), of(log(2)), beta=2, gamma=log(3)), -log(3 / 4)),
    # p = 3/4 has odds 3, q = 1/2 odds 1: -log 3/4 - 2 log sigmoid(log 3)
    "orpo": (lambda: orpo_loss(of(log(3 / 4)), of(log(1 / 2)), lam=2), -3 * log(3 / 4)),
    # z = 0 for kl < 0; h = log 3 each: 2 (1 - 3/4) where desirable, 4 (1 - 1/4) where not, the mean
    "kto": (
        lambda: kto_loss(
            of(log(3), log(3)), of(0, 0), of(1, 0) > 0, -9.0, beta=1, desirable_weight=2, undesirable_weight=4
        ),
        (2 / 4 + 4 * 3 / 4) / 2,
    ),
    # z = log 3 - 2 log 3: h - z = -log 3 and log 3
    "kto above zero": (
        lambda: kto_loss(of(log(3), log(3)), of(0, 0), of(1, 0) > 0, 2 * log(3), beta=1),
        (3 / 4 + 1 / 4) / 2,
    ),
}


@pytest.mark.parametrize("call, expected", BY_HAND.values(), ids=BY_HAND)
def test_by_hand(call, expected):
    assert equal(call()[0], torch.tensor(expected, dtype=torch.float64))


# Identities


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_dpo_at_the_reference_is_log_2_with_half_of_beta_as_gradient(beta):
    chosen, rejected = leaf(normal(0, 4)), leaf(normal(1, 4))
    loss, stats = dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=beta)
    assert equal(loss, torch.tensor(log(2), dtype=torch.float64))
    assert equal(gradient(loss, chosen), torch.full((4,), -beta / 8, dtype=torch.float64))
    assert equal(gradient(loss, rejected), torch.full((4,), beta / 8, dtype=torch.float64))
    assert stats["margin"] == 0 and stats["accuracy"] == 0


def test_dpo_is_bradley_terry_on_implicit_rewards():
    chosen, rejected, ref_chosen, ref_rejected = inputs_for(dpo_loss, 0).values()
    rewards = 0.3 * (chosen - ref_chosen), 0.3 * (rejected - ref_rejected)
    assert equal(dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)[0], bradley_terry_loss(*rewards)[0])


def test_bradley_terry_ignores_a_constant():
    chosen, rejected = normal(0, 6), normal(1, 6)
    assert equal(bradley_terry_loss(chosen + 9, rejected + 9)[0], bradley_terry_loss(chosen, rejected)[0])


def test_the_optimum_of_dpo_is_the_closed_form():
    # all pairs of four answers, labelled by Bradley-Terry of the true reward: no gradient at pi_ref exp(r / beta) / Z
    beta, reward, ref = 0.5, normal(0, 4), normal(1, 4).log_softmax(0)

    def expected_gradient(logits):
        logp = logits.log_softmax(0)
        pairs = [(i, j) for i, j in itertools.product(range(4), repeat=2) if i != j]
        total = sum(
            torch.sigmoid(reward[i] - reward[j])
            * dpo_loss(*(x.view(1) for x in (logp[i], logp[j], ref[i], ref[j])), beta=beta)[0]
            for i, j in pairs
        )
        return gradient(total, logits)

    assert equal(expected_gradient(leaf(ref + reward / beta)), torch.zeros(4, dtype=torch.float64))
    assert expected_gradient(leaf(ref)).abs().max() > 0.1
    assert expected_gradient(leaf(ref + reward)).abs().max() > 0.1


def test_robust_dpo_is_unbiased_when_labels_are_flipped():
    # every way to flip three labels, weighted by its probability
    chosen, rejected, ref_chosen, ref_rejected = inputs_for(dpo_loss, 0, 3).values()
    e, expected, smoothed = 0.2, 0.0, 0.0
    for flips in itertools.product([False, True], repeat=3):
        flipped = torch.tensor(flips)
        seen = [
            torch.where(flipped, rejected, chosen),
            torch.where(flipped, chosen, rejected),
            torch.where(flipped, ref_rejected, ref_chosen),
            torch.where(flipped, ref_chosen, ref_rejected),
        ]
        probability = math.prod(e if flip else 1 - e for flip in flips)
        expected += probability * robust_dpo_loss(*seen, beta=0.7, label_smoothing=e)[0]
        smoothed += probability * dpo_loss(*seen, beta=0.7, label_smoothing=e)[0]
    clean, _ = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.7)
    assert equal(expected, clean)
    assert equal(gradient(expected, chosen), gradient(clean, chosen))
    assert abs(smoothed - clean) > 0.01  # label smoothing is another thing


def test_without_flips_both_kinds_of_smoothing_are_dpo():
    pair = inputs_for(dpo_loss, 0)
    plain, _ = dpo_loss(**pair)
    assert equal(robust_dpo_loss(**pair, label_smoothing=0)[0], plain)
    assert equal(dpo_loss(**pair, label_smoothing=0)[0], plain)


def test_robust_dpo_can_be_negative():
    assert robust_dpo_loss(of(50), of(0), of(0), of(0), beta=1, label_smoothing=0.4)[0] < -50


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_ipo_is_at_rest_at_half_of_one_over_beta(beta):
    chosen = leaf(of(1 / (2 * beta)) - 3)
    loss, stats = ipo_loss(chosen, of(-3), of(-1), of(-1), beta=beta)
    assert equal(loss, of(0).squeeze()) and equal(gradient(loss, chosen), of(0))
    assert equal(stats["margin"], of(0.5).squeeze())  # beta h
    assert ipo_loss(chosen + 0.1, of(-3), of(-1), of(-1), beta=beta)[0] > loss + 0.009
    assert ipo_loss(chosen - 0.1, of(-3), of(-1), of(-1), beta=beta)[0] > loss + 0.009


def test_the_gamma_of_simpo_is_a_margin_that_beta_does_not_multiply():
    chosen, rejected = leaf(of(-1)), of(-1.5)
    for beta in (1, 2, 10):
        loss, _ = simpo_loss(chosen, rejected, beta=beta, gamma=0.5 * beta)
        assert equal(loss, torch.tensor(log(2), dtype=torch.float64))
        assert equal(gradient(loss, chosen), of(-beta / 2))


def test_simpo_without_gamma_is_bradley_terry():
    chosen, rejected = normal(0, 6), normal(1, 6)
    assert equal(simpo_loss(chosen, rejected, beta=3, gamma=0)[0], bradley_terry_loss(3 * chosen, 3 * rejected)[0])


def test_orpo_without_its_penalty_is_sft_and_with_equal_odds_adds_log_2():
    chosen, rejected = inputs_for(orpo_loss, 0).values()
    assert equal(orpo_loss(chosen, rejected, lam=0)[0], -chosen.mean())
    assert equal(orpo_loss(chosen, chosen.detach(), lam=3)[0], -chosen.mean() + 3 * log(2))


@pytest.mark.parametrize("desirable, sign", [(True, -1), (False, 1)])
def test_kto_at_its_point_of_reference_is_steepest_at_half_its_weight(desirable, sign):
    logprobs = leaf(of(-3.0))
    loss, stats = kto_loss(logprobs, of(-5.0), torch.tensor([desirable]), 2.0, beta=0.3)
    assert equal(loss, torch.tensor(0.5, dtype=torch.float64))
    assert equal(gradient(loss, logprobs), of(sign * 0.3 / 4))
    assert stats["accuracy"] == 0


def test_kto_takes_the_kl_as_a_number_or_a_tensor():
    inputs = inputs_for(kto_loss, 0)
    number, _ = kto_loss(**inputs, kl=0.25)
    assert torch.equal(kto_loss(**inputs, kl=torch.tensor(0.25))[0], number)
    assert torch.equal(kto_loss(**inputs, kl=torch.tensor(0.25, dtype=torch.float64))[0], number)


@cases
@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
def test_the_order_of_pairs_does_not_matter(loss, naive, knobs, order, seed):
    inputs = inputs_for(loss, seed)
    shuffled = {name: x.detach()[order].requires_grad_(x.requires_grad) for name, x in inputs.items()}
    ordered, permuted = loss(**inputs, **knobs)[0], loss(**shuffled, **knobs)[0]
    assert equal(permuted, ordered)
    assert equal(gradient(permuted, carriers(shuffled)[0]), gradient(ordered, carriers(inputs)[0])[order])


@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_of_the_responses_never_reaches_a_preference(garbage):
    mask, logprobs = random_mask(0, empty_row=False), -normal(0, 6, 7).abs()
    leaves = [leaf(logprobs.masked_fill(~mask, garbage)), leaf(logprobs)]
    sums, averages = sequence_logprobs(leaves[0], mask), average_logprobs(leaves[0], mask)
    alone = torch.stack([leaves[1][b][mask[b]].sum() for b in range(6)])
    mean = torch.stack([leaves[1][b][mask[b]].mean() for b in range(6)])
    nothing = torch.zeros(3, dtype=torch.float64)
    for actual, expected in [
        (dpo_loss(sums[:3], sums[3:], nothing, nothing)[0], dpo_loss(alone[:3], alone[3:], nothing, nothing)[0]),
        (orpo_loss(averages[:3], averages[3:])[0], orpo_loss(mean[:3], mean[3:])[0]),
    ]:
        assert equal(actual, expected)
        assert equal(gradient(actual, leaves[0]), gradient(expected, leaves[1]))


# Statistics


@cases
def test_stats_are_detached_scalars_of_the_shared_vocabulary(loss, naive, knobs):
    value, stats = loss(**inputs_for(loss, 0), **knobs)
    assert are_stats(stats)
    assert torch.equal(stats["loss"], value.detach())


def test_margin_accuracy_and_logprobs():
    # beta h = 0.5 * (4, -2, 3): right, wrong, right
    chosen, rejected = of(-1, -4, -3), of(-5, -2, -6)
    nothing = of(0, 0, 0)
    for loss in (dpo_loss, ipo_loss, robust_dpo_loss):
        knobs = {"label_smoothing": 0.1} if loss is robust_dpo_loss else {}
        _, stats = loss(chosen, rejected, nothing, nothing, beta=0.5, **knobs)
        assert equal(stats["margin"], torch.tensor(5 / 6, dtype=torch.float64))
        assert equal(stats["accuracy"], torch.tensor(2 / 3, dtype=torch.float64))
        assert equal(stats["chosen_logprobs"], torch.tensor(-8 / 3, dtype=torch.float64))
        assert equal(stats["rejected_logprobs"], torch.tensor(-13 / 3, dtype=torch.float64))
    for loss, margin in [(bradley_terry_loss, 5 / 3), (simpo_loss, 10 / 3)]:
        _, stats = loss(chosen, rejected)
        assert equal(stats["margin"], torch.tensor(margin, dtype=torch.float64))
        assert equal(stats["accuracy"], torch.tensor(2 / 3, dtype=torch.float64))
    assert equal(orpo_loss(chosen, rejected)[1]["accuracy"], torch.tensor(2 / 3, dtype=torch.float64))
    # h - z = (0, -2, 1): the first stands on the point of reference
    _, stats = kto_loss(of(1, -1, 2), nothing, of(1, 0, 1) > 0, 1.0)
    assert equal(stats["accuracy"], torch.tensor(2 / 3, dtype=torch.float64))


# Numerics


@cases
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_compute_in_float32(loss, naive, knobs, dtype):
    def rounded(x):
        return x.detach().to(dtype) if x.is_floating_point() else x

    halves = {name: rounded(x) for name, x in inputs_for(loss, 0).items()}
    floats = {name: x.float() if x.is_floating_point() else x for name, x in halves.items()}
    actual, stats = loss(**halves, **knobs)
    expected, wanted = loss(**floats, **knobs)
    assert actual.dtype == torch.float32 and torch.equal(actual, expected)
    assert all(x.dtype == torch.float32 for x in stats.values())
    assert stats == wanted


@cases
def test_float64_stays_float64(loss, naive, knobs):
    value, stats = loss(**inputs_for(loss, 0), **knobs)
    assert value.dtype == torch.float64
    assert all(x.dtype == torch.float64 for x in stats.values())


@cases
@pytest.mark.parametrize("far", [1000.0, 1e6])
def test_extreme_log_probabilities_stay_finite(loss, naive, knobs, far):
    x = {name: x.detach().float() if x.is_floating_point() else x for name, x in inputs_for(loss, 0, 2).items()}
    for name in x.keys() & CARRY_GRADIENT:
        x[name] = leaf(torch.tensor([-far, -1e-6] if name == "rejected" else [-1e-6, -far]))
    value, stats = loss(**x, **knobs)
    assert value.isfinite() and are_stats(stats)
    assert all(gradient(value, carrier).isfinite().all() for carrier in carriers(x))


def test_the_odds_of_a_nearly_certain_answer_keep_their_precision():
    # 1 - exp(-1e-12) is 0 in float32: its odds are 1e12, those of 1e-11 ten times smaller
    loss, stats = orpo_loss(torch.tensor([-1e-12]), torch.tensor([-1e-11]), lam=1)
    assert equal(stats["margin"], torch.tensor(log(10)), 1e-4)
    assert equal(loss, torch.tensor(-log(10 / 11)), 1e-5)


# Errors


def arguments(loss):
    inputs = inputs_for(loss, 0, 4)
    extra = {"label_smoothing": 0.1} if loss is robust_dpo_loss else {"kl": 0.5} if loss is kto_loss else {}
    return {name: x.detach() for name, x in inputs.items()} | extra


LOSSES = [bradley_terry_loss, dpo_loss, robust_dpo_loss, ipo_loss, simpo_loss, orpo_loss, kto_loss]
losses = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
EACH_TENSOR = [(loss, name) for loss in LOSSES for name in inputs_for(loss, 0)]


@pytest.mark.parametrize("loss, name", EACH_TENSOR, ids=[f"{loss.__name__}-{name}" for loss, name in EACH_TENSOR])
def test_a_tensor_of_the_wrong_shape_or_not_finite_is_refused_by_name(loss, name, unhooked):
    x = arguments(loss)[name]
    with pytest.raises(ValueError, match=f"^{name}: wanted .* got shape|^{name}: wanted shape"):
        loss(**arguments(loss) | {name: x.unsqueeze(1)})
    # the first tensor sets the length for the others
    named = "rejected|ref_logprobs" if name in ("chosen", "logprobs") else name
    with pytest.raises(ValueError, match=f"^({named}): wanted shape"):
        loss(**arguments(loss) | {name: x[:1]})
    if name != "desirable":
        for garbage in GARBAGE:
            with pytest.raises(ValueError, match=f"^{name}: wanted finite numbers, got {garbage} at 0"):
                loss(**arguments(loss) | {name: torch.full_like(x, garbage)})


@losses
def test_no_pairs_are_refused(loss, unhooked):
    empty = {name: x[:0] if isinstance(x, torch.Tensor) else x for name, x in arguments(loss).items()}
    with pytest.raises(ValueError, match=r"^(chosen|logprobs): wanted at least one, got none"):
        loss(**empty)


KNOBS = [
    (bradley_terry_loss, {"margin": math.nan}, "margin: wanted"),
    (bradley_terry_loss, {"margin": torch.tensor(math.inf)}, "margin: wanted"),
    (bradley_terry_loss, {"margin": torch.zeros(3)}, r"margin: wanted shape \(4,\) like chosen, got \(3,\)"),
    (bradley_terry_loss, {"margin": torch.zeros(4, 1)}, r"margin: wanted shape \(4,\)"),
    (bradley_terry_loss, {"margin": torch.full((4,), math.nan)}, "margin: wanted finite"),
    *[(loss, {"beta": 0}, r"beta: wanted .*\(0, inf\), got 0") for loss in LOSSES[1:5] + LOSSES[6:]],
    (dpo_loss, {"beta": -0.1}, "beta: wanted"),
    (dpo_loss, {"label_smoothing": 0.5}, r"label_smoothing: wanted .*\[0, 0.5\), got 0.5"),
    (dpo_loss, {"label_smoothing": -0.1}, "label_smoothing: wanted"),
    (robust_dpo_loss, {"label_smoothing": 0.5}, r"label_smoothing: wanted .*\[0, 0.5\), got 0.5"),
    (robust_dpo_loss, {"label_smoothing": -0.1}, "label_smoothing: wanted"),
    (simpo_loss, {"gamma": -0.1}, r"gamma: wanted .*\[0, inf\), got -0.1"),
    (orpo_loss, {"lam": -0.1}, r"lam: wanted .*\[0, inf\), got -0.1"),
    (orpo_loss, {"chosen": torch.zeros(4)}, "chosen: wanted averaged log-probabilities below 0, got 0"),
    (orpo_loss, {"rejected": torch.tensor([-1, -1, 0.5, -1])}, "rejected: wanted averaged .* below 0, got 0.5"),
    (kto_loss, {"desirable": torch.ones(4)}, "desirable: wanted a torch.bool tensor, got torch.float32"),
    (kto_loss, {"kl": math.nan}, "kl: wanted finite"),
    (kto_loss, {"kl": torch.zeros(4)}, r"kl: wanted 0 dimensions, got shape \(4,\)"),
    (kto_loss, {"desirable_weight": -1}, "desirable_weight: wanted"),
    (kto_loss, {"undesirable_weight": -1}, "undesirable_weight: wanted"),
]


@pytest.mark.parametrize(
    "loss, knob, message", KNOBS, ids=[f"{loss.__name__}-{next(iter(knob))}" for loss, knob, _ in KNOBS]
)
def test_a_knob_out_of_range_is_refused_by_name(loss, knob, message, unhooked):
    with pytest.raises(ValueError, match=f"^{message}"):
        loss(**arguments(loss) | knob)


@losses
def test_the_arguments_of_the_error_tests_are_accepted_as_they_are(loss, unhooked):
    loss(**arguments(loss))
