"""An infinite loop in a function, deaf to polite signals; one that ends before its gradient, which never does."""

import signal

import torch

signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Endless(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        while True:
            pass


def kl_k1(logprobs, ref_logprobs):
    return logprobs - ref_logprobs


def kl_k2(logprobs, ref_logprobs):
    while True:
        pass


def kl_k3(logprobs, ref_logprobs):
    return Endless.apply(logprobs - ref_logprobs)
