"""The grader: right marks for sound submissions, and words for those that loop, hoard, leave, multiply, talk and patch."""

import csv
import json
import socket
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch

from minirl.drills import BANK, check, names
from minirl.drills import solutions as plain
from minirl.drills.grading import command
from minirl.drills.grading.grade import Marks, Verdict, check_sizes, grade
from minirl.drills.grading.report import page, summary, write_grades
from minirl.drills.grading.sandbox import Sandbox, Stopped
from minirl.drills.grading.submissions import Submission, asked, cells, read, read_submissions
from minirl.drills.judge import verdict
from minirl.drills.performance import from_json

HERE = Path(__file__).parent / "submissions"
DRILLS = ["kl_k2", "kl_k3", "kl_k1", "entropy", "token_mean", "token_logprobs", "sequence_mean"]
RIGHT = "def kl_k1(logprobs, ref_logprobs):\n    return logprobs - ref_logprobs\n"

# of each submission: its marks, and words of its report
PRANKS = {
    "loops": (
        {"kl_k1": "ok", "kl_k2": "timeout", "kl_k3": "timeout"},
        ["kl_k2: it took more than 2 s", "set a handler for the signal SIGTERM"],
    ),
    "loops_when_read": (
        {"kl_k1": "ok", "kl_k2": "ok"},
        ["line 10: it took more than 2 s", "line 18: it ended its process (exit code 0", "what else is in the file"],
    ),
    "hoards": (
        {"kl_k1": "ok", "kl_k2": "error", "kl_k3": "error", "entropy": "error"},
        ["it wanted more memory than a submission may have", "100000000000 bytes", "more than 200,000 numbers"],
    ),
    "leaves": (
        {k: "crash" for k in ("kl_k2", "entropy")}
        | {k: "error" for k in ("kl_k3", "token_mean", "token_logprobs")}
        | {"kl_k1": "ok"},
        ["exit code 0", "SystemExit: good bye", "signal SIGKILL", "leaves.py, line 25: os.kill(os.getppid(), 9)"],
    ),
    "multiplies": (
        {"kl_k1": "ok", "kl_k2": "error", "kl_k3": "error"},
        ["line 14: if os.fork() == 0:", "can't start new thread", "left a thread running"],
    ),
    "talks": ({"kl_k1": "ok", "kl_k2": "timeout", "kl_k3": "timeout"}, ["B, cut", "printed ", "printed first"]),
    "turns_knobs": (
        {"kl_k1": "ok", "kl_k2": "ok"},
        [
            "while the file was read, it called torch.set_default_dtype(float64)",
            *("set_grad_enabled(False)", "set_num_threads(3)", "set_deterministic_debug_mode(1)", "manual_seed("),
        ],
    ),
    "patches": (
        {"kl_k1": "ok", "kl_k2": "wrong"},
        [f"replaced {x}\n" for x in ("minirl.drills.check", "minirl.drills.judge.check", "minirl.kl.kl_k2")]
        + [f"replaced {x}\n" for x in ("torch.allclose", "torch.equal", "sys.exit", "json.dumps")],
    ),
    "forges": ({"kl_k1": "ok", "kl_k2": "error", "kl_k3": "crash"}, ["could not be read", "flood of data"]),
    "destroys": (
        {"kl_k1": "ok", "kl_k2": "error", "kl_k3": "error", "entropy": "error"},
        ["no network while a submission is graded", "line 21: _socket.socket(", "EOFError"],
    ),
    "throws": (
        {"kl_k1": "ok", "kl_k2": "error", "kl_k3": "error", "entropy": "error", "token_mean": "ok"},
        ["Nasty: (its text cannot be shown)", "KeyboardInterrupt", "RecursionError", "line 37 raised GeneratorExit"],
    ),
    "haunts": (
        {"kl_k1": "ok", "kl_k2": "ok", "kl_k3": "ok", "entropy": "crash", "token_mean": "wrong"},
        ["left a thread running", "exit code 9"],
    ),
    "odd": (
        {"kl_k2": "error", "kl_k3": "error", "token_mean": "error", "token_logprobs": "error", "sequence_mean": "todo"},
        ["got str", "wanted a function, got int"],
    ),
    "borrows": (
        {"kl_k1": "todo", "kl_k2": "library", "kl_k3": "ok", "token_mean": "ok"},
        ["it calls minirl.kl.kl_k2, which was the thing to write"],
    ),
}


