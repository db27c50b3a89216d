"""Well-known mistakes as learners write them: other algebra, loops, einsum, float32 inside, knobs by position.

Each function makes the mistake of one wrong version in the bank and shares no line with it, so that `check` has to know the
mistake by what it does. Two or more a drill; see test_rewritten.py.
"""

import functools
import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

REWRITTEN = []  # (name of the drill, name of the mutant, function)


def like(drill: str, mutant: str):
    """Says which mutant of which drill the decorated function imitates."""

    def note(function):
        REWRITTEN.append((drill, mutant, function))
        return function

    return note


# The parts of a transformer


@like("softmax", "softmax_over_the_batch")
def columns_that_sum_to_one(logits):
    e = torch.exp(logits)
    return torch.einsum("bv,v->bv", e, 1 / torch.einsum("bv->v", e))


@like("softmax", "softmax_without_division")
def exponentials(logits):
    return torch.stack([torch.stack([math.e**z for z in row]) for row in logits])


@like("softmax", "sigmoids")
def one_probability_each(logits):
    return 1 / (1 + torch.exp(-logits))


@like("naive_attention", "attention_without_scale")
def dots_as_they_are(q, k, v, mask):
    scores = torch.einsum("bhqe,bhke->bhqk", q, k) + torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -1e30)
    return torch.einsum("bhqk,bhke->bhqe", F.softmax(scores, dim=-1), v)


@like("naive_attention", "attention_without_mask")
def torch_without_mask(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v)


@like("naive_attention", "masked_after_softmax")
def weights_blanked(q, k, v, mask):
    e = ((q[..., :, None, :] * k[..., None, :, :]).sum(-1) * q.shape[-1] ** -0.5).exp()
    return (torch.where(mask, e, torch.zeros_like(e)) / e.sum(-1, keepdim=True)).matmul(v)


@like("rms_norm", "layer_norm_for_rms")
def torch_layer_norm(x, weight, eps):
    return F.layer_norm(x, x.shape[-1:], weight, eps=eps)


@like("rms_norm", "rms_without_root")
def divided_by_the_power(x, weight, eps):
    return torch.stack([row * weight / (torch.dot(row, row) / len(row) + eps) for row in x])


@like("rms_norm", "norm_of_the_sum")
def unit_vectors(x, weight, eps):
    return weight * F.normalize(x, dim=-1)


@like("rotary", "neighbours_paired")
def complex_numbers(x, base):
    points = torch.view_as_complex(x.reshape(len(x), -1, 2).contiguous())
    steps = torch.arange(x.shape[1] // 2, dtype=x.dtype) * 2 / x.shape[1]
    angles = torch.arange(len(x), dtype=x.dtype)[:, None] / base**steps
    return torch.view_as_real(points * torch.polar(torch.ones_like(angles), angles)).reshape(x.shape)


@like("rotary", "positions_from_one")
def counted_by_people(x, base):
    half = x.shape[1] // 2
    rows = []
    for position, row in enumerate(x, start=1):
        turned = [None] * x.shape[1]
        for i in range(half):
            angle = position / base ** (2 * i / x.shape[1])
            turned[i] = math.cos(angle) * row[i] - math.sin(angle) * row[i + half]
            turned[i + half] = math.sin(angle) * row[i] + math.cos(angle) * row[i + half]
        rows.append(torch.stack(turned))
    return torch.stack(rows)


@like("rotary", "turned_backwards")
def the_other_way(x, base):
    angles = torch.arange(len(x))[:, None] * torch.exp(-math.log(base) * torch.arange(0, x.shape[1], 2) / x.shape[1])
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    return x * cos - torch.cat([-x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2]], 1) * sin


@like("lora_forward", "lora_scaled_by_alpha")
def merged_weights(x, weight, a, b, alpha):
    return F.linear(x, weight + alpha * torch.matmul(b, a))


@like("lora_forward", "lora_without_scale")
def two_linears(x, weight, a, b, alpha):
    return F.linear(x, weight) + F.linear(F.linear(x, a), b)


@like("lora_forward", "lora_subtracted")
def correction_taken_away(x, weight, a, b, alpha):
    thin = torch.einsum("bi,ri,or->bo", x, a, b)
    return torch.einsum("bi,oi->bo", x, weight).sub(thin, alpha=alpha / a.size(0))


# Text


@like("bpe_merge", "first_token_enough")
def whatever_follows(tokens, pair, new):
    out, skip = [], False
    for token in tokens:
        if skip:
            skip = False
        elif token == pair[0]:
            out, skip = [*out, new], True
        else:
            out = [*out, token]
    return out


@like("bpe_merge", "second_token_kept")
def replaced_where_it_starts(tokens, pair, new):
    out = []
    for here, following in itertools.zip_longest(tokens, tokens[1:]):
        out.append(new if (here, following) == tuple(pair) else here)
    return out


