"""Wrong versions of returns and of GAE."""

import torch

from minirl.advantages import discounted_returns, gae
from minirl.drills.bank import Drill, masked_cases, numbers, right, wrong
from minirl.masking import masked_whiten

# Discounted returns


@right(discounted_returns)
def right_returns(rewards, mask, *, gamma):
    returns, ahead = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        ahead = torch.where(mask[:, t], rewards[:, t] + gamma * ahead, ahead)
        returns[:, t] = ahead
    return returns * mask


@wrong(
    discounted_returns, "This looks back: a return is what is still to come, so run from the last token to the first."
)
def returns_from_the_past(rewards, mask, *, gamma):
    returns, behind = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1]):
        behind = torch.where(mask[:, t], rewards[:, t] + gamma * behind, behind)
        returns[:, t] = behind
    return returns * mask


@wrong(discounted_returns, "gamma is missing: what comes one token later counts gamma times as much.")
def undiscounted_returns(rewards, mask, *, gamma):
    rewards = rewards.masked_fill(~mask, 0)
    return rewards.flip(1).cumsum(1).flip(1) * mask


@wrong(
    discounted_returns, "A token's own reward is not discounted: r_t + gamma * G_{t+1}, not gamma * (r_t + G_{t+1})."
)
def own_reward_discounted(rewards, mask, *, gamma):
    returns, ahead = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        ahead = torch.where(mask[:, t], gamma * (rewards[:, t] + ahead), ahead)
        returns[:, t] = ahead
    return returns * mask


@wrong(discounted_returns, "Rewards in the padding are counted: set them to 0 before you add anything up.")
def returns_over_padding(rewards, mask, *, gamma):
    returns, ahead = torch.zeros_like(rewards), 0.0
    for t in reversed(range(rewards.shape[1])):
        ahead = rewards[:, t] + gamma * ahead
        returns[:, t] = ahead
    return returns * mask


@wrong(
    discounted_returns, "The mask is not used at all: padding is counted, and returns stand in it. They are 0 there."
)
def returns_without_mask(rewards, mask, *, gamma):
    returns, ahead = torch.zeros_like(rewards), 0.0
    for t in reversed(range(rewards.shape[1])):
        ahead = rewards[:, t] + gamma * ahead
        returns[:, t] = ahead
    return returns


@wrong(
    discounted_returns,
    "Every token got the return of the first one: rewards that came before a token are not its doing.",
)
def whole_return_everywhere(rewards, mask, *, gamma):
    steps = (mask.cumsum(1) - 1).clamp(min=0)
    total = (gamma**steps * rewards.masked_fill(~mask, 0)).sum(1, keepdim=True)
    return total * mask


@wrong(
    discounted_returns,
    "The discount counts from the first token: gamma^(s - t), with s - t steps between reward and token, not gamma^s.",
)
def discounted_from_the_start(rewards, mask, *, gamma):
    steps = (mask.cumsum(1) - 1).clamp(min=0)
    rewards = gamma**steps * rewards.masked_fill(~mask, 0)
    return rewards.flip(1).cumsum(1).flip(1) * mask


@wrong(discounted_returns, "A sign is wrong: what is ahead is added to the reward.")
def returns_minus_what_is_ahead(rewards, mask, *, gamma):
    returns, ahead = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        ahead = torch.where(mask[:, t], rewards[:, t] - gamma * ahead, ahead)
        returns[:, t] = ahead
    return returns * mask


# Generalised advantage estimation


def _backwards(deltas, mask, decay):
    """A_t = delta_t + decay * A_{t+1} over the counted tokens: the recursion as it should be."""
    advantages, ahead = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        ahead = torch.where(mask[:, t], deltas[:, t] + decay * ahead, ahead)
        advantages[:, t] = ahead
    return advantages * mask


def _next(values, mask, last_values):
    """V_{t+1}: the value of the next counted token, and of what follows the last one, as it should be."""
    following = torch.zeros_like(values)
    after = torch.zeros_like(values[:, 0]) if last_values is None else last_values
    for t in reversed(range(values.shape[1])):
        following[:, t] = after
        after = torch.where(mask[:, t], values[:, t], after)
    return following


