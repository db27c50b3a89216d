import math

import pytest
import torch
from batches import equal, gradient, leaf, normal, random_mask
from torch.distributions import Categorical, kl_divergence

from minirl.kl import AdaptiveKL, kl_exact, kl_k1, kl_k2, kl_k3
from minirl.masking import token_mean

NAIVE = {
    "k1": (kl_k1, lambda p, q: torch.log(p / q)),
    "k2": (kl_k2, lambda p, q: torch.log(p / q) ** 2 / 2),
    "k3": (kl_k3, lambda p, q: q / p - 1 - torch.log(q / p)),
}
estimators = pytest.mark.parametrize("estimate, naive", NAIVE.values(), ids=NAIVE)


def two_policies():
    """log pi and log pi_ref over every token, from logits that carry the gradient of pi."""
    logits = leaf(torch.tensor([0.5, 0.25, 0.15, 0.05, 0.05], dtype=torch.float64).log())
    return logits, logits.log_softmax(0), torch.tensor([0.05, 0.15, 0.2, 0.3, 0.3], dtype=torch.float64).log()


# Definitions


@estimators
def test_estimators_by_their_definition_in_probabilities(estimate, naive):
    logp, ref = leaf(-normal(0, 6, 7).abs()), leaf(-normal(1, 6, 7).abs())
    actual, expected = estimate(logp, ref), naive(logp.exp(), ref.exp())
    assert equal(actual, expected)
    for x in (logp, ref):
        assert equal(gradient(actual.sum(), x), gradient(expected.sum(), x))


@estimators
def test_gradients_of_estimators_by_finite_differences(estimate, naive):
    assert torch.autograd.gradcheck(estimate, (leaf(normal(0, 2, 3)), leaf(normal(1, 2, 3))))


def test_estimators_by_hand():
    # pi = 1/2, ref = 1/4: log-ratio log 2; k3 = 1/2 - 1 + log 2
    # pi = 1/4, ref = 1/2: log-ratio -log 2; k3 = 2 - 1 - log 2
    logp = torch.tensor([0.5, 0.25], dtype=torch.float64).log()
    ref = torch.tensor([0.25, 0.5], dtype=torch.float64).log()
    log2 = math.log(2)
    assert equal(kl_k1(logp, ref), torch.tensor([log2, -log2], dtype=torch.float64))
    assert equal(kl_k2(logp, ref), torch.tensor([log2**2 / 2] * 2, dtype=torch.float64))
    assert equal(kl_k3(logp, ref), torch.tensor([log2 - 0.5, 1 - log2], dtype=torch.float64))


def test_exact_kl_by_its_definition():
    logits, ref_logits, weights = leaf(2 * normal(0, 3, 4, 5)), leaf(2 * normal(1, 3, 4, 5)), normal(2, 3, 4)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for b in range(3):
        for t in range(4):
            p = logits[b, t].exp() / logits[b, t].exp().sum()
            q = ref_logits[b, t].exp() / ref_logits[b, t].exp().sum()
            expected[b, t] = sum(p[v] * (p[v] / q[v]).log() for v in range(5))
    actual = kl_exact(logits, ref_logits)
    assert equal(actual, expected)
    for x in (logits, ref_logits):
        assert equal(gradient((actual * weights).sum(), x), gradient((expected * weights).sum(), x))
    assert torch.autograd.gradcheck(kl_exact, (leaf(normal(3, 2, 2, 3)), leaf(normal(4, 2, 2, 3))))


def test_exact_kl_agrees_with_torch():
    logits, ref_logits = normal(0, 3, 4, 5), normal(1, 3, 4, 5)
    assert equal(
        kl_exact(logits, ref_logits), kl_divergence(Categorical(logits=logits), Categorical(logits=ref_logits))
    )


def test_exact_kl_by_hand():
    # (1/2, 1/2, 0) from (1/4, 1/2, 1/4): 1/2 log 2 + 0 + 0 log 0; the other way round the KL is infinite
    logits = torch.tensor([[[1.0, 1.0, 0.0]]]).log()
    ref_logits = torch.tensor([[[1.0, 2.0, 1.0]]]).log()
    assert equal(kl_exact(logits, ref_logits), torch.tensor([[math.log(2) / 2]]), 1e-6)
    assert kl_exact(ref_logits, logits).item() == math.inf


# Truth by enumeration: an expectation under pi is a finite sum over the vocabulary


def test_k1_and_k3_are_unbiased():
    _, logp, ref = two_policies()
    kl = (logp.exp() * (logp - ref)).sum()
    assert kl > 1
    assert equal((logp.exp() * kl_k1(logp, ref)).sum(), kl)
    assert equal((logp.exp() * kl_k3(logp, ref)).sum(), kl)
    assert abs((logp.exp() * kl_k2(logp, ref)).sum() - kl) > 0.01  # k2 is not


