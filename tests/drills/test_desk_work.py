"""Progress, interview mode, the two commands, and how a verdict looks in a notebook."""

import argparse
import json
import os
import pty
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minirl.drills import BANK, Interview, check, hint, keep_progress, names, progress
from minirl.drills import solutions as plain
from minirl.drills.command import (
    add_drill_arguments,
    add_interview_arguments,
    judged,
    listing,
    run_drill,
    run_interview,
    talk,
    write_stubs,
)
from minirl.drills.desk import CHAPTERS
from minirl.drills.display import as_text


@pytest.fixture(autouse=True)
def nothing_kept():
    yield
    keep_progress(None)


def wrong_k3(logprobs, ref_logprobs):
    return (logprobs - ref_logprobs).exp() - 1 - (logprobs - ref_logprobs)


# Progress


def test_nothing_is_written_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check("kl_k3", plain.kl_k3)
    hint("kl_k3", 1)
    assert progress() == {} and not list(tmp_path.iterdir())


def test_progress_is_kept_and_carried(tmp_path):
    path = tmp_path / "mine.json"
    assert keep_progress(path) == {}
    check("kl_k3", None)  # nothing was tried
    assert progress() == {}
    check("kl_k3", wrong_k3)
    check("kl_k3", wrong_k3)
    hint("kl_k3", 2)
    hint("kl_k3", 1)
    assert progress()["kl_k3"] == {"tries": 2, "hints": 2, "solved": None, "mistakes": ["swapped_k3"]}
    check("kl_k3", plain.kl_k3)
    check("kl_k3", wrong_k3)  # solved stays solved
    entry = progress()["kl_k3"]
    assert entry["tries"] == 4 and len(entry["solved"]) == len("2026-01-31")
    keep_progress(None)
    carried = path.rename(tmp_path / "other.json")
    assert keep_progress(carried)["kl_k3"] == entry
    assert json.loads(carried.read_text())["version"] == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2, "drills": {}}', '{"version": 1, "drills": {"gae": {}}}']
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path, text):
    path = tmp_path / "notes.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^path: .*notes.json is no file of drill progress"):
        keep_progress(path)
    assert path.read_text() == text


def test_a_folder_that_cannot_be_written_to_is_known_at_once(tmp_path):
    with pytest.raises(OSError):
        keep_progress(tmp_path / "missing" / "mine.json")
    check("kl_k3", plain.kl_k3)
    assert progress() == {}


# Interview mode


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_an_interview_against_the_clock():
    clock = Clock()
    interview = Interview(2, minutes=10, among=["kl_k3", "gae"], clock=clock)
    assert sorted(interview.drills) == ["gae", "kl_k3"] and interview.seconds_left == 600
    assert "def gae(" in str(interview) and "10:00 left of 10 minutes" in str(interview)
    interview.check("kl_k3", None)  # not an attempt
    interview.hint("kl_k3", 1)
    interview.hint("kl_k3", 1)
    clock.now += 60
    assert interview.check("kl_k3", wrong_k3).mistake == "swapped_k3"
    clock.now += 65
    assert interview.check("kl_k3", plain.kl_k3)
    interview.hint("kl_k3", 3)  # free by now
    assert interview.points("kl_k3") == 10 - 1 - 1
    clock.now += 600
    assert interview.seconds_left == 0
    assert interview.check("gae", plain.gae)  # judged, and no longer counted
    assert interview.points("gae") == 0
    sheet = interview.sheet()
    assert "| kl_k3 | solved | 2:05 | 2 | 1 | 8 |" in sheet and "| gae | - | - | 0 | 0 | 0 |" in sheet
    assert "8 of 20 points" in sheet


def test_points_never_fall_below_four_for_a_drill_that_is_solved():
    interview = Interview(1, among=["kl_k3"])
    for n in (1, 2, 3):
        interview.hint("kl_k3", n)
    for _ in range(9):
        interview.check("kl_k3", wrong_k3)
    assert interview.points("kl_k3") == 0
    interview.check("kl_k3", plain.kl_k3)
    assert interview.points("kl_k3") == 4


