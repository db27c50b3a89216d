"""What a visitor meets first: the README, its picture, and the pages for people who want to take part."""

import json
import re
import shlex
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from datetime import datetime
from pathlib import Path

import pytest
import yaml  # comes with jupyter

import minirl
from minirl.__main__ import build_parser
from minirl.drills import names

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import terminal  # noqa: E402

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/comparison.md"]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[0-9]*.yml"))
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
CAST, PICTURE = ROOT / "docs/terminal.cast", ROOT / "docs/terminal.svg"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


README = read("README.md")


# Links and commands


def anchors(text: str) -> set[str]:
    """The anchors GitHub gives to headings: small letters, blanks to hyphens, punctuation gone."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(text: str, folder: Path) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        file = folder / path
        if path and not file.exists():
            broken.append(link)
        elif anchor and anchor not in anchors(file.read_text("utf-8") if path else text):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken_links(read(page), (ROOT / page).parent) == []


def test_a_link_that_leads_nowhere_is_seen():
    text = (
        "# A b\n[a](LICENSE) [b](#a-b) [c](NOWHERE.md) [d](#nowhere) [e](README.md#two-commands) [f](README.md#nowhere)"
    )
    assert broken_links(text, ROOT) == ["NOWHERE.md", "#nowhere", "README.md#nowhere"]


def commands(text: str) -> list[str]:
    """Each command of the pages: lines of bash blocks, joined where they go on, and code that begins with python -m."""
    lines = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in re.sub(r"\s+#.*", "", line).split("&&") if part.strip()] + [
        code for code in re.findall(r"`((?:\.venv/bin/)?python -m minirl[^`]*)`", text) if "\n" not in code
    ]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_commands_can_be_given_as_they_stand(page, capsys):
    seen = 0
    for command in commands(read(page)):
        words = shlex.split(command)
        if "minirl" in words and "-m" in words:
            seen += 1
            words = words[words.index("minirl") + 1 :]
            if "NAME" in words:  # a placeholder
                continue
            try:
                build_parser(words).parse_args(words)
            except SystemExit as end:
                pytest.fail(f"{command}: {capsys.readouterr().err if end.code else 'nothing is done'}")
        else:
            paths = [word for word in words if re.fullmatch(r"(docs|data|tests|notebooks)/[\w./-]+", word)]
            assert all((ROOT / path).exists() for path in paths), command
            seen += bool(paths)
    assert seen > 3


def test_both_commands_set_up_what_they_need():
    clone = f"git clone https://github.com/{minirl.REPOSITORY} && cd {minirl.REPOSITORY.partition('/')[2]} && "
    install = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && "
    for last in ("-m minirl", "-m pytest"):
        assert f"\n{clone}{install}.venv/bin/python {last}\n" in README


def test_the_assertion_that_shows_how_to_report_passes_as_it_says():
    blocks = re.findall(r"^```python\n(.*?)^```", read("CONTRIBUTING.md"), re.M | re.S)
    assert len(blocks) == 1 and "assert " in blocks[0]
    exec(compile(blocks[0], "CONTRIBUTING.md", "exec"), {})


# Counts, names and words


def test_badges_say_what_is_so():
    badges = dict(re.findall(r"shields\.io/badge/(\w+)-([\w.]+)-", README))
    assert badges.keys() == {"python", "pytorch", "notebooks", "drills", "licence"}
    assert badges["python"].startswith(PYPROJECT["requires-python"].removeprefix(">=") + "_to_")
    assert f"Python {badges['python'].replace('_', ' ')}." in README
    torch = next(need for need in PYPROJECT["dependencies"] if need.startswith("torch"))
    assert badges["pytorch"] == torch.removeprefix("torch>=") + "_or_newer"
    assert (badges["notebooks"], badges["drills"]) == (str(len(NOTEBOOKS)), str(len(names())))
    assert read("LICENSE").startswith(badges["licence"] + " License")
    for alt, address in re.findall(r"\[!\[([^]]+)\]\(https://img\.shields\.io/badge/\w+-([\w.]+)-", README):
        assert set(re.findall(r"[\d.]+", alt)) == set(re.findall(r"[\d.]+", address)), alt  # heard and seen are one


def test_the_table_lists_every_notebook_in_order():
    colab = f"https://colab.research.google.com/github/{minirl.REPOSITORY}/blob/main/notebooks/"
    rows = re.findall(
        r"^\| \[`(\w+)`\]\(notebooks/(\w+)\.ipynb\) \| .+ \| \[!\[.+?\]\(.+?\)\]\((.+?)\.ipynb\) \|$", README, re.M
    )
    assert rows == [(name, name, colab + name) for name in NOTEBOOKS]


def test_the_project_lives_in_one_place():
    """minirl.REPOSITORY says where; whatever else names it agrees."""
    files = [ROOT / page for page in [*PAGES, "CITATION.cff", "pyproject.toml"]]
    files += [
        path for folder in ("docs", "notebooks", ".github") for path in (ROOT / folder).rglob("*") if path.is_file()
    ]
    found = {}
    for path in files:
        if "_build" not in path.parts and path.suffix in (".md", ".cff", ".toml", ".yml", ".py", ".ipynb", ".svg"):
            for place in re.findall(r"(?:github\.com|/github)/([\w.-]+/minirl[\w.-]*)", path.read_text("utf-8")):
                found.setdefault(place.removesuffix(".git"), path.name)
    assert found.keys() == {minirl.REPOSITORY}, found


FORBIDDEN = r"/work\b|/tmp\b|\bsession|pypi\.org|pythonhosted|huggingface\.co|registry\.npm|localhost|127\.0\.0\.1"


def test_the_pages_speak_of_the_project_alone():
    for name in [*PAGES, "CITATION.cff", "docs/terminal.svg", "docs/terminal.cast", *map(str, FORMS)]:
        assert re.search(FORBIDDEN, read(name), re.I) is None, name


def test_versions_agree():
    citation = yaml.safe_load(read("CITATION.cff"))
    releases = re.findall(r"^## \[([\d.]+)\]", read("CHANGELOG.md"), re.M)
    assert citation["version"] == releases[0] == minirl.__version__
    assert re.search(r"^## \[Unreleased\]", read("CHANGELOG.md"), re.M)


# Forms


def test_the_citation_file_has_what_readers_of_it_need():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors", "version", "license", "repository-code"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0" and citation["authors"] == [{"name": "minirl contributors"}]
    assert citation["license"] == PYPROJECT.get("license", {}).get("text", "MIT")
    assert "doi" not in citation and "identifiers" not in citation  # there is none


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_for_issues_can_be_filled_in(path):
    form = yaml.safe_load(path.read_text("utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    fields = [item for item in form["body"] if item["type"] != "markdown"]
    assert {item["type"] for item in form["body"]} <= {"markdown", "input", "textarea", "dropdown", "checkboxes"}
    assert len({item["id"] for item in fields}) == len(fields) >= 3
    assert all(item["attributes"]["label"] for item in fields)
    assert any(item.get("validations", {}).get("required") for item in fields)


def test_the_forms_ask_for_what_helps():
    asked = {path.stem: path.read_text("utf-8") for path in FORMS}
    wanted = {
        path.stem: {
            item["id"]
            for item in yaml.safe_load(path.read_text("utf-8"))["body"]
            if item.get("validations", {}).get("required")
        }
        for path in FORMS
    }
    assert wanted == {
        "1_does_not_learn": {"expected", "command", "doctor", "config"},
        "2_wrong_formula": {"place", "says", "source", "assertion"},
        "3_bug": {"command", "error", "versions"},
        "4_notebook_cell": {"notebook", "place", "first", "error"},
    }
    assert "python -m minirl doctor RUN" in asked["1_does_not_learn"] and "config.json" in asked["1_does_not_learn"]
    assert "failing assertion" in asked["2_wrong_formula"] and "equation" in asked["2_wrong_formula"]
    assert "--traceback" in asked["3_bug"] and "torch.__version__" in asked["3_bug"]
    assert "first code cell" in asked["4_notebook_cell"] and "Colab" in asked["4_notebook_cell"]


# The moving picture


def test_the_picture_is_small_and_can_be_read_without_eyes_or_motion():
    text = PICTURE.read_text("utf-8")
    assert len(text.encode()) < 200_000
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{space}title").text and "gold" in root.find(f"{space}desc").text
    assert "prefers-reduced-motion:reduce" in text
    # at rest the tables are in view: from the line above them on
    rows = terminal.frames(*terminal.read(CAST))[0][-1][1]
    summary = next(n for n, row in enumerate(rows) if row.startswith(terminal.SUMMARY))
    assert f".s{{transform:translateY({-terminal.HIGH * min(summary, len(rows) - terminal.ROWS)}px)}}" in text
    assert "](docs/terminal.svg)" in README
    assert not re.search(
        r"<script|<image|<foreignObject|href=|url\(|@import", text
    )  # it loads nothing and runs nothing


def test_the_picture_is_the_recording():
    assert terminal.draw(CAST) == PICTURE.read_text("utf-8")
    about, events = terminal.read(CAST)
    printed = "".join(text for _, text in events)
    assert about["command"] == "python -m minirl" and datetime.fromtimestamp(about["timestamp"]).year >= 2026
    assert printed.count("stories_ppo_without_kl") and "--quick" not in about["command"]
    last = printed.replace("\r", "").rstrip().splitlines()[-1]
    assert "00_start_here" in last and last[:30] in PICTURE.read_text("utf-8")


def test_what_a_program_prints_is_recorded_with_its_time(tmp_path, monkeypatch):
    pytest.importorskip("pty")
    program = (
        "import shutil, time; print(shutil.get_terminal_size().columns, flush=True); time.sleep(0.2); print('two'); "
        "import pathlib as p; p.Path('runs/road').mkdir(parents=True); p.Path('runs/road/road.png').write_text('drawn')"
    )
    monkeypatch.setattr(terminal, "COMMAND", ["-c", program])
    terminal.record(tmp_path / "run.cast", figure=tmp_path / "road.png")
    assert (tmp_path / "road.png").read_text() == "drawn"
    about, events = terminal.read(tmp_path / "run.cast")
    assert about["width"] == terminal.COLUMNS
    assert "".join(text for _, text in events) == f"{terminal.COLUMNS}\r\ntwo\r\n"
    assert 0.15 < events[-1][0] - events[0][0] < 5
    monkeypatch.setattr(terminal, "COMMAND", ["-c", "raise SystemExit(3)"])
    with pytest.raises(SystemExit, match="ended with 3"):
        terminal.record(tmp_path / "other.cast")
    assert not (tmp_path / "other.cast").exists()


def cast(tmp_path: Path, events: list) -> Path:
    path = tmp_path / "run.cast"
    about = {"version": 2, "width": 100, "height": 40, "timestamp": 1, "command": "python -m minirl"}
    path.write_text("\n".join(map(json.dumps, [about, *events])), "utf-8")
    return path


def test_the_picture_says_how_much_faster_it_goes(tmp_path):
    run = [[1.0, "o", "one\r\n"], [60.0, "o", "two\r\n"], [150.0, "o", "three\r\nfour\r\n"]]
    text = terminal.draw(cast(tmp_path, run))
    assert "A recorded run of 2 min 30 s on two CPU cores, shown 10 times as fast." in text
    busy = cast(tmp_path, run).read_text("utf-8").replace('"version": 2', '"version": 2, "busy": true')
    (tmp_path / "busy.cast").write_text(busy, "utf-8")
    assert "on two busy CPU cores, shown" in terminal.draw(tmp_path / "busy.cast")
    assert (
        len(re.search("A recorded run.*", terminal.draw(CAST))[0].removesuffix("</text>")) < 80
    )  # it fits below the window
    shown, fast, seconds = terminal.frames(*terminal.read(cast(tmp_path, run)))
    assert (fast, seconds) == (10, 150)
    start = shown[-1][0] - seconds / fast
    assert shown[-1][1] == ["$ python -m minirl", "one", "two", "three", "four"]
    assert [(round(at - start, 3), rows[-1]) for at, rows in shown[-3:-1]] == [(0.1, "one"), (6.0, "two")]


def test_a_bar_is_written_over_and_a_long_line_goes_on_below():
    screen = terminal.Screen()
    screen.write("\r  sft:  10%|#\r  sft: 100%|##########\r" + " " * 30 + "\r  sft   3.0 s\r\n")
    screen.write("\x1b[32m" + "word " * 20 + "\x1b[0m\r\n")
    rows = screen.rows()
    assert rows[0] == "  sft   3.0 s" and rows[1].startswith("word") and rows[2].startswith("  word")
    assert len(rows) == 3 and max(map(len, rows)) <= terminal.COLUMNS and " ".join(rows[1:]).split() == ["word"] * 20
