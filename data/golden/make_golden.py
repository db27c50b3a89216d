"""Writes golden.json: inputs, outputs and gradients of every function that minirl promises, from `definitions.py`.

    python data/golden/make_golden.py

Gradients are central differences. Everything is computed in 40 decimal digits and rounded once, at the end, to the nearest
float64: a difference over 1e-12 is then right to the last bit, and the file comes out the same, byte for byte, on every
machine. Needs nothing but Python.
"""

import json
import random
import sys
from decimal import Decimal, getcontext
from pathlib import Path

import definitions as d

getcontext().prec = 40
STEP = Decimal("1e-12")
PADDING = 99.0  # stands wherever the mask is False: it is no log-probability, and large enough to be noticed

FULL = [[True] * 5] * 4
RAGGED = [
    [True, True, True, True, True],
    [True, True, False, True, False],  # a gap, and cut off before the end
    [False, True, True, False, False],  # padding on the left too
    [True, False, False, False, False],  # one token
]
EMPTY_ROW = [*RAGGED, [False] * 5]


# Inputs: short decimal numbers, the same on every version of Python, which promises that of random() and of nothing else.


def numbers(seed, low, high, *shape):
    source = random.Random(seed)

    def draw(shape):
        if not shape:
            return round(low + (high - low) * source.random(), 2)
        return [draw(shape[1:]) for _ in range(shape[0])]

    return draw(shape)


def padded(x, mask):
    return [[v if m else PADDING for v, m in zip(xs, ms, strict=True)] for xs, ms in zip(x, mask, strict=True)]


def shifted(x, by):
    return [[round(v - s, 2) for v, s in zip(xs, ss, strict=True)] for xs, ss in zip(x, by, strict=True)]


def pick(inputs, *names):
    return {name: inputs[name] for name in names}


# From a definition to an entry of the file.


def exactly(x):
    """The numbers of the file as decimals, each the very value of its float64; everything else as it is."""
    if isinstance(x, list):
        return [exactly(v) for v in x]
    if isinstance(x, dict):
        return {k: exactly(v) for k, v in x.items()}
    if isinstance(x, float) or x == "-inf":
        return Decimal(x)
    return x


def rounded(x):
    """Decimals as the nearest float64."""
    if isinstance(x, list):
        return [rounded(v) for v in x]
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    return float(x) + 0.0 if isinstance(x, Decimal) else x  # + 0.0: there is no -0 in the file


def like(output, source):
    """A random number between -1 and 1 for each entry of the output."""
    return [like(y, source) for y in output] if isinstance(output, list) else round(2 * source.random() - 1, 2)


def weighted_sum(output, weights):
    if not isinstance(output, list):
        return output * weights
    return sum(weighted_sum(y, w) for y, w in zip(output, weights, strict=True))


def gradient(scalar, x):
    """Central differences of scalar() in every entry of the nested list x, which is left as it was.

    A corner, where the clip sets in, has no gradient to agree on: inputs that hit one are refused.
    """
    here, gradients = scalar(), []
    for i, entry in enumerate(x):
        if isinstance(entry, list):
            gradients.append(gradient(scalar, entry))
            continue
        x[i] = entry + STEP
        above = scalar()
        x[i] = entry - STEP
        below = scalar()
        x[i] = entry
        if abs(above - 2 * here + below) > STEP / 1000:
            raise ValueError(f"entry {i}: {entry} lies on a corner")
        gradients.append((above - below) / (2 * STEP))
    return gradients


def vector(definition, gradient_of, name, inputs, knobs):
    arguments, settings = exactly(inputs), exactly(knobs)
    output = definition(**arguments, **settings)
    entry = {"name": name, "inputs": inputs, "knobs": knobs, "output": rounded(output)}
    if gradient_of:
        weights = 1.0
        if isinstance(output, list):
            entry["weights"] = weights = like(output, random.Random(0))

        def scalar():
            return weighted_sum(definition(**arguments, **settings), exactly(weights))

        entry["gradients"] = {x: rounded(gradient(scalar, arguments[x])) for x in gradient_of}
    return entry


