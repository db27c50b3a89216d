"""The definitions behind golden.json: the formula of each function, in plain Python.

Nothing here comes from minirl or from torch. Numbers are decimals, rows are lists, and a mask is obeyed by deleting what
does not count before a formula sees it. Loss terms are written for one token, or one pair, at a time.
"""

from decimal import Decimal

# What the definitions are written in.


def exp(x):
    return x.exp()


def log(x):
    return x.ln()


def sigmoid(x):
    return 1 / (1 + exp(-x))


def mean(xs):
    return sum(xs) / len(xs)


def flat(rows):
    return [x for row in rows for x in row]


def clamp(x, low, high):
    return max(Decimal(low), min(x, Decimal(high)))


def packed(mask, *tables):
    """Each row as the list of its counted positions, an entry of every table at each."""
    return [
        [tuple(table[b][t] for table in tables) for t, counts in enumerate(row) if counts] for b, row in enumerate(mask)
    ]


def unpacked(rows, mask):
    """Packed rows back in their places, 0 elsewhere."""
    rows = [iter(row) for row in rows]
    return [[next(row) if counts else Decimal(0) for counts in ms] for row, ms in zip(rows, mask, strict=True)]


def terms(term, mask, *tables):
    return [[term(*entry) for entry in row] for row in packed(mask, *tables)]


def spread(per_row, mask):
    return [[x] * len(ms) for x, ms in zip(per_row, mask, strict=True)]


def groups(xs, size):
    return [xs[i : i + size] for i in range(0, len(xs), size)]


def pairwise(f, *columns):
    return mean([f(*row) for row in zip(*columns, strict=True)])


# Masking.


def reduce_with(how, rows):
    """One number from packed rows of loss terms."""
    if how == "token_mean":
        return mean(flat(rows))
    if how == "sequence_mean":
        return mean([mean(row) for row in rows if row])
    ((name, constant),) = how.items()
    if name == "fixed_length_mean":
        return sum(flat(rows)) / (len(rows) * constant)
    return sum(flat(rows)) / constant  # masked_sum_over


def mean_by(how):
    return lambda x, mask: reduce_with(how, terms(lambda v: v, mask, x))


def masked_whiten(x, mask, eps):
    counted = [v for (v,) in flat(packed(mask, x))]
    variance = mean([(v - mean(counted)) ** 2 for v in counted])
    return unpacked(terms(lambda v: (v - mean(counted)) / (variance + eps).sqrt(), mask, x), mask)


# Log-probabilities and KL.


def probabilities(logits):
    weights = [exp(x) for x in logits]
    return [w / sum(weights) for w in weights]


def token_logprobs(logits, tokens):
    return [
        [log(probabilities(row)[a]) for row, a in zip(rows, actions, strict=True)]
        for rows, actions in zip(logits, tokens, strict=True)
    ]


def response_slice(x, length):
    return [row[len(row) - length - 1 : len(row) - 1] for row in x]


def sequence_logprobs(logprobs, mask):
    return [sum((v for (v,) in row), Decimal(0)) for row in packed(mask, logprobs)]


def average_logprobs(logprobs, mask):
    return [sum((v for (v,) in row), Decimal(0)) / max(len(row), 1) for row in packed(mask, logprobs)]


def entropy(logits):
    return [[-sum(p * log(p) for p in probabilities(row) if p > 0) for row in rows] for rows in logits]


def kl_exact(logits, ref_logits):
    def kl(row, ref):
        both = zip(probabilities(row), probabilities(ref), strict=True)
        return sum(p * (log(p) - log(q)) for p, q in both if p > 0)

    return [[kl(row, ref) for row, ref in zip(*rows, strict=True)] for rows in zip(logits, ref_logits, strict=True)]


def k1(logp, ref):
    return logp - ref


def k2(logp, ref):
    return (logp - ref) ** 2 / 2


def k3(logp, ref):
    d = clamp(ref - logp, -20, 20)
    return exp(d) - 1 - d


def each(f):
    return lambda logprobs, ref_logprobs: [
        [f(a, b) for a, b in zip(*rows, strict=True)] for rows in zip(logprobs, ref_logprobs, strict=True)
    ]


def adaptive_kl(kl, n_steps, kl_coef, target, horizon):
    coefficients = []
    for measured, n in zip(kl, n_steps, strict=True):
        kl_coef *= 1 + clamp(measured / target - 1, Decimal("-0.2"), Decimal("0.2")) * n / horizon
        coefficients.append(kl_coef)
    return coefficients