@like("bpe_merge", "merged_from_the_right")
def reversed_text(tokens, pair, new):
    text = ",".join(str(t) for t in reversed(tokens))
    words, i = text.split(","), 0
    while i + 1 < len(words):
        if words[i : i + 2] == [str(pair[1]), str(pair[0])]:
            words[i : i + 2] = [str(new)]
        i += 1
    return [int(word) for word in reversed(words)]


@like("bpe_merge", "last_token_lost")
def loop_over_pairs(tokens, pair, new):
    out, waiting = [], False
    for here, following in itertools.pairwise(tokens):
        if waiting:
            waiting = False
        elif (here, following) == tuple(pair):
            out.append(new)
            waiting = True
        else:
            out.append(here)
    return out


@like("sft_loss", "sft_on_everything")
def all_labels(logits, tokens, mask):
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


@like("sft_loss", "sft_without_shift")
def labels_of_the_same_place(logits, tokens, mask):
    return F.cross_entropy(logits.permute(0, 2, 1), tokens.masked_fill(~mask, -100))


@like("sft_loss", "sft_mask_not_shifted")
def picked_by_the_mask(logits, tokens, mask):
    counted = mask[:, :-1]
    return F.cross_entropy(logits[:, :-1][counted], tokens[:, 1:][counted])


@like("sft_loss", "sft_by_rows")
def a_loss_for_each_example(logits, tokens, mask):
    labels = torch.where(mask, tokens, -100)
    return torch.stack([F.cross_entropy(z[:-1], y[1:]) for z, y in zip(logits, labels, strict=True)]).mean()


@like("kv_cache_step", "appended_too_late")
def looks_then_appends(q, k, v, keys, values):
    weights = torch.einsum("he,hle->hl", q, keys).div(q.size(-1) ** 0.5).softmax(1)
    return (
        torch.einsum("hl,hle->he", weights, values),
        torch.cat((keys, k[:, None]), 1),
        torch.cat((values, v[:, None]), 1),
    )


@like("kv_cache_step", "step_without_scale")
def by_heads(q, k, v, keys, values):
    keys, values = torch.hstack([keys, k[:, None]]), torch.hstack([values, v[:, None]])
    return torch.stack([F.softmax(keys[h] @ q[h], 0) @ values[h] for h in range(len(q))]), keys, values


@like("kv_cache_step", "sees_itself_alone")
def its_own_value(q, k, v, keys, values):
    return v.clone(), torch.hstack([keys, k[:, None]]), torch.hstack([values, v[:, None]])


@like("nucleus", "crossing_token_dropped")
def never_above_top_p(probs, top_p):
    rows = []
    for row in probs.tolist():
        order, held, kept = sorted(range(len(row)), key=lambda i: -row[i]), 0.0, []
        for i in order:
            held += row[i]
            if held > top_p and kept:
                break
            kept.append(i)
        rows.append([row[i] / sum(row[j] for j in kept) if i in kept else 0.0 for i in range(len(row))])
    return torch.tensor(rows)


@like("nucleus", "nucleus_not_renormalised")
def left_as_they_were(probs, top_p):
    larger = (probs[:, None, :] > probs[:, :, None]) | ((probs[:, None, :] == probs[:, :, None]) & _earlier(probs))
    return torch.where((larger * probs[:, None, :]).sum(-1) < top_p, probs, 0.0)


def _earlier(probs):
    places = torch.arange(probs.shape[1])
    return places[None, :] < places[:, None]


@like("nucleus", "nothing_cut")
def everything_stays(probs, top_p):
    return F.normalize(probs, p=1, dim=-1)


@like("pass_at_k", "pass_with_replacement")
def plugged_in(n, correct, k):
    return [1 - math.prod([1 - c / n] * k) for c in correct.tolist()]


@like("pass_at_k", "all_k_right")
def product_of_shares(n, correct, k):
    return [math.prod((c - i) / (n - i) for i in range(k)) for c in correct.tolist()]


@like("pass_at_k", "any_of_n")
def solved_at_all(n, correct, k):
    return [float(bool(c)) for c in correct]


# Means over what counts


@like("masked_mean", "mean_with_zeros")
def where_and_mean(x, mask):
    return torch.where(mask, x, torch.zeros(())).mean()


@like("masked_mean", "mean_of_row_means")
def row_after_row(x, mask):
    return sum(row[counts].mean() for row, counts in zip(x, mask, strict=True)) / len(x)


@like("masked_whiten", "whitened_by_unbiased_variance")
def sample_deviation(x, mask):
    mean, n = x[mask].mean(), mask.sum()
    spread = torch.sqrt(((x[mask] - mean) ** 2).sum() / (n - 1))
    return torch.where(mask, (x - mean) / spread, 0.0)


@like("masked_whiten", "whitened_with_zeros")
def layer_norm_of_zeros(x, mask):
    flat = (x * mask).reshape(-1)
    return (F.layer_norm(flat, flat.shape, eps=1e-8) * mask.reshape(-1)).view_as(x)