def function(name, convention, definition, *cases, gradient_of=()):
    """One entry of the file. A case is its name, the inputs and the knobs."""
    return name, {"convention": convention, "vectors": [vector(definition, gradient_of, *case) for case in cases]}


# The cases, room by room.


def masking():
    x = numbers(1, -2, 2, 5, 5)
    ragged, whole = {"x": padded(x, EMPTY_ROW), "mask": EMPTY_ROW}, {"x": x[:4], "mask": FULL}
    gaps, full = ("gaps and an empty row", ragged, {}), ("everything counts", whole, {})

    def mean(name, convention, definition, *cases):
        return function(f"masking.{name}", convention, definition, *cases, gradient_of=["x"])

    return [
        mean("masked_mean", "over the counted entries; any shape", d.mean_by("token_mean"), gaps),
        function(
            "masking.masked_whiten",
            "population variance (divide by n), eps added to it inside the root, over the counted entries; 0 elsewhere",
            d.masked_whiten,
            ("gaps and an empty row", ragged, {"eps": 1e-8}),
            ("an eps that shows", ragged, {"eps": 0.3}),
            ("equal entries give 0", {"x": padded([[0.7] * 5] * 4, RAGGED), "mask": RAGGED}, {"eps": 1e-8}),
        ),
        mean("token_mean", "sum over counted tokens / number of counted tokens", d.mean_by("token_mean"), gaps, full),
        mean(
            "sequence_mean",
            "each row's token mean, then the mean over rows; a row with nothing counted is left out",
            d.mean_by("sequence_mean"),
            gaps,
            full,
        ),
        mean(
            "fixed_length_mean",
            "sum over counted tokens / (B * length), B with its empty rows. A factory: the knob makes the reducer",
            lambda x, mask, length: d.mean_by({"fixed_length_mean": length})(x, mask),
            ("gaps and an empty row", ragged, {"length": 8}),
            ("length 1", ragged, {"length": 1}),
        ),
        mean(
            "masked_sum_over",
            "sum over counted tokens / a count given. A factory: the knob makes the reducer",
            lambda x, mask, denominator: d.mean_by({"masked_sum_over": denominator})(x, mask),
            ("gaps and an empty row", ragged, {"denominator": 37.0}),
        ),
    ]


def logprobs():
    logits = numbers(2, -3, 3, 2, 3, 5)
    tokens = [[0, 4, 2], [1, 3, 0]]
    excluded = [[["-inf", *numbers(3, -1, 1, 3), "-inf"], [*numbers(4, -1, 1, 4), "-inf"]]]
    ragged = {"logprobs": padded(numbers(5, -3, -0.01, 5, 5), EMPTY_ROW), "mask": EMPTY_ROW}
    return [
        function(
            "logprobs.response_slice",
            "the positions that predict the last `length` tokens: x[:, -length - 1 : -1]",
            d.response_slice,
            ("six positions, four of them response", {"x": numbers(6, 0, 1, 3, 6), "length": 4}, {}),
        ),
        function(
            "logprobs.token_logprobs",
            "log softmax at the token; logits divided by the sampling temperature and aligned with the tokens",
            d.token_logprobs,
            ("two rows of three", {"logits": logits, "tokens": tokens}, {}),
            gradient_of=["logits"],
        ),
        function(
            "logprobs.entropy",
            "in nats; a logit of -inf contributes 0 (0 log 0 = 0)",
            d.entropy,
            ("finite logits", {"logits": logits}, {}),
            ("excluded tokens", {"logits": excluded}, {}),
            gradient_of=["logits"],
        ),
        function(
            "logprobs.sequence_logprobs",
            "the SUM over counted tokens; 0 for a row with nothing counted",
            d.sequence_logprobs,
            ("gaps and an empty row", ragged, {}),
            gradient_of=["logprobs"],
        ),
        function(
            "logprobs.average_logprobs",
            "the sum over counted tokens / their number; 0 for a row with nothing counted",
            d.average_logprobs,
            ("gaps and an empty row", ragged, {}),
            gradient_of=["logprobs"],
        ),
    ]