# Advantages and rewards.


def discounted_returns(rewards, mask, gamma):
    rows = [[r for (r,) in row] for row in packed(mask, rewards)]
    sums = [[sum(gamma ** (k - t) * row[k] for k in range(t, len(row))) for t in range(len(row))] for row in rows]
    return unpacked(sums, mask)


def gae(rewards, values, mask, gamma, lam, last_values):
    """The sum of the discounted TD errors that follow, written out."""
    advantages = []
    for b, row in enumerate(packed(mask, rewards, values)):
        after = [*(v for _, v in row), last_values[b] if last_values else Decimal(0)][1:]
        deltas = [r + gamma * v_next - v for (r, v), v_next in zip(row, after, strict=True)]
        advantages.append(
            [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(row))) for t in range(len(row))]
        )
    advantages = unpacked(advantages, mask)
    returns = [
        [a + v if m else Decimal(0) for a, v, m in zip(*rows, strict=True)]
        for rows in zip(advantages, values, mask, strict=True)
    ]
    return {"advantages": advantages, "returns": returns}


def group_relative_advantages(rewards, group_size, eps):
    def of(group):
        std = (sum((r - mean(group)) ** 2 for r in group) / (len(group) - 1)).sqrt()
        return [(r - mean(group)) / (std + eps) if std else Decimal(0) for r in group]

    return flat(of(group) for group in groups(rewards, group_size))


def group_centered_advantages(rewards, group_size):
    return flat([r - mean(group) for r in group] for group in groups(rewards, group_size))


def leave_one_out_advantages(rewards, group_size):
    return flat(
        [r - mean(group[:i] + group[i + 1 :]) for i, r in enumerate(group)] for group in groups(rewards, group_size)
    )


def exponential_weights(scores, beta):
    return [len(scores) * p for p in probabilities([s / beta for s in scores])]


def top_fraction(scores, fraction):
    k = max(1, round(fraction * len(scores)))
    best = sorted(range(len(scores)), key=lambda i: scores[i])[-k:]
    return [Decimal(len(scores)) / k if i in best else Decimal(0) for i in range(len(scores))]


def kl_shaped_rewards(scores, kl, mask, kl_coef):
    rows = [[-kl_coef * v for (v,) in row] for row in packed(mask, kl)]
    return unpacked([[*row[:-1], row[-1] + score] for row, score in zip(rows, scores, strict=True)], mask)


def missing_eos_penalty(scores, finished, penalty):
    return [s if done else s - penalty for s, done in zip(scores, finished, strict=True)]


def length_penalty(scores, mask, coef, free_length):
    return [s - coef * max(0, sum(row) - free_length) for s, row in zip(scores, mask, strict=True)]


def bonus_for(*shares):
    """The rules that read text, judged by eye: the share of the bonus that each response has earned."""
    return lambda scores, responses, bonus, **rule: [s + bonus * m for s, m in zip(scores, shares, strict=True)]


# Losses of a policy. Everything but `logprobs` (or `values`) is data.


def ratio_of(logp, old):
    return exp(clamp(logp - old, -20, 20))


def surrogate(ratio, advantage, low, high):
    """The smaller gain: a good action counts up to the upper edge, a bad one is blamed for no less than the lower."""
    return -advantage * (min(ratio, high) if advantage > 0 else max(ratio, low))


def clip_range(clip_eps, clip_eps_high):
    return 1 - clip_eps, 1 + (clip_eps if clip_eps_high is None else clip_eps_high)


def reinforce_loss(logprobs, advantages, mask, reduce):
    return reduce_with(reduce, terms(lambda logp, a: -a * logp, mask, logprobs, advantages))


def ppo_clip_loss(logprobs, old_logprobs, advantages, mask, clip_eps, clip_eps_high, reduce):
    edges = clip_range(clip_eps, clip_eps_high)

    def term(logp, old, a):
        return surrogate(ratio_of(logp, old), a, *edges)

    return reduce_with(reduce, terms(term, mask, logprobs, old_logprobs, advantages))


def value_loss(values, returns, mask, reduce):
    return reduce_with(reduce, terms(lambda v, g: (v - g) ** 2 / 2, mask, values, returns))


def value_clip_loss(values, old_values, returns, mask, clip_eps, reduce):
    def term(v, old, g):
        return max((v - g) ** 2, (clamp(v, old - clip_eps, old + clip_eps) - g) ** 2) / 2

    return reduce_with(reduce, terms(term, mask, values, old_values, returns))


