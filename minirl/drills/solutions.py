"""One right version of each function, as a learner writes it on paper: no input checks, a bare loss, finite padding.

They are what the solution of a notebook shows. They have to pass `check`. And they make the proof by mutants fair: a test
counts as the one that caught a wrong version only if the right version written here passes it.
"""

import math

import torch
import torch.nn.functional as F


def masked_mean(x, mask):
    return (x * mask).sum() / mask.sum()


def masked_whiten(x, mask, eps=1e-8):
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    return (x - mean) / torch.sqrt(variance + eps) * mask


def token_mean(x, mask):
    return x[mask].mean()


def sequence_mean(x, mask):
    return ((x * mask).sum(1) / mask.sum(1).clamp(min=1)).sum() / mask.any(1).sum()


def fixed_length_mean(length):
    def reduce(x, mask):
        return (x * mask).sum() / (x.shape[0] * length)

    return reduce


def masked_sum_over(denominator):
    return lambda x, mask: x[mask].sum() / denominator


def token_logprobs(logits, tokens):
    return -F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


def entropy(logits):
    p = logits.softmax(-1)
    return -(p * p.log()).sum(-1)


def response_slice(x, length):
    return x[:, x.shape[1] - length - 1 : x.shape[1] - 1]


def sequence_logprobs(logprobs, mask):
    return (logprobs * mask).sum(1)


def kl_k1(logprobs, ref_logprobs):
    return logprobs - ref_logprobs


def kl_k2(logprobs, ref_logprobs):
    return 0.5 * (ref_logprobs - logprobs).pow(2)


def kl_k3(logprobs, ref_logprobs):
    log_ratio = logprobs - ref_logprobs
    return torch.exp(-log_ratio) - 1 + log_ratio


def kl_exact(logits, ref_logits):
    logp, ref_logp = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    return F.kl_div(ref_logp, logp, reduction="none", log_target=True).sum(-1)


class AdaptiveKL:
    def __init__(self, kl_coef, target, horizon):
        self.kl_coef, self.target, self.horizon = kl_coef, target, horizon

    def update(self, kl, n_steps):
        error = kl / self.target - 1
        error = 0.2 if error > 0.2 else -0.2 if error < -0.2 else error
        self.kl_coef = self.kl_coef * (1 + error * n_steps / self.horizon)
        return self.kl_coef


def discounted_returns(rewards, mask, gamma):
    returns = torch.zeros_like(rewards)
    for b in range(len(rewards)):
        total = 0.0
        for t in reversed(range(rewards.shape[1])):
            if mask[b, t]:
                total = rewards[b, t] + gamma * total
                returns[b, t] = total
    return returns


def gae(rewards, values, mask, gamma=1.0, lam=0.95, last_values=None):
    advantages = torch.zeros_like(values)
    for b in range(len(values)):
        advantage, next_value = 0.0, 0.0 if last_values is None else last_values[b]
        for t in reversed(range(values.shape[1])):
            if mask[b, t]:
                advantage = rewards[b, t] + gamma * next_value - values[b, t] + gamma * lam * advantage
                next_value = values[b, t]
                advantages[b, t] = advantage
    return advantages, advantages + values * mask


def group_relative_advantages(rewards, group_size, eps=1e-4):
    groups = rewards.reshape(-1, group_size)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + eps)).flatten()


def group_centered_advantages(rewards, group_size):
    means = rewards.reshape(-1, group_size).mean(1)
    return rewards - means.repeat_interleave(group_size)


def leave_one_out_advantages(rewards, group_size):
    groups = rewards.reshape(-1, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten()


def exponential_weights(scores, beta):
    weights = (scores / beta).exp()
    return weights / weights.mean()


def kl_shaped_rewards(scores, kl, mask, kl_coef):
    rewards = -kl_coef * kl * mask
    for b in range(len(scores)):
        rewards[b, mask[b].nonzero().max()] += scores[b]
    return rewards


def missing_eos_penalty(scores, finished, penalty):
    return scores - penalty * (~finished)


def reinforce_loss(logprobs, advantages, mask, reduce=token_mean):
    return -reduce(advantages * logprobs, mask)


def ppo_clip_loss(logprobs, old_logprobs, advantages, mask, clip_eps=0.2, clip_eps_high=None, reduce=token_mean):
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = torch.clamp(ratio, 1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return reduce(torch.max(-advantages * ratio, -advantages * clipped), mask)


def value_loss(values, returns, mask, reduce=token_mean):
    return 0.5 * reduce((returns - values) ** 2, mask)


def value_clip_loss(values, old_values, returns, mask, clip_eps=0.2, reduce=token_mean):
    clipped = torch.min(torch.max(values, old_values - clip_eps), old_values + clip_eps)
    return 0.5 * reduce(torch.max((values - returns) ** 2, (clipped - returns) ** 2), mask)


def grpo_loss(
    logprobs,
    old_logprobs,
    ref_logprobs,
    advantages,
    mask,
    clip_eps=0.2,
    clip_eps_high=None,
    kl_coef=0.04,
    reduce=sequence_mean,
):
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = torch.clamp(ratio, 1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    terms = -torch.min(ratio * advantages[:, None], clipped * advantages[:, None])
    if ref_logprobs is not None:
        terms = terms + kl_coef * kl_k3(logprobs, ref_logprobs)
    return reduce(terms, mask)


def gspo_loss(logprobs, old_logprobs, advantages, mask, clip_eps=3e-4, clip_eps_high=None):
    lengths = mask.sum(1).clamp(min=1)
    ratio = torch.exp(((logprobs - old_logprobs) * mask).sum(1) / lengths)
    clipped = torch.clamp(ratio, 1 - clip_eps, 1 + (clip_eps_high or clip_eps))
    return -torch.min(ratio * advantages, clipped * advantages)[mask.any(1)].mean()


def cispo_loss(logprobs, old_logprobs, advantages, mask, clip_eps_high=0.2, reduce=token_mean):
    with torch.no_grad():
        weight = torch.exp(logprobs - old_logprobs).clamp(max=1 + clip_eps_high)
    return -reduce(weight * advantages[:, None] * logprobs, mask)


def weighted_logprob_loss(logprobs, weights, mask, reduce=token_mean):
    return -reduce(weights[:, None] * logprobs, mask)


def bradley_terry_loss(chosen, rejected, margin=0.0):
    return F.softplus(rejected - chosen + margin).mean()


def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.1, label_smoothing=0.0):
    logits = beta * ((chosen - rejected) - (ref_chosen - ref_rejected))
    return (-(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)).mean()


def robust_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, label_smoothing, beta=0.1):
    logits = beta * ((chosen - rejected) - (ref_chosen - ref_rejected))
    e = label_smoothing
    return (-(1 - e) * F.logsigmoid(logits) + e * F.logsigmoid(-logits)).mean() / (1 - 2 * e)


def ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.1):
    h = (chosen - rejected) - (ref_chosen - ref_rejected)
    return ((h - 0.5 / beta) ** 2).mean()