@right(gae)
def right_gae(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    deltas = rewards + gamma * _next(values, mask, last_values) - values
    advantages = _backwards(deltas, mask, gamma * lam)
    return advantages, advantages + values * mask


@wrong(gae, "The value is added: delta = r + gamma * V_next - V. An advantage is what came MINUS what was expected.")
def value_added(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    deltas = rewards + gamma * _next(values, mask, last_values) + values
    advantages = _backwards(deltas, mask, gamma * lam)
    return advantages, advantages + values * mask


@wrong(gae, "The last token looks at the value of a pad: after the last counted token the value is 0 (or last_values).")
def bootstraps_from_padding(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    after = torch.zeros_like(values[:, 0]) if last_values is None else last_values
    following = torch.cat([values[:, 1:], after.unsqueeze(1)], dim=1)
    advantages = _backwards(rewards + gamma * following - values, mask, gamma * lam)
    return advantages, advantages + values * mask


@wrong(gae, "The recursion starts inside the padding: TD errors of pads flow into the real tokens. Mask them first.")
def recursion_over_padding(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    everywhere = torch.ones_like(mask)
    deltas = rewards + gamma * _next(values, everywhere, last_values) - values
    advantages = _backwards(deltas, everywhere, gamma * lam) * mask
    return advantages, advantages + values * mask


@wrong(
    gae, "The mask is not used at all: pads take part in the recursion, and advantages stand where nothing was said."
)
def gae_without_mask(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    everywhere = torch.ones_like(mask)
    deltas = rewards + gamma * _next(values, everywhere, last_values) - values
    advantages = _backwards(deltas, everywhere, gamma * lam)
    return advantages, advantages + values


@wrong(gae, "gamma is missing in the recursion: A_t = delta_t + gamma * lam * A_{t+1}.")
def recursion_without_gamma(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    deltas = rewards + gamma * _next(values, mask, last_values) - values
    advantages = _backwards(deltas, mask, lam)
    return advantages, advantages + values * mask


@wrong(gae, "lam is missing in the recursion: this is the Monte-Carlo return minus the value, whatever lam says.")
def recursion_without_lam(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    deltas = rewards + gamma * _next(values, mask, last_values) - values
    advantages = _backwards(deltas, mask, gamma)
    return advantages, advantages + values * mask


@wrong(gae, "gamma is missing in the TD error: delta = r + gamma * V_next - V.")
def td_error_without_gamma(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    deltas = rewards + _next(values, mask, last_values) - values
    advantages = _backwards(deltas, mask, gamma * lam)
    return advantages, advantages + values * mask


@wrong(gae, "lam stands where gamma belongs: the TD error discounts V_next by gamma, lam only weighs the recursion.")
def lam_in_the_td_error(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    deltas = rewards + lam * _next(values, mask, last_values) - values
    advantages = _backwards(deltas, mask, gamma * lam)
    return advantages, advantages + values * mask


@wrong(gae, "The next value is missing: r - V is not a TD error, and only the last token would be judged rightly.")
def td_error_without_next_value(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    advantages = _backwards(rewards - values, mask, gamma * lam)
    return advantages, advantages + values * mask


@wrong(gae, "The recursion is missing: one TD error each is lam = 0, and a score at the end never reaches the start.")
def td_errors_only(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    advantages = (rewards + gamma * _next(values, mask, last_values) - values) * mask
    return advantages, advantages + values * mask


@wrong(gae, "The recursion runs forwards: credit flows from the end to the beginning, so go through t in reverse.")
def recursion_forwards(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    deltas = rewards + gamma * _next(values, mask, last_values) - values
    advantages, behind = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in range(deltas.shape[1]):
        behind = torch.where(mask[:, t], deltas[:, t] + gamma * lam * behind, behind)
        advantages[:, t] = behind
    return advantages * mask, (advantages + values) * mask


@wrong(
    gae,
    "The advantages are right, but the returns are Monte-Carlo ones, another estimator: returns = advantages + values.",
    seen="a common tutorial",
)
def monte_carlo_returns(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    deltas = rewards + gamma * _next(values, mask, last_values) - values
    return _backwards(deltas, mask, gamma * lam), discounted_returns(rewards, mask, gamma=gamma)


@wrong(gae, "The second result is the advantages again: the critic regresses onto returns = advantages + values.")
def advantages_for_returns(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    deltas = rewards + gamma * _next(values, mask, last_values) - values
    advantages = _backwards(deltas, mask, gamma * lam)
    return advantages, advantages


@wrong(gae, "A sign is wrong in the returns: A = return - value, so returns = advantages + values.")
def returns_minus_values(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    deltas = rewards + gamma * _next(values, mask, last_values) - values
    advantages = _backwards(deltas, mask, gamma * lam)
    return advantages, advantages - values * mask


@wrong(gae, "The advantages were whitened here: return them raw, and whiten the copy that goes into the policy loss.")
def whitened_too_early(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    deltas = rewards + gamma * _next(values, mask, last_values) - values
    advantages = masked_whiten(_backwards(deltas, mask, gamma * lam), mask)
    return advantages, advantages + values * mask


@wrong(gae, "Right where it counts, but values stand in the padding of the returns: both results are 0 there.")
def values_in_the_padding(rewards, values, mask, *, gamma=1.0, lam=0.95, last_values=None):
    deltas = rewards + gamma * _next(values, mask, last_values) - values
    advantages = _backwards(deltas, mask, gamma * lam)
    return advantages, advantages + values


# The drills

DRILLS = [
    Drill(
        discounted_returns,
        masked_cases(
            lambda seed, mask: {"rewards": numbers(seed, *mask.shape), "mask": mask},
            *({"gamma": gamma} for gamma in (0.9, 0.5, 0.9, 0.7, 1.0, 0.8)),
        ),
        (
            "The last counted token's return is its own reward. What is that of the token before it?",
            "One loop over t from the last position to the first, carrying G along.",
            "Set rewards outside the mask to 0 first; G = r_t + gamma * G; multiply the table by the mask at the end.",
        ),
        outputs=["returns"],
    ),
    Drill(
        gae,
        masked_cases(
            lambda seed, mask: {
                "rewards": numbers(seed, *mask.shape),
                "values": numbers(seed + 1, *mask.shape),
                "mask": mask,
            },
            {"gamma": 0.9, "lam": 0.8},
            {"gamma": 0.8, "lam": 0.5},
            {"gamma": 1.0, "lam": 0.95},
        ),
        (
            "First the TD errors: reward, plus the discounted value of the next token, minus the value of this one. "
            "What is the value after the last counted token?",
            "Then one loop from the last position to the first: A = delta + gamma * lam * A. "
            "Padding contributes nothing to either, so blank rewards and values there before you begin.",
            "returns = advantages + values; both are 0 outside the mask.",
        ),
        outputs=["advantages", "returns"],
    ),
]
