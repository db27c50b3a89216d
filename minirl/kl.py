"""KL(pi || pi_ref): three estimators from sampled tokens (Schulman 2020, "Approximating KL divergence"), the exact value,
and the controller that holds it near a target.

Argument order is always (policy, reference). With tokens drawn from the policy, k1 and k3 are unbiased as VALUES. As
terms of a loss they are something else: per token, k1 has no gradient on average and k3 pulls along the KL the other way
round, so the exact way to charge for KL is k1 in the reward (`rewards.kl_shaped_rewards`).
"""

import torch
import torch.nn.functional as F

from minirl.types import Float, Tensor, check_dims, check_knob, check_shapes, upcast

MAX_LOG_RATIO = 20.0  # exp(20) is 5e8: beyond it a ratio only says "far away", and float32 soon says inf


def clamp_log_ratio(log_ratio: Tensor) -> Tensor:
    """Log-ratios are clamped to +-20 before any exp; outside, the gradient is zero."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def kl_k1(logprobs: Float[Tensor, "..."], ref_logprobs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """k1 = log pi - log pi_ref. Unbiased, of either sign, the estimate that belongs in the reward."""
    check_shapes(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return upcast(logprobs) - upcast(ref_logprobs)


def kl_k2(logprobs: Float[Tensor, "..."], ref_logprobs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """k2 = (log pi - log pi_ref)^2 / 2. Biased as a value, never negative; for one token its gradient is that of the KL."""
    return kl_k1(logprobs, ref_logprobs) ** 2 / 2


def kl_k3(logprobs: Float[Tensor, "..."], ref_logprobs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """k3 = exp(d) - 1 - d with d = log pi_ref - log pi. Unbiased and never negative (GRPO, DeepSeekMath eq. 4).

    The reference stands on top of the ratio. Swapping the arguments gives chi2(pi || ref) - KL on average.
    """
    d = clamp_log_ratio(-kl_k1(logprobs, ref_logprobs))
    return torch.expm1(d) - d


def kl_exact(logits: Float[Tensor, "B T V"], ref_logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """KL(pi || pi_ref) = sum_v pi_v (log pi_v - log ref_v) over the whole vocabulary, at each position.

    Both logits divided by the sampling temperature. A token that the policy gives probability 0 contributes 0; one
    that only the reference excludes makes the KL infinite.
    """
    check_dims(3, logits=logits)
    check_shapes(logits=logits, ref_logits=ref_logits)
    logp = F.log_softmax(upcast(logits), dim=-1)
    ref_logp = F.log_softmax(upcast(ref_logits), dim=-1)
    never = logp == -torch.inf
    return (logp.exp() * (logp.masked_fill(never, 0.0) - ref_logp.masked_fill(never, 0.0))).sum(-1)


class AdaptiveKL:
    """A proportional controller that moves kl_coef until the measured KL is near `target` (Ziegler et al. 2019, section 2.2).

        kl_coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * n_steps / horizon

    kl is the batch mean of the per-sequence SUM over tokens, n_steps the number of sequences it was measured on, and
    horizon, in sequences too, says how slowly the coefficient moves. `target` is not a limit: stopping early at a KL is
    something else.
    """

    def __init__(self, kl_coef: float, *, target: float, horizon: int):
        check_knob("kl_coef", kl_coef, 0)
        check_knob("target", target, 0, open_low=True)
        check_knob("horizon", horizon, 0, open_low=True)
        self.kl_coef, self.target, self.horizon = float(kl_coef), target, horizon

    def update(self, kl: float, n_steps: int) -> float:
        """Takes the KL of the last batch, returns the coefficient for the next."""
        check_knob("kl", kl)
        check_knob("n_steps", n_steps, 1)
        error = min(max(float(kl) / self.target - 1, -0.2), 0.2)
        factor = 1 + error * n_steps / self.horizon
        if factor <= 0:  # a coefficient of 0 never comes back, and a negative one rewards KL
            raise ValueError(
                f"n_steps: {n_steps} sequences at horizon {self.horizon} would multiply kl_coef by {factor:.2f}; "
                f"wanted fewer than {5 * self.horizon}"
            )
        self.kl_coef *= factor
        return self.kl_coef