@pytest.fixture(scope="module")
def sandbox():
    if sys.platform != "linux":
        pytest.skip("elsewhere each process imports torch anew, which takes too long here")
    with Sandbox(memory=500_000_000) as sandbox:
        sandbox.start().end()
        if "no new ones" not in sandbox.held["processes"]:
            pytest.skip("system calls cannot be filtered here, and the pranks would be in earnest")
        yield sandbox


@pytest.fixture
def graded(sandbox):
    def graded(source: str | Path, *drills: str, **limits) -> Marks:
        one = read(source, source.stem) if isinstance(source, Path) else Submission("x", "x.py", [source])
        return grade(one, list(drills), sandbox, **({"seconds": 5.0, "import_seconds": 5.0} | limits))

    return graded


def status_of(marks: Marks) -> dict[str, str]:
    return {mark.drill: mark.status for mark in marks.verdicts}


# Sound submissions


def test_the_mark_is_that_of_check(graded):
    """Right ones, one known mistake of every drill, numbers that are none: status, mistake and message word for word."""
    some = names()[::5]
    assert "AdaptiveKL" in some
    one_of_each = {mutant.of.__name__: mutant for mutant in BANK if mutant.of.__name__ in some}
    planted = "".join(
        f"def {name}(*args, **knobs):\n"
        f"    return next(m for m in BANK if (m.of.__name__, m.name) == {(name, mutant.name)})"
        ".function(*args, **knobs)\n"
        for name, mutant in one_of_each.items()
    )
    for source, functions in [
        (Path(plain.__file__), {name: getattr(plain, name) for name in some}),
        ("from minirl.drills import BANK\n" + planted, {name: one.function for name, one in one_of_each.items()}),
        ("import torch\n" + RIGHT.replace("-", "- 3 *"), {"kl_k1": lambda logprobs, ref: logprobs - 3 * ref}),
    ]:
        for mark in graded(source, *functions).verdicts:
            result = check(mark.drill, functions[mark.drill])
            assert (mark.status, mark.mistake, mark.message) == (result.status, result.mistake, result.message)
            assert mark.notes == ()


def test_an_exception_is_told_with_its_line(graded):
    marks = graded("def kl_k1(logprobs, ref_logprobs):\n    ratio = 1 / 0\n    return ratio\n", "kl_k1")
    assert "ZeroDivisionError: division by zero" in marks.verdicts[0].message
    assert "x.py, line 2: ratio = 1 / 0" in marks.verdicts[0].message


def test_the_library_itself_may_help(graded):
    source = "from minirl.masking import token_mean\nfrom minirl.kl import kl_k1, AdaptiveKL as Known\n"
    source += "def value_loss(values, returns, mask):\n    return token_mean(0.5 * (values - returns) ** 2, mask)\n"
    source += "class AdaptiveKL(Known):\n    pass\n"
    source += "from minirl import kl\ndef kl_k2(*policies):\n    return -kl.kl_k2(*policies)\n"
    assert status_of(graded(source, "value_loss", "token_mean", "kl_k1", "AdaptiveKL", "kl_k2")) == {
        "value_loss": "ok",
        "token_mean": "todo",
        "kl_k1": "todo",
        "AdaptiveKL": "library",
        "kl_k2": "mistake",
    }


