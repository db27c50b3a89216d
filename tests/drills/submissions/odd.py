"""Results of every kind but the right one."""

import torch


def kl_k1(logprobs, ref_logprobs):
    return logprobs.to(torch.complex64)


def kl_k2(logprobs, ref_logprobs):
    nest = []
    for _ in range(100_000):
        nest = [nest]
    return nest


def kl_k3(logprobs, ref_logprobs):
    return "the answer is 42"


def entropy(logits):
    return torch.zeros(0, 199_999).expand(0, 199_999)


def token_mean(x, mask):
    return 10**400


token_logprobs = 3
sequence_mean = None
