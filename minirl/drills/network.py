"""Wrong versions of what a transformer is made of: softmax, attention, RMSNorm, rotary positions, a LoRA layer."""

import math

import torch

from minirl.drills.bank import Case, Drill, numbers, ragged, right, wrong
from minirl.drills.by_hand import lora_forward, rms_norm, rotary, softmax
from minirl.model import naive_attention

# Softmax


@right(softmax)
def right_softmax(logits):
    e = (logits - logits.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


@wrong(softmax, "The sum runs over the rows of the batch: each row is a distribution, so sum over the last axis.")
def softmax_over_the_batch(logits):
    e = (logits - logits.amax(-1, keepdim=True)).exp()
    return e / e.sum(0, keepdim=True)


@wrong(softmax, "The whole table sums to 1: each row should, so sum over the last axis with keepdim=True.")
def softmax_of_the_table(logits):
    e = (logits - logits.max()).exp()
    return e / e.sum()


@wrong(softmax, "The division is missing: these are exp(logits), and they do not sum to 1.")
def softmax_without_division(logits):
    return logits.exp()


@wrong(softmax, "The largest is subtracted and never divided by the sum: the largest entry is 1, the sum is not.")
def softmax_of_the_largest(logits):
    return (logits - logits.amax(-1, keepdim=True)).exp()


@wrong(softmax, "The exp is missing: a share of the logits is no probability, and can be negative.")
def shares_of_logits(logits):
    return logits / logits.sum(-1, keepdim=True)


@wrong(softmax, "The sign of the logits is wrong: the largest logit gets the largest probability.")
def softmax_of_minus(logits):
    e = (-logits + logits.amin(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


@wrong(softmax, "These are log-probabilities: leave out the log.")
def log_of_softmax(logits):
    return logits.log_softmax(-1)


@wrong(softmax, "Each entry has its own sigmoid: in a softmax the entries compete, and sum to 1.")
def sigmoids(logits):
    return logits.sigmoid()


# Attention


def _weights(scores):
    return scores.softmax(-1)


@right(naive_attention)
def right_attention(q, k, v, mask):
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf)
    return _weights(scores) @ v


@wrong(naive_attention, "The scale is missing: divide q k^T by sqrt(E), or the softmax saturates as E grows.")
def attention_without_scale(q, k, v, mask):
    scores = (q @ k.transpose(-1, -2)).masked_fill(~mask, -torch.inf)
    return _weights(scores) @ v


@wrong(naive_attention, "This divides by E: by its root, so that the scores keep a standard deviation of 1.")
def attention_scaled_by_width(q, k, v, mask):
    scores = (q @ k.transpose(-1, -2) / q.shape[-1]).masked_fill(~mask, -torch.inf)
    return _weights(scores) @ v


@wrong(naive_attention, "This multiplies by sqrt(E): divide.")
def attention_scaled_up(q, k, v, mask):
    scores = (q @ k.transpose(-1, -2) * math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf)
    return _weights(scores) @ v


@wrong(naive_attention, "The mask is not used: a token sees the ones it is to predict.")
def attention_without_mask(q, k, v, mask):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return _weights(scores) @ v


@wrong(naive_attention, "The mask is upside down: True means that a query may look at a key.")
def attention_mask_upside_down(q, k, v, mask):
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(mask, -1e9)
    return _weights(scores) @ v


@wrong(naive_attention, "A forbidden score is set to 0, whose exp is 1: set it to minus infinity before the softmax.")
def forbidden_scores_are_zero(q, k, v, mask):
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, 0)
    return _weights(scores) @ v


@wrong(naive_attention, "The mask comes after the softmax: the weights left over no longer sum to 1. Mask the scores.")
def masked_after_softmax(q, k, v, mask):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (_weights(scores) * mask) @ v


@wrong(naive_attention, "The softmax runs over the queries: each query's weights over the keys (last axis) sum to 1.")
def softmax_over_queries(q, k, v, mask):
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -1e9)
    return scores.softmax(-2) @ v


@wrong(naive_attention, "Keys are mixed where values belong: weights from q and k, and what they weigh is v.")
def keys_for_values(q, k, v, mask):
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf)
    return _weights(scores) @ k


@wrong(naive_attention, "The softmax is missing: the scores themselves weigh the values.")
def attention_without_softmax(q, k, v, mask):
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, 0)
    return scores @ v


@wrong(naive_attention, "Queries and keys are exchanged: a row of scores belongs to one query.")
def queries_for_keys(q, k, v, mask):
    scores = (k @ q.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf)
    return _weights(scores) @ v


# RMSNorm


@right(rms_norm)
def right_rms_norm(x, weight, *, eps=1e-5):
    return weight * x * torch.rsqrt((x**2).mean(-1, keepdim=True) + eps)


@wrong(rms_norm, "The mean is subtracted: that is LayerNorm. RMSNorm divides only.")
def layer_norm_for_rms(x, weight, *, eps=1e-5):
    x = x - x.mean(-1, keepdim=True)
    return weight * x * torch.rsqrt((x**2).mean(-1, keepdim=True) + eps)


