"""SIGTERM, SIGHUP and Ctrl-C: the step that runs is finished and saved, and a line says how to go on. Two runs in one folder."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from faults.harness import ROOT, Forge, alive, arguments, differences, steps_done

from minirl.disk import alone_in
from minirl.run import Run
from minirl.signals import Ended, finishing_the_step, listening

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has Ctrl-C only, and no kill to send it with")
SIGHUP = getattr(signal, "SIGHUP", None)  # so that Windows can read this file, and skip it
MANY = 400  # steps: nobody waits for the last one


@pytest.fixture(scope="module")
def forge():
    with Forge() as forge:
        yield forge


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Tests that run in the background, or under nohup, inherit signals that are ignored."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_for(what, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("loop", "number", "exits"),
    [("grpo", signal.SIGTERM, 0), ("pretrain", signal.SIGINT, 130), ("dpo", SIGHUP, 0)],
)
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, forge, loop, number, exits, record_property):
    out, whole, log = tmp_path / "my out", tmp_path / "whole", tmp_path / "log"
    argv = arguments(loop, out)
    argv[argv.index("--checkpoint-every") + 1] = "1000"  # none is due before the end
    pid = forge.start(argv, log=log)
    wait_for(lambda: steps_done(out) >= 3)
    os.kill(pid, number)
    assert forge.status() == exits
    done = steps_done(out)
    assert 3 <= done < 16
    said = [line for line in log.read_text().splitlines() if line.startswith("minirl:")]
    assert len(said) == 2 and said[0].startswith("minirl: finishing this step, then saving")
    assert f"stopped after step {done} of 16, saved in {out}/checkpoints/step_{done:06d}" in said[1]
    command = shlex.split(said[1].partition("To go on: ")[2])
    assert command[:3] == ["python", "-m", "minirl"] and command[-1] == "--resume" and command.count("--resume") == 1
    assert forge.run(command[3:]) == 0, "the command that it named"
    assert forge.run([str(whole) if word == str(out) else word for word in command[3:]]) == 0
    assert differences(out, whole) == []
    record_property("faults survived", 1)


def test_a_second_ctrl_c_does_not_wait(tmp_path, forge):
    """A step that takes for ever: the first Ctrl-C waits for it, the second does not."""
    rule = tmp_path / "rule.py"
    rule.write_text(
        "import pathlib, time\n"
        "def judge(prompts, responses):\n"
        f"    here = pathlib.Path({str(tmp_path)!r}) / 'calls'\n"
        "    with open(here, 'a') as file:\n"
        "        file.write('x')\n"
        "    if here.stat().st_size >= 3:\n"
        "        time.sleep(600)\n"
        "    return [float(len(r) % 3) for r in responses]\n"
    )
    out, log = tmp_path / "out", tmp_path / "log"
    pid = forge.start(arguments("ppo", out, "--reward", f"{rule}:judge"), log=log)
    wait_for(lambda: (tmp_path / "calls").exists() and len((tmp_path / "calls").read_text()) == 3)
    os.kill(pid, signal.SIGINT)
    wait_for(lambda: "finishing this step" in log.read_text())
    time.sleep(0.2)
    assert alive(pid), "it waits"
    os.kill(pid, signal.SIGINT)
    assert forge.status() == 130
    assert "minirl: stopped at once. To go on: python -m minirl train ppo" in log.read_text()
    assert steps_done(out) == 2 and not (out / "lock").exists()


@pytest.mark.parametrize(("where", "number", "exits"), [("road", signal.SIGINT, 130), ("generate", signal.SIGTERM, 0)])
def test_outside_a_loop_too_it_says_how_to_go_on(tmp_path, forge, where, number, exits):
    log, out = tmp_path / "log", tmp_path / "road"
    if where == "road":
        argv = ["--out", str(out), "--threads", "1"]
        started = lambda: steps_done(out / "stories_pretrain") >= 2  # noqa: E731
    else:
        argv = ["generate", str(ROOT / "data/weights/stories_sft"), "-n", "512", "--max-new-tokens", "56"]
        argv += ["--prompt", "The"] * 40
        started = lambda: time.sleep(0.3) or True  # noqa: E731
    pid = forge.start(argv, log=log)
    wait_for(started)
    os.kill(pid, number)
    assert forge.status() == exits
    again = {
        "road": f"To go on: python -m minirl {' '.join(argv)} --resume",
        "generate": "The same command begins again",
    }
    assert again[where] in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.nightly
def test_from_the_real_command_line_too(tmp_path):
    """As a user starts it, not forked: an orphan of `python -m minirl` gets SIGTERM from its batch system."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "minirl", *arguments("reward_model", out, steps=MANY)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT)
    wait_for(lambda: steps_done(out) >= 2, 120)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and "To go on: python -m minirl train reward_model" in said


