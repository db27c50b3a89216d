"""Exceptions that are no Exception, that cannot be shown, and one in a gradient."""

import torch


class Nasty(BaseException):
    def __str__(self):
        raise SystemExit


class Torn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise KeyboardInterrupt


def kl_k1(logprobs, ref_logprobs):
    return logprobs - ref_logprobs


def kl_k2(logprobs, ref_logprobs):
    raise Nasty


def kl_k3(logprobs, ref_logprobs):
    return Torn.apply(logprobs - ref_logprobs)


def entropy(logits):
    return entropy(logits)


raise GeneratorExit


def token_mean(x, mask):
    return x[mask].mean()
