"""Wrong versions of one step with a KV cache, and of top-p."""

import math

import torch

from minirl.drills.bank import Case, Drill, numbers, right, wrong
from minirl.drills.by_hand import kv_cache_step
from minirl.generate import nucleus

# The KV cache


def _mixed(q, keys, values):
    scores = (keys @ q.unsqueeze(-1)).squeeze(-1) / math.sqrt(q.shape[-1])
    return (scores.softmax(-1).unsqueeze(1) @ values).squeeze(1)


@right(kv_cache_step)
def right_step(q, k, v, keys, values):
    keys = torch.cat([keys, k.unsqueeze(1)], 1)
    values = torch.cat([values, v.unsqueeze(1)], 1)
    return _mixed(q, keys, values), keys, values


@wrong(kv_cache_step, "The token does not see itself: append its key and value before it looks around.")
def appended_too_late(q, k, v, keys, values):
    mixed = _mixed(q, keys, values)
    keys = torch.cat([keys, k.unsqueeze(1)], 1)
    values = torch.cat([values, v.unsqueeze(1)], 1)
    return mixed, keys, values


@wrong(kv_cache_step, "The cache is forgotten: the token sees itself alone, so that its own value comes back.")
def sees_itself_alone(q, k, v, keys, values):
    keys = torch.cat([keys, k.unsqueeze(1)], 1)
    values = torch.cat([values, v.unsqueeze(1)], 1)
    return _mixed(q, keys[:, -1:], values[:, -1:]), keys, values


@wrong(kv_cache_step, "Nothing is appended: the next token will not see this one.")
def cache_not_grown(q, k, v, keys, values):
    longer = torch.cat([keys, k.unsqueeze(1)], 1)
    mixed = _mixed(q, longer, torch.cat([values, v.unsqueeze(1)], 1))
    return mixed, keys, values


@wrong(kv_cache_step, "The new position was put in front: positions stand in the order of the text.")
def prepended(q, k, v, keys, values):
    keys = torch.cat([k.unsqueeze(1), keys], 1)
    values = torch.cat([v.unsqueeze(1), values], 1)
    return _mixed(q, keys, values), keys, values


@wrong(kv_cache_step, "The last position is overwritten: append, do not replace.")
def last_overwritten(q, k, v, keys, values):
    keys = torch.cat([keys[:, :-1], k.unsqueeze(1)], 1)
    values = torch.cat([values[:, :-1], v.unsqueeze(1)], 1)
    return _mixed(q, keys, values), keys, values


@wrong(kv_cache_step, "The key was stored as the value too: append v to values.")
def key_stored_twice(q, k, v, keys, values):
    keys = torch.cat([keys, k.unsqueeze(1)], 1)
    values = torch.cat([values, k.unsqueeze(1)], 1)
    return _mixed(q, keys, values), keys, values


@wrong(kv_cache_step, "The scale is missing: divide the scores by sqrt(E), as without a cache.")
def step_without_scale(q, k, v, keys, values):
    keys = torch.cat([keys, k.unsqueeze(1)], 1)
    values = torch.cat([values, v.unsqueeze(1)], 1)
    return _mixed(q * math.sqrt(q.shape[-1]), keys, values), keys, values


# The nucleus


def _before(ordered):
    return ordered.cumsum(-1) - ordered


def _put_back(probs, order, ordered):
    return torch.zeros_like(probs).scatter(-1, order, ordered)


@right(nucleus)
def right_nucleus(probs, top_p):
    ordered, order = probs.sort(-1, descending=True)
    kept = _put_back(probs, order, ordered.masked_fill(_before(ordered) >= top_p, 0.0))
    return kept / kept.sum(-1, keepdim=True)


@wrong(nucleus, "The token that crosses top_p is dropped: the set has to hold AT LEAST top_p, so it stays.")
def crossing_token_dropped(probs, top_p):
    ordered, order = probs.sort(-1, descending=True)
    dropped = ordered.cumsum(-1) > top_p
    dropped[:, 0] = False
    kept = _put_back(probs, order, ordered.masked_fill(dropped, 0.0))
    return kept / kept.sum(-1, keepdim=True)


