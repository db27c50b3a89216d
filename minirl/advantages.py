"""How much better than expected was this token, or this answer? Returns, GAE, and baselines taken from a group.

Per-token functions run backwards over the counted tokens and step over gaps in the mask: the result on a padded row is
the result on the row with its padding deleted. Positions outside the mask hold 0.
"""

import torch

from minirl.masking import blank
from minirl.types import (
    Bool,
    Float,
    Tensor,
    check_dims,
    check_finite,
    check_knob,
    check_mask,
    check_rows,
    check_shapes,
    check_size,
    upcast,
)


def discounted_returns(
    rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, gamma: float
) -> Float[Tensor, "B T"]:
    """G_t = r_t + gamma * G_{t+1}: what is still to come (Sutton & Barto 2018, eq. 3.9)."""
    check_dims(2, rewards=rewards, mask=mask)
    check_shapes(rewards=rewards, mask=mask)
    check_mask(mask)
    check_finite(mask, rewards=rewards)
    check_knob("gamma", gamma, 0, 1)
    rewards = blank(rewards, mask)
    ahead = torch.zeros_like(rewards[:, 0])
    returns = []
    for t in reversed(range(rewards.shape[1])):
        ahead = torch.where(mask[:, t], rewards[:, t] + gamma * ahead, ahead)
        returns.append(ahead)
    return blank(torch.stack(returns[::-1], dim=1), mask)


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Float[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), as (advantages, returns).

        delta_t = r_t + gamma * V_{t+1} - V_t
        A_t     = delta_t + gamma * lam * A_{t+1}
        returns = A + V

    lam = 0 trusts the critic (one TD error), lam = 1 trusts the rewards (return minus value). gamma = 1 for text: below it
    the early tokens of long responses are discounted, and the optimum moves. `last_values` is the value after the last
    counted token: None, which is 0, when the text has ended; the critic's value of the next state when an episode was cut
    off. The returns are the lambda-returns that the value head is trained on. Compute `values` without gradient:
    advantages and returns are targets.
    """
    check_dims(2, rewards=rewards, values=values, mask=mask)
    check_shapes(rewards=rewards, values=values, mask=mask)
    check_mask(mask)
    check_finite(mask, rewards=rewards, values=values)
    check_knob("gamma", gamma, 0, 1)
    check_knob("lam", lam, 0, 1)
    rewards, values = blank(rewards, mask), blank(values, mask)
    next_value = torch.zeros_like(values[:, 0])
    if last_values is not None:
        check_rows(values, last_values=last_values)
        check_finite(mask.any(1), last_values=last_values)
        next_value = blank(last_values, mask.any(1))
    next_advantage = torch.zeros_like(values[:, 0])
    advantages = []
    for t in reversed(range(rewards.shape[1])):
        counts = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(counts, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(counts, values[:, t], next_value)
        advantages.append(next_advantage)
    advantages = blank(torch.stack(advantages[::-1], dim=1), mask)
    return advantages, advantages + values


def _groups(rewards: Tensor, group_size: int) -> Tensor:
    """(B,) as (B / group_size, group_size): a group is group_size consecutive rows, the answers to one prompt."""
    check_dims(1, rewards=rewards)
    check_finite(rewards=rewards)
    check_knob("group_size", group_size, 2)
    check_size("group_size", group_size)
    if len(rewards) == 0 or len(rewards) % group_size:
        raise ValueError(f"rewards: wanted a multiple of group_size = {group_size} rows, got {len(rewards)}")
    groups = upcast(rewards).view(-1, group_size)
    # Equal rewards teach nothing, but their computed mean may miss them by a rounding error, which does (and which a small
    # eps blows up). Zeros have no such error, and a shift of a whole group changes no advantage.
    return groups.masked_fill((groups == groups[:, :1]).all(1, keepdim=True), 0.0)


def group_relative_advantages(
    rewards: Float[Tensor, " B"], group_size: int, *, eps: float = 1e-4
) -> Float[Tensor, " B"]:
    """(r - mean) / (std + eps) within each group (GRPO, DeepSeekMath section 4.1.2).

    The standard deviation is the unbiased one (divide by G - 1), as in TRL; some repositories take the population's, which
    makes a group of two +-1 and not +-.707. A group whose rewards are all equal gets 0: it teaches nothing.
    """
    check_knob("eps", eps, 0)
    groups = _groups(rewards, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + eps)).nan_to_num(nan=0.0).view(-1)


def group_centered_advantages(rewards: Float[Tensor, " B"], group_size: int) -> Float[Tensor, " B"]:
    """r - mean within each group, with no division (Dr. GRPO, Liu et al. 2025).

    Dividing by the std gives very easy and very hard prompts, whose rewards hardly differ, a larger weight.
    """
    groups = _groups(rewards, group_size)
    return (groups - groups.mean(1, keepdim=True)).view(-1)


def leave_one_out_advantages(rewards: Float[Tensor, " B"], group_size: int) -> Float[Tensor, " B"]:
    """r_i minus the mean of the OTHER rewards of its group (RLOO, Ahmadian et al. 2024, section 2.3; Kool et al. 2019).

    The baseline does not depend on the answer it judges, so the gradient is unbiased. The advantage is the centred
    one times G / (G - 1).
    """
    groups = _groups(rewards, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).view(-1)


def exponential_weights(scores: Float[Tensor, " B"], *, beta: float) -> Float[Tensor, " B"]:
    """B * softmax(scores / beta): the weights of reward- and advantage-weighted regression (RWR, Peters & Schaal 2007; AWR,
    Peng et al. 2019). Their mean is 1. Small beta listens to the best answer only, large beta to all alike."""
    check_dims(1, scores=scores)
    check_finite(scores=scores)
    check_knob("beta", beta, 0, open_low=True)
    if len(scores) == 0:
        raise ValueError("scores: wanted at least one row, got none")
    scores = upcast(scores)
    return len(scores) * torch.softmax((scores - scores.max()) / beta, dim=0)  # a tiny beta then gives -inf, never inf


def top_fraction(scores: Float[Tensor, " B"], *, fraction: float) -> Float[Tensor, " B"]:
    """Keep the best share: weight B / k on the k = max(1, round(fraction * B)) best rows, 0 on the others. Mean 1."""
    check_dims(1, scores=scores)
    check_finite(scores=scores)
    check_knob("fraction", fraction, 0, 1, open_low=True)
    if len(scores) == 0:
        raise ValueError("scores: wanted at least one row, got none")
    k = max(1, round(fraction * len(scores)))
    weights = torch.zeros_like(upcast(scores))
    weights[scores.topk(k).indices] = len(scores) / k
    return weights