def simpo_loss(chosen, rejected, beta=2.0, gamma=1.0):
    return -torch.log(torch.sigmoid(beta * (chosen - rejected) - gamma)).mean()


def orpo_loss(chosen, rejected, lam=0.1):
    def log_odds(x):
        return x - torch.log1p(-x.exp())

    return (-chosen - lam * F.logsigmoid(log_odds(chosen) - log_odds(rejected))).mean()


def kto_loss(logprobs, ref_logprobs, desirable, kl, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0):
    h, z = logprobs - ref_logprobs.detach(), torch.relu(torch.as_tensor(kl).detach())
    good = desirable_weight * (1 - torch.sigmoid(beta * (h[desirable] - z)))
    bad = undesirable_weight * (1 - torch.sigmoid(beta * (z - h[~desirable])))
    return torch.cat([good, bad]).mean()


def softmax(logits):
    return torch.softmax(logits, dim=-1)


def naive_attention(q, k, v, mask):
    scores = torch.einsum("bhqe,bhke->bhqk", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bhke->bhqe", weights, v)


def rms_norm(x, weight, eps=1e-5):
    return weight * (x / torch.sqrt(torch.mean(x * x, dim=-1, keepdim=True) + eps))


def rotary(x, base):
    half = x.shape[1] // 2
    turned = torch.zeros_like(x)
    for s in range(len(x)):
        for i in range(half):
            angle = s / base ** (2 * i / x.shape[1])
            turned[s, i] = x[s, i] * math.cos(angle) - x[s, i + half] * math.sin(angle)
            turned[s, i + half] = x[s, i] * math.sin(angle) + x[s, i + half] * math.cos(angle)
    return turned


def lora_forward(x, weight, a, b, alpha):
    return x @ (weight + alpha / a.shape[0] * b @ a).T


def bpe_merge(tokens, pair, new):
    text = " " + "  ".join(map(str, tokens)) + " "
    text = text.replace(f" {pair[0]}  {pair[1]} ", f" {new} ")
    return [int(word) for word in text.split()]


def sft_loss(logits, tokens, mask):
    labels = tokens.masked_fill(~mask, -100)[:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())


def kv_cache_step(q, k, v, keys, values):
    keys, values = torch.cat([keys, k[:, None]], 1), torch.cat([values, v[:, None]], 1)
    weights = (torch.einsum("he,hle->hl", q, keys) / q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("hl,hle->he", weights, values), keys, values


def nucleus(probs, top_p):
    kept = torch.zeros_like(probs)
    for row in range(len(probs)):
        held = 0.0
        for token in sorted(range(probs.shape[1]), key=lambda token: -probs[row, token].item()):
            if held >= top_p:
                break
            kept[row, token] = probs[row, token]
            held += probs[row, token].item()
    return kept / kept.sum(1, keepdim=True)


def pass_at_k(n, correct, k):
    chances = []
    for c in correct.tolist():
        miss = 1.0
        for i in range(k):  # the i-th answer drawn misses too
            miss *= max(n - c - i, 0) / (n - i)
        chances.append(1 - miss)
    return torch.tensor(chances, dtype=torch.float64)


def last_token(scores, mask):
    return torch.stack([row[keep][-1] for row, keep in zip(scores, mask, strict=True)])


def ensemble_reward(scores, caution=1.0):
    deviation = (((scores - scores.mean(0)) ** 2).sum(0) / (len(scores) - 1)).sqrt()
    return scores.mean(0) - caution * deviation


def length_penalty(scores, mask, coef, free_length=0):
    return scores - coef * torch.relu((mask.sum(1) - free_length).to(scores.dtype))
