"""The critic-free family as rows of one table. A row is a choice of functions, one for each question an algorithm answers:

    row               advantage             ratio and clip        aggregation         KL           groups
    GRPO              (r - mean) / std      token, clipped        sequence mean       k3 in loss   all
    GRPO_KL_IN_REWARD (r - mean) / std      token, clipped        sequence mean       in reward    all
    DR_GRPO           r - mean              token, clipped        / fixed length      k3 in loss   all
    DAPO              (r - mean) / std      token, clip-higher*   token mean          none         alive
    GSPO              (r - mean) / std      sequence, clipped     mean of sequences   k3 in loss   all
    CISPO             (r - mean) / std      weight clipped        token mean          none         all
    RLOO              r - mean of others    none                  sum                 in reward    all
    REINFORCE         r - batch mean        none                  sum                 in reward    all
    REJECTION         1 for the best        none                  token mean          none         all
    RWR               B softmax(r / beta)   none                  token mean          in reward    all

* with clip_eps_high=0.28 in the config, as `python -m minirl train dapo` has it; None is clip_eps, plain clipping.

`grpo.train(..., row=RLOO)` runs a row, and dataclasses.replace(GRPO, advantages=group_centered_advantages) is a new one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from minirl.advantages import (
    exponential_weights,
    group_centered_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
)
from minirl.kl import kl_k3
from minirl.losses.policy import cispo_loss, grpo_loss, gspo_loss, weighted_logprob_loss
from minirl.masking import blank, fixed_length_mean, sequence_mean, token_mean
from minirl.types import Reducer, Rollout, Stats, Tensor


@dataclass(frozen=True)
class CriticFree:
    """One algorithm. `config` is the loop's config, for the knobs a choice needs."""

    advantages: Callable[[Tensor, int], Tensor]  # (scores (B,), group_size) -> (B,)
    surrogate: Callable[..., tuple[Tensor, Stats]]  # (logprobs, old_logprobs, advantages, mask, config, reduce)
    reduce: Callable[[object], Reducer]  # config -> reducer
    charge: Callable[[Tensor, Tensor, Tensor, float], Tensor]  # (scores, kl (B, T), mask, kl_coef) -> scores (B,)
    # (logprobs, ref_logprobs, mask) -> (B, T), weighed by kl_coef; None: no penalty
    penalty: Callable[[Tensor, Tensor, Tensor], Tensor] | None
    keep: Callable[[Tensor], Tensor]  # scores (groups, group_size) -> Bool (groups,): which groups are trained on
    counted: Callable[[Rollout], Tensor]  # rollout -> Bool (B, T): which tokens are trained on


# Advantages. Scores of any row can also be weighed as a batch: the group size is then not used.


def batch_centered(scores: Tensor, group_size: int) -> Tensor:
    """r minus the mean over the whole batch: the plainest baseline, which needs no groups."""
    return scores - scores.mean()


def best_of_group(scores: Tensor, group_size: int) -> Tensor:
    """group_size for the best answer of each group (the first of equals), 0 for the others: weights of mean 1.

    Also where all are wrong: keep=live_groups leaves such groups out.
    """
    groups = scores.view(-1, group_size)
    best = groups.argmax(1, keepdim=True)
    return torch.zeros_like(groups).scatter(1, best, float(group_size)).view(-1)


def softmax_weights(beta: float) -> Callable[[Tensor, int], Tensor]:
    """exponential_weights at this temperature."""
    return lambda scores, group_size: exponential_weights(scores, beta=beta)


# Ratio and clip.


def token_ratio(logprobs, old_logprobs, advantages, mask, config, reduce):
    return grpo_loss(
        logprobs,
        old_logprobs,
        None,
        advantages,
        mask,
        clip_eps=config.clip_eps,
        clip_eps_high=config.clip_eps_high,
        kl_coef=0.0,
        reduce=reduce,
    )


def sequence_ratio(logprobs, old_logprobs, advantages, mask, config, reduce):
    """One ratio a response. The config's 0.2 hardly ever clips a mean of log-ratios; the paper's clip_eps is 3e-4."""
    loss, stats = gspo_loss(
        logprobs, old_logprobs, advantages, mask, clip_eps=config.clip_eps, clip_eps_high=config.clip_eps_high
    )
    return loss * reduce(torch.ones_like(logprobs), mask), stats  # times 1, or a micro-batch's share of it