@like("masked_whiten", "whitened_row_by_row")
def each_answer_alone(x, mask, eps=1e-8):
    out = torch.zeros_like(x)
    for b in range(len(x)):
        row = x[b, mask[b]]
        out[b, mask[b]] = (row - row.mean()) / (row.var(unbiased=False) + eps).sqrt()
    return out


@like("token_mean", "token_mean_over_rows")
def sum_over_batch_size(x, mask):
    return torch.einsum("bt,bt->", x, mask.to(x.dtype)) / x.size(0)


@like("token_mean", "token_mean_by_rows")
def mean_of_means(x, mask):
    return torch.stack([torch.masked_select(row, counts).mean() for row, counts in zip(x, mask, strict=True)]).mean()


@like("sequence_mean", "sequence_mean_by_tokens")
def weighted_average(x, mask):
    lengths = mask.sum(1)
    return torch.dot((x * mask).sum(1) / lengths, lengths.to(x.dtype)) / lengths.sum()


@like("sequence_mean", "rows_divided_by_width")
def mean_of_masked_rows(x, mask):
    return x.masked_fill(mask.logical_not(), 0).mean(dim=-1).mean()


@like("sequence_mean", "mean_of_row_sums")
def totals_averaged(x, mask):
    return torch.stack([sum(x[b, t] for t in range(x.shape[1]) if mask[b, t]) for b in range(len(x))]).mean()


@like("fixed_length_mean", "fixed_length_by_tokens")
def length_thrown_away(length):
    def reduce(x, mask):
        return x[mask].mean()

    return reduce


@like("fixed_length_mean", "fixed_length_without_rows")
def rows_added_up(length):
    return lambda x, mask: sum((row * counts).sum() / length for row, counts in zip(x, mask, strict=True))


@like("masked_sum_over", "sum_over_rows_too")
def batch_mean_of_sums(denominator):
    return lambda x, mask: (x.masked_fill(~mask, 0).sum(-1) / denominator).mean()


@like("masked_sum_over", "sum_over_padding")
def plain_sum(denominator):
    return functools.partial(lambda divisor, x, mask: torch.einsum("bt->", x) / divisor, denominator)


# Log-probabilities


@like("token_logprobs", "picked_probabilities")
def one_hot_softmax(logits, tokens):
    return torch.einsum("btv,btv->bt", F.softmax(logits, -1), F.one_hot(tokens, logits.shape[-1]).to(logits.dtype))


@like("token_logprobs", "shifted_again")
def next_token(logits, tokens):
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return -losses.view(len(tokens), -1)


@like("token_logprobs", "picked_logits")
def fancy_index(logits, tokens):
    rows, places = torch.meshgrid(torch.arange(logits.shape[0]), torch.arange(logits.shape[1]), indexing="ij")
    return logits[rows, places, tokens]


@like("entropy", "entropy_of_logits")
def entropy_by_einsum(logits):
    return torch.einsum("...v,...v->...", F.softmax(logits, -1), -logits)


@like("entropy", "entropy_in_bits")
def log_two(logits):
    p = torch.softmax(logits, -1)
    return -(p * p.log2()).sum(-1)


@like("entropy", "entropy_unweighted")
def surprise_of_a_random_token(logits):
    return torch.logsumexp(logits, -1) - logits.mean(-1)


@like("response_slice", "slice_at_the_tokens")
def the_last_ones(x, length):
    return x.flip(1)[:, :length].flip(1)


@like("response_slice", "slice_one_too_early")
def narrow(x, length):
    start = x.shape[1] - length - 2
    return x[:, max(start, 0) : start + length] if start < 0 else torch.narrow(x, 1, start, length)


@like("response_slice", "end_not_dropped")
def from_before_the_response(x, length):
    return torch.stack([x[:, s] for s in range(x.shape[1] - length - 1, x.shape[1])], dim=1)


@like("sequence_logprobs", "averaged_sequence")
def mean_of_each(logprobs, mask):
    return torch.stack([row[counts].mean() for row, counts in zip(logprobs, mask, strict=True)])


@like("sequence_logprobs", "probability_of_sequence")
def product_of_probabilities(logprobs, mask):
    return torch.where(mask, logprobs.exp(), 1.0).prod(dim=1)


@like("sequence_logprobs", "one_sum_for_all")
def everything_together(logprobs, mask):
    return torch.dot(logprobs.flatten(), mask.flatten().to(logprobs.dtype))


# KL


@like("kl_k1", "reversed_k1")
def log_of_a_ratio(logprobs, ref_logprobs):
    return torch.log(ref_logprobs.exp() / logprobs.exp())


@like("kl_k1", "weighted_k1")
def p_log_p_over_q(logprobs, ref_logprobs):
    p, q = logprobs.exp(), ref_logprobs.exp()
    return p * (p / q).log()


@like("kl_k2", "k2_without_half")
def product_with_itself(logprobs, ref_logprobs):
    return torch.mul(logprobs - ref_logprobs, logprobs - ref_logprobs)


@like("kl_k2", "k2_of_probabilities")
def squared_error_of_probabilities(logprobs, ref_logprobs):
    return 0.5 * F.mse_loss(torch.exp(logprobs), torch.exp(ref_logprobs), reduction="none")


