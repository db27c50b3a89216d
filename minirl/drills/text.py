"""Wrong versions of what happens around a language model: merges of BPE, the SFT loss, the KV cache, top-p, pass@k."""

import math

import torch

from minirl.drills.bank import Case, Drill, numbers, right, wrong
from minirl.drills.by_hand import bpe_merge, kv_cache_step, pass_at_k, sft_loss
from minirl.generate import nucleus

# One merge of byte-pair encoding


@right(bpe_merge)
def right_merge(tokens, pair, new):
    merged, i = [], 0
    while i < len(tokens):
        if tuple(tokens[i : i + 2]) == tuple(pair):
            merged.append(new)
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return merged


@wrong(bpe_merge, "Only the first occurrence is merged: replace all of them.")
def first_pair_only(tokens, pair, new):
    for i in range(len(tokens) - 1):
        if tuple(tokens[i : i + 2]) == tuple(pair):
            return [*tokens[:i], new, *tokens[i + 2 :]]
    return list(tokens)


@wrong(bpe_merge, "The second token of a pair stays: the new one stands for both, so go on two further.")
def second_token_kept(tokens, pair, new):
    merged, i = [], 0
    while i < len(tokens):
        if tuple(tokens[i : i + 2]) == tuple(pair):
            merged.append(new)
            i += 1
        else:
            merged.append(tokens[i])
            i += 1
    return merged


@wrong(bpe_merge, "This merges from the right: where pairs overlap, [7, 7, 7], the left one is taken.")
def merged_from_the_right(tokens, pair, new):
    merged, i = [], len(tokens)
    while i > 0:
        if i > 1 and tuple(tokens[i - 2 : i]) == tuple(pair):
            merged.insert(0, new)
            i -= 2
        else:
            merged.insert(0, tokens[i - 1])
            i -= 1
    return merged


@wrong(bpe_merge, "The pair matches in either order: (a, b) is not (b, a).")
def either_order(tokens, pair, new):
    merged, i = [], 0
    while i < len(tokens):
        if sorted(tokens[i : i + 2]) == sorted(pair):
            merged.append(new)
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return merged


@wrong(bpe_merge, "The last token is lost: a loop over pairs ends one too early, so add what is left over.")
def last_token_lost(tokens, pair, new):
    merged, i = [], 0
    while i < len(tokens) - 1:
        if tuple(tokens[i : i + 2]) == tuple(pair):
            merged.append(new)
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return merged


@wrong(bpe_merge, "Only the first token of the pair is looked at: both have to match.")
def first_token_enough(tokens, pair, new):
    merged, i = [], 0
    while i < len(tokens):
        if tokens[i] == pair[0]:
            merged.append(new)
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return merged


# The loss of supervised fine-tuning


