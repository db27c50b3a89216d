"""Losses that learn from comparisons: Bradley-Terry for reward models, DPO and its family for policies.

A policy enters as one number a response: the summed log-probability of the whole response for DPO, cDPO, robust DPO and
KTO (`logprobs.sequence_logprobs`), the length-averaged one for SimPO and ORPO (`logprobs.average_logprobs`). Every loss is a
mean over the N pairs.
"""

import torch
import torch.nn.functional as F

from minirl.types import (
    Bool,
    Float,
    Stats,
    Tensor,
    check_dims,
    check_finite,
    check_knob,
    check_shapes,
    looks_at_values,
    upcast,
)


def bradley_terry_loss(
    chosen: Float[Tensor, " N"], rejected: Float[Tensor, " N"], *, margin: float | Float[Tensor, " N"] = 0.0
) -> tuple[Float[Tensor, ""], Stats]:
    """-log sigmoid(r_chosen - r_rejected - margin): the reward model's loss (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1).

    Scores are fixed only up to a constant a prompt. The margin, one number or one a pair, asks for more distance where
    the labeller was surer (Llama 2, eq. 2).
    """
    chosen, rejected = _pairs(chosen=chosen, rejected=rejected)
    if isinstance(margin, Tensor) and margin.dim() > 0:
        check_shapes(chosen=chosen, margin=margin)
        check_finite(margin=margin)
    else:
        check_knob("margin", margin)
    difference = chosen - rejected
    loss = -F.logsigmoid(difference - margin).mean()
    return loss, {"loss": loss.detach()} | _difference_stats(difference)


