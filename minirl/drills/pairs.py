"""Wrong versions of DPO's relatives: IPO, SimPO, ORPO and KTO."""

import torch
import torch.nn.functional as F

from minirl.drills.bank import Case, Drill, logprobs_like, reported, right, wrong
from minirl.drills.preference import H_HINT, likely_pairs, pair_cases, referenced_pairs
from minirl.losses.preference import ipo_loss, kto_loss, orpo_loss, simpo_loss

# IPO


@right(ipo_loss)
def right_ipo(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(((h - 1 / (2 * beta)) ** 2).mean())


@wrong(ipo_loss, "The target is 1 / (2 * beta), not 1 / beta.")
def twice_the_target(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(((h - 1 / beta) ** 2).mean())


@wrong(ipo_loss, "The target is 1 / (2 * beta), not beta / 2: a small beta lets the policy go far.")
def target_half_beta(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(((h - beta / 2) ** 2).mean())


@wrong(
    ipo_loss, "beta multiplies h: (beta h - 1/2)^2 has the same optimum, but beta^2 times the loss and the gradient."
)
def beta_inside_the_square(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(((beta * h - 0.5) ** 2).mean())


@wrong(ipo_loss, "The sign is wrong, of h or of the target: this pulls h towards -1 / (2 beta), the rejected response.")
def ipo_the_wrong_way(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1):
    h = (rejected - ref_rejected) - (chosen - ref_chosen)
    return reported(((h - 1 / (2 * beta)) ** 2).mean())


@wrong(ipo_loss, "The reference is missing: h is the difference of log(pi / pi_ref).")
def ipo_without_reference(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1):
    return reported(((chosen - rejected - 1 / (2 * beta)) ** 2).mean())


@wrong(ipo_loss, "The minus is wrong: a squared distance is to be made small as it is.")
def negative_ipo(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(-((h - 1 / (2 * beta)) ** 2).mean())


@wrong(ipo_loss, "The square comes first and the mean second: each pair has its own distance from the target.")
def ipo_mean_before_square(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported((h.mean() - 1 / (2 * beta)) ** 2)


@wrong(ipo_loss, "This is DPO: IPO has a square in place of -log sigmoid.")
def dpo_for_ipo(chosen, rejected, ref_chosen, ref_rejected, *, beta=0.1):
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    return reported(-F.logsigmoid(beta * h).mean())


# SimPO


@right(simpo_loss)
def right_simpo(chosen, rejected, *, beta=2.0, gamma=1.0):
    return reported(-F.logsigmoid(beta * (chosen - rejected) - gamma).mean())


@wrong(
    simpo_loss,
    "beta multiplies gamma too: here gamma is the margin itself, beta * difference - gamma.",
    seen="the authors' code, whose gamma_beta_ratio means that",
)
def beta_times_gamma(chosen, rejected, *, beta=2.0, gamma=1.0):
    return reported(-F.logsigmoid(beta * (chosen - rejected - gamma)).mean())


@wrong(simpo_loss, "The margin is added: it is subtracted, so that being ahead is not enough.")
def gamma_added(chosen, rejected, *, beta=2.0, gamma=1.0):
    return reported(-F.logsigmoid(beta * (chosen - rejected) + gamma).mean())


@wrong(simpo_loss, "The margin is missing: beta * difference - gamma.")
def simpo_without_gamma(chosen, rejected, *, beta=2.0, gamma=1.0):
    return reported(-F.logsigmoid(beta * (chosen - rejected)).mean())


@wrong(simpo_loss, "beta is missing: beta * difference - gamma.")
def simpo_without_beta(chosen, rejected, *, beta=2.0, gamma=1.0):
    return reported(-F.logsigmoid(chosen - rejected - gamma).mean())


@wrong(simpo_loss, "The pair is swapped: this teaches to prefer the rejected response.")
def swapped_simpo(chosen, rejected, *, beta=2.0, gamma=1.0):
    return reported(-F.logsigmoid(beta * (rejected - chosen) - gamma).mean())


@wrong(simpo_loss, "The minus is missing: a log-likelihood is to be maximised, and an optimiser minimises.")
def unnegated_simpo(chosen, rejected, *, beta=2.0, gamma=1.0):
    return reported(F.logsigmoid(beta * (chosen - rejected) - gamma).mean())


# ORPO


def _log_odds(logprobs):
    return logprobs - torch.log(-torch.expm1(logprobs))


@right(orpo_loss)
def right_orpo(chosen, rejected, *, lam=0.1):
    return reported((-chosen - lam * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))).mean())


@wrong(orpo_loss, "A ratio of probabilities, not of odds: log odds(x) = x - log(1 - exp x).")
def probabilities_for_odds(chosen, rejected, *, lam=0.1):
    return reported((-chosen - lam * F.logsigmoid(chosen - rejected)).mean())


@wrong(orpo_loss, "The SFT term is missing: without a reference, -chosen is what keeps the model a model.")
def orpo_without_sft(chosen, rejected, *, lam=0.1):
    return reported((-lam * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))).mean())


@wrong(orpo_loss, "The SFT term has the wrong sign: it is -chosen, so that the chosen response grows likelier.")
def sft_the_wrong_way(chosen, rejected, *, lam=0.1):
    return reported((chosen - lam * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))).mean())


