"""Wrong versions of one merge of BPE, of the SFT loss, and of pass@k."""

import math

import torch
import torch.nn.functional as F

from minirl.drills.bank import Case, Drill, numbers, right, wrong
from minirl.drills.by_hand import bpe_merge, pass_at_k, sft_loss

# One merge of byte-pair encoding


right(bpe_merge)(bpe_merge)


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


@wrong(sft_loss, "The end token is not learned: it is part of the answer, and the model has to learn to stop.")
def sft_end_not_learned(logits, tokens, mask):
    counted = (mask & F.pad(mask[:, 1:], (0, 1)))[:, 1:]
    losses = -_picked(logits[:, :-1], tokens[:, 1:])
    return (losses * counted).sum() / counted.sum()


@wrong(sft_loss, "Softmax is taken twice: cross-entropy and log_softmax want logits.")
def sft_softmax_twice(logits, tokens, mask):
    losses, counted = -_picked(logits[:, :-1].softmax(-1), tokens[:, 1:]), mask[:, 1:]
    return (losses * counted).sum() / counted.sum()


@wrong(sft_loss, "The losses are added up: take their mean, so that the learning rate does not depend on the batch.")
def sft_summed(logits, tokens, mask):
    losses, counted = -_picked(logits[:, :-1], tokens[:, 1:]), mask[:, 1:]
    return (losses * counted).sum()


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
            _written(1, [2], [4], 4, 3),
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