def _picked(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@right(sft_loss)
def right_sft(logits, tokens, mask):
    losses, counted = -_picked(logits[:, :-1], tokens[:, 1:]), mask[:, 1:]
    return (losses * counted).sum() / counted.sum()


@wrong(
    sft_loss,
    "Nothing is shifted: position s predicts token s + 1, and here it is asked for the token it has just read.",
)
def sft_without_shift(logits, tokens, mask):
    losses, counted = -_picked(logits, tokens), mask
    return (losses * counted).sum() / counted.sum()


@wrong(sft_loss, "The shift goes the wrong way: logits lose their last position, tokens their first.")
def sft_shifted_backwards(logits, tokens, mask):
    losses, counted = -_picked(logits[:, 1:], tokens[:, :-1]), mask[:, :-1]
    return (losses * counted).sum() / counted.sum()


@wrong(sft_loss, "The mask is not shifted with the tokens: mask[:, 1:], or the first answer token is not learned.")
def sft_mask_not_shifted(logits, tokens, mask):
    losses, counted = -_picked(logits[:, :-1], tokens[:, 1:]), mask[:, :-1]
    return (losses * counted).sum() / counted.sum()


@wrong(sft_loss, "The mask is not used: the prompt and the padding are learned too.")
def sft_on_everything(logits, tokens, mask):
    return -_picked(logits[:, :-1], tokens[:, 1:]).mean()


@wrong(sft_loss, "Masked terms are set to 0, but still divided by: divide by the number of counted tokens.")
def sft_divided_by_everything(logits, tokens, mask):
    losses, counted = -_picked(logits[:, :-1], tokens[:, 1:]), mask[:, 1:]
    return (losses * counted).mean()


@wrong(sft_loss, "The mask is upside down: this learns the prompt and the padding.")
def sft_on_the_prompt(logits, tokens, mask):
    losses, counted = -_picked(logits[:, :-1], tokens[:, 1:]), ~mask[:, 1:]
    return (losses * counted).sum() / counted.sum()


@wrong(sft_loss, "The minus is missing: the likelihood is to grow, and an optimiser minimises.")
def sft_unnegated(logits, tokens, mask):
    losses, counted = _picked(logits[:, :-1], tokens[:, 1:]), mask[:, 1:]
    return (losses * counted).sum() / counted.sum()


@wrong(
    sft_loss,
    "Each row is averaged on its own, so that a token of a short answer weighs more: one mean over all tokens.",
)
def sft_by_rows(logits, tokens, mask):
    losses, counted = -_picked(logits[:, :-1], tokens[:, 1:]), mask[:, 1:]
    return ((losses * counted).sum(1) / counted.sum(1)).mean()


@wrong(sft_loss, "The losses are added up: take their mean, so that the learning rate does not depend on the batch.")
def sft_summed(logits, tokens, mask):
    losses, counted = -_picked(logits[:, :-1], tokens[:, 1:]), mask[:, 1:]
    return (losses * counted).sum()


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
    kept = probs * (probs >= probs.amax(-1, keepdim=True) * top_p)
    return kept / kept.sum(-1, keepdim=True)


@wrong(nucleus, "One token too many: it is kept although those before it hold top_p already.")
def one_token_more(probs, top_p):
    ordered, order = probs.sort(-1, descending=True)
    kept = _put_back(probs, order, ordered.masked_fill(_before(ordered) - ordered >= top_p, 0.0))
    return kept / kept.sum(-1, keepdim=True)


@wrong(nucleus, "Nothing is cut off: tokens beyond the first that together hold top_p get probability 0.")
def nothing_cut(probs, top_p):
    return probs / probs.sum(-1, keepdim=True)


# pass@k


def _misses(n, correct, k):
    return torch.tensor([math.comb(n - c, k) / math.comb(n, k) for c in correct.tolist()], dtype=torch.float64)


@right(pass_at_k)
def right_pass(n, correct, k):
    return 1 - _misses(n, correct, k)


@wrong(
    pass_at_k,
    "1 - (1 - c/n)^k draws with replacement, and is biased: too low. Count subsets: 1 - C(n - c, k) / C(n, k).",
)
def pass_with_replacement(n, correct, k):
    return 1 - (1 - correct / n) ** k


@wrong(pass_at_k, "This is pass@1, the share of right answers: k is not used.")
def pass_at_one(n, correct, k):
    return correct / n


@wrong(pass_at_k, "This is the chance that all k miss: take 1 minus it.")
def chance_to_miss(n, correct, k):
    return _misses(n, correct, k)


@wrong(pass_at_k, "This is the chance that ALL k are right: one is enough.")
def all_k_right(n, correct, k):
    return torch.tensor([math.comb(c, k) / math.comb(n, k) for c in correct.tolist()], dtype=torch.float64)


@wrong(pass_at_k, "k times the share of right answers counts a problem twice when two answers are right.")
def k_times_the_share(n, correct, k):
    return (k * correct / n).clamp(max=1)


@wrong(pass_at_k, "This says whether any of the n was right, which is pass@n: k answers are drawn from the n.")
def any_of_n(n, correct, k):
    return (correct > 0).double()


# The drills


def _merged(tokens: list[int], pair: tuple[int, int]) -> Case:
    return Case({"tokens": tokens, "pair": pair, "new": 9}, {})


def _written(seed: int, starts: list[int], ends: list[int], width: int, vocabulary: int) -> Case:
    """Row b is a prompt up to starts[b], an answer up to ends[b], and padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (len(starts), width), generator=generator, device="cpu")
    places = torch.arange(width, device="cpu")
    mask = (places >= torch.tensor(starts)[:, None]) & (places < torch.tensor(ends)[:, None])
    return Case({"logits": numbers(seed + 1, len(starts), width, vocabulary), "tokens": tokens, "mask": mask}, {})


def _cached(seed: int, heads: int, length: int, width: int) -> Case:
    one = {name: numbers(seed + i, heads, width) for i, name in enumerate("qkv")}
    kept = {name: numbers(seed + 4 + i, heads, length, width) for i, name in enumerate(("keys", "values"))}
    return Case(one | kept, {})


def _likely(rows: list[list[float]], top_p: float) -> Case:
    return Case({"probs": torch.tensor(rows, dtype=torch.float64), "top_p": top_p}, {})


DRILLS = [
    Drill(
        bpe_merge,
        [
            _merged([5, 6], (5, 6)),
            _merged([1, 5, 6, 2], (5, 6)),
            _merged([5, 2, 6, 5], (5, 6)),
            _merged([7, 7, 7], (7, 7)),
            _merged([5, 6, 6, 5, 6, 1, 5], (5, 6)),
            _merged([7, 7, 7, 7, 1, 7, 7, 7, 2], (7, 7)),
        ],
        (
            "Walk along the tokens with an index. What do you do at a match, and how far do you go on?",
            "At a match: write new, go on by 2. Else: write the token, go on by 1.",
            "while i < len(tokens): compare tuple(tokens[i : i + 2]) with the pair; a slice at the end is short, and fine.",
        ),
        outputs=["tokens"],
    ),
    Drill(
        sft_loss,
        [
            _written(1, [1], [2], 2, 3),
            _written(2, [1], [3], 3, 3),
            _written(3, [2], [4], 5, 3),
            _written(4, [1, 3], [5, 4], 6, 4),
            _written(5, [2, 1, 3], [4, 7, 6], 7, 5),
        ],
        (
            "Which position's logits predict the first token of the answer?",
            "logits[:, :-1] beside tokens[:, 1:]. The mask belongs to the tokens, so it is cut like them.",
            "-log_softmax picked at tokens[:, 1:], times mask[:, 1:], summed, divided by mask[:, 1:].sum().",
        ),
        ["logits"],
        ["loss"],
    ),
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
    Drill(
        pass_at_k,
        [
            Case({"n": n, "correct": torch.tensor(correct), "k": k}, {})
            for n, correct, k in [(2, [1], 2), (4, [1], 2), (4, [0, 2, 4], 2), (10, [1, 3, 5, 8], 4)]
        ],
        (
            "Easier: the chance that all k answers are wrong.",
            "Of all ways to choose k of the n answers, how many avoid the right ones? math.comb.",
            "1 - math.comb(n - c, k) / math.comb(n, k); comb is 0 where k > n - c.",
        ),
        outputs=["chances"],
    ),
]
