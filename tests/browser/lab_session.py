"""JupyterLab on loopback and a Chromium beside it: folders, port and token of their own, and an end that is certain.

Nothing of the machine's own Jupyter is read or written. A program is ended together with all that it started. A server
whose test was killed without a word has no browser any more: it ends itself after ten idle minutes.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil  # comes with ipykernel

IDLE_SECONDS = 600
SETTINGS = {
    # All cells in the page at once: the default leaves out, or does not lay out, what is out of sight.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
    "@jupyterlab/apputils-extension/notification": {"checkForUpdates": False, "fetchNews": "false"},
    "@jupyterlab/apputils-extension/themes": {"adaptive-theme": True},  # dark when the browser asks for dark
}


class NotStarted(Exception):
    """A program is missing or did not come up; the message says which, and what it said."""


def chromium_path() -> str:
    """CHROMIUM if it is set, else an installed Chromium or Chrome. NotStarted where there is none."""
    named = os.environ.get("CHROMIUM")
    if named and shutil.which(named) is None:
        raise NotStarted(f"CHROMIUM names {named}, and that is no program")
    found = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise NotStarted("no Chromium: install it (apt install chromium), or name one in CHROMIUM")
    return found


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return asked.getsockname()[1]


@dataclass
class Program:
    """A running program; what it says goes to `log`. A Ctrl-C meant for the tests does not reach it."""

    process: subprocess.Popen
    log: Path

    @classmethod
    def start(cls, command: list[str], log: Path, **keywords) -> "Program":
        with log.open("wb") as out:
            keywords |= {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
            return cls(subprocess.Popen(command, start_new_session=True, **keywords), log)

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])

    def end(self, patience: float = 10.0) -> None:
        """SIGTERM first, SIGKILL for whoever is left, grandchildren too: kernels lead groups of their own."""
        try:
            family = [leader := psutil.Process(self.process.pid), *leader.children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        self.process.terminate()
        _, left = psutil.wait_procs(family, timeout=patience)
        for member in left:
            member.kill()
        psutil.wait_procs(left, timeout=patience)
        self.process.wait(patience)


@dataclass
class Lab:
    program: Program
    url: str
    token: str
    notebooks: Path  # the served folder

    def ask(self, path: str, method: str = "GET") -> object:
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}{path}", headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or "null")

    def end_kernels(self) -> None:
        """A kernel outlives the page that used it: without this, every notebook seen so far would stay in memory."""
        for session in self.ask("/api/sessions"):
            self.ask(f"/api/sessions/{session['id']}", "DELETE")


def lab_environment(home: Path, token: str) -> dict[str, str]:
    """The environment of the server and its kernels: no folder of the user's, no setting of the user's Jupyter."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "HOME")
    folders += ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    for name in folders:
        mine[name] = str(home / name.lower())
        (home / name.lower()).mkdir(parents=True)
    # Caches stay: the first picture of a machine without Matplotlib's list of fonts takes seconds and says so.
    mine.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return mine | {"JUPYTER_TOKEN": token}


def start_lab(folder: Path, notebooks: Path, *, patience: float = 60.0) -> Lab:
    """JupyterLab over `notebooks`, everything else of it in `folder`. NotStarted where it does not answer in time."""
    token = secrets.token_hex(16)
    environment = lab_environment(folder / "home", token)
    for name, values in SETTINGS.items():
        path = Path(environment["JUPYTERLAB_SETTINGS_DIR"]) / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    port = free_port()
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": notebooks,
        "ServerApp.shutdown_no_activity_timeout": IDLE_SECONDS,
        "MappingKernelManager.cull_idle_timeout": IDLE_SECONDS,
        "LabApp.extension_manager": "readonly",
        "FileContentsManager.delete_to_trash": False,
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser"]
    command += [f"--{name}={value}" for name, value in options.items()]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    program = Program.start(command, folder / "lab.log", cwd=notebooks, env=environment)
    lab = Lab(program, f"http://127.0.0.1:{port}", token, notebooks)
    try:
        answer_within(patience, program, "JupyterLab", lambda: lab.ask("/api/status"))
    except BaseException:
        program.end()
        raise
    return lab


def start_chromium(folder: Path, *, patience: float = 30.0) -> tuple[Program, str]:
    """(program, address for playwright's connect_over_cdp): a headless Chromium with an empty profile."""
    profile = folder / "profile"
    command = [chromium_path(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-breakpad"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    program = Program.start(command, folder / "chromium.log", env={**os.environ, "HOME": str(folder)})

    def address() -> str:
        port, _ = (profile / "DevToolsActivePort").read_text().splitlines()
        return f"http://127.0.0.1:{port}"

    try:
        return program, answer_within(patience, program, "Chromium", address)
    except BaseException:
        program.end()
        raise


@contextmanager
def ended_after(program: Program, seconds: float):
    """The last line of defence: whoever still waits for the program then is told that it is gone."""
    timer = threading.Timer(seconds, program.end, [0.5])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def answer_within(seconds: float, program: Program, name: str, ask):
    """What ask() returns, as soon as it does not fail."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except (urllib.error.URLError, OSError, ValueError) as error:
            if program.process.poll() is not None:
                raise NotStarted(f"{name} ended at once; it said:\n{program.tail()}") from error
            if time.monotonic() > deadline:
                raise NotStarted(f"{name} did not answer in {seconds:g} s; it said:\n{program.tail()}") from error
            time.sleep(0.2)