@wrong(rms_norm, "The squares are added up: it is their mean, so that the size does not depend on the width.")
def norm_of_the_sum(x, weight, *, eps=1e-5):
    return weight * x * torch.rsqrt((x**2).sum(-1, keepdim=True) + eps)


@wrong(rms_norm, "The root is missing: divide by sqrt(mean of squares), or doubling x halves the result.")
def rms_without_root(x, weight, *, eps=1e-5):
    return weight * x / ((x**2).mean(-1, keepdim=True) + eps)


@wrong(rms_norm, "The weight is missing: each channel has a learned scale.")
def rms_without_weight(x, weight, *, eps=1e-5):
    return x * torch.rsqrt((x**2).mean(-1, keepdim=True) + eps)


@wrong(rms_norm, "One size for the whole batch: each row is divided by its own.")
def rms_of_the_batch(x, weight, *, eps=1e-5):
    return weight * x * torch.rsqrt((x**2).mean() + eps)


@wrong(rms_norm, "The mean runs over the rows: it belongs over the channels, the last axis.")
def rms_over_rows(x, weight, *, eps=1e-5):
    return weight * x * torch.rsqrt((x**2).mean(0, keepdim=True) + eps)


@wrong(
    rms_norm, "The scale is 1 + weight: that is Gemma's parametrisation. Here it is the weight itself.", seen="Gemma"
)
def one_plus_weight(x, weight, *, eps=1e-5):
    return (1 + weight) * x * torch.rsqrt((x**2).mean(-1, keepdim=True) + eps)


@wrong(rms_norm, "Mean of absolute values: the S in RMS is for squares.")
def mean_absolute_norm(x, weight, *, eps=1e-5):
    return weight * x / (x.abs().mean(-1, keepdim=True) + eps)


# Rotary positions


def _angles(length, channels, base, dtype):
    frequencies = base ** (-torch.arange(0, channels, 2, dtype=dtype) / channels)
    return torch.outer(torch.arange(length, dtype=dtype), frequencies)


def _turned(x, angles):
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


@right(rotary)
def right_rotary(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], base, x.dtype)
    return _turned(x, angles)


@wrong(
    rotary, "The turn goes the other way: (a cos - b sin, b cos + a sin). Scores are the same, stored weights are not."
)
def turned_backwards(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], base, x.dtype)
    return _turned(x, -angles)


@wrong(
    rotary,
    "Neighbours 2i and 2i + 1 are paired: here i goes with i + E/2, as in Hugging Face's weights.",
    seen="the paper and Meta's weights, which pair them so",
)
def neighbours_paired(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], base, x.dtype)
    a, b = x[:, ::2], x[:, 1::2]
    return torch.stack([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1).flatten(1)


@wrong(rotary, "Positions count from 0: the first token is not turned.")
def positions_from_one(x, *, base=10_000.0):
    angles = _angles(x.shape[0] + 1, x.shape[1], base, x.dtype)[1:]
    return _turned(x, angles)


@wrong(rotary, "All pairs turn at one speed: pair i turns by position * base^(-2i / E).")
def one_speed(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], 1.0, x.dtype)
    return _turned(x, angles)


@wrong(rotary, "The exponent is positive: base^(-2i / E), so that later pairs turn more slowly.")
def faster_and_faster(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], 1 / base, x.dtype)
    return _turned(x, angles)


@wrong(rotary, "One sign is wrong, and this is no rotation: lengths change. (a cos - b sin, b cos + a sin).")
def not_a_rotation(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], base, x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() - a * angles.sin()], -1)


@wrong(rotary, "The exponent is -i / E: it is -2i / E, with i counting the pairs.")
def half_the_exponent(x, *, base=10_000.0):
    angles = _angles(x.shape[0], x.shape[1], math.sqrt(base), x.dtype)
    return _turned(x, angles)


# LoRA


@right(lora_forward)
def right_lora(x, weight, a, b, *, alpha):
    return x @ weight.T + alpha / len(a) * (x @ a.T @ b.T)


@wrong(lora_forward, "alpha / rank is missing: without it the correction grows with the rank.")
def lora_without_scale(x, weight, a, b, *, alpha):
    return x @ weight.T + x @ a.T @ b.T


@wrong(lora_forward, "alpha is not divided by the rank: the scale is alpha / rank.")
def lora_scaled_by_alpha(x, weight, a, b, *, alpha):
    return x @ weight.T + alpha * (x @ a.T @ b.T)


@wrong(lora_forward, "The scale is alpha / sqrt(rank): that is rsLoRA. LoRA's is alpha / rank.", seen="rsLoRA")
def lora_by_root_of_rank(x, weight, a, b, *, alpha):
    return x @ weight.T + alpha / math.sqrt(len(a)) * (x @ a.T @ b.T)


@wrong(lora_forward, "The frozen weight is missing: the correction is ADDED to what the base computes.")
def lora_without_base(x, weight, a, b, *, alpha):
    return alpha / len(a) * (x @ a.T @ b.T)