def grpo_loss(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, clip_eps_high, kl_coef, reduce):
    edges = clip_range(clip_eps, clip_eps_high)

    def term(logp, old, ref, a):
        return surrogate(ratio_of(logp, old), a, *edges) + (kl_coef * k3(logp, ref) if kl_coef else 0)

    tables = logprobs, old_logprobs, ref_logprobs or logprobs, spread(advantages, mask)
    return reduce_with(reduce, terms(term, mask, *tables))


def gspo_loss(logprobs, old_logprobs, advantages, mask, clip_eps, clip_eps_high):
    edges = clip_range(clip_eps, clip_eps_high)
    rows = packed(mask, logprobs, old_logprobs)
    return mean(
        [
            surrogate(ratio_of(mean([logp - old for logp, old in row]), Decimal(0)), a, *edges)
            for row, a in zip(rows, advantages, strict=True)
            if row
        ]
    )


def cispo_loss(logprobs, old_logprobs, advantages, mask, clip_eps_high, reduce, weighed_at):
    """`weighed_at` are the log-probabilities that the weight is taken at: the same numbers, but data."""

    def term(logp, held, old, a):
        return -min(ratio_of(held, old), 1 + clip_eps_high) * a * logp

    return reduce_with(reduce, terms(term, mask, logprobs, weighed_at, old_logprobs, spread(advantages, mask)))


def weighted_logprob_loss(logprobs, weights, mask, reduce):
    return reduce_with(reduce, terms(lambda logp, w: -w * logp, mask, logprobs, spread(weights, mask)))


# Losses of comparisons.


def bradley_terry_loss(chosen, rejected, margin):
    margins = margin if isinstance(margin, list) else [margin] * len(chosen)
    return pairwise(lambda c, r, m: -log(sigmoid(c - r - m)), chosen, rejected, margins)


def log_ratio_difference(c, r, ref_c, ref_r):
    return (c - ref_c) - (r - ref_r)


def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing):
    def term(*pair):
        h = beta * log_ratio_difference(*pair)
        return -(1 - label_smoothing) * log(sigmoid(h)) - label_smoothing * log(sigmoid(-h))

    return pairwise(term, chosen, rejected, ref_chosen, ref_rejected)


def robust_dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta, label_smoothing):
    def term(*pair):
        h = beta * log_ratio_difference(*pair)
        as_labelled, flipped = -log(sigmoid(h)), -log(sigmoid(-h))
        return ((1 - label_smoothing) * as_labelled - label_smoothing * flipped) / (1 - 2 * label_smoothing)

    return pairwise(term, chosen, rejected, ref_chosen, ref_rejected)


def ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    def term(*pair):
        return (log_ratio_difference(*pair) - 1 / (2 * beta)) ** 2

    return pairwise(term, chosen, rejected, ref_chosen, ref_rejected)


def simpo_loss(chosen, rejected, beta, gamma):
    return pairwise(lambda c, r: -log(sigmoid(beta * (c - r) - gamma)), chosen, rejected)


def orpo_loss(chosen, rejected, lam):
    def odds(x):
        return exp(x) / (1 - exp(x))

    return pairwise(lambda c, r: -c - lam * log(sigmoid(log(odds(c) / odds(r)))), chosen, rejected)


def kto_loss(logprobs, ref_logprobs, desirable, kl, beta, desirable_weight, undesirable_weight):
    z = max(kl, Decimal(0))

    def term(logp, ref, good):
        h = logp - ref
        return (
            desirable_weight * (1 - sigmoid(beta * (h - z)))
            if good
            else undesirable_weight * (1 - sigmoid(beta * (z - h)))
        )

    return pairwise(term, logprobs, ref_logprobs, desirable)


# The enumerated world.


def exact_kl(logp, logq):
    return sum(exp(p) * (p - q) for p, q in zip(logp, logq, strict=True))


def exact_objective(logp, ref_logp, scores, beta):
    return sum(exp(p) * r for p, r in zip(logp, scores, strict=True)) - beta * exact_kl(logp, ref_logp)


def exact_optimum(ref_logp, scores, beta):
    weights = [exp(ref) * exp(r / beta) for ref, r in zip(ref_logp, scores, strict=True)]
    return {"logp": [log(w / sum(weights)) for w in weights], "value": beta * log(sum(weights))}
