"""Starts the processes of submissions, watches them end, and stands between them and the grader: a process that kills its
parent kills this one, which can be replaced.

    python -P -m minirl.drills.grading.server FD     imports torch once and forks for every request on socket FD (Linux)
    python server.py COMMAND ...                     runs one command and waits for it (elsewhere; no torch, so a moment)
"""

import json
import os
import select
import signal
import subprocess
import sys


def said_of(code: int) -> bytes:
    """The last line on the channel: how the process ended. code as in subprocess: negative for a signal."""
    return json.dumps({"ended": code}).encode() + b"\n"


def fork_server(control_fd: int) -> None:
    import ctypes
    import socket

    from minirl.drills.grading import child  # torch and the library, once

    control = socket.socket(fileno=control_fd)
    control.send(b"ready")
    while True:
        message, fds, *_ = socket.recv_fds(control, 1 << 16, 3)
        if not message:
            return
        if not fds:
            continue  # a "kill" that came too late
        pid = os.fork()
        if pid == 0:
            os.setsid()
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with this server
            control.close()
            for fd, standard in zip(fds, (0, 1, 2), strict=True):
                os.dup2(fd, standard)
                os.close(fd)
            try:
                child.main(json.loads(message))
            finally:
                os._exit(70)
        requests, replies, output = fds
        os.close(requests)
        os.close(output)
        code = _ended(pid, control)
        try:
            os.set_blocking(replies, False)
            os.write(replies, said_of(code))
        except OSError:
            pass  # nobody listens any more
        os.close(replies)


def _ended(pid: int, control) -> int:
    """Waits for the process, and ends it when the grader says so, or is gone."""
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            _kill_group(pid)  # what it has left behind, where it could
            return os.waitstatus_to_exitcode(status)
        if select.select([control], [], [], 0.02)[0]:
            control.recv(1 << 16)
            _kill_group(pid)
            os.kill(pid, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def guard(command: list[str]) -> None:
    code = subprocess.run(command).returncode
    os.write(1, said_of(code))


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        fork_server(int(sys.argv[1]))
    else:
        guard(sys.argv[1:])
