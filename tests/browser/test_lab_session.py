"""Programs that do not start say why, and none outlives its test. Needs no browser."""

import socket
import sys
import time

import lab_session
import psutil
import pytest


def test_no_chromium_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    with pytest.raises(lab_session.NotStarted, match="no Chromium: install it"):
        lab_session.chromium_path()
    monkeypatch.setenv("CHROMIUM", "/no/such/browser")
    with pytest.raises(lab_session.NotStarted, match="CHROMIUM names /no/such/browser, and that is no program"):
        lab_session.start_chromium(tmp_path)


def test_what_ends_at_once_says_why(tmp_path):
    program = lab_session.Program.start([sys.executable, "-c", "raise SystemExit('no port')"], tmp_path / "log")

    def ask():
        raise OSError("refused")

    with pytest.raises(lab_session.NotStarted, match="it ended at once; it said:\nno port"):
        lab_session.answer_within(30, program, "it", ask)
    program.end()


def test_what_never_answers_is_given_up(tmp_path):
    program = lab_session.Program.start([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log")

    def ask():
        raise OSError("refused")

    with pytest.raises(lab_session.NotStarted, match=r"it did not answer in 0.3 s"):
        lab_session.answer_within(0.3, program, "it", ask)
    program.end()
    assert program.process.returncode is not None


def lives(member: psutil.Process) -> bool:
    """A zombie does not: nothing is left of it but its number, until somebody asks how it ended."""
    return member.is_running() and member.status() != psutil.STATUS_ZOMBIE


STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)


def test_the_deaf_and_their_children_are_ended(tmp_path):
    """A child in a group of its own, as kernels are, that does not hear SIGTERM."""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {STUBBORN!r}], start_new_session=True)"
    program = lab_session.Program.start([sys.executable, "-c", parent], tmp_path / "log")
    while "deaf" not in program.log.read_text():
        time.sleep(0.05)
    (child,) = psutil.Process(program.process.pid).children()
    program.end(patience=0.3)
    program.end(patience=0.3)  # twice is fine
    assert program.process.returncode is not None and not lives(child)


def test_nothing_is_left_behind(tmp_path):
    """Neither the server, nor its kernel, nor the port; and no folder but the given one is used."""
    lab = lab_session.start_lab(tmp_path, tmp_path)
    folder, port = tmp_path / "home", int(lab.url.rpartition(":")[2])
    try:
        lab.ask("/api/kernels", "POST")
        family = psutil.Process(lab.program.process.pid).children(recursive=True)
        assert any("ipykernel" in " ".join(member.cmdline()) for member in family)
        assert list((folder / "jupyter_runtime_dir").glob("jpserver-*.json"))
    finally:
        lab.program.end()
    assert not any(map(lives, family))
    with socket.socket() as asked:
        assert asked.connect_ex(("127.0.0.1", port)) != 0
