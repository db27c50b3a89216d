"""Prints without end, in two ways, and much in a function that is right."""

import os
import sys


def kl_k1(logprobs, ref_logprobs):
    for _ in range(20):
        print("debug " * 10_000)
    return logprobs - ref_logprobs


def kl_k2(logprobs, ref_logprobs):
    while True:
        os.write(1, b"x" * 1_000_000)


def kl_k3(logprobs, ref_logprobs):
    while True:
        sys.stderr.write("y" * 1_000_000)