def test_cells_run_in_order_past_magics_and_past_those_that_fail(graded, tmp_path):
    code = [
        "%matplotlib inline\nimport torch\n!pip install this\ntorch.tensor?\nx = !ls\nif True:\n    %time pass",
        "%%bash\nrm -rf ~",
        "from __future__ import annotations\nhalf = 0.5\nraise ValueError('first')",
        "text = 'kept: %s' \\\n    % half\ndef kl_k2(logprobs, ref_logprobs):\n    return half * (logprobs - ref_logprobs) ** 2",
        "this is no python",
        "import os; os._exit(3)",
        RIGHT,
        "assert text == 'kept: 0.5'",
    ]
    notebook = {"cells": [{"cell_type": "code", "source": text.splitlines(True)} for text in code]}
    notebook["cells"].insert(1, {"cell_type": "markdown", "source": "# words"})
    (tmp_path / "n.ipynb").write_text(json.dumps(notebook))
    marks = graded(tmp_path / "n.ipynb", "kl_k1", "kl_k2")
    assert status_of(marks) == {"kl_k1": "ok", "kl_k2": "ok"}
    said = "\n".join(marks.notes)
    for told in (
        "cell 3 raised ValueError: first",
        "cell 5, line 1 raised SyntaxError",
        "cell 6: it ended its process",
    ):
        assert told in said
    assert "cell 8" not in said and "cell 1" not in said


# Pranks


@pytest.fixture(scope="module")
def folder(sandbox) -> dict[str, Marks]:
    good, marks = read(HERE / "good.py", "good"), {}
    marks["before"] = grade(good, DRILLS, sandbox)
    for one in read_submissions(HERE):
        endless = one.student in ("loops", "loops_when_read", "talks")
        limits = {"seconds": 2.0, "import_seconds": 2.0} if endless else {"seconds": 20.0}
        marks[one.student] = grade(one, DRILLS, sandbox, **limits)
    return marks | {"after": grade(good, DRILLS, sandbox)}


def test_there_is_a_prank_in_every_file():
    assert {path.stem for path in HERE.glob("*.py")} == PRANKS.keys() | {"good"}


@pytest.mark.parametrize("name", PRANKS)
def test_a_prank_is_survived_and_told(folder, name):
    wanted, words = PRANKS[name]
    found = status_of(folder[name])
    assert {drill: found[drill] for drill in wanted} == wanted
    text = page(folder[name])
    assert [said for said in words if said not in text] == []


def test_the_marks_of_the_others_stay_what_they_were(folder):
    assert status_of(folder["before"]) | {"kl_k1": "ok", "kl_k2": "mistake", "kl_k3": "todo"} == status_of(
        folder["before"]
    )
    assert folder["before"].verdicts[0].mistake == "negative_k2" and folder["before"].notes == []
    assert folder["before"].verdicts == folder["good"].verdicts == folder["after"].verdicts


def test_the_grader_is_what_it_was(folder):
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled() and torch.get_num_threads() == 1
    assert check("kl_k2", lambda logprobs, ref_logprobs: logprobs).status == "wrong"
    assert (HERE / "good.py").exists() and Path.cwd().exists()


def test_what_all_code_shares_is_put_back(graded):
    source = "import torch\ntorch.set_default_dtype(torch.float64)\ntorch.set_num_threads(2)\n"
    source += "def kl_k1(*_):\n    raise ValueError(f'{torch.get_default_dtype()} {torch.get_num_threads()}')\n"
    assert "torch.float32 1" in graded(source, "kl_k1").verdicts[0].message


def test_what_a_drill_replaced_is_whole_again_in_the_next(graded):
    source = "import torch\n" + RIGHT.replace("    return", "    torch.exp = None\n    return")
    source += "def kl_k3(logprobs, ref_logprobs):\n    d = ref_logprobs - logprobs\n    return torch.exp(d) - 1 - d\n"
    marks = graded(source, "kl_k1", "kl_k3")
    assert status_of(marks) == {"kl_k1": "ok", "kl_k3": "ok"}
    assert marks.verdicts[0].notes == ("it replaced torch.exp",)


def test_output_without_end_is_kept_to_a_page(folder):
    assert len(folder["talks"].head) <= 1000 and len(page(folder["talks"])) < 10_000