@like("kl_k3", "swapped_k3")
def ratio_of_the_wrong_side(logprobs, ref_logprobs):
    ratio = torch.exp(logprobs) / torch.exp(ref_logprobs)
    return (ratio - 1) - torch.log(ratio)


@like("kl_k3", "k3_plus_log_ratio")
def minus_of_minus(logprobs, ref_logprobs):
    log_ratio = logprobs - ref_logprobs
    return 1 / torch.exp(log_ratio) - 1 - log_ratio


@like("kl_k3", "k3_without_one")
def k1_plus_ratio(logprobs, ref_logprobs):
    return (logprobs - ref_logprobs) + torch.exp(ref_logprobs) / torch.exp(logprobs)


@like("kl_exact", "reversed_kl_exact")
def distributions_of_torch(logits, ref_logits):
    policy, reference = (torch.distributions.Categorical(logits=z) for z in (logits, ref_logits))
    return torch.distributions.kl_divergence(reference, policy)


@like("kl_exact", "kl_exact_averaged")
def elementwise_mean(logits, ref_logits):
    p, q = F.softmax(logits, -1), F.softmax(ref_logits, -1)
    return torch.mean(p * torch.log(p / q), dim=-1)


@like("kl_exact", "kl_exact_of_logits")
def difference_of_logits(logits, ref_logits):
    return torch.einsum("btv,btv->bt", logits.softmax(-1), logits) - torch.einsum(
        "btv,btv->bt", logits.softmax(-1), ref_logits
    )


@like("AdaptiveKL", "ControllerTheWrongWay")
class ShrinksWhenFar:
    def __init__(self, kl_coef, target, horizon):
        self.log_coef, self.target, self.horizon = math.log(kl_coef), target, horizon

    def update(self, kl, n_steps):
        error = sorted((-0.2, 1 - kl / self.target, 0.2))[1]
        self.log_coef += math.log1p(error * n_steps / self.horizon)
        return math.exp(self.log_coef)


@like("AdaptiveKL", "ControllerWithoutClip")
class ProportionalOnly:
    def __init__(self, kl_coef, target, horizon):
        self.coefs, self.rate = [kl_coef], 1 / (target * horizon)
        self.target = target

    def update(self, kl, n_steps):
        self.coefs.append(self.coefs[-1] + self.coefs[-1] * (kl - self.target) * n_steps * self.rate)
        return self.coefs[-1]


# What an answer is worth


@like("kl_shaped_rewards", "kl_rewarded")
def charge_with_a_plus(scores, kl, mask, kl_coef):
    rewards = torch.where(mask, kl_coef * kl, 0.0)
    rewards.scatter_add_(1, (mask.sum(1) - 1).unsqueeze(1), scores.unsqueeze(1))
    return rewards


@like("kl_shaped_rewards", "score_on_the_last_column")
def padded_score(scores, kl, mask, kl_coef):
    tail = F.pad(scores[:, None], (kl.shape[1] - 1, 0))
    return tail - kl_coef * kl.masked_fill(~mask, 0)


@like("kl_shaped_rewards", "score_on_every_token")
def spread_with_expand(scores, kl, mask, kl_coef):
    return torch.where(mask, scores[:, None].expand_as(kl) - kl * kl_coef, torch.zeros_like(kl))


@like("kl_shaped_rewards", "kl_at_the_end")
def row_after_row_at_the_end(scores, kl, mask, kl_coef):
    rewards = torch.zeros_like(kl)
    for b, counts in enumerate(mask):
        rewards[b, counts.nonzero().max()] = scores[b] - kl_coef * kl[b][counts].sum()
    return rewards


@like("missing_eos_penalty", "finished_punished")
def minus_where_finished(scores, finished, penalty):
    return scores - penalty * finished


@like("missing_eos_penalty", "score_replaced")
def overwritten(scores, finished, penalty):
    scores = scores.clone()
    scores[finished.logical_not()] = -penalty
    return scores


@like("last_token", "token_before_the_last")
def second_to_last(scores, mask):
    return torch.stack(
        [row[counts][-2] if counts.sum() > 1 else row[0] for row, counts in zip(scores, mask, strict=True)]
    )


@like("last_token", "mean_score")
def normalised_dot(scores, mask):
    weights = F.normalize(mask.to(scores.dtype), p=1, dim=1)
    return torch.einsum("bt,bt->b", scores, weights)


@like("last_token", "best_score")
def maximum_of_counted(scores, mask):
    return torch.stack([max(row[counts]) for row, counts in zip(scores, mask, strict=True)])


@like("ensemble_reward", "spread_of_the_population")
def numpy_deviation(scores, caution):
    table = scores.numpy()
    return (table.mean(axis=0) - caution * table.std(axis=0)).tolist()


@like("ensemble_reward", "variance_subtracted")
def mean_of_squares(scores, caution):
    m = len(scores)
    return scores.mean(0) - caution * (scores.pow(2).sum(0) - m * scores.mean(0) ** 2) / (m - 1)