def kl():
    pair = {"logprobs": numbers(7, -3, -0.1, 3, 4), "ref_logprobs": numbers(8, -3, -0.1, 3, 4)}
    far = {"logprobs": [[-0.5, -30.25, -1.0]], "ref_logprobs": [[-40.0, -0.75, -1.5]]}
    logits = {"logits": numbers(2, -3, 3, 2, 3, 5), "ref_logits": numbers(9, -2, 2, 2, 3, 5)}
    excluded = {
        "logits": [[["-inf", *numbers(3, -1, 1, 3), "-inf"], [*numbers(4, -1, 1, 4), "-inf"]]],
        "ref_logits": [[["-inf", *numbers(10, -1, 1, 4)], numbers(11, -1, 1, 5)]],
    }
    plain = "three rows of four", pair, {}
    return [
        function("kl.kl_k1", "logp - ref, tokens drawn from the policy", d.each(d.k1), plain, gradient_of=["logprobs"]),
        function("kl.kl_k2", "(logp - ref)^2 / 2", d.each(d.k2), plain, gradient_of=["logprobs"]),
        function(
            "kl.kl_k3",
            "exp(d) - 1 - d with d = ref - logp, the reference on top; d clamped to +-20, no gradient outside",
            d.each(d.k3),
            plain,
            ("beyond the clamp on both sides", far, {}),
            gradient_of=["logprobs"],
        ),
        function(
            "kl.kl_exact",
            "KL(policy || reference) over the vocabulary, in nats; a token of probability 0 contributes 0",
            d.kl_exact,
            ("finite logits", logits, {}),
            ("excluded tokens", excluded, {}),
            gradient_of=["logits"],
        ),
        function(
            "kl.AdaptiveKL",
            "kl_coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * n_steps / horizon; kl is the batch mean of per-sequence sums. "
            "An object: the knobs make it, the inputs are its updates one after another, the output is what each returns",
            d.adaptive_kl,
            (
                "below the target, at it, above, far above, negative",
                {"kl": [2.0, 6.0, 6.6, 40.0, -1.0], "n_steps": [256, 256, 128, 512, 64]},
                {"kl_coef": 0.15, "target": 6.0, "horizon": 10000},
            ),
        ),
    ]