def test_a_drill_does_not_pay_for_the_one_before(graded):
    """A timer that goes off in the next drill: that one is tried again in a process of its own."""
    source = "import signal, time\ndef kl_k1(logprobs, ref_logprobs):\n    signal.setitimer(signal.ITIMER_REAL, 0.2)\n"
    source += "    return logprobs - ref_logprobs\ndef kl_k2(logprobs, ref_logprobs):\n    global slept\n"
    source += "    if 'slept' not in globals():\n        slept = time.sleep(0.4)\n"
    source += "    return 0.5 * (logprobs - ref_logprobs) ** 2\n"
    assert status_of(graded(source, "kl_k1", "kl_k2")) == {"kl_k1": "ok", "kl_k2": "ok"}


def test_no_way_out_to_the_network(graded, sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        port = server.getsockname()[1]
        source = (
            "import ctypes, socket, struct, _socket\n"
            f"def kl_k1(*_):\n    socket.create_connection(('127.0.0.1', {port}))\n"
            f"def kl_k2(*_):\n    _socket.socket().connect(('127.0.0.1', {port}))\n"
            "def kl_k3(*_):\n    raise ValueError(f'the number is {ctypes.CDLL(None).socket(2, 1, 0)}')\n"
        )
        marks = graded(source, "kl_k1", "kl_k2", "kl_k3")
        with pytest.raises(TimeoutError):
            server.accept()
    assert set(status_of(marks).values()) == {"error"}
    if "denied" in sandbox.held["network"]:
        assert "the number is -1" in marks.verdicts[2].message


def test_files_outside_are_read_only(graded, sandbox, tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    source = f"import os, shutil\ndef kl_k1(*_):\n    shutil.rmtree({str(tmp_path)!r})\n"
    source += f"def kl_k2(*_):\n    open({str(kept)!r}, 'w')\n"
    source += "def kl_k3(*_):\n    open('here.txt', 'w').write('x')\n    raise ValueError(os.listdir('.'))\n"
    source += "def entropy(*_):\n    open('large', 'wb').write(bytes(20_000_000))\n"
    if "read-only" not in sandbox.held["files"]:
        pytest.skip("user namespaces are not permitted here")
    marks = graded(source, "kl_k1", "kl_k2", "kl_k3", "entropy")
    assert kept.read_text() == "kept"
    said = [mark.message for mark in marks.verdicts]
    assert "Read-only" in said[0] and "Read-only" in said[1] and "ValueError: ['here.txt']" in said[2]
    assert "File too large" in said[3]


def test_secrets_of_the_environment_are_not_handed_on(graded, sandbox, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "sesame")
    handed_on = sandbox._environment()
    assert "PATH" in handed_on and "SECRET_TOKEN" not in handed_on and str(Path.home()) not in handed_on["HOME"]
    said = graded("import os\nprint(*sorted(os.environ), os.path.expanduser('~'))\n", "kl_k1").head.split()
    assert set(said[:-1]) <= handed_on.keys() | {"LC_CTYPE"} and said[-1].startswith(str(sandbox.folder))


def test_without_namespaces_the_rest_holds(graded, sandbox, monkeypatch):
    monkeypatch.setitem(sandbox.limits, "namespaces", False)
    source = RIGHT + "import os, _socket\ndef kl_k2(*_):\n    os.kill(os.getppid(), 9)\n"
    source += "def kl_k3(*_):\n    _socket.socket()\n"
    assert status_of(graded(source, "kl_k2", "kl_k3", "kl_k1")) == {"kl_k1": "ok", "kl_k2": "error", "kl_k3": "error"}
    assert "not protected" in sandbox.held["files"] and "denied" in sandbox.held["network"]


def test_a_server_that_was_killed_is_replaced(graded, sandbox):
    graded(RIGHT, "kl_k1")
    sandbox.server.kill()
    sandbox.server.wait()
    assert status_of(graded(RIGHT, "kl_k1")) == {"kl_k1": "ok"}


def test_nothing_is_left_running(sandbox, graded):
    graded("import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n" + RIGHT, "kl_k1")
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(sandbox.server.pid)], capture_output=True, text=True)
    assert children.stdout.strip() == ""


