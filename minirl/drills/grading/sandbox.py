"""The grader's side of a submission's process: starting it, asking it within a time limit, ending it."""

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MOST_BYTES = 32_000_000  # waiting to be read from one process
KEPT_OUTPUT = 1000  # characters of what it printed


class Stopped(BaseException):
    """The process has ended, by itself or not. No Exception: `check` is to let it through."""

    def __init__(self, status: str, why: str):
        super().__init__(why)
        self.status, self.why = status, why  # "timeout" or "crash", and a sentence without its subject


class Sandbox:
    """Starts processes, one at a time. Forks them from a server that has imported torch on Linux, else starts afresh."""

    def __init__(
        self,
        *,
        memory: int = 2_000_000_000,
        cpu_seconds: int = 600,
        fork: bool = sys.platform == "linux",
        namespaces: bool = True,
    ):
        self.limits = {"memory": memory, "cpu_seconds": cpu_seconds, "file_size": 16_000_000, "namespaces": namespaces}
        self.fork, self.server, self.control = fork, None, None
        self.held: dict[str, str] = {}  # what the last process was kept from
        self.folder = Path(tempfile.mkdtemp(prefix="minirl_grade_"))
        (self.folder / "home").mkdir()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end_server()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> "Process":
        """A process that has not read any submission. OSError if it does not come up within two minutes."""
        scratch = tempfile.mkdtemp(dir=self.folder)
        settings = json.dumps(self.limits | {"scratch": scratch})
        process = self._forked(settings) if self.fork else self._spawned(settings)
        try:
            self.held = process.receive("held", 120)["held"]
        except Stopped as stopped:
            process.end()
            raise OSError(f"a process for submissions could not be started: {stopped.why}") from None
        process.watch_memory = self.limits["memory"] if self.held["memory"] == "not limited" else None
        return process

    def _environment(self) -> dict[str, str]:
        """Enough to import torch and minirl. No keys, no proxies, no home."""
        keep = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
        home = str(self.folder / "home")
        package = str(Path(__file__).resolve().parents[3])
        paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        own |= {"CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg", "HOME": home, "USERPROFILE": home, "TMPDIR": home}
        own |= {"PYTHONIOENCODING": "utf-8:replace", "TEMP": home, "TMP": home}
        return {name: os.environ[name] for name in keep if name in os.environ} | own

    def _forked(self, settings: str) -> "Process":
        pipes = [os.pipe() for _ in range(3)]  # requests, replies, output
        (theirs, ours), (replies, said), (output, printed) = pipes
        try:
            for attempt in range(2):
                if self.server is None:
                    self._start_server()
                try:
                    socket.send_fds(self.control, [settings.encode()], [theirs, said, printed])
                    break
                except OSError:  # it was killed
                    self._end_server()
                    if attempt:
                        raise
        finally:
            for fd in (theirs, said, printed):
                os.close(fd)

        def kill():
            try:
                self.control.send(b"kill")
            except OSError:
                self._end_server()

        return Process(ours, replies, output, kill)

    def _start_server(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "minirl.drills.grading.server", str(theirs.fileno())]
        with (self.folder / "server.txt").open("wb") as said:
            self.server = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env=self._environment(),
                cwd=self.folder / "home",
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        theirs.close()
        self.control.settimeout(120)
        if self.control.recv(100) != b"ready":
            said = (self.folder / "server.txt").read_text(errors="replace")
            raise OSError(f"the process that starts submissions did not come up: {said[-500:]}")

    def _end_server(self) -> None:
        if self.server is not None:
            self.control.close()
            self.server.kill()
            self.server.wait()
            self.server = None

    def _spawned(self, settings: str) -> "Process":
        guard = str(Path(__file__).with_name("server.py"))
        command = [sys.executable, "-P", "-m", "minirl.drills.grading.child", settings]
        process = subprocess.Popen(
            [sys.executable, "-I", guard, *command],
            env=self._environment(),
            cwd=self.folder / "home",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

        def kill():
            if os.name == "posix":
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass
            else:  # a session is no group of processes there
                subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True)
            process.wait()

        fds = [os.dup(stream.fileno()) for stream in (process.stdin, process.stdout, process.stderr)]
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        return Process(*fds, kill, group=process.pid)