@wrong(
    nucleus,
    "All tokens are cut where the first holds more than top_p: compare what stands BEFORE a token, and one stays.",
)
def cut_where_the_sum_passes(probs, top_p):
    ordered, order = probs.sort(-1, descending=True)
    kept = _put_back(probs, order, ordered.masked_fill(ordered.cumsum(-1) > top_p, 0.0))
    return kept / kept.sum(-1, keepdim=True)


@wrong(
    nucleus, "gather goes the wrong way: order says where each sorted token came from, so scatter puts it back there."
)
def gathered_back(probs, top_p):
    ordered, order = probs.sort(-1, descending=True)
    kept = ordered.masked_fill(_before(ordered) >= top_p, 0.0).gather(-1, order)
    return kept / kept.sum(-1, keepdim=True)


@wrong(nucleus, "What is left is not divided by its sum: the result has to be a distribution again.")
def nucleus_not_renormalised(probs, top_p):
    ordered, order = probs.sort(-1, descending=True)
    return _put_back(probs, order, ordered.masked_fill(_before(ordered) >= top_p, 0.0))


@wrong(nucleus, "The least probable tokens are kept: sort in descending order.")
def tail_kept(probs, top_p):
    ordered, order = probs.sort(-1, descending=False)
    kept = _put_back(probs, order, ordered.masked_fill(_before(ordered) >= top_p, 0.0))
    return kept / kept.sum(-1, keepdim=True)


@wrong(nucleus, "The result stands in sorted order: scatter it back to where each token was.")
def left_in_order(probs, top_p):
    ordered, _ = probs.sort(-1, descending=True)
    kept = ordered.masked_fill(_before(ordered) >= top_p, 0.0)
    return kept / kept.sum(-1, keepdim=True)


@wrong(nucleus, "Each token is compared with top_p on its own: it is the cumulative sum that reaches top_p.")
def probability_above_top_p(probs, top_p):
    kept = probs * (probs >= top_p)
    return kept / kept.sum(-1, keepdim=True)


@wrong(nucleus, "One token too many: it is kept although those before it hold top_p already.")
def one_token_more(probs, top_p):
    ordered, order = probs.sort(-1, descending=True)
    kept = _put_back(probs, order, ordered.masked_fill(_before(ordered) - ordered >= top_p, 0.0))
    return kept / kept.sum(-1, keepdim=True)


@wrong(nucleus, "Nothing is cut off: tokens beyond the first that together hold top_p get probability 0.")
def nothing_cut(probs, top_p):
    return probs / probs.sum(-1, keepdim=True)


# The drills


def _cached(seed: int, heads: int, length: int, width: int) -> Case:
    one = {name: numbers(seed + i, heads, width) for i, name in enumerate("qkv")}
    kept = {name: numbers(seed + 4 + i, heads, length, width) for i, name in enumerate(("keys", "values"))}
    return Case(one | kept, {})


def _likely(rows: list[list[float]], top_p: float) -> Case:
    return Case({"probs": torch.tensor(rows, dtype=torch.float64), "top_p": top_p}, {})


DRILLS = [
    Drill(
        kv_cache_step,
        [_cached(1, 1, 1, 2), _cached(11, 1, 2, 2), _cached(21, 2, 3, 4), _cached(31, 3, 4, 5)],
        (
            "What does a causal mask allow the newest token to see?",
            "Everything kept and itself: append k and v along the axis of positions first.",
            "torch.cat([keys, k.unsqueeze(1)], 1); softmax of keys @ q / sqrt(E); weights @ values.",
        ),
        outputs=["mixed", "keys", "values"],
    ),
    Drill(
        nucleus,
        [
            _likely([[0.7, 0.3]], 0.5),
            _likely([[0.3, 0.5, 0.2]], 0.6),
            _likely([[0.35, 0.2, 0.45]], 0.4),
            _likely([[0.1, 0.2, 0.3, 0.4]], 0.65),
            _likely([[0.05, 0.4, 0.15, 0.4], [0.25, 0.35, 0.1, 0.3], [0.02, 0.03, 0.05, 0.9]], 0.75),
        ],
        (
            "Sort, most probable first. Whose probability decides whether a token stays: its own, or that of those before it?",
            "A token stays while those BEFORE it hold less than top_p: cumsum minus its own probability.",
            "masked_fill(before >= top_p, 0), scatter back to the old places, divide by the sum.",
        ),
        outputs=["probabilities"],
    ),
]