@like("length_penalty", "bonus_for_brevity")
def linear_in_length(scores, mask, coef, free_length):
    return scores + coef * free_length - coef * mask.float().sum(1)


@like("length_penalty", "width_charged")
def every_column_costs(scores, mask, coef, free_length):
    return torch.stack([score - coef * max(len(row) - free_length, 0) for score, row in zip(scores, mask, strict=True)])


@like("length_penalty", "all_tokens_charged")
def too_long_pays_all(scores, mask, coef, free_length):
    lengths = [sum(row) for row in mask.tolist()]
    return [s - (coef * n if n > free_length else 0.0) for s, n in zip(scores.tolist(), lengths, strict=True)]


# Advantages


@like("discounted_returns", "returns_from_the_past")
def powers_below_the_diagonal(rewards, mask, gamma):
    t = torch.arange(rewards.shape[1], dtype=rewards.dtype)
    powers = torch.tril(gamma ** (t[:, None] - t).clamp(min=0))
    return torch.einsum("ts,bs->bt", powers, rewards * mask) * mask


@like("discounted_returns", "own_reward_discounted")
def one_power_too_many(rewards, mask, gamma):
    returns = np.zeros(rewards.shape)
    for b, t in itertools.product(*map(range, rewards.shape)):
        if mask[b, t]:
            ahead = range(t, int(mask[b].sum()))
            returns[b, t] = sum(gamma ** (s - t + 1) * rewards[b, s].item() for s in ahead)
    return torch.from_numpy(returns)


@like("discounted_returns", "undiscounted_returns")
def total_minus_past(rewards, mask, gamma):
    rewards = rewards.masked_fill(~mask, 0)
    return (rewards.sum(1, keepdim=True) - rewards.cumsum(1) + rewards) * mask


def _tails(deltas, decay):
    """sum over l of decay^l * delta_{t + l}, as a matrix product."""
    t = torch.arange(deltas.shape[1], dtype=deltas.dtype)
    return deltas @ torch.tril(decay ** (t[:, None] - t).clamp(min=0))


@like("gae", "value_added")
def plus_for_minus(rewards, values, mask, gamma, lam):
    r, v = (x.masked_fill(~mask, 0) for x in (rewards, values))
    advantages = _tails(r + gamma * F.pad(v, (0, 1))[:, 1:] + v, gamma * lam) * mask
    return advantages, advantages + v


@like("gae", "bootstraps_from_padding")
def next_column(rewards, values, mask, gamma, lam):
    deltas = rewards - values
    deltas[:, :-1] += gamma * values[:, 1:]
    advantages = _tails(deltas * mask, gamma * lam) * mask
    return advantages, torch.where(mask, advantages + values, 0.0)


@like("gae", "recursion_without_lam")
def returns_less_values(rewards, values, mask, gamma, lam):
    returns = _tails(rewards * mask, gamma) * mask
    return returns - values * mask, returns


@like("gae", "lam_in_the_td_error")
def knobs_mixed_up(rewards, values, mask, gamma, lam):
    advantages, returns = torch.zeros(rewards.shape), torch.zeros(rewards.shape)  # float32
    for b, length in enumerate(mask.sum(1).tolist()):
        a = v = 0.0
        for t in range(length - 1, -1, -1):
            a = rewards[b, t] + lam * v - values[b, t] + gamma * lam * a
            v = values[b, t]
            advantages[b, t], returns[b, t] = a, a + v
    return advantages, returns


@like("gae", "monte_carlo_returns")
def two_estimators(rewards, values, mask, gamma, lam):
    r, v = (x.masked_fill(~mask, 0) for x in (rewards, values))
    return _tails(r + gamma * F.pad(v, (0, 1))[:, 1:] - v, gamma * lam) * mask, _tails(r, gamma) * mask


@like("group_relative_advantages", "population_std")
def moments(rewards, group_size):
    out = []
    for chunk in rewards.split(group_size):
        mean = chunk.sum() / group_size
        out.append((chunk - mean) / ((chunk * chunk).mean() - mean**2).clamp(min=0).sqrt().add(1e-4))
    return torch.cat(out)


@like("group_relative_advantages", "spread_of_the_batch")
def mean_here_std_there(rewards, group_size):
    means = rewards.unflatten(0, (-1, group_size)).mean(-1).repeat_interleave(group_size)
    return (rewards - means) / (torch.std(rewards, unbiased=True) + 1e-8)


@like("group_relative_advantages", "without_eps")
def zero_over_zero(rewards, group_size):
    groups = rewards.reshape(-1, group_size)
    centred = groups - groups.mean(1)[:, None]
    return (centred * math.sqrt(group_size - 1) / centred.norm(dim=1, keepdim=True)).flatten()


@like("group_centered_advantages", "centred_on_the_others")
def matrix_of_the_others(rewards, group_size):
    others = (torch.ones(group_size, group_size) - torch.eye(group_size)) / (group_size - 1)
    return ((torch.eye(group_size) - others).to(rewards) @ rewards.view(-1, group_size).T).T.reshape(-1)