def test_a_seed_draws_again_what_it_drew():
    assert Interview(5, seed=3).drills == Interview(5, seed=3).drills != Interview(5, seed=4).drills
    assert len(set(Interview(51, seed=0).drills)) == 51


@pytest.mark.parametrize(
    "words, settings",
    [
        ("n: wanted 1 to 51 drills, got 0", {"n": 0}),
        ("n: wanted 1 to 2 drills, got 3", {"n": 3, "among": ["gae", "kl_k1"]}),
        ("minutes: wanted more than 0", {"minutes": 0}),
        ("name: wanted one of minirl", {"among": ["gea"]}),
    ],
)
def test_a_wrong_setting_is_named(words, settings):
    with pytest.raises(ValueError, match=f"^{words}"):
        Interview(**settings)
    with pytest.raises(ValueError, match=r"^name: wanted one of gae, which were drawn"):
        Interview(1, among=["gae"]).check("kl_k1", plain.kl_k1)


# In a terminal


def arguments(add, *words):
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args(words)


def drill_command(*words):
    return run_drill(arguments(add_drill_arguments, *words))


def test_a_drill_in_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert drill_command() == 0
    listed = capsys.readouterr().out
    assert all(f" {name} " in listed for name in names()) and "51 drills, 0 solved" in listed
    assert drill_command("attention") == 0 and "def naive_attention(" in capsys.readouterr().out
    assert drill_command("kl_k3", "--write", "my.py") == 0
    assert drill_command("kl_k3", "--check", "my.py") == 1 and "it returned None" in capsys.readouterr().out
    text = Path("my.py").read_text()
    Path("my.py").write_text(text.replace("    ...", "    d = logprobs - ref_logprobs\n    return d.exp() - 1 - d"))
    assert drill_command("kl_k3", "--check", "my.py") == 1 and "upside down" in capsys.readouterr().out
    Path("my.py").write_text(text.replace("    ...", "    d = ref_logprobs - logprobs\n    return d.exp() - 1 - d"))
    assert drill_command("kl_k3", "--check", "my.py") == 0 and "right, values and gradients" in capsys.readouterr().out
    assert drill_command("kl_k3", "--hint", "2") == 0
    assert drill_command() == 0 and "solved kl_k3" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has a kl_k3 already"):
        drill_command("kl_k3", "--write", "my.py")
    with pytest.raises(ValueError, match="--check: wanted a file"):
        drill_command("kl_k3", "--check", "no.py")


def test_every_stub_is_a_python_file_that_runs(tmp_path):
    path = tmp_path / "all.py"
    write_stubs(path, names())
    assert {result.status for result in judged(path, names()).values()} <= {"todo", "error"}
    wrong = {name for name, result in judged(path, names()).items() if result.status == "error"}
    assert wrong == set(), wrong


def test_a_file_that_does_not_run_says_where(tmp_path):
    path = tmp_path / "my.py"
    path.write_text("import torch\n\ndef gae(:\n")
    assert (
        judged(path, ["gae"])["gae"].message == f"line 3 of {path}: SyntaxError: invalid syntax ({path.name}, line 3)"
    )
    path.write_text("import torch\n\n\nx = 1 / 0\n")
    assert judged(path, ["gae"])["gae"].message == f"line 4 of {path}: ZeroDivisionError: division by zero"
    path.write_text("raise SystemExit(3)\n")
    assert judged(path, ["gae"])["gae"].status == "error"


def test_an_interview_in_a_terminal(tmp_path, capsys):
    path = tmp_path / "interview.py"
    interview = Interview(2, among=["kl_k3", "kl_k1"])
    write_stubs(path, interview.drills)
    solution = "def kl_k3(a, b):\n    return (b - a).exp() - 1 - (b - a)\n\n\ndef kl_k1(a, b):\n    return a - b\n"
    words = iter(["", "h kl_k3", "h", "what", "write"])

    def ask(prompt):
        word = next(words)
        if word == "write":
            path.write_text(solution)
            return ""
        return word

    talk(interview, path, ask)
    said = capsys.readouterr()
    assert said.out.count("to do.") == 2 and "hint 1 of 3" in said.out and "h and one of" in said.out
    assert "Enter, h NAME or q." in said.err and "All solved." in said.out
    assert interview.points("kl_k3") == 9 and interview.points("kl_k1") == 10