def test_a_signal_that_is_ignored_stays_ignored():
    """nohup, and `&` in a script: whoever said so meant it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_there_in_the_command_line_only_and_put_back():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(ZeroDivisionError), listening():
        assert [signal.getsignal(number) for number in numbers] != before
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in numbers] == before
    seen = []

    def in_a_thread():
        with listening():
            seen.append([signal.getsignal(number) for number in numbers])

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert seen == [before]


def test_in_a_notebook_ctrl_c_stays_a_keyboard_interrupt(tmp_path):
    run, before = Run(progress=False), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        for step in run.steps(run.track(), 9):
            assert signal.getsignal(signal.SIGINT) is before
            run.record(step, {"loss": torch.tensor(0.0)})
            if step == 2:
                signal.raise_signal(signal.SIGINT)
    assert type(caught.value) is KeyboardInterrupt and len(run.records) == 2
    with pytest.raises(KeyboardInterrupt) as caught, listening(), finishing_the_step() as asked:
        signal.raise_signal(signal.SIGINT)  # and where somebody listens it waits
        assert isinstance(asked(), Ended)
        raise asked()
    assert caught.value.exit_code == 130


def test_a_forked_worker_lives_through_ctrl_c_and_dies_of_sigterm():
    """A reward rule may have a pool of processes. A terminal sends Ctrl-C to them too, and the step needs them; but ending
    one must not run our handler in it."""
    with listening():
        ready, at_work = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                signal.raise_signal(signal.SIGINT)
                os.write(at_work, b"alive")
                time.sleep(60)
            finally:
                os._exit(3)
        os.close(at_work)
        assert os.read(ready, 5) == b"alive"
        os.close(ready)
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM


# Two processes in one folder


def test_a_second_run_in_the_same_folder_is_refused_and_kill_9_leaves_no_lock(tmp_path, forge, record_property):
    first, out, log = forge, tmp_path / "out", tmp_path / "log"
    with Forge() as second:
        pid = first.start(arguments("dpo", out, steps=MANY))
        wait_for(lambda: steps_done(out) >= 3)
        assert second.run(arguments("dpo", out, steps=MANY), log=log) == 2
        assert f"minirl: {out}: process {pid} on " in log.read_text()
        assert "is at work here. Wait for it, stop it, or choose another --out" in log.read_text()
        assert alive(pid)
        os.kill(pid, signal.SIGKILL)
        assert first.status() == -signal.SIGKILL
        assert (out / "lock").exists(), "nobody could remove it"
        done = steps_done(out)
        assert second.run(arguments("dpo", out, steps=done + 2)) == 0
        assert steps_done(out) == done + 2 and not (out / "lock").exists()
    record_property("faults survived", 1)


def test_of_many_that_start_at_once_one_gets_in(tmp_path):
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from minirl.disk import alone_in\n"
        "while not Path('go').exists(): time.sleep(0.001)\n"
        "try:\n"
        "    with alone_in(Path('out')): time.sleep(1.5)\n"
        "except ValueError as error: sys.exit(3)\n"
    )
    many = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
        for _ in range(2)
    ]
    time.sleep(2)
    (tmp_path / "go").touch()
    assert sorted(process.wait(60) for process in many) == [0, 3]


def test_a_lock_is_gone_afterwards_and_a_folder_made_for_it_too(tmp_path):
    with pytest.raises(ZeroDivisionError), alone_in(tmp_path / "out"):
        assert (tmp_path / "out" / "lock").read_text().startswith(f"process {os.getpid()} on ")
        raise ZeroDivisionError
    assert not (tmp_path / "out").exists()
    with alone_in(tmp_path / "out"):
        (tmp_path / "out" / "metrics.jsonl").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["metrics.jsonl"]
