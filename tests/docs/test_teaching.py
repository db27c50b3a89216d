"""What teachers get: a syllabus whose minutes are the notebooks', exams that no card enters twice, slides that lose nothing."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minirl.cards import load
from minirl.drills import names

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
sys.path.insert(0, str(ROOT / "docs"))

import exam  # noqa: E402
from formulas import formula, leading  # noqa: E402

CARDS = load()
SYLLABUS = (ROOT / "docs" / "syllabus.md").read_text("utf-8")
DAYS = re.split(r"(?m)^## Day \d+", SYLLABUS)[1:]


def minutes(path: Path) -> int:
    first = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
    return int(re.search(r"In (\d+) minutes", first)[1])


def test_syllabus_reads_every_notebook_once_in_the_time_it_states():
    read = re.findall(r"\[(\w+)\]\(\.\./notebooks/(\w+)\.ipynb\), (\d+) minutes", SYLLABUS)
    assert [one for one, _, _ in read] == [other for _, other, _ in read] == [path.stem for path in NOTEBOOKS]
    assert [int(number) for _, _, number in read] == [minutes(path) for path in NOTEBOOKS]
    assert f"Reading in all: {sum(map(minutes, NOTEBOOKS))} minutes" in SYLLABUS


def test_syllabus_adds_up():
    assert len(DAYS) == 10
    for day in DAYS:
        parts = [int(number) for number in re.findall(r"\.ipynb\), (\d+) minutes", day)]
        assert f"\nReading: {sum(parts)} minutes." in day and sum(parts) <= 120


def test_syllabus_gives_every_drill_once():
    written = re.findall(r"`(\w+)`", "\n".join(re.findall(r"(?m)^- Write (.*)$", SYLLABUS)))
    assert sorted(written) == sorted(names())


@pytest.mark.parametrize("seed", range(12))
def test_exam_has_its_points_and_no_card_twice(seed):
    drawn = exam.draw(CARDS, seed)
    cards = [card for _, chosen in drawn for card in chosen]
    assert len({card.id for card in cards}) == len(cards) == sum(section.questions for section in exam.SECTIONS)
    assert sum(len(chosen) * section.points for section, chosen in drawn) == exam.POINTS == exam.MINUTES
    assert all(card.level == section.level for section, chosen in drawn for card in chosen)
    topics = [card.topic for card in cards]
    assert max(map(topics.count, topics)) <= 2, "an exam asks of everything"
    asked, solved = exam.exam(drawn, seed), exam.solutions(drawn, seed)
    for number, card in enumerate(cards, start=1):
        assert f"**{number}.** {card.question}\n" in asked and f"**{number}.** {card.question}\n" in solved
        assert card.short in solved and card.short not in asked
    for section, chosen in drawn:
        for card in chosen:
            given = [int(points) for points in re.findall(r"\*(\d+) points", "\n".join(exam.answer(section, card)))]
            assert sum(given) == section.points


def test_exam_is_the_seed_s(tmp_path):
    out = [tmp_path / "exam.md", tmp_path / "solutions.md"]
    command = [sys.executable, "docs/exam.py", "--seed", "1", "--out", *map(str, out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    first, second = (exam.draw(CARDS, seed) for seed in (1, 2))
    assert [path.read_text("utf-8") for path in out] == [exam.exam(first, 1), exam.solutions(first, 1)]
    assert exam.exam(first, 1).split("\n")[4:] != exam.exam(second, 2).split("\n")[4:]


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["A_t     = delta_t + gamma * lam * A_{t+1}"], r"A_{t} &= \delta_{t} + \gamma \cdot \lambda \cdot A_{t+1}"),
        (["ratio_i = exp(mean_t(a - b))"], r"\mathit{ratio}_{i} &= \exp(\operatorname{mean}_{t}(a - b))"),
        (["loss = -log sigmoid(beta h)       e = x, in [0, 0.5)"], r"e &= x, \ \text{in}\  [0, 0.5)"),
        (
            ["kl_coef *= 1 + clip(x, -0.2, 0.2)"],
            r"\mathit{kl\_coef} \mathrel{\cdot}&= 1 + \operatorname{clip}(x, -0.2, 0.2)",
        ),
    ],
)
def test_formulas_are_rendered(lines, wanted):
    assert re.sub(r"\s+", "", wanted) in re.sub(r"\s+", "", formula(lines))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("k2 = (log pi - log pi_ref)^2 / 2. Biased", r"k_2 = (\log \pi - \log \pi_{\mathrm{ref}})^2 / 2"),
        ("x / sqrt(mean(x^2) + eps) over the axis", r"x / \sqrt{\operatorname{mean}(x^2) + \epsilon}"),
        ("KL(p || q) = sum_y p(y): the leash", r"\operatorname{KL}(p \,\|\, q) = \sum_{y} p(y)"),
        ("(V, Q) of the policy", None),
        ("A reducer: sum over counted tokens / a count", None),
        ("(log pi*, J*): the optimum", None),
    ],
)
def test_docstrings_begin_with_formulas(line, wanted):
    found = leading(line)
    assert (found and re.sub(r"\s+", "", found)) == (wanted and re.sub(r"\s+", "", wanted))


@pytest.mark.parametrize("lines", [["tokens, mask (Y, L)   padded"], ['run = Run("a", config={...})', "for x in run:"]])
def test_code_and_tables_are_no_formulas(lines):
    assert formula(lines) is None


def test_a_package_with_another_hash_is_refused(tmp_path):
    import tarfile
    from dataclasses import replace

    import vendor

    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "one.js").write_text("1")
    with tarfile.open(tmp_path / "one.tgz", "w:gz") as tar:
        tar.add(tmp_path / "package", "package")
    package = vendor.Package("one", "1.0", "not its hash", ("one.js",))
    with pytest.raises(vendor.Missing, match="wanted SHA-512") as refused:
        vendor.unpack(tmp_path / "one.tgz", package, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    good = replace(package, sha512=str(refused.value).split("got ")[1])
    vendor.unpack(tmp_path / "one.tgz", good, tmp_path / "kept")
    assert (tmp_path / "kept" / "one.js").read_text() == "1"
    with pytest.raises(vendor.Missing, match=r"has no two\.js"):
        vendor.unpack(tmp_path / "one.tgz", replace(good, files=("two.js",)), tmp_path / "other")


# Slides. nbconvert is a part of jupyter, which the tests need anyway.


@pytest.fixture(scope="module")
def slides():
    if importlib.util.find_spec("nbconvert") is None:
        pytest.skip("nbconvert is not installed")
    import slides

    return slides


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_slides_lose_nothing(slides, path):
    """Every word, every line of code but the Colab cell's, and every output, in order; answers after their questions."""
    notebook = json.loads(path.read_text("utf-8"))
    cells = slides.as_slides(notebook)["cells"]
    stored = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and cell["execution_count"] != 1]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["source"] for cell in code if cell["source"]] == ["".join(cell["source"]) for cell in stored]
    assert [o for cell in code for o in cell["outputs"]] == [o for cell in stored for o in cell["outputs"]]
    written = "".join("".join(cell["source"]) + "\n\n" for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    text = re.sub(r"</?(details|summary)>", " ", slides.elsewhere(written))
    shown = "\n\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    assert sorted(set(text.split())) == sorted(set(shown.split()) - {"###"} | ({"###"} & set(text.split())))
    for summary in slides.FOLD.findall(written):
        heading = f"### {summary[0]}\n"
        assert any(cell["source"].startswith(heading) for cell in cells), "an answer has a slide of its own"
    kinds = [cell["metadata"]["slideshow"]["slide_type"] for cell in cells]
    assert kinds[0] == "slide" and kinds.count("slide") == len(re.findall(r"(?m)^#{1,3} ", written))
    words = [len(cell["source"].split()) for cell in cells if cell["cell_type"] == "markdown"]
    assert max(words) <= 220, "no slide is a wall of text"


def test_a_deck_is_made_of_files_beside_it(slides):
    html = slides.deck(ROOT / "notebooks" / "08_gae.ipynb")
    loads = re.findall(r'<(?:script|img|link)\b[^>]*?(?:src|href)="([^"]+)"', html)
    loads = [load for load in loads if not load.startswith("data:")]
    assert sorted(loads) == sorted(
        [
            "assets/mathjax/tex-svg-full.js",
            "assets/reveal/dist/reveal.css",
            "assets/reveal/dist/reveal.js",
            "assets/reveal/dist/theme/white.css",
        ]
    )
    assert not re.search(r"import\s+\w+\s+from|require\(|@import url\(.?http", html)
    assert html.count("<section") == html.count("</section>") > 50 and "<title>GAE: which token" in html