@like("group_centered_advantages", "interleaved_centred")
def every_other_row(rewards, group_size):
    out, groups = rewards.clone(), len(rewards) // group_size
    for g in range(groups):
        out[g::groups] -= rewards[g::groups].mean()
    return out


@like("leave_one_out_advantages", "own_reward_in_the_baseline")
def list_comprehension(rewards, group_size):
    r = rewards.tolist()
    starts = [i - i % group_size for i in range(len(r))]
    return [x - sum(r[s : s + group_size]) / group_size for x, s in zip(r, starts, strict=True)]


@like("leave_one_out_advantages", "others_divided_by_group_size")
def zero_in_ones_own_place(rewards, group_size):
    table = rewards.view(-1, 1, group_size).repeat(1, group_size, 1)
    baselines = table.masked_fill(torch.eye(group_size, dtype=torch.bool), 0).mean(-1)
    return rewards - baselines.view(-1)


@like("exponential_weights", "weights_that_sum_to_one")
def shares(scores, beta):
    e = torch.exp((scores - scores.max()) / beta)
    return e / torch.sum(e)


@like("exponential_weights", "scores_times_beta")
def powers_of_exp(scores, beta):
    e = torch.exp(scores) ** beta
    return e / e.mean()


# The policy and its critic


@like("reinforce_loss", "reinforce_divided_by_padding")
def einsum_over_size(logprobs, advantages, mask):
    return -torch.einsum("bt,bt,bt->", logprobs, advantages, mask.to(logprobs.dtype)) / mask.numel()


@like("reinforce_loss", "reinforce_on_probabilities")
def expected_advantage(logprobs, advantages, mask):
    return -(torch.exp(logprobs[mask]) * advantages[mask]).mean()


@like("reinforce_loss", "unnegated_reinforce")
def dot_product(logprobs, advantages, mask):
    return torch.dot(logprobs[mask], advantages[mask]) / mask.sum()


def _ratio(logprobs, old_logprobs):
    return torch.exp(logprobs) / torch.exp(old_logprobs)


@like("ppo_clip_loss", "max_for_min")
def minimum_of_losses(logprobs, old_logprobs, advantages, mask, clip_eps):
    ratio = _ratio(logprobs, old_logprobs)
    losses = torch.stack([-ratio * advantages, -torch.clip(ratio, 1 - clip_eps, 1 + clip_eps) * advantages])
    return losses.amin(0)[mask].mean()


@like("ppo_clip_loss", "max_for_negative_advantages")
def by_the_sign(logprobs, old_logprobs, advantages, mask, clip_eps):
    terms = []
    for new, old, a in zip(logprobs[mask], old_logprobs[mask], advantages[mask], strict=True):
        ratio = (new - old).exp()
        terms.append(
            a * ratio.clamp(max=1 + clip_eps)
            if a > 0
            else torch.max(a * ratio, a * ratio.clamp(1 - clip_eps, 1 + clip_eps))
        )
    return -sum(terms) / len(terms)


@like("ppo_clip_loss", "clipped_ratio_only")
def one_surrogate(logprobs, old_logprobs, advantages, mask, clip_eps):
    held = _ratio(logprobs, old_logprobs).clip(1 - clip_eps, 1 + clip_eps)
    return torch.einsum("bt,bt,bt->", held, -advantages, mask / mask.sum())


@like("ppo_clip_loss", "ppo_by_rows")
def answers_averaged(logprobs, old_logprobs, advantages, mask, clip_eps):
    rows = []
    for new, old, a, counts in zip(logprobs, old_logprobs, advantages, mask, strict=True):
        ratio = (new[counts] - old[counts]).exp()
        rows.append(torch.minimum(ratio * a[counts], ratio.clamp(1 - clip_eps, 1 + clip_eps) * a[counts]).mean())
    return -torch.stack(rows).mean()


@like("ppo_clip_loss", "ratio_of_logprobs")
def quotient(logprobs, old_logprobs, advantages, mask, clip_eps):
    q, a = torch.div(logprobs, old_logprobs)[mask], advantages[mask]
    return torch.max(-q * a, -q.clip(1 - clip_eps, 1 + clip_eps) * a).mean()


@like("value_loss", "value_loss_without_half")
def torch_mse(values, returns, mask):
    return F.mse_loss(values[mask], returns[mask])


@like("value_loss", "absolute_value_loss")
def torch_l1(values, returns, mask):
    return 0.5 * F.l1_loss(values[mask], returns[mask])


@like("value_loss", "mean_before_square")
def error_of_the_mean(values, returns, mask):
    return 0.5 * (values[mask].mean() - returns[mask].mean()) ** 2


@like("value_clip_loss", "clipped_value_only")
def pulled_into_the_interval(values, old_values, returns, mask, clip_eps):
    near = torch.min(torch.max(values, old_values - clip_eps), old_values + clip_eps)
    return 0.5 * F.mse_loss(near[mask], returns[mask])


