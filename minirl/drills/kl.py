"""Wrong versions of the KL estimators and of the controller."""

import torch
import torch.nn.functional as F

from minirl.drills.bank import Case, Drill, logprobs_like, numbers, right, wrong
from minirl.kl import AdaptiveKL, kl_exact, kl_k1, kl_k2, kl_k3

# k1


@right(kl_k1)
def right_k1(logprobs, ref_logprobs):
    return logprobs - ref_logprobs


@wrong(
    kl_k1,
    "The arguments are swapped: with samples from the policy this averages to -KL. Take log pi - log pi_ref.",
    seen="one book's code",
)
def reversed_k1(logprobs, ref_logprobs):
    return ref_logprobs - logprobs


@wrong(kl_k1, "An absolute value makes k1 biased: the negative samples are what brings its mean down to the KL.")
def absolute_k1(logprobs, ref_logprobs):
    return (logprobs - ref_logprobs).abs()


@wrong(kl_k1, "This is the ratio pi / pi_ref, not its logarithm: leave out the exp.")
def ratio_for_k1(logprobs, ref_logprobs):
    return (logprobs - ref_logprobs).exp()


@wrong(kl_k1, "The log-ratio is already per sampled token: the tokens are drawn from pi, so do not weight by pi again.")
def weighted_k1(logprobs, ref_logprobs):
    return logprobs.exp() * (logprobs - ref_logprobs)


# k2


@right(kl_k2)
def right_k2(logprobs, ref_logprobs):
    return (logprobs - ref_logprobs) ** 2 / 2


@wrong(kl_k2, "The half is missing: k2 = (log-ratio)^2 / 2, so that it agrees with the KL to second order.")
def k2_without_half(logprobs, ref_logprobs):
    return (logprobs - ref_logprobs) ** 2


@wrong(kl_k2, "The sign is wrong: a squared distance is never negative.")
def negative_k2(logprobs, ref_logprobs):
    return -((logprobs - ref_logprobs) ** 2) / 2


@wrong(kl_k2, "The square is missing: this is half of k1.")
def k2_without_square(logprobs, ref_logprobs):
    return (logprobs - ref_logprobs) / 2


@wrong(kl_k2, "Square the difference of the log-probabilities, not of the probabilities.")
def k2_of_probabilities(logprobs, ref_logprobs):
    return (logprobs.exp() - ref_logprobs.exp()) ** 2 / 2


# k3


@right(kl_k3)
def right_k3(logprobs, ref_logprobs):
    d = ref_logprobs - logprobs
    return d.exp() - 1 - d


@wrong(
    kl_k3,
    "The ratio is upside down: with d = log pi - log pi_ref this averages to chi2 - KL. Put the reference on top.",
    seen="one book's code, asleep while beta was 0",
)
def swapped_k3(logprobs, ref_logprobs):
    d = logprobs - ref_logprobs
    return d.exp() - 1 - d


@wrong(kl_k3, "The sign of the last term is wrong: exp(d) - 1 - d touches 0 at d = 0 and stays above it elsewhere.")
def k3_plus_log_ratio(logprobs, ref_logprobs):
    d = ref_logprobs - logprobs
    return d.exp() - 1 + d


@wrong(kl_k3, "The whole sign is wrong: k3 is never negative.")
def negative_k3(logprobs, ref_logprobs):
    d = ref_logprobs - logprobs
    return d + 1 - d.exp()


@wrong(kl_k3, "The -1 is missing: at pi = ref the estimate has to be 0.")
def k3_without_one(logprobs, ref_logprobs):
    d = ref_logprobs - logprobs
    return d.exp() - d


@wrong(kl_k3, "The log-ratio is missing: exp(d) - 1 averages to 0 and measures nothing.")
def k3_without_log_ratio(logprobs, ref_logprobs):
    return torch.expm1(ref_logprobs - logprobs)


# the exact KL


@right(kl_exact)
def right_kl_exact(logits, ref_logits):
    logp, ref_logp = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (logp.exp() * (logp - ref_logp)).sum(-1)