@wrong(orpo_loss, "The penalty has the wrong sign: -lam * log sigmoid, which is positive.")
def penalty_the_wrong_way(chosen, rejected, *, lam=0.1):
    return reported((-chosen + lam * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))).mean())


@wrong(orpo_loss, "The pair is swapped in the odds ratio: the chosen odds stand on top.")
def swapped_odds(chosen, rejected, *, lam=0.1):
    return reported((-chosen - lam * F.logsigmoid(_log_odds(rejected) - _log_odds(chosen))).mean())


@wrong(orpo_loss, "The sign inside the odds is wrong: log odds(x) = x MINUS log(1 - exp x).")
def log_odds_with_plus(chosen, rejected, *, lam=0.1):
    log_odds_ratio = (chosen - rejected) + torch.log(-torch.expm1(chosen)) - torch.log(-torch.expm1(rejected))
    return reported((-chosen - lam * F.logsigmoid(log_odds_ratio)).mean())


@wrong(orpo_loss, "lam is missing: it weighs the odds-ratio penalty against the SFT term.")
def orpo_without_lam(chosen, rejected, *, lam=0.1):
    return reported((-chosen - F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))).mean())


@wrong(orpo_loss, "The rejected response is imitated too: only the chosen one is.")
def sft_on_both(chosen, rejected, *, lam=0.1):
    return reported((-chosen - rejected - lam * F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))).mean())


# KTO


def _kto(signed, desirable, beta, desirable_weight, undesirable_weight):
    weight = torch.where(desirable, float(desirable_weight), float(undesirable_weight))
    return (weight * (1 - torch.sigmoid(beta * signed))).mean()