def test_swapped_arguments_estimate_something_else():
    _, logp, ref = two_policies()
    kl = (logp.exp() * (logp - ref)).sum()
    chi2 = (logp.exp() ** 2 / ref.exp()).sum() - 1
    assert equal((logp.exp() * kl_k1(ref, logp)).sum(), -kl)
    assert equal((logp.exp() * kl_k3(ref, logp)).sum(), chi2 - kl)
    assert abs(chi2 - kl - kl) > 1  # and not the KL


def test_gradients_of_the_estimators_are_not_those_of_the_kl():
    logits, logp, ref = two_policies()
    kl = (logp.exp() * (logp - ref)).sum()
    reverse_kl = (ref.exp() * (ref - logp)).sum()

    def expected_gradient(estimate):
        return gradient((logp.exp().detach() * estimate(logp, ref)).sum(), logits)

    assert equal(expected_gradient(kl_k1), torch.zeros(5, dtype=torch.float64))
    assert equal(expected_gradient(kl_k2), gradient(kl, logits))
    assert equal(expected_gradient(kl_k3), gradient(reverse_kl, logits))


# Identities


@estimators
def test_no_kl_between_a_policy_and_itself(estimate, naive):
    logp = leaf(normal(0, 4, 5))
    assert (estimate(logp, logp.detach()) == 0).all()
    assert (kl_exact(normal(0, 2, 3, 4), normal(0, 2, 3, 4)) == 0).all()


def test_signs():
    logp, ref = 3 * normal(0, 1000), 3 * normal(1, 1000)
    assert (kl_k1(logp, ref) < 0).any() and (kl_k1(logp, ref) > 0).any()
    assert (kl_k2(logp, ref) >= 0).all() and (kl_k3(logp, ref) >= 0).all()
    assert (kl_exact(normal(0, 30, 40, 5), normal(1, 30, 40, 5)) > 0).all()


def test_all_estimators_agree_on_small_differences_to_second_order():
    logp, d = normal(0, 100), 1e-3 * normal(1, 100)
    assert equal(kl_k3(logp, logp - d), d**2 / 2, 1e-8)
    assert equal(kl_k2(logp, logp - d), d**2 / 2, 1e-12)


@estimators
def test_any_shape_will_do(estimate, naive):
    for shape in ((), (4,), (4, 3), (4, 3, 2)):
        assert estimate(normal(0, *shape), normal(1, *shape)).shape == shape


def test_a_masked_mean_of_estimates_leaves_the_padding_out():
    mask, logp, ref = random_mask(0), normal(0, 6, 7), normal(1, 6, 7)
    spoiled = kl_k3(logp.masked_fill(~mask, math.nan), ref.masked_fill(~mask, math.inf))
    assert equal(token_mean(spoiled, mask), kl_k3(logp[mask], ref[mask]).mean())


# Numerics


@pytest.mark.parametrize("log_ratio", [1000.0, -1000.0, 20.5, -20.5])
def test_k3_stays_finite_far_away_and_has_no_gradient_there(log_ratio):
    logp = leaf(torch.tensor([log_ratio]))
    k3 = kl_k3(logp, torch.zeros(1))
    assert k3.isfinite().all() and k3 > 0
    assert gradient(k3.sum(), logp) == 0


@pytest.mark.parametrize("log_ratio", [19.5, -19.5])
def test_k3_is_not_clamped_within_twenty(log_ratio):
    logp = leaf(torch.tensor([log_ratio], dtype=torch.float64))
    k3 = kl_k3(logp, torch.zeros(1, dtype=torch.float64))
    assert equal(k3.detach(), torch.tensor([math.exp(-log_ratio) - 1 + log_ratio], dtype=torch.float64))
    assert equal(gradient(k3.sum(), logp), torch.tensor([1 - math.exp(-log_ratio)], dtype=torch.float64))