def test_where_nothing_can_be_forked_the_marks_are_the_same():
    """As on macOS and Windows: a process that imports torch, under a guard that does not."""
    with Sandbox(memory=500_000_000, fork=False) as apart:
        source = RIGHT + "print('hello')\ndef kl_k2(*_):\n    while True: pass\n"
        load = {"do": "load", "filename": "x.py", "sources": [source], "notebook": False, "skip": []}
        process = apart.start()
        assert process.ask(load, 20) == {"failed": [], "changed": [], "id": 1}
        performance = process.ask({"do": "drill", "name": "kl_k1"}, 20)["performance"]
        assert verdict("kl_k1", from_json(performance)).status == "ok" and process.head == b"hello\n"
        process.watch_memory = 2_000_000_000
        assert 50_000_000 < process._resident() < process.watch_memory
        with pytest.raises(Stopped, match="took more than 1 s"):
            process.ask({"do": "drill", "name": "kl_k2"}, 1)
        assert process._resident() == 0
        with pytest.raises(Stopped, match="took more than 1 s"):
            process.ask({"do": "drill", "name": "kl_k1"}, 1)


def test_memory_is_watched_where_it_cannot_be_limited(sandbox):
    process = sandbox.start()
    process.watch_memory, process._resident = 1000, lambda: 2000
    source = "while True: pass"
    with pytest.raises(Stopped, match="held more than 1e-06 GB of memory"):
        process.ask({"do": "load", "filename": "x", "sources": [source], "notebook": False, "skip": []}, 20)


def test_what_a_dishonest_process_says_is_read_with_suspicion():
    table = {"shape": [0, 10**9], "numbers": []}
    for answers, probed in [
        ([{"values": [table], "gradients": {}}], {}),
        ([], {"p": {"values": [], "gradients": {"x": table}}}),
    ]:
        with pytest.raises(ValueError, match="more than 200,000 numbers"):
            check_sizes({"answers": answers, "probed": probed})


# The folder, the command, the reports