@right(kto_loss)
def right_kto(logprobs, ref_logprobs, desirable, kl, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    h, z = logprobs - ref_logprobs, torch.as_tensor(kl).detach().clamp(min=0)
    return reported(_kto(torch.where(desirable, h - z, z - h), desirable, beta, desirable_weight, undesirable_weight))


@wrong(
    kto_loss,
    "The sign is wrong: the labels are swapped (h - z where desirable, z - h where not), or the 1 - is missing.",
)
def swapped_labels(logprobs, ref_logprobs, desirable, kl, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    h, z = logprobs - ref_logprobs, torch.as_tensor(kl).detach().clamp(min=0)
    return reported(_kto(torch.where(desirable, z - h, h - z), desirable, beta, desirable_weight, undesirable_weight))


@wrong(kto_loss, "Desirable and undesirable are treated alike: where a response is undesirable the sign turns, z - h.")
def one_sign_for_both(logprobs, ref_logprobs, desirable, kl, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    h, z = logprobs - ref_logprobs, torch.as_tensor(kl).detach().clamp(min=0)
    return reported(_kto(h - z, desirable, beta, desirable_weight, undesirable_weight))


@wrong(kto_loss, "The minus of z does not turn with the label: z - h where undesirable, not -h - z.")
def sign_of_z_forgotten(
    logprobs, ref_logprobs, desirable, kl, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0
):
    h, z = logprobs - ref_logprobs, torch.as_tensor(kl).detach().clamp(min=0)
    return reported(_kto(torch.where(desirable, h, -h) - z, desirable, beta, desirable_weight, undesirable_weight))


@wrong(kto_loss, "The point of reference is missing: a response is good or bad measured from z = max(kl, 0).")
def kto_without_z(logprobs, ref_logprobs, desirable, kl, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    h = logprobs - ref_logprobs
    return reported(_kto(torch.where(desirable, h, -h), desirable, beta, desirable_weight, undesirable_weight))


@wrong(kto_loss, "z may become negative: an estimate of a KL can, a KL cannot, so z = max(kl, 0).")
def negative_z(logprobs, ref_logprobs, desirable, kl, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    h, z = logprobs - ref_logprobs, torch.as_tensor(kl).detach()
    return reported(_kto(torch.where(desirable, h - z, z - h), desirable, beta, desirable_weight, undesirable_weight))


@wrong(kto_loss, "z carries a gradient: it is a point of reference, no penalty, so detach it.")
def z_not_detached(logprobs, ref_logprobs, desirable, kl, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    h, z = logprobs - ref_logprobs, torch.as_tensor(kl).clamp(min=0)
    return reported(_kto(torch.where(desirable, h - z, z - h), desirable, beta, desirable_weight, undesirable_weight))


@wrong(
    kto_loss,
    "This is -log sigmoid, as in DPO: KTO's value is the sigmoid itself, 1 - sigmoid, which flattens both ways.",
)
def kto_with_log(logprobs, ref_logprobs, desirable, kl, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    h, z = logprobs - ref_logprobs, torch.as_tensor(kl).detach().clamp(min=0)
    weight = torch.where(desirable, float(desirable_weight), float(undesirable_weight))
    return reported(-(weight * F.logsigmoid(beta * torch.where(desirable, h - z, z - h))).mean())


@wrong(
    kto_loss,
    "The two kinds are averaged apart and added: it is one mean over all N, so that each response weighs the same.",
)
def two_means(logprobs, ref_logprobs, desirable, kl, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    h, z = logprobs - ref_logprobs, torch.as_tensor(kl).detach().clamp(min=0)
    good = desirable_weight * (1 - torch.sigmoid(beta * (h - z))) * desirable
    bad = undesirable_weight * (1 - torch.sigmoid(beta * (z - h))) * ~desirable
    return reported(good.sum() / desirable.sum().clamp(min=1) + bad.sum() / (~desirable).sum().clamp(min=1))


@wrong(kto_loss, "The KL is added as a penalty: it only shifts the point from which h is measured.")
def kl_as_penalty(logprobs, ref_logprobs, desirable, kl, *, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    h, z = logprobs - ref_logprobs, torch.as_tensor(kl).detach().clamp(min=0)
    loss = _kto(torch.where(desirable, h, -h), desirable, beta, desirable_weight, undesirable_weight)
    return reported(loss + beta * z)


# The drills


def _judged(seed: int, desirable: list[bool], kl: float, beta: float) -> Case:
    n = len(desirable)
    logprobs = {"logprobs": logprobs_like(seed, n), "ref_logprobs": logprobs_like(seed + 1, n)}
    data = {"desirable": torch.tensor(desirable), "kl": torch.tensor(kl, dtype=torch.float64)}
    return Case(logprobs | data, {"beta": beta})


DRILLS = [
    Drill(
        ipo_loss,
        pair_cases(referenced_pairs, {"beta": 0.1}, {"beta": 0.7}),
        (H_HINT, "A squared distance from a target.", "((h - 1 / (2 * beta)) ** 2).mean()."),
        ["chosen", "rejected"],
        outputs=["loss"],
    ),
    Drill(
        simpo_loss,
        pair_cases(likely_pairs, {"beta": 2.0, "gamma": 1.0}, {"beta": 2.5, "gamma": 0.5}),
        (
            "Bradley-Terry without a reference, with the averaged log-probability as the score.",
            "beta scales the difference; gamma is a margin, outside beta's reach.",
            "-F.logsigmoid(beta * (chosen - rejected) - gamma).mean().",
        ),
        ["chosen", "rejected"],
        outputs=["loss"],
    ),
    Drill(
        orpo_loss,
        pair_cases(likely_pairs, {"lam": 0.1}, {"lam": 0.5}),
        (
            "Two terms: imitate the chosen response, and make its odds larger than those of the rejected one.",
            "log odds(x) = x - log(1 - exp x); -torch.expm1(x) is 1 - exp x without cancellation.",
            "(-chosen - lam * F.logsigmoid(log_odds(chosen) - log_odds(rejected))).mean().",
        ),
        ["chosen", "rejected"],
        outputs=["loss"],
    ),
    Drill(
        kto_loss,
        [
            _judged(0, [True], 0.8, 0.1),
            _judged(10, [False], 0.8, 0.1),
            _judged(20, [True, False], -0.6, 0.7),
            _judged(30, [True, False, True], 0.5, 0.7),
            _judged(40, [False, True, True, True, False], 1.2, 0.3),
        ],
        (
            "h = logprobs - ref_logprobs is how far the policy moved on this response; z is how far it moves anyway.",
            "A value is a sigmoid of beta times h - z where desirable, of z - h where not; the loss is 1 - value.",
            "z = max(kl, 0), detached; torch.where(desirable, h - z, z - h); one mean over all responses.",
        ),
        ["logprobs"],
        outputs=["loss"],
        detached=["kl"],
    ),
]