def test_an_interview_ends_with_the_input_and_leaves_a_sheet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda prompt: (_ for _ in ()).throw(EOFError))
    assert run_interview(arguments(add_interview_arguments, "-n", "2", "--draw", "5")) == 0
    sheet = Path("interview_sheet.md").read_text().strip()
    assert "of 20 points" in sheet and sheet in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--file: interview\.py exists already"):
        run_interview(arguments(add_interview_arguments))


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_an_interview_as_a_person_sees_it(tmp_path):
    """A pseudo-terminal, and keys pressed at its other end."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "minirl", "interview", "-n", "1", "--among", "kl_k1", "--minutes", "5"]
    environment = os.environ | {"PYTHONPATH": str(Path(plain.__file__).parents[2])}
    person = subprocess.Popen(command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while b"finish >" not in seen:
        seen += os.read(ours, 4096)
    file = tmp_path / "interview.py"
    file.write_text(file.read_text().replace("    ...", "    return logprobs - ref_logprobs"))
    os.write(ours, b"\n")
    while b"Sheet:" not in seen:
        seen += os.read(ours, 4096)
    assert person.wait(20) == 0
    assert b"- right. kl_k1: right" in seen and b"10 of 10 points" in seen
    os.close(ours)


# Lines that fit


def test_what_is_printed_keeps_its_words_and_fits():
    said = [f"{one.of.__name__}: {one.sentence} Seen in {one.seen}.\nIn training: {one.effect}" for one in BANK]
    for text in said:
        shown = as_text(text)
        assert shown.split() == text.split() and max(map(len, shown.splitlines())) <= 100
        starts = [line for line in shown.splitlines() if not line.startswith("  ")]
        assert len(starts) == 2, "what does not fit goes on two columns further in"
    assert any(len(line) > 100 for text in said for line in text.splitlines())
    hints = [line for name in names() for n in (1, 2, 3) for line in hint(name, n).splitlines()]
    assert max(map(len, hints)) <= 100 and any(line.startswith("  ") for line in hints)


@pytest.mark.parametrize(
    "whole", ["(2, 3)", "view(-1, size)", "f(g(x, y), z)", "[0.5, 1, 2]", "y = a * b", "well-known"]
)
def test_a_line_breaks_beside_code_and_not_in_it(whole):
    for n in range(80, 101):
        text = f"{'x' * n} {whole} and more words after it"
        shown = as_text(text)
        assert whole in shown and shown.split() == text.split(), shown


def test_what_fits_is_left_alone():
    row = "     got x = [1,  2]"
    assert as_text(row) == row and as_text("y" * 100) == "y" * 100 and as_text("y" * 120) == "y" * 120
    assert as_text("") == "" and as_text("a\n\n b\n") == "a\n\n b\n"
    numbers = as_text(f"  mask = [{', '.join(['[True, False, True]'] * 9)}]").splitlines()
    assert [line[:8] for line in numbers] == ["  mask =", "    [Tru", "    [Tru"]
    assert all(line.count("[True, False, True]") for line in numbers)


# In a notebook


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("function", [None, plain.kl_k3, wrong_k3, lambda a, b: a * b, lambda a: a])
def test_a_verdict_is_well_formed_html_that_says_the_same(function):
    result = check("kl_k3", function)
    page = Tags()
    page.feed(result._repr_html_())
    assert page.open == [] and all(line in page.text for line in result.message.splitlines())
    assert (result.mistake or "") in page.text
    assert str(result).split() == result.message.split() and max(map(len, str(result).splitlines())) <= 100
    assert bool(result) == (result.status == "ok")


def test_every_chapter_lists_its_drills():
    text = listing({})
    assert [line for line in text.splitlines() if line in CHAPTERS] == list(CHAPTERS)