@wrong(
    kl_exact,
    "This is KL(ref || pi): F.kl_div(input, target) is KL(target || input). Weight by pi and start with log pi.",
)
def reversed_kl_exact(logits, ref_logits):
    logp, ref_logp = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return F.kl_div(logp, ref_logp, reduction="none", log_target=True).sum(-1)


@wrong(
    kl_exact, "F.kl_div wants log_target=True for a target in logarithms; without it, it takes the log of a negative."
)
def kl_div_without_log_target(logits, ref_logits):
    logp, ref_logp = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return F.kl_div(ref_logp, logp, reduction="none").sum(-1)


@wrong(kl_exact, "The weights are the reference's: an expectation under the policy is weighted by the policy.")
def kl_exact_under_the_reference(logits, ref_logits):
    logp, ref_logp = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (ref_logp.exp() * (logp - ref_logp)).sum(-1)


@wrong(kl_exact, "Sum over the vocabulary, do not average: the probabilities are the weights already.")
def kl_exact_averaged(logits, ref_logits):
    logp, ref_logp = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (logp.exp() * (logp - ref_logp)).mean(-1)


@wrong(kl_exact, "Each token needs the weight pi(token): an unweighted mean of log-ratios is no KL.")
def kl_exact_unweighted(logits, ref_logits):
    return (logits.log_softmax(-1) - ref_logits.log_softmax(-1)).mean(-1)


@wrong(kl_exact, "Logits are not log-probabilities: take log_softmax of both before subtracting.")
def kl_exact_of_logits(logits, ref_logits):
    return (logits.softmax(-1) * (logits - ref_logits)).sum(-1)


@wrong(kl_exact, "The sign is wrong: the KL is never negative. It is log pi minus log pi_ref.")
def negative_kl_exact(logits, ref_logits):
    logp, ref_logp = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return (logp.exp() * (ref_logp - logp)).sum(-1)


# the controller


class _Controller:
    def __init__(self, kl_coef, *, target, horizon):
        self.kl_coef, self.target, self.horizon = kl_coef, target, horizon

    def error(self, kl):
        return min(max(kl / self.target - 1, -0.2), 0.2)


@right(AdaptiveKL)
class RightController(_Controller):
    def update(self, kl, n_steps):
        self.kl_coef *= 1 + self.error(kl) * n_steps / self.horizon
        return self.kl_coef


@wrong(AdaptiveKL, "The sign is wrong: a KL above the target has to raise the coefficient.")
class ControllerTheWrongWay(_Controller):
    def update(self, kl, n_steps):
        self.kl_coef *= 1 - self.error(kl) * n_steps / self.horizon
        return self.kl_coef


@wrong(AdaptiveKL, "The clip is missing: one batch with a wild KL would throw the coefficient far away.")
class ControllerWithoutClip(_Controller):
    def update(self, kl, n_steps):
        self.kl_coef *= 1 + (kl / self.target - 1) * n_steps / self.horizon
        return self.kl_coef


@wrong(AdaptiveKL, "The coefficient is multiplied, not added to: a step should be a share of what it is.")
class AddingController(_Controller):
    def update(self, kl, n_steps):
        self.kl_coef += self.error(kl) * n_steps / self.horizon
        return self.kl_coef


@wrong(AdaptiveKL, "n_steps is missing: the horizon counts sequences, so a larger batch takes a larger step.")
class ControllerWithoutSteps(_Controller):
    def update(self, kl, n_steps):
        self.kl_coef *= 1 + self.error(kl) / self.horizon
        return self.kl_coef


@wrong(AdaptiveKL, "The error is relative: kl / target - 1, not kl - target.")
class ControllerWithAbsoluteError(_Controller):
    def update(self, kl, n_steps):
        self.kl_coef *= 1 + min(max(kl - self.target, -0.2), 0.2) * n_steps / self.horizon
        return self.kl_coef