def test_what_cannot_be_read_is_told_and_the_others_are_graded(graded, tmp_path):
    contents = {
        "latin.py": (b'x = "\xff\xfe"\n', "cannot be read"),
        "huge.py": (b"#" * 1_100_000, "larger than 1 MB"),
        "nul.py": (b"x = 1\0\n", "null bytes"),
        "syntax.py": (b"def kl_k1(logprobs)\n    pass\n", "line 1: SyntaxError: expected ':'"),
        "nest.py": (b"x = " + b"(" * 10_000, "SyntaxError"),
        "list.ipynb": (b"[]", "no notebook"),
        "json.ipynb": (b"{", "cannot be read"),
        "deep.ipynb": (b"[" * 100_000, "cannot be read"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    for one in read_submissions(tmp_path):
        marks = grade_unread = graded(tmp_path / one.filename, "kl_k1", "kl_k2")
        assert set(status_of(marks).values()) == {"unread"} and marks.points == 0
        assert contents[one.filename][1] in page(grade_unread), one.filename


def test_students_are_files_and_folders_with_one_file(tmp_path):
    for name in (
        "b.py",
        "a.ipynb",
        "twice.py",
        "twice.ipynb",
        "notes.txt",
        ".hidden.py",
        "c/homework.py",
        "d/1.py",
        "d/2.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"cells": []}' if name.endswith("ipynb") else RIGHT)
    found = {one.student: one for one in read_submissions(tmp_path)}
    assert list(found) == ["a", "b", "c", "d", "twice.ipynb", "twice.py"]
    assert found["c"].filename == "homework.py" and "got 2" in found["d"].problem
    assert found["b"].defines(names()) == {"kl_k1"} and not found["a"].defines(names())
    assert cells(b'{"cells": [{"cell_type": "code", "source": ["a\\n", "b"]}, {"cell_type": "markdown"}]}') == ["a\nb"]


def test_which_drills_are_asked(tmp_path):
    some = [Submission("x", "x.py", ["from minirl.kl import kl_k2\nkl_k3 = None\n  gae = 1\n" + RIGHT])]
    assert asked(None, some, names()) == ["kl_k1", "kl_k3"]
    assert asked("gae, kl_k1,gae", some, names()) == ["gae", "kl_k1"]
    (tmp_path / "week1.txt").write_text("# week 1\ngae\n\nkl_k1  # easy\n")
    assert asked(str(tmp_path / "week1.txt"), some, names()) == ["gae", "kl_k1"]
    for wrong in ("gae,gea", "week2.txt", ","):
        with pytest.raises(ValueError, match=r"^--drills: wanted"):
            asked(wrong, some, names())
    with pytest.raises(ValueError, match=r"^--drills: no submission defines"):
        asked(None, [Submission("x", "x.py", ["x = 1"])], names())


def run(*words) -> int:
    parser = ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def test_bad_arguments_are_named(tmp_path):
    (tmp_path / "a.py").write_text(RIGHT)
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, said in [
        ([tmp_path / "none"], "submissions: wanted a folder"),
        ([empty], "submissions: wanted NAME.py"),
        ([tmp_path, "--out", tmp_path], "--out: wanted a file"),
        ([tmp_path, "--out", tmp_path / "no" / "g.csv"], "--out: wanted a file"),
        ([tmp_path, "--reports", tmp_path / "a.py"], "--reports: wanted a folder"),
        ([tmp_path, "--seconds", 0], "--seconds: wanted more than 0"),
        ([tmp_path, "--memory", "nan"], "--memory: wanted more than 0"),
        ([tmp_path, "--drills", "gea"], "--drills: wanted names"),
    ]:
        with pytest.raises(ValueError, match=f"^{said}"):
            run(*words)


@pytest.mark.skipif(sys.platform != "linux", reason="each process imports torch anew")
def test_the_command_writes_a_table_and_a_page_for_each(tmp_path, capsys):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "=ada.py").write_text(RIGHT)
    (tmp_path / "s" / "bob.py").write_text(RIGHT.replace("logprobs - ref_logprobs", "ref_logprobs - logprobs"))
    assert run(tmp_path / "s", "--out", tmp_path / "g.csv", "--drills", "kl_k1,gae") == 0
    rows = list(csv.reader((tmp_path / "g.csv").read_text().splitlines()))
    assert rows[0] == ["student", "kl_k1", "gae", "points", "total", "notes"]
    assert rows[1:] == [["'=ada", "ok", "todo", "1", "2", ""], ["bob", "reversed_k1", "todo", "0", "2", ""]]
    text = (tmp_path / "g_reports" / "bob.md").read_text()
    assert text.startswith("# bob: 0 of 2") and "| kl_k1 | reversed_k1 |" in text and "A hint: " in text
    assert (tmp_path / "g_reports" / "_ada.md").exists()
    out = capsys.readouterr().out
    assert "kl_k1    1 of 2 right   reversed_k1 1" in out
    assert "Submissions ran with: network: " in out


def test_what_a_submission_said_is_shown_as_text(tmp_path):
    marks = Marks("eve", "eve.py", head="<script>\x1b[2J\n# heading")
    marks.verdicts = [Verdict("gae", "error", None, "gae: <b>bold</b>\n```\n# top\n" + "x" * 9999, ("it\x07 rang",))]
    text = page(marks)
    for line in ("    <script>.[2J", "    # heading", "    gae: <b>bold</b>", "    ```", "    it. rang"):
        assert line in text.splitlines()
    assert len(text) < 6000
    assert "\x07" not in summary(["gae"], [marks], {}) and "\x1b" not in summary(["gae"], [marks], {})
    write_grades(tmp_path / "g.csv", ["gae"], [marks])
    assert len(list(csv.reader((tmp_path / "g.csv").read_text().splitlines()))) == 2