def advantages():
    table = {"rewards": padded(numbers(12, -1, 1, 5, 5), EMPTY_ROW), "mask": EMPTY_ROW}
    valued = {"rewards": table["rewards"], "values": padded(numbers(13, -1, 1, 5, 5), EMPTY_ROW), "mask": EMPTY_ROW}
    paid_last = [[0.0, 0.0, 0.0, 0.0, 1.5], [0.0, 0.0, PADDING, -0.5, PADDING]]
    text = {"rewards": paid_last, "values": valued["values"][:2], "mask": RAGGED[:2]}
    cut_off = {"gamma": 0.9, "lam": 0.7, "last_values": [0.4, -0.3, 0.25, 1.1, PADDING]}
    scores = [1.0, 0.0, 0.0, 1.0, 0.3, -2.1, 4.0, 0.05, 1.0, 1.0, 1.0, 1.0]
    fours, twos = {"rewards": scores, "group_size": 4}, {"rewards": scores, "group_size": 2}
    three_groups = "two groups and one of equal rewards"
    best = {"scores": numbers(14, -1, 1, 8)}
    return [
        function(
            "advantages.discounted_returns",
            "G_t = r_t + gamma G_{t+1}, gaps skipped as if deleted; 0 outside the mask",
            d.discounted_returns,
            ("gaps and an empty row", table, {"gamma": 0.9}),
            ("paid at the end, undiscounted", pick(text, "rewards", "mask"), {"gamma": 1.0}),
        ),
        function(
            "advantages.gae",
            "delta_t = r_t + gamma V_{t+1} - V_t; returns = advantages + values; the value after the last counted token is 0 or "
            "last_values; not whitened; gaps skipped as if deleted; 0 outside the mask",
            d.gae,
            ("text, the defaults", text, {"gamma": 1.0, "lam": 0.95, "last_values": None}),
            ("gaps, discounted", valued, {"gamma": 0.9, "lam": 0.7, "last_values": None}),
            ("gaps, discounted, episodes cut off", valued, cut_off),
        ),
        function(
            "advantages.group_relative_advantages",
            "(r - mean) / (std + eps) in each group of consecutive rows; std unbiased (divide by G - 1), eps added outside it; "
            "a group of equal rewards gives 0",
            d.group_relative_advantages,
            (three_groups, fours, {"eps": 1e-4}),
            ("an eps that shows", fours, {"eps": 0.2}),
            ("groups of two", twos, {"eps": 1e-4}),
        ),
        function(
            "advantages.group_centered_advantages",
            "r - mean in each group of consecutive rows, no division",
            d.group_centered_advantages,
            (three_groups, fours, {}),
        ),
        function(
            "advantages.leave_one_out_advantages",
            "r minus the mean of the other rewards of its group",
            d.leave_one_out_advantages,
            (three_groups, fours, {}),
        ),
        function(
            "advantages.exponential_weights",
            "B softmax(scores / beta): their mean is 1",
            d.exponential_weights,
            ("a small beta", best, {"beta": 0.25}),
            ("a large beta", best, {"beta": 3.0}),
        ),
        function(
            "advantages.top_fraction",
            "B / k on the k = max(1, round(fraction B)) best rows, 0 on the others",
            d.top_fraction,
            ("three of eight", best, {"fraction": 0.35}),
            ("never none", best, {"fraction": 0.01}),
        ),
    ]


def rewards():
    scores = [1.5, -0.25, 0.0, 2.0]
    charged = {"scores": scores, "kl": padded(numbers(15, -0.5, 1, 4, 5), RAGGED), "mask": RAGGED}
    long = {"scores": scores, "mask": RAGGED}
    answers = ["<think>7</think>7", "7", "<think>two\nlines</think>42", "<think>7</think>7 "]
    prose = ["The cat sat.", "Le chat est the best", "", "the THE the cat"]
    return [
        function(
            "rewards.kl_shaped_rewards",
            "-kl_coef kl_t at every counted token, the score added on the last counted one, found by the mask; 0 elsewhere",
            d.kl_shaped_rewards,
            ("gaps and truncated rows", charged, {"kl_coef": 0.3}),
            ("no charge", charged, {"kl_coef": 0.0}),
        ),
        function(
            "rewards.missing_eos_penalty",
            "scores - penalty where the response never ended",
            d.missing_eos_penalty,
            ("two of four", {"scores": scores, "finished": [True, False, True, False]}, {"penalty": 0.75}),
        ),
        function(
            "rewards.length_penalty",
            "scores - coef max(0, length - free_length), length in counted tokens",
            d.length_penalty,
            ("two are free", long, {"coef": 0.1, "free_length": 2}),
            ("none is free", long, {"coef": 0.1, "free_length": 0}),
        ),
        function(
            "rewards.format_bonus",
            "scores + bonus where the regular expression matches the whole response, its dot newlines too",
            d.bonus_for(Decimal(1), Decimal(0), Decimal(1), Decimal(0)),
            (
                "the first and the third match",
                {"scores": scores, "responses": answers},
                {"pattern": r"<think>.*</think>\d+", "bonus": 0.5},
            ),
        ),
        function(
            "rewards.language_bonus",
            "scores + bonus * share of the words that belong to the set, in lower case; no words, no bonus",
            d.bonus_for(Decimal(1), Decimal("0.4"), Decimal(0), Decimal(1)),
            (
                "all, two of five, no words, all",
                {"scores": scores, "responses": prose},
                {"words": ["the", "cat", "sat", "best"], "bonus": 0.5},
            ),
        ),
    ]