@wrong(
    AdaptiveKL,
    "Doubling and halving is the rule of the PPO paper (section 4); this one moves in proportion to the error.",
    seen="PPO, Schulman et al. 2017",
)
class DoublingController(_Controller):
    def update(self, kl, n_steps):
        if kl > 1.5 * self.target:
            self.kl_coef *= 2
        elif kl < self.target / 1.5:
            self.kl_coef /= 2
        return self.kl_coef


@wrong(
    AdaptiveKL,
    "target is not a limit: the coefficient moves on both sides of it. Stopping early at a KL is something else.",
    seen="a common tutorial, with target_kl",
)
class ControllerWithLimit(_Controller):
    def update(self, kl, n_steps):
        if kl > self.target:
            self.kl_coef *= 1 + self.error(kl) * n_steps / self.horizon
        return self.kl_coef


# The drills

SHAPES = [(1, 1), (1, 2), (2, 3), (4, 5)]


def _two_policies(seed: int, shape: tuple) -> Case:
    return Case({"logprobs": logprobs_like(seed, *shape), "ref_logprobs": logprobs_like(seed + 1, *shape)}, {})


def _two_distributions(seed: int, shape: tuple) -> Case:
    return Case({"logits": numbers(seed, *shape), "ref_logits": numbers(seed + 1, *shape)}, {})


def _controlled(controller, inputs, knobs):
    """Several updates of one controller: the coefficients it returns."""
    control = controller(inputs["kl_coef"], **knobs)
    coefficients = [control.update(kl, n) for kl, n in zip(inputs["kl"], inputs["n_steps"], strict=True)]
    return None if None in coefficients else coefficients


LOGPROBS = [_two_policies(10 * i, shape) for i, shape in enumerate(SHAPES)]
LOGITS = [_two_distributions(10 * i, (*shape, 2 + i)) for i, shape in enumerate(SHAPES)]
UPDATES = [
    Case({"kl_coef": 0.2, "kl": [6.6], "n_steps": [500]}, {"target": 6.0, "horizon": 10_000}),
    Case({"kl_coef": 0.2, "kl": [4.0], "n_steps": [500]}, {"target": 5.0, "horizon": 10_000}),
    Case({"kl_coef": 0.1, "kl": [12.0, 0.0, 3.1], "n_steps": [50, 20, 10]}, {"target": 3.0, "horizon": 100}),
]

DRILLS = [
    Drill(
        kl_k1,
        LOGPROBS,
        (
            "KL(pi || ref) is an average of something over tokens drawn from pi. Of what?",
            "It is the log of pi / pi_ref: which of the two arguments comes first?",
            "One subtraction; no exp, no abs.",
        ),
        ["logprobs"],
    ),
    Drill(
        kl_k2,
        LOGPROBS,
        (
            "Start from k1.",
            "It cannot be negative, and near pi = ref it is the KL to second order.",
            "k1 squared, halved.",
        ),
        ["logprobs"],
    ),
    Drill(
        kl_k3,
        LOGPROBS,
        (
            "It is -k1 turned around, plus a term whose average is 0 and that makes it never negative.",
            "That term is ratio - 1. The tokens come from pi, so which of pi / ref and ref / pi averages to 1?",
            "With d = ref_logprobs - logprobs: exp, minus 1, minus d. torch.expm1 is exact for small d.",
        ),
        ["logprobs"],
    ),
    Drill(
        kl_exact,
        LOGITS,
        (
            "Logits are not yet log-probabilities.",
            "An expectation under pi: weights pi, values log pi - log ref.",
            "Two log_softmax over the last axis, and a sum over it, not a mean.",
        ),
        ["logits"],
    ),
    Drill(
        AdaptiveKL,
        UPDATES,
        (
            "Keep kl_coef as an attribute; update multiplies it and returns it.",
            "The error is relative to the target, and clipped to +-0.2 before anything else happens to it.",
            "The factor is 1 + error * n_steps / horizon.",
        ),
        outputs=["coefficients"],
        call=_controlled,
        form="AdaptiveKL(kl_coef, target=..., horizon=...).update(kl, n_steps), once for each kl",
    ),
]
