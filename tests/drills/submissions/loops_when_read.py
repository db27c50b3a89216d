"""An infinite loop, and an end of the process, between the functions."""

import os


def kl_k1(logprobs, ref_logprobs):
    return logprobs - ref_logprobs


while True:
    pass


def kl_k2(logprobs, ref_logprobs):
    return 0.5 * (logprobs - ref_logprobs) ** 2


os._exit(0)
