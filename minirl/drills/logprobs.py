"""Wrong versions of token and sequence log-probabilities, of entropy, and of the one shift."""

import math

import torch
import torch.nn.functional as F

from minirl.drills.bank import Case, Drill, logprobs_like, masked_cases, numbers, right, wrong
from minirl.logprobs import entropy, response_slice, sequence_logprobs, token_logprobs

# Tokens


@right(token_logprobs)
def right_logprobs(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@wrong(token_logprobs, "Logits are not log-probabilities: take log_softmax over the vocabulary before you pick.")
def picked_logits(logits, tokens):
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@wrong(token_logprobs, "The logarithm is missing: these are probabilities.")
def picked_probabilities(logits, tokens):
    return logits.softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@wrong(token_logprobs, "The sign is cross-entropy's: a log-probability is never positive.")
def cross_entropy_for_logprobs(logits, tokens):
    return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


@wrong(token_logprobs, "The softmax runs over the positions: it belongs over the vocabulary, the last axis.")
def softmax_over_positions(logits, tokens):
    return logits.log_softmax(1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@wrong(
    token_logprobs,
    "The shift happens twice: the logits given already predict the tokens beside them. Do not shift here.",
)
def shifted_again(logits, tokens):
    return logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)


@wrong(token_logprobs, "This is the most likely token's log-probability: pick the one of the token that was sampled.")
def likeliest_token(logits, tokens):
    return logits.log_softmax(-1).max(-1).values


# Entropy


@right(entropy)
def right_entropy(logits):
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


@wrong(entropy, "The minus is missing: an entropy is never negative.")
def negative_entropy(logits):
    return (logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


@wrong(entropy, "The mean over the vocabulary divides by V: sum, for the probabilities are the weights already.")
def entropy_averaged(logits):
    return -(logits.softmax(-1) * logits.log_softmax(-1)).mean(-1)


@wrong(entropy, "Logits stand where log-probabilities belong: -sum p log p, with log_softmax.")
def entropy_of_logits(logits):
    return -(logits.softmax(-1) * logits).sum(-1)


@wrong(entropy, "The weights are missing: each log-probability counts with its probability.")
def entropy_unweighted(logits):
    return -logits.log_softmax(-1).mean(-1)


@wrong(entropy, "These are bits: the library counts in nats, with the natural logarithm.")
def entropy_in_bits(logits):
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1) / math.log(2)


# The shift


@right(response_slice)
def right_slice(x, length):
    return x[:, -length - 1 : -1]


@wrong(response_slice, "One too late: position s predicts token s + 1, so the slice starts one before the response.")
def slice_at_the_tokens(x, length):
    return x[:, -length:]


@wrong(response_slice, "One too early: the slice starts ONE position before the response, not two.")
def slice_one_too_early(x, length):
    return x[:, -length - 2 : -2]


@wrong(response_slice, "This is the beginning of the prompt: the response stands at the end.")
def slice_of_the_prompt(x, length):
    return x[:, :length]


@wrong(response_slice, "Only the last position is dropped: the prompt's own predictions have to go too.")
def prompt_kept(x, length):
    return x[:, :-1]


@wrong(
    response_slice,
    "The start is right, but the last position predicts nothing that was sampled: end one before the end.",
)
def end_not_dropped(x, length):
    return x[:, -length - 1 :]


# Sequences


@right(sequence_logprobs)
def right_sequence(logprobs, mask):
    return (logprobs * mask).sum(1)


@wrong(
    sequence_logprobs, "This averages over the tokens: log pi(y|x) is the SUM. DPO with averages is another objective."
)
def averaged_sequence(logprobs, mask):
    return (logprobs * mask).sum(1) / mask.sum(1).clamp(min=1)


@wrong(sequence_logprobs, "The mask is not used: padding is added up too.")
def sequence_with_padding(logprobs, mask):
    return logprobs.sum(1)


@wrong(sequence_logprobs, "The mask is upside down: True means that a token counts.")
def sum_of_padding(logprobs, mask):
    return (logprobs * ~mask).sum(1)


@wrong(sequence_logprobs, "The sign is wrong: this is the negative log-likelihood.")
def negative_sequence(logprobs, mask):
    return -(logprobs * mask).sum(1)


@wrong(sequence_logprobs, "This is the probability: stay with logarithms, for long responses it underflows to 0.")
def probability_of_sequence(logprobs, mask):
    return (logprobs * mask).sum(1).exp()


@wrong(sequence_logprobs, "The rows are added up too: one number a response.")
def one_sum_for_all(logprobs, mask):
    return (logprobs * mask).sum()


# The drills


def _positions(seed: int, rows: int, width: int, length: int) -> Case:
    return Case({"x": numbers(seed, rows, width), "length": length}, {})


def _sampled(seed: int, rows: int, width: int, vocabulary: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocabulary, (rows, width), generator=generator, device="cpu")
    return Case({"logits": numbers(seed + 1, rows, width, vocabulary), "tokens": tokens}, {})


SHAPES = [(1, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5)]

DRILLS = [
    Drill(
        token_logprobs,
        [_sampled(i, *shape) for i, shape in enumerate(SHAPES)],
        (
            "From logits to log-probabilities over the vocabulary first.",
            "Then pick one entry a position: gather on the last axis wants an index with that axis, of length 1.",
            "logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1).",
        ),
        ["logits"],
        ["logprobs"],
    ),
    Drill(
        entropy,
        [Case({"logits": numbers(20 + i, *shape)}, {}) for i, shape in enumerate(SHAPES)],
        (
            "-sum p log p over the vocabulary.",
            "log_softmax gives log p, its exp gives p.",
            "logp = logits.log_softmax(-1); -(logp.exp() * logp).sum(-1).",
        ),
        ["logits"],
        ["entropy"],
    ),
    Drill(
        response_slice,
        [_positions(1, 1, 2, 1), _positions(2, 1, 4, 2), _positions(3, 2, 5, 3), _positions(4, 3, 7, 3)],
        (
            "Write down p0 p1 r0 r1 and, under each, which token its logits predict.",
            "r0 is predicted at p1, r1 at r0, and r1 predicts nothing that was sampled.",
            "Start at -length - 1, end at -1.",
        ),
        ["x"],
        ["slice"],
    ),
    Drill(
        sequence_logprobs,
        masked_cases(lambda seed, mask: {"logprobs": logprobs_like(seed, *mask.shape), "mask": mask}),
        (
            "The probability of a response is the product over its tokens.",
            "So its logarithm is a sum, over the counted tokens of each row.",
            "(logprobs * mask).sum(1).",
        ),
        ["logprobs"],
        ["logprobs"],
    ),
]