@wrong(lora_forward, "The correction is subtracted: y = x W^T + (alpha / R) x A^T B^T.")
def lora_subtracted(x, weight, a, b, *, alpha):
    return x @ weight.T - alpha / len(a) * (x @ a.T @ b.T)


@wrong(lora_forward, "The base is scaled too: alpha / rank belongs to the correction alone.")
def base_scaled_too(x, weight, a, b, *, alpha):
    return alpha / len(a) * (x @ weight.T + x @ a.T @ b.T)


@wrong(lora_forward, "The rank is read from the wrong axis: it is a.shape[0], the thin one.")
def rank_of_the_wrong_axis(x, weight, a, b, *, alpha):
    return x @ weight.T + alpha / a.shape[1] * (x @ a.T @ b.T)


# The drills


def _attended(seed: int, rows: int, heads: int, length: int, width: int) -> Case:
    shape = (rows, heads, length, width)
    tensors = {name: numbers(seed + i, *shape) for i, name in enumerate(("q", "k", "v"))}
    return Case(tensors | {"mask": torch.ones(length, length, dtype=torch.bool, device="cpu").tril()}, {})


def _attended_ragged(seed: int) -> Case:
    """Two rows, the second padded on the left: a mask a row, (B, 1, S, S)."""
    case = _attended(seed, 2, 2, 4, 3)
    real = ragged([4, 3], 4).flip(1)
    eye = torch.eye(4, dtype=torch.bool, device="cpu")
    return Case(case.inputs | {"mask": (case.inputs["mask"] & real[:, None, None, :]) | eye}, {})


def _thin(seed: int, rows: int, inputs: int, outputs: int, rank: int, alpha: float) -> Case:
    weights = {
        "weight": numbers(seed + 1, outputs, inputs),
        "a": numbers(seed + 2, rank, inputs),
        "b": numbers(seed + 3, outputs, rank),
    }
    return Case({"x": numbers(seed, rows, inputs)} | weights, {"alpha": alpha})


DRILLS = [
    Drill(
        softmax,
        [Case({"logits": numbers(60 + i, *shape)}, {}) for i, shape in enumerate([(1, 2), (1, 3), (2, 3), (3, 5)])],
        (
            "Positive first, then a sum of 1. Which function makes every number positive?",
            "exp, divided by its own sum over the last axis; keepdim=True lets the division broadcast.",
            "e = (logits - logits.amax(-1, keepdim=True)).exp(); e / e.sum(-1, keepdim=True).",
        ),
        ["logits"],
        ["probabilities"],
    ),
    Drill(
        naive_attention,
        [_attended(10, 1, 1, 1, 2), _attended(20, 1, 1, 2, 2), _attended(30, 1, 2, 3, 4), _attended_ragged(40)],
        (
            "Three steps: scores of every query with every key, weights, a weighted mean of the values.",
            "Scores are q k^T / sqrt(E). A forbidden key has to get weight 0: which score has exp(score) = 0?",
            "(q @ k.transpose(-1, -2) / math.sqrt(E)).masked_fill(~mask, -inf).softmax(-1) @ v.",
        ),
        ["q", "k", "v"],
        ["mixed"],
    ),
    Drill(
        rms_norm,
        [
            Case({"x": numbers(i, *shape), "weight": numbers(i + 50, shape[1], low=0.3, high=1.7)}, {"eps": 1e-5})
            for i, shape in enumerate([(1, 2), (1, 3), (2, 4), (3, 6)])
        ],
        (
            "Root, mean, square: read from right to left.",
            "Each row by its own size; nothing is subtracted.",
            "weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps).",
        ),
        ["x", "weight"],
        ["normed"],
        tolerance=1e-4,  # any small eps will do
    ),
    Drill(
        rotary,
        [
            Case({"x": numbers(70 + i, *shape)}, {"base": base})
            for i, (shape, base) in enumerate([((1, 2), 100.0), ((2, 2), 100.0), ((2, 4), 100.0), ((5, 6), 50.0)])
        ],
        (
            "Two channels are a point in the plane. A turn by an angle keeps its length.",
            "The angle is position times speed; pair i of E/2 has the speed base^(-2i / E).",
            "a, b = x.chunk(2, -1); cat([a * cos - b * sin, b * cos + a * sin], -1), with angles (S, E/2).",
        ),
        ["x"],
        ["turned"],
    ),
    Drill(
        lora_forward,
        [_thin(1, 1, 2, 2, 1, 2.0), _thin(11, 2, 3, 2, 1, 2.0), _thin(21, 2, 5, 3, 2, 6.0), _thin(31, 3, 4, 6, 3, 1.5)],
        (
            "The frozen layer's output, and a thin one's added to it.",
            "x goes through A (to R numbers), then through B (to O numbers).",
            "x @ weight.T + alpha / len(a) * (x @ a.T) @ b.T.",
        ),
        ["x", "a", "b"],
        ["y"],
    ),
]
