"""Wrong versions of softmax and of attention."""

import math

import torch

from minirl.drills.bank import Case, Drill, numbers, ragged, right, wrong
from minirl.drills.by_hand import softmax
from minirl.model import naive_attention

# Softmax


right(softmax)(softmax)


@wrong(softmax, "The sum runs over the rows of the batch: each row is a distribution, so sum over the last axis.")
def softmax_over_the_batch(logits):
    e = (logits - logits.amax(0, keepdim=True)).exp()
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


@wrong(
    naive_attention,
    "The mask is upside down, and a query that may look at all keys sees none: 0 / 0. True means: look.",
)
def attention_mask_upside_down_to_infinity(q, k, v, mask):
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(mask, -torch.inf)
    return _weights(scores) @ v


@wrong(naive_attention, "The mask is made inside, and the given one ignored: it says which keys are padding, too.")
def causal_mask_of_its_own(q, k, v, mask):
    causal = torch.ones_like(mask).tril()
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~causal, -torch.inf)
    return _weights(scores) @ v


@wrong(naive_attention, "A token does not see itself: the mask includes the diagonal.")
def itself_not_seen(q, k, v, mask):
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask.tril(-1), -1e9)
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
        tolerance=1e-4,  # float32 through an exp
    ),
]