@like("value_clip_loss", "smaller_error_kept")
def minimum_of_two(values, old_values, returns, mask, clip_eps):
    near = old_values + torch.clip(values - old_values, -clip_eps, clip_eps)
    errors = torch.stack([(values - returns).square(), (near - returns).square()], -1)
    return errors.min(-1).values[mask].mean() / 2


@like("value_clip_loss", "value_not_clipped")
def clip_forgotten(values, old_values, returns, mask, clip_eps):
    errors = (values - returns)[mask]
    return torch.dot(errors, errors) / (2 * len(errors))


def _clipped(ratio, a, eps):
    return torch.where(a >= 0, ratio.clamp(max=1 + eps), ratio.clamp(min=1 - eps)) * a


@like("grpo_loss", "kl_subtracted")
def minus_the_leash(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, kl_coef):
    objective = _clipped(_ratio(logprobs, old_logprobs), advantages[:, None], clip_eps)
    k3 = _ratio(ref_logprobs, logprobs) - (ref_logprobs - logprobs) - 1
    return -torch.stack([(o + kl_coef * k)[m].mean() for o, k, m in zip(objective, k3, mask, strict=True)]).mean()


@like("grpo_loss", "k1_in_the_loss")
def leash_of_log_ratios(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, kl_coef):
    objective = _clipped(_ratio(logprobs, old_logprobs), advantages[:, None], clip_eps)
    objective = objective - kl_coef * logprobs + kl_coef * ref_logprobs
    return -((objective * mask).sum(-1) / mask.sum(-1)).mean()


@like("grpo_loss", "kl_to_the_old_policy")
def wrong_reference(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, kl_coef):
    ratio = _ratio(logprobs, old_logprobs)
    terms = _clipped(ratio, advantages[:, None], clip_eps) - kl_coef * (1 / ratio - 1 + torch.log(ratio))
    return -torch.einsum("bt,bt->", terms, mask / mask.sum(1, keepdim=True)) / len(mask)


@like("grpo_loss", "grpo_by_tokens")
def dapo(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, kl_coef):
    d = (ref_logprobs - logprobs)[mask]
    a = advantages[:, None].expand_as(logprobs)[mask]
    return (kl_coef * (torch.expm1(d) - d) - _clipped((logprobs - old_logprobs)[mask].exp(), a, clip_eps)).mean()


@like("gspo_loss", "product_ratio")
def ratio_of_answers(logprobs, old_logprobs, advantages, mask, clip_eps):
    new, old = (torch.where(mask, x, 0.0).sum(1) for x in (logprobs, old_logprobs))
    return -_clipped(_ratio(new, old), advantages, clip_eps).mean()


@like("gspo_loss", "arithmetic_mean_of_ratios")
def mean_ratio(logprobs, old_logprobs, advantages, mask, clip_eps):
    ratios = torch.stack([r[m].mean() for r, m in zip(_ratio(logprobs, old_logprobs), mask, strict=True)])
    return -_clipped(ratios, advantages, clip_eps).mean()


@like("gspo_loss", "responses_weighted_by_length")
def repeated_for_each_token(logprobs, old_logprobs, advantages, mask, clip_eps):
    means = torch.stack([d[m].mean() for d, m in zip(logprobs - old_logprobs, mask, strict=True)])
    return -_clipped(means.exp(), advantages, clip_eps)[:, None].expand_as(mask)[mask].mean()


@like("cispo_loss", "weight_not_detached")
def weight_in_the_graph(logprobs, old_logprobs, advantages, mask, clip_eps_high):
    weight = torch.minimum(_ratio(logprobs, old_logprobs), torch.tensor(1 + clip_eps_high, dtype=logprobs.dtype))
    return -(weight * logprobs * advantages[:, None])[mask].sum() / mask.sum()


@like("cispo_loss", "weight_with_floor")
def clipped_from_both_sides(logprobs, old_logprobs, advantages, mask, clip_eps_high):
    with torch.no_grad():
        weight = torch.clip(_ratio(logprobs, old_logprobs), 1 - clip_eps_high, 1 + clip_eps_high)
    return -torch.einsum("bt,b,bt,bt->", weight, advantages, logprobs, mask.to(logprobs.dtype)) / mask.sum()


@like("weighted_logprob_loss", "divided_by_the_weights")
def weighted_mean(logprobs, weights, mask):
    table = weights[:, None] * mask
    return -torch.einsum("bt,bt->", table, logprobs) / table.sum()


@like("weighted_logprob_loss", "weighted_by_rows")
def nll_of_each_answer(logprobs, weights, mask):
    return sum(w * -row[m].mean() for w, row, m in zip(weights, logprobs, mask, strict=True)) / len(weights)


# Pairs


@like("bradley_terry_loss", "hinge")
def torch_margin_ranking(chosen, rejected):
    return F.margin_ranking_loss(chosen, rejected, torch.ones_like(chosen), margin=1.0)