def clipped_weight(logprobs, old_logprobs, advantages, mask, config, reduce):
    ceiling = config.clip_eps if config.clip_eps_high is None else config.clip_eps_high
    return cispo_loss(logprobs, old_logprobs, advantages, mask, clip_eps_high=ceiling, reduce=reduce)


def no_ratio(logprobs, old_logprobs, advantages, mask, config, reduce):
    """Right for the first update on a rollout. With several, nothing corrects for the policy having moved."""
    return weighted_logprob_loss(logprobs, advantages, mask, reduce=reduce)


# Aggregation.


def per_token(config) -> Reducer:
    return token_mean


def per_sequence(config) -> Reducer:
    return sequence_mean


def per_budget(config) -> Reducer:
    return fixed_length_mean(config.max_new_tokens)


def summed_rows(config) -> Reducer:
    return fixed_length_mean(1)


# Where the KL goes.


def free(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    return scores


def charged(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """The score minus kl_coef * (log pi(y|x) - log pi_ref(y|x)): the exact way, since the KL is then part of the reward."""
    return scores - kl_coef * blank(kl, mask).sum(1)


def k3_penalty(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    return kl_k3(blank(logprobs, mask), blank(ref_logprobs, mask))


# Which groups and which tokens.


def every_group(scores: Tensor) -> Tensor:
    return torch.ones(len(scores), dtype=torch.bool, device=scores.device)


def live_groups(scores: Tensor) -> Tensor:
    """Groups that are not all equal. Dead ones give no gradient: DAPO samples other prompts in their place."""
    return (scores != scores[:, :1]).any(1)


def every_token(rollout: Rollout) -> Tensor:
    return rollout.mask


def finished_rows(rollout: Rollout) -> Tensor:
    """Truncated responses left out: they were stopped, which says nothing about them (DAPO's overlong filtering)."""
    return rollout.mask & rollout.finished.unsqueeze(1)


GRPO = CriticFree(
    advantages=group_relative_advantages,
    surrogate=token_ratio,
    reduce=per_sequence,
    charge=free,
    penalty=k3_penalty,
    keep=every_group,
    counted=every_token,
)
GRPO_KL_IN_REWARD = replace(GRPO, charge=charged, penalty=None)
DR_GRPO = CriticFree(
    advantages=group_centered_advantages,
    surrogate=token_ratio,
    reduce=per_budget,
    charge=free,
    penalty=k3_penalty,
    keep=every_group,
    counted=every_token,
)
DAPO = CriticFree(
    advantages=group_relative_advantages,
    surrogate=token_ratio,
    reduce=per_token,
    charge=free,
    penalty=None,
    keep=live_groups,
    counted=finished_rows,
)
GSPO = CriticFree(
    advantages=group_relative_advantages,
    surrogate=sequence_ratio,
    reduce=per_sequence,
    charge=free,
    penalty=k3_penalty,
    keep=every_group,
    counted=every_token,
)
CISPO = CriticFree(
    advantages=group_relative_advantages,
    surrogate=clipped_weight,
    reduce=per_token,
    charge=free,
    penalty=None,
    keep=every_group,
    counted=every_token,
)
RLOO = CriticFree(
    advantages=leave_one_out_advantages,
    surrogate=no_ratio,
    reduce=summed_rows,
    charge=charged,
    penalty=None,
    keep=every_group,
    counted=every_token,
)
REINFORCE = CriticFree(
    advantages=batch_centered,
    surrogate=no_ratio,
    reduce=summed_rows,
    charge=charged,
    penalty=None,
    keep=every_group,
    counted=every_token,
)
REJECTION = CriticFree(
    advantages=best_of_group,
    surrogate=no_ratio,
    reduce=per_token,
    charge=free,
    penalty=None,
    keep=every_group,
    counted=every_token,
)
RWR = CriticFree(
    advantages=softmax_weights(1.0),
    surrogate=no_ratio,
    reduce=per_token,
    charge=charged,
    penalty=None,
    keep=every_group,
    counted=every_token,
)