def policy_losses():
    log_ratio = [  # inside the interval, above it and below it
        [0.05, 0.6, -0.7, 0.3, -0.3],
        [-0.05, 0.4, 0.0, -0.9, 0.0],
        [0.0, 0.9, -0.15, 0.0, 0.0],
        [-0.4, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
    ]
    sampled = numbers(16, -3, -0.2, 5, 5)
    tables = {
        "logprobs": sampled,
        "old_logprobs": shifted(sampled, log_ratio),
        "ref_logprobs": numbers(17, -3, -0.2, 5, 5),
        "advantages": numbers(18, -2, 2, 5, 5),
        "values": numbers(19, -1, 1, 5, 5),
        "old_values": numbers(33, -1, 1, 5, 5),
        "returns": numbers(21, -2, 2, 5, 5),
    }
    batch = {name: padded(x, EMPTY_ROW) for name, x in tables.items()} | {"mask": EMPTY_ROW}
    by_row = batch | {"advantages": [0.9, -1.3, 0.6, -0.4, PADDING], "weights": [2.0, 0.0, 0.5, -1.0, PADDING]}
    four_corners = {
        "logprobs": [[-1.0, -1.0, -1.0, -1.0]],
        "old_logprobs": [[-1.5, -0.5, -1.5, -0.5]],
        "advantages": [[1.0, 1.0, -1.0, -1.0]],
        "mask": [[True] * 4],
    }
    far_away = {
        "logprobs": [[-0.5, -30.0, -0.5, -30.0, -1.0]],
        "old_logprobs": [[-26.0, -1.0, -26.0, -1.0, -1.25]],
        "advantages": [[1.0, 1.0, -1.0, -1.0, 0.5]],
        "mask": [[True] * 5],
    }
    reinforce = pick(batch, "logprobs", "advantages", "mask")
    ppo = pick(batch, "logprobs", "old_logprobs", "advantages", "mask")
    ppo_knobs = {"clip_eps": 0.2, "clip_eps_high": None, "reduce": "token_mean"}
    critic = pick(batch, "values", "returns", "mask")
    clipped_critic = pick(batch, "values", "old_values", "returns", "mask")
    grpo = pick(by_row, "logprobs", "old_logprobs", "ref_logprobs", "advantages", "mask")
    grpo_knobs = {"clip_eps": 0.2, "clip_eps_high": None, "kl_coef": 0.04, "reduce": "sequence_mean"}
    by_token, by_sequence, by_constant = (
        {"reduce": how} for how in ("token_mean", "sequence_mean", {"fixed_length_mean": 8})
    )
    grouped = pick(by_row, "logprobs", "old_logprobs", "advantages", "mask")
    weighted = pick(by_row, "logprobs", "weights", "mask")

    def cispo_loss(**arguments):
        return d.cispo_loss(**arguments, weighed_at=exactly(batch["logprobs"]))

    def loss(name, convention, definition, *cases, gradient_of="logprobs"):
        return function(f"losses.policy.{name}", convention, definition, *cases, gradient_of=[gradient_of])

    return [
        loss(
            "reinforce_loss",
            "-A logp, reduced",
            d.reinforce_loss,
            ("gaps, token mean", reinforce, by_token),
            ("gaps, sequence mean", reinforce, by_sequence),
        ),
        loss(
            "ppo_clip_loss",
            "-min(ratio A, clip(ratio, 1 - clip_eps, 1 + clip_eps_high) A); clip_eps_high null = clip_eps; log-ratios clamped to "
            "+-20, no gradient outside; reduced",
            d.ppo_clip_loss,
            ("gaps, the defaults", ppo, ppo_knobs),
            ("gaps, every knob", ppo, {"clip_eps": 0.1, "clip_eps_high": 0.35} | by_constant),
            ("beyond the clip on both sides, both signs", four_corners, ppo_knobs),
            ("beyond the clamp on both sides, both signs", far_away, ppo_knobs),
        ),
        loss(
            "value_loss",
            "(V - R)^2 / 2, reduced",
            d.value_loss,
            ("gaps, token mean", critic, by_token),
            ("gaps, sequence mean", critic, by_sequence),
            gradient_of="values",
        ),
        loss(
            "value_clip_loss",
            "max((V - R)^2, (clip(V, V_old - clip_eps, V_old + clip_eps) - R)^2) / 2, token by token, reduced",
            d.value_clip_loss,
            ("gaps, the defaults", clipped_critic, {"clip_eps": 0.2} | by_token),
            ("gaps, every knob", clipped_critic, {"clip_eps": 0.5} | by_sequence),
            gradient_of="values",
        ),
        loss(
            "grpo_loss",
            "-min(ratio A, clip(ratio) A) + kl_coef k3(logp, ref), one advantage a row, one ratio a token, reduced: by "
            "sequence_mean unless told otherwise",
            d.grpo_loss,
            ("gaps, the defaults", grpo, grpo_knobs),
            ("gaps, every knob", grpo, {"clip_eps": 0.1, "clip_eps_high": 0.28, "kl_coef": 0.5} | by_token),
            ("no reference, a constant", grpo | {"ref_logprobs": None}, grpo_knobs | {"kl_coef": 0.0} | by_constant),
        ),
        loss(
            "gspo_loss",
            "ratio = exp(mean log-ratio of the row), clipped as a whole; mean over the rows with something counted",
            d.gspo_loss,
            ("gaps, the defaults", grouped, {"clip_eps": 3e-4, "clip_eps_high": None}),
            ("gaps, every knob", grouped, {"clip_eps": 0.15, "clip_eps_high": 0.5}),
        ),
        loss(
            "cispo_loss",
            "-w A logp, w = min(ratio, 1 + clip_eps_high) without gradient; the ceiling stands above 1; reduced",
            cispo_loss,
            ("gaps, the defaults", grouped, {"clip_eps_high": 0.2} | by_token),
            ("gaps, every knob", grouped, {"clip_eps_high": 0.5} | by_sequence),
        ),
        loss(
            "weighted_logprob_loss",
            "-w logp, one weight a row, reduced",
            d.weighted_logprob_loss,
            ("gaps, token mean", weighted, by_token),
            ("gaps, a constant", weighted, by_constant),
        ),
    ]


def preference_losses():
    four = ["chosen", "rejected", "ref_chosen", "ref_rejected"]
    summed = {name: numbers(seed, -30, -5, 6) for seed, name in enumerate(four, start=22)}
    averaged = {"chosen": numbers(26, -2, -0.05, 6), "rejected": numbers(27, -2, -0.05, 6)}
    averaged["chosen"][0] = -0.0001  # almost certain: odds of ten thousand
    scores = {"chosen": numbers(28, -3, 3, 6), "rejected": numbers(29, -3, 3, 6)}
    margins = [0.0, 0.5, 1.0, -0.25, 2.0, 0.1]
    unpaired = {
        "logprobs": summed["chosen"],
        "ref_logprobs": summed["ref_chosen"],
        "desirable": [True, False, True, True, False, False],
    }
    kto_knobs = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.8}

    def loss(name, convention, definition, *cases, gradient_of=("chosen", "rejected")):
        return function(f"losses.preference.{name}", convention, definition, *cases, gradient_of=gradient_of)

    return [
        loss(
            "bradley_terry_loss",
            "-log sigmoid(chosen - rejected - margin), mean over pairs; margin one number or one a pair",
            d.bradley_terry_loss,
            ("no margin", scores, {"margin": 0.0}),
            ("one margin", scores, {"margin": 0.75}),
            ("a margin a pair", scores, {"margin": margins}),
        ),
        loss(
            "dpo_loss",
            "-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), h = (chosen - ref_chosen) - (rejected - ref_rejected), from "
            "SUMMED log-probabilities, mean over pairs",
            d.dpo_loss,
            ("the defaults", summed, {"beta": 0.1, "label_smoothing": 0.0}),
            ("smoothed labels", summed, {"beta": 0.3, "label_smoothing": 0.2}),
        ),
        loss(
            "robust_dpo_loss",
            "[(1 - e) l(h) - e l(-h)] / (1 - 2e), l(h) = -log sigmoid(beta h), h as in dpo_loss, mean over pairs",
            d.robust_dpo_loss,
            ("noisy labels", summed, {"beta": 0.3, "label_smoothing": 0.2}),
            ("no noise: DPO", summed, {"beta": 0.1, "label_smoothing": 0.0}),
        ),
        loss(
            "ipo_loss",
            "(h - 1 / (2 beta))^2, h as in dpo_loss, mean over pairs; summed or averaged is the caller's choice",
            d.ipo_loss,
            ("the default", summed, {"beta": 0.1}),
            ("a larger beta", summed, {"beta": 0.4}),
        ),
        loss(
            "simpo_loss",
            "-log sigmoid(beta (chosen - rejected) - gamma), from AVERAGED log-probabilities, mean over pairs",
            d.simpo_loss,
            ("the defaults", averaged, {"beta": 2.0, "gamma": 1.0}),
            ("others", averaged, {"beta": 2.5, "gamma": 0.4}),
        ),
        loss(
            "orpo_loss",
            "-c - lam log sigmoid(log odds(c) - log odds(r)), from AVERAGED log-probabilities, mean over pairs",
            d.orpo_loss,
            ("the default", averaged, {"lam": 0.1}),
            ("a larger weight", averaged, {"lam": 0.7}),
        ),
        loss(
            "kto_loss",
            "mean over the batch of w_D (1 - sigmoid(beta (h - z))) or w_U (1 - sigmoid(beta (z - h))), h = logp - ref from "
            "SUMMED log-probabilities, z = max(kl, 0) without gradient",
            d.kto_loss,
            ("the defaults", unpaired | {"kl": 1.7}, {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}),
            ("every knob", unpaired | {"kl": 1.7}, kto_knobs),
            ("a negative estimate of the KL", unpaired | {"kl": -0.9}, kto_knobs),
            gradient_of=["logprobs"],
        ),
    ]