class Process:
    """One submission's process: requests out, replies and whatever it prints in, each way with a bound."""

    def __init__(self, requests: int, replies: int, output: int, kill, group: int | None = None):
        self.requests, self.kill, self.group = requests, kill, group
        self.last_piece: dict | None = None
        self.printed, self.head = 0, b""
        self.stopped: Stopped | None = None
        self.watch_memory: int | None = None
        self.asked = self.waiting = 0
        self.writer: threading.Thread | None = None
        self.lines: queue.Queue = queue.Queue()
        self.readers = [threading.Thread(target=self._read, args=(replies,), daemon=True)]
        self.readers += [threading.Thread(target=self._drain, args=(output,), daemon=True)]
        for reader in self.readers:
            reader.start()

    def ask(self, message: dict, seconds: float) -> dict:
        """The reply. Raises Stopped where there is none in that time, now and at every later call."""
        if self.stopped:
            raise self.stopped
        self.asked += 1
        line = json.dumps(message | {"id": self.asked}).encode() + b"\n"
        # in a thread: a process that no longer reads must not hold the grader up
        self.writer = threading.Thread(target=self._write, args=(line,), daemon=True)
        self.writer.start()
        return self.receive("id", seconds)

    def receive(self, key: str, seconds: float) -> dict:
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            try:
                line = self.lines.get(timeout=max(min(left, 0.25), 0.001))
            except queue.Empty:
                line = ""
            if line is None:
                self._stop("crash", "ended its process without a word")
            if line == "flood":
                self._stop("crash", "wrote a flood of data into the channel of the grader")
            reply = self._understood(line)
            if "ended" in reply:
                self._stop("crash", _how(reply["ended"]))
            if "piece" in reply:
                self.last_piece = reply
            elif key in reply and (key != "id" or reply["id"] == self.asked):
                return reply
            if left <= 0:
                self._stop("timeout", f"took more than {seconds:g} s and was stopped (an infinite loop?)")
            if not line and self.watch_memory and self._resident() > self.watch_memory:
                self._stop("crash", f"held more than {self.watch_memory / 1e9:.3g} GB of memory and was stopped")

    def end(self) -> None:
        """Kills it, whatever it is doing. May be called again."""
        if self.requests is None:
            return
        self.stopped = self.stopped or Stopped("crash", "was already ended")
        self.kill()
        for thread in filter(None, [*self.readers, self.writer]):
            thread.join(2)
        os.close(self.requests)
        self.requests = None

    def _stop(self, status: str, why: str) -> None:
        self.stopped = Stopped(status, why)
        self.end()
        raise self.stopped

    def _understood(self, line) -> dict:
        self.waiting -= len(line)
        try:
            reply = json.loads(line) if line else {}
        except (ValueError, RecursionError):
            return {}
        return reply if isinstance(reply, dict) else {}

    def _write(self, line: bytes) -> None:
        try:
            while line:
                line = line[os.write(self.requests, line) :]
        except OSError:
            pass  # it has ended, which the reply will say

    def _read(self, replies: int) -> None:
        unfinished, flooded = [], False
        with os.fdopen(replies, "rb", buffering=0) as stream:
            while chunk := stream.read(1 << 20):
                self.waiting += len(chunk)
                flooded = flooded or self.waiting > MOST_BYTES
                if flooded:  # read on, so that it is not held up, and keep nothing
                    self.lines.put("flood") if not self.lines.qsize() else None
                    continue
                *whole, rest = chunk.split(b"\n")
                for part in whole:
                    self.lines.put(b"".join([*unfinished, part]) + b"\n")
                    unfinished = []
                unfinished.append(rest)
        self.lines.put(None)

    def _drain(self, output: int) -> None:
        with os.fdopen(output, "rb", buffering=0) as stream:
            while chunk := stream.read(1 << 20):
                self.printed += len(chunk)
                self.head = (self.head + chunk[:KEPT_OUTPUT])[:KEPT_OUTPUT]

    def _resident(self) -> int:
        """Bytes in memory of the whole group, where the system has no limit of its own. 0 if that cannot be read."""
        if self.group is None or os.name != "posix":
            return 0
        table = subprocess.run(["ps", "-A", "-o", "pgid=,rss="], capture_output=True, text=True).stdout
        rows = [line.split() for line in table.splitlines()]
        return sum(1024 * int(rss) for group, rss in rows if int(group) == self.group)


def _how(code) -> str:
    if not isinstance(code, int) or code >= 0:
        return f"ended its process (exit code {code}: os._exit or the like)"
    names = {int(number): number.name for number in signal.valid_signals() if isinstance(number, signal.Signals)}
    return f"ended its process (signal {names.get(-code, -code)})"
