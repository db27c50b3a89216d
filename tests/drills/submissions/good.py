"""Everything as it should be: one right, one with a known mistake, one still to be written."""


def kl_k1(logprobs, ref_logprobs):
    return logprobs - ref_logprobs


def kl_k2(logprobs, ref_logprobs):
    return -0.5 * (logprobs - ref_logprobs) ** 2


def kl_k3(logprobs, ref_logprobs):
    raise NotImplementedError
