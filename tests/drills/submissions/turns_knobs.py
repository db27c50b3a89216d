"""Changes what all code in a process shares, when read and when called."""

import random

import torch

torch.set_default_dtype(torch.float64)


def kl_k1(logprobs, ref_logprobs):
    torch.set_grad_enabled(False)
    torch.set_num_threads(3)
    torch.set_deterministic_debug_mode("warn")
    torch.manual_seed(random.randrange(10, 1000))
    with torch.enable_grad():
        return logprobs - ref_logprobs


def kl_k2(logprobs, ref_logprobs):
    return 0.5 * (logprobs - ref_logprobs) ** 2 + torch.zeros(1)