def exact():
    logp, ref_logp = (rounded([p.ln() for p in d.probabilities(exactly(numbers(seed, -1, 1, 6)))]) for seed in (30, 31))
    scores = [1.0, 0.0, -0.5, 2.0, 0.25, 1.0]
    return [
        function(
            "exact.kl",
            "KL(p || q) of two distributions over whole sequences",
            d.exact_kl,
            ("six sequences", {"logp": logp, "logq": ref_logp}, {}),
            gradient_of=["logp"],
        ),
        function(
            "exact.objective",
            "E_p[r] - beta KL(p || ref)",
            d.exact_objective,
            ("six sequences", {"logp": logp, "ref_logp": ref_logp, "scores": scores}, {"beta": 0.5}),
            gradient_of=["logp"],
        ),
        function(
            "exact.optimum",
            "log pi* with pi* = ref exp(r / beta) / Z, and its value beta log Z",
            d.exact_optimum,
            ("six sequences", {"ref_logp": ref_logp, "scores": scores}, {"beta": 0.5}),
        ),
    ]


ROOMS = [masking, logprobs, kl, advantages, rewards, policy_losses, preference_losses, exact]


def text(x, indent=0):
    """Strict JSON with one line for each input, output and gradient, so that a change can be read in a diff."""
    inner, outer = "  " * (indent + 1), "  " * indent
    if isinstance(x, dict) and any(isinstance(v, list | dict) for v in x.values()):
        lines = [f"{inner}{json.dumps(k)}: {text(v, indent + 1)}" for k, v in x.items()]
        return "{\n" + ",\n".join(lines) + f"\n{outer}}}"
    if isinstance(x, list) and any(isinstance(v, dict) for v in x):
        return "[\n" + ",\n".join(inner + text(v, indent + 1) for v in x) + f"\n{outer}]"
    return json.dumps(x, allow_nan=False)


def main(path):
    golden = {"format": 1, "functions": dict(entry for room in ROOMS for entry in room())}
    Path(path).write_text(text(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("golden.json"))