def dpo_loss(
    chosen: Float[Tensor, " N"],
    rejected: Float[Tensor, " N"],
    ref_chosen: Float[Tensor, " N"],
    ref_rejected: Float[Tensor, " N"],
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], Stats]:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7), from SUMMED sequence log-probabilities.

        h    = (chosen - ref_chosen) - (rejected - ref_rejected)
        loss = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)          e = label_smoothing, in [0, 0.5)

    beta h is the difference of the implicit rewards beta log(pi / pi_ref); at pi = ref the loss is log 2. A larger beta
    holds the optimum closer to the reference. e > 0 is "conservative" DPO, for labels that are wrong with probability e:
    it aims at label probabilities mixed with a coin's, and so stops short of the optimum. Averaged log-probabilities have
    another optimum altogether.
    """
    check_knob("beta", beta, 0, open_low=True)
    check_knob("label_smoothing", label_smoothing, 0, 0.5, open_high=True)
    h, stats = _log_ratio_difference(chosen, rejected, ref_chosen, ref_rejected, beta)
    loss = -((1 - label_smoothing) * F.logsigmoid(beta * h) + label_smoothing * F.logsigmoid(-beta * h)).mean()
    return loss, {"loss": loss.detach()} | stats


def robust_dpo_loss(
    chosen: Float[Tensor, " N"],
    rejected: Float[Tensor, " N"],
    ref_chosen: Float[Tensor, " N"],
    ref_rejected: Float[Tensor, " N"],
    *,
    beta: float = 0.1,
    label_smoothing: float,
) -> tuple[Float[Tensor, ""], Stats]:
    """DPO made unbiased under labels flipped with probability e (Chowdhury et al. 2024, eq. 9).

        loss = [(1 - e) l(h) - e l(-h)] / (1 - 2e)          l(h) = -log sigmoid(beta h), e = label_smoothing, in [0, 0.5)

    The second sign is the difference to label smoothing. The loss can be negative. Where no label was flipped it
    overshoots the optimum by design.
    """
    check_knob("beta", beta, 0, open_low=True)
    check_knob("label_smoothing", label_smoothing, 0, 0.5, open_high=True)
    h, stats = _log_ratio_difference(chosen, rejected, ref_chosen, ref_rejected, beta)
    e = label_smoothing
    terms = (-(1 - e) * F.logsigmoid(beta * h) + e * F.logsigmoid(-beta * h)) / (1 - 2 * e)
    loss = terms.mean()
    return loss, {"loss": loss.detach()} | stats


def ipo_loss(
    chosen: Float[Tensor, " N"],
    rejected: Float[Tensor, " N"],
    ref_chosen: Float[Tensor, " N"],
    ref_rejected: Float[Tensor, " N"],
    *,
    beta: float = 0.1,
) -> tuple[Float[Tensor, ""], Stats]:
    """(h - 1 / (2 beta))^2: a bounded target in place of a sigmoid that never has enough (IPO, Azar et al. 2023, eq. 17).

    h as in DPO. It fits the probability of being preferred and not the scores behind it, and misses by design the optimum
    that DPO has for Bradley-Terry labels. TRL and the authors pass length-averaged log-probabilities, others summed ones:
    the caller decides.
    """
    check_knob("beta", beta, 0, open_low=True)
    h, stats = _log_ratio_difference(chosen, rejected, ref_chosen, ref_rejected, beta)
    loss = ((h - 1 / (2 * beta)) ** 2).mean()
    return loss, {"loss": loss.detach()} | stats


def simpo_loss(
    chosen: Float[Tensor, " N"], rejected: Float[Tensor, " N"], *, beta: float = 2.0, gamma: float = 1.0
) -> tuple[Float[Tensor, ""], Stats]:
    """-log sigmoid(beta * (chosen - rejected) - gamma), from length-AVERAGED log-probabilities (SimPO, Meng et al. 2024, eq. 6).

    No reference, hence by design not the KL-regularised optimum. gamma is the margin itself; the authors' code multiplies a
    ratio by beta to get it.
    """
    check_knob("beta", beta, 0, open_low=True)
    check_knob("gamma", gamma, 0)
    chosen, rejected = _pairs(chosen=chosen, rejected=rejected)
    difference = beta * (chosen - rejected)
    loss = -F.logsigmoid(difference - gamma).mean()
    return loss, {"loss": loss.detach()} | _difference_stats(difference) | _logprob_stats(chosen, rejected)


def orpo_loss(
    chosen: Float[Tensor, " N"], rejected: Float[Tensor, " N"], *, lam: float = 0.1
) -> tuple[Float[Tensor, ""], Stats]:
    """SFT on the chosen response plus an odds-ratio penalty (ORPO, Hong et al. 2024, eq. 6-7), from length-AVERAGED logprobs.

        loss = -c - lam log sigmoid(log odds(c) - log odds(r))          log odds(x) = x - log(1 - exp x)

    No reference, hence by design not the KL-regularised optimum. Log-probabilities must be below 0: an average of exactly
    0 has infinite odds.
    """
    check_knob("lam", lam, 0)
    chosen, rejected = _pairs(chosen=chosen, rejected=rejected)
    for name, x in {"chosen": chosen, "rejected": rejected}.items():
        if looks_at_values(x) and (x >= 0).any():
            raise ValueError(f"{name}: wanted averaged log-probabilities below 0, got {x.max().item()}")
    log_odds_ratio = (chosen - rejected) - torch.log(-torch.expm1(chosen)) + torch.log(-torch.expm1(rejected))
    loss = (-chosen - lam * F.logsigmoid(log_odds_ratio)).mean()
    return loss, {"loss": loss.detach()} | _difference_stats(log_odds_ratio) | _logprob_stats(chosen, rejected)


def kto_loss(
    logprobs: Float[Tensor, " N"],
    ref_logprobs: Float[Tensor, " N"],
    desirable: Bool[Tensor, " N"],
    kl: float | Float[Tensor, ""],
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> tuple[Float[Tensor, ""], Stats]:
    """Learning from thumbs up and thumbs down, without pairs (KTO, Ethayarajh et al. 2024, eq. 7-8); summed log-probabilities.

        h    = logprobs - ref_logprobs,    z = max(kl, 0), detached
        loss = mean of w_D (1 - sigmoid(beta (h - z)))  where desirable,  w_U (1 - sigmoid(beta (z - h)))  where not

    kl is the batch's estimate of KL(pi || ref), in practice from mismatched prompts and responses: it is the point of
    reference from which a response is good or bad, not a penalty. The utility saturates on both sides, and by design the
    optimum is not that of the KL-regularised reward.
    """
    check_knob("beta", beta, 0, open_low=True)
    check_knob("desirable_weight", desirable_weight, 0)
    check_knob("undesirable_weight", undesirable_weight, 0)
    logprobs, ref_logprobs = _pairs(logprobs=logprobs, ref_logprobs=ref_logprobs)
    check_shapes(logprobs=logprobs, desirable=desirable)
    if not isinstance(kl, Tensor | float):
        check_knob("kl", kl)
    if desirable.dtype != torch.bool:
        raise ValueError(f"desirable: wanted a torch.bool tensor, got {desirable.dtype}")
    kl = torch.as_tensor(kl, dtype=logprobs.dtype, device=logprobs.device).detach()
    check_dims(0, kl=kl)
    check_finite(kl=kl)
    h = logprobs - ref_logprobs.detach()
    signed = torch.where(desirable, h - kl.clamp(min=0), kl.clamp(min=0) - h)
    weight = desirable_weight * desirable.to(h.dtype) + undesirable_weight * (~desirable).to(h.dtype)
    loss = (weight * torch.sigmoid(-beta * signed)).mean()  # 1 - sigmoid(x) = sigmoid(-x), without cancellation
    return loss, {"loss": loss.detach(), "accuracy": (signed > 0).to(h.dtype).mean()}


def _pairs(**tensors: Tensor) -> list[Tensor]:
    """Each tensor checked to be (N,), finite and of one length, in its computing precision."""
    check_dims(1, **tensors)
    check_shapes(**tensors)
    check_finite(**tensors)
    name, first = next(iter(tensors.items()))
    if len(first) == 0:
        raise ValueError(f"{name}: wanted at least one, got none")
    return [upcast(x) for x in tensors.values()]


def _log_ratio_difference(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> tuple[Tensor, Stats]:
    """h, the difference of log(pi / pi_ref) between chosen and rejected, with the reference detached."""
    chosen, rejected, ref_chosen, ref_rejected = _pairs(
        chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected
    )
    h = (chosen - ref_chosen.detach()) - (rejected - ref_rejected.detach())
    return h, _difference_stats(beta * h) | _logprob_stats(chosen, rejected)


def _difference_stats(difference: Tensor) -> Stats:
    difference = difference.detach()
    return {"accuracy": (difference > 0).to(difference.dtype).mean(), "margin": difference.mean()}


def _logprob_stats(chosen: Tensor, rejected: Tensor) -> Stats:
    return {"chosen_logprobs": chosen.detach().mean(), "rejected_logprobs": rejected.detach().mean()}
