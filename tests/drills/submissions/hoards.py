"""More memory than there is, bit by bit and at once; and a result that is too large to be read."""

import torch


def kl_k1(logprobs, ref_logprobs):
    return logprobs - ref_logprobs


def kl_k2(logprobs, ref_logprobs):
    x = []
    while True:
        x.append(bytearray(100_000_000))


def kl_k3(logprobs, ref_logprobs):
    return torch.empty(25_000_000_000).fill_(1.0)


def entropy(logits):
    return torch.zeros(1000, 1000)