@like("bradley_terry_loss", "scores_judged_alone")
def torch_binary_cross_entropy(chosen, rejected):
    good = F.binary_cross_entropy_with_logits(chosen, torch.ones_like(chosen))
    return good + F.binary_cross_entropy_with_logits(rejected, torch.zeros_like(rejected))


@like("bradley_terry_loss", "bradley_terry_without_log")
def probability_to_win(chosen, rejected):
    return -(chosen.exp() / (chosen.exp() + rejected.exp())).mean()


@like("dpo_loss", "swapped_dpo")
def softplus_of_h(chosen, rejected, ref_chosen, ref_rejected, beta):
    return F.softplus(beta * (chosen - rejected) - beta * (ref_chosen - ref_rejected)).mean()


@like("dpo_loss", "dpo_without_reference")
def two_way_cross_entropy(chosen, rejected, ref_chosen, ref_rejected, beta):
    pairs = beta * torch.stack([chosen, rejected], 1)
    return F.cross_entropy(pairs, torch.zeros(len(pairs), dtype=torch.long))


@like("dpo_loss", "beta_on_the_policy_only")
def scaled_half(chosen, rejected, ref_chosen, ref_rejected, beta):
    rewards = [beta * policy - reference for policy, reference in ((chosen, ref_chosen), (rejected, ref_rejected))]
    return torch.log1p(torch.exp(rewards[1] - rewards[0])).mean()


@like("dpo_loss", "summed_dpo")
def without_mean(chosen, rejected, ref_chosen, ref_rejected, beta):
    margins = beta * (chosen - ref_chosen - rejected + ref_rejected)
    return F.binary_cross_entropy_with_logits(margins, torch.ones_like(margins), reduction="sum")


def _h(chosen, rejected, ref_chosen, ref_rejected):
    return (chosen + ref_rejected) - (rejected + ref_chosen)


@like("robust_dpo_loss", "label_smoothing_for_robust")
def soft_labels(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing):
    logits = beta * _h(chosen, rejected, ref_chosen, ref_rejected)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 1 - label_smoothing))


@like("robust_dpo_loss", "robust_not_divided")
def flips_without_scale(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing):
    h = beta * _h(chosen, rejected, ref_chosen, ref_rejected)
    return ((1 - label_smoothing) * F.softplus(-h) - label_smoothing * F.softplus(h)).mean()


@like("ipo_loss", "twice_the_target")
def mse_to_one_over_beta(chosen, rejected, ref_chosen, ref_rejected, beta):
    h = _h(chosen, rejected, ref_chosen, ref_rejected)
    return F.mse_loss(h, torch.full_like(h, 1 / beta))


@like("ipo_loss", "beta_inside_the_square")
def expanded_square(chosen, rejected, ref_chosen, ref_rejected, beta):
    h = _h(chosen, rejected, ref_chosen, ref_rejected)
    return (beta**2 * h**2 - beta * h + 0.25).mean()


@like("simpo_loss", "beta_times_gamma")
def gamma_beta_ratio(chosen, rejected, beta, gamma):
    return F.softplus(beta * rejected - beta * chosen + beta * gamma).mean()


@like("simpo_loss", "gamma_added")
def margin_on_the_wrong_side(chosen, rejected, beta, gamma):
    return torch.log(1 + torch.exp(-gamma - beta * (chosen - rejected))).mean()


@like("orpo_loss", "probabilities_for_odds")
def odds_of_nothing(chosen, rejected, lam):
    p, q = chosen.exp(), rejected.exp()
    return -(torch.log(p) + lam * torch.log(p / (p + q))).mean()


@like("orpo_loss", "log_odds_with_plus")
def product_for_quotient(chosen, rejected, lam):
    p, q = chosen.exp(), rejected.exp()
    odds_ratio = p * (1 - p) / (q * (1 - q))
    return -chosen.mean() - lam * torch.log(torch.sigmoid(torch.log(odds_ratio))).mean()


@like("kto_loss", "kto_without_z")
def no_point_of_reference(logprobs, ref_logprobs, desirable, kl, beta):
    signs = desirable.to(logprobs.dtype) * 2 - 1
    return torch.sigmoid(-beta * signs * (logprobs - ref_logprobs)).mean()


@like("kto_loss", "two_means")
def good_and_bad_apart(logprobs, ref_logprobs, desirable, kl, beta):
    z, h, parts = max(kl.item(), 0.0), logprobs - ref_logprobs, []
    for kind, sign in ((desirable, 1), (~desirable, -1)):
        if kind.any():
            parts.append(torch.sigmoid(-beta * sign * (h[kind] - z)).mean())
    return sum(parts)


@like("kto_loss", "sign_of_z_forgotten")
def shifted_alike(logprobs, ref_logprobs, desirable, kl, beta):
    total = 0.0
    for new, ref, good in zip(logprobs, ref_logprobs, desirable.tolist(), strict=True):
        h = new - ref if good else ref - new
        total = total + 1 / (1 + torch.exp(beta * (h - F.relu(kl.detach()))))
    return total / len(desirable)
