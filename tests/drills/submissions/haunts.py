"""What outlives a call: a busy thread, one that ends the process later, objects that bite when they go, atexit."""

import atexit
import os
import threading
import time


def later():
    time.sleep(0.3)
    os._exit(7)


def busy():
    while True:
        pass


class Trap:
    def __del__(self):
        os._exit(9)


class Number(float):
    def __float__(self):
        os._exit(8)


atexit.register(busy)


def kl_k1(logprobs, ref_logprobs):
    return logprobs - ref_logprobs


def kl_k2(logprobs, ref_logprobs):
    threading.Thread(target=later, daemon=True).start()
    return 0.5 * (logprobs - ref_logprobs) ** 2


def kl_k3(logprobs, ref_logprobs):
    threading.Thread(target=busy).start()
    difference = ref_logprobs - logprobs
    return difference.exp() - 1 - difference


def entropy(logits):
    return Trap()


def token_mean(x, mask):
    return Number(1.0)