def test_k3_does_not_cancel_for_small_differences_in_float32():
    # exp(d) is rounded to a multiple of 2**-23, so that exp(d) - 1 - d would be 0 and not d^2 / 2 = 2**-27
    assert equal(kl_k3(torch.tensor([-1.0]), torch.tensor([-1.0 + 2**-13])), torch.tensor([2.0**-27]), 1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_compute_in_float32(dtype):
    logp, ref = -normal(0, 4, 5).abs().to(dtype), -normal(1, 4, 5).abs().to(dtype)
    for estimate in (kl_k1, kl_k2, kl_k3):
        assert estimate(logp, ref).dtype == torch.float32
        assert torch.equal(estimate(logp, ref), estimate(logp.float(), ref.float()))
    logits, ref_logits = normal(0, 2, 3, 4).to(dtype), normal(1, 2, 3, 4).to(dtype)
    assert kl_exact(logits, ref_logits).dtype == torch.float32
    assert torch.equal(kl_exact(logits, ref_logits), kl_exact(logits.float(), ref_logits.float()))


def test_impossible_tokens_have_no_gradient():
    logits = leaf(torch.tensor([[[0.0, 1.0, -math.inf]]]))
    ref_logits = leaf(torch.tensor([[[1.0, 0.0, -math.inf]]]))
    for x in (logits, ref_logits):
        of_x = gradient(kl_exact(logits, ref_logits).sum(), x)
        assert of_x.isfinite().all() and of_x[0, 0, 2] == 0 and of_x[0, 0, 0] != 0


# The controller


def test_the_controller_by_hand():
    control = AdaptiveKL(0.2, target=6, horizon=10_000)
    # 6.6 / 6 - 1 = 0.1, inside +-0.2: 0.2 * (1 + 0.1 * 500 / 10000) = 0.2 * 1.005
    assert control.update(6.6, 500) == pytest.approx(0.201, rel=1e-12)
    # 12 / 6 - 1 = 1, clipped to 0.2: 0.201 * (1 + 0.2 * 500 / 10000) = 0.201 * 1.01
    assert control.update(12.0, 500) == pytest.approx(0.20301, rel=1e-12)
    # 0 / 6 - 1 = -1, clipped to -0.2: 0.20301 * (1 - 0.2 * 1000 / 10000) = 0.20301 * 0.98
    assert control.update(0.0, 1000) == pytest.approx(0.1989498, rel=1e-12)
    # an estimate may be negative; on target nothing moves
    assert control.update(-50.0, 1000) == pytest.approx(0.1989498 * 0.98, rel=1e-12)
    assert control.update(6.0, 1000) == control.kl_coef == pytest.approx(0.1989498 * 0.98, rel=1e-12)


def test_the_controller_brings_the_kl_to_its_target():
    # a policy whose KL answers the coefficient as 1 / coef has to end at coef = 1 / target
    for start in (0.01, 10.0):
        control = AdaptiveKL(start, target=4.0, horizon=1000)
        for _ in range(1000):
            control.update(1 / control.kl_coef, 100)
        assert control.kl_coef == pytest.approx(0.25, rel=1e-3)


# Errors

x, logits = torch.zeros(2, 3), torch.zeros(2, 3, 4)
ERRORS = {
    "k1 of (B,) and (B, T)": (lambda: kl_k1(x, x[:, 0]), r"ref_logprobs: wanted shape \(2, 3\).*got \(2,\)"),
    "k2 of one row": (lambda: kl_k2(x, x[:1]), r"ref_logprobs: wanted shape \(2, 3\)"),
    "k3 of one column": (lambda: kl_k3(x, x[:, :1]), r"ref_logprobs: wanted shape \(2, 3\)"),
    "exact of two dimensions": (lambda: kl_exact(x, x), "logits: wanted 3 dimensions"),
    "exact with another vocabulary": (
        lambda: kl_exact(logits, logits[..., :3]),
        r"ref_logits: wanted shape \(2, 3, 4\)",
    ),
    "exact with one row": (lambda: kl_exact(logits, logits[:1]), r"ref_logits: wanted shape \(2, 3, 4\)"),
    "negative kl_coef": (lambda: AdaptiveKL(-0.1, target=1, horizon=1), "kl_coef: wanted"),
    "target 0": (lambda: AdaptiveKL(0.1, target=0, horizon=1), r"target: wanted .*\(0, inf\), got 0"),
    "horizon 0": (lambda: AdaptiveKL(0.1, target=1, horizon=0), r"horizon: wanted .*\(0, inf\), got 0"),
    "kl nan": (lambda: AdaptiveKL(0.1, target=1, horizon=9).update(math.nan, 1), "kl: wanted .*got nan"),
    "no steps": (lambda: AdaptiveKL(0.1, target=1, horizon=9).update(1.0, 0), "n_steps: wanted"),
    "a step that could make kl_coef 0": (
        lambda: AdaptiveKL(0.1, target=1, horizon=9).update(0.5, 45),
        "n_steps: 45 sequences at horizon 9 would multiply kl_coef by 0.00; wanted fewer than 45",
    ),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS)
def test_bad_input_is_refused_by_name(call, message, unhooked):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_the_controller_takes_a_single_sequence():
    assert AdaptiveKL(0.1, target=1, horizon=10).update(2.0, 1) == pytest.approx(0.1 * (1 + 0.2 / 10))
