"""Ends of the process: at once, politely, by a signal, of the process above, of its own group."""

import os
import signal
import sys


def kl_k1(logprobs, ref_logprobs):
    return logprobs - ref_logprobs


def kl_k2(logprobs, ref_logprobs):
    os._exit(0)


def kl_k3(logprobs, ref_logprobs):
    sys.exit("good bye")


def entropy(logits):
    os.kill(os.getpid(), signal.SIGKILL)


def token_mean(x, mask):
    os.kill(os.getppid(), 9)


def token_logprobs(logits, tokens):
    os.kill(0, 9)
