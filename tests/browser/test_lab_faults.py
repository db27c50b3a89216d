"""Every fault of a page is noticed and named: planted in what a page without faults shows. Needs no browser."""

import copy
import json
from pathlib import Path

import pytest
from lab_faults import WIDGET, faults, formulas, last_line, printed, source, wanted_kinds

ROOT = Path(__file__).resolve().parents[2]
STORED = json.loads((ROOT / "notebooks" / "08_gae.ipynb").read_text())["cells"]


def shown(cell: dict, count: int) -> dict:
    """What a page without faults shows of a cell, as `lab_page.see` tells it."""
    kind = "code" if cell["cell_type"] == "code" else "markdown"
    seen = {
        "kind": kind,
        "prompt": "",
        "outputs": [],
        "pictures": [],
        "formulas": 0,
        "wide": [],
        "unread": [],
        "folds": 0,
    }
    seen["text"] = source(cell) if kind == "markdown" else ""
    if kind == "markdown":
        return seen | {"formulas": formulas(source(cell)), "folds": source(cell).count("<details>")}
    for wanted in wanted_kinds(cell):
        text = printed(cell) if wanted.endswith("stdout") else "a table"
        seen["outputs"].append({"kind": wanted, "text": text, "widgets": 0, "bars": []})
        if wanted == "image/png":
            seen["pictures"].append({"alt": "", "wide": 672, "shown": 672.0, "plot": True, "source": "data:image/png"})
    return seen | {"prompt": f"[{count}]:"}


@pytest.fixture
def page() -> list[dict]:
    count, cells = 0, []
    for cell in STORED:
        count += cell["cell_type"] == "code"
        cells.append(shown(cell, count))
    return copy.deepcopy(cells)


def plot(page):
    return next(cell for cell in page if any(output["kind"] == "image/png" for output in cell["outputs"]))


def output(page, kind):
    return next(output for cell in page for output in cell["outputs"] if output["kind"] == kind)


def fold(page):
    return next(cell for cell in page if cell["folds"])


def no_plot(page):
    plot(page).update(outputs=[], pictures=[])


def broken_image(page):
    plot(page)["pictures"][0]["wide"] = 0


def repr_for_a_table(page):
    output(page, "text/html").update(kind="text/plain", text="<IPython.core.display.HTML object>")


def raised(page):
    plot(page)["outputs"][0].update(kind="application/vnd.jupyter.error", text="Traceback ...\nKeyError: 'lam'")


def other_last_line(page):
    output(page, "application/vnd.jupyter.stdout")["text"] = "something else"


def not_run(page):
    page[1]["prompt"] = "[ ]:"


def run_twice(page):
    page[1]["prompt"] = "[25]:"


def bar_as_text(page):
    output(page, "text/html")["text"] = "HBox(children=(FloatProgress(value=0.0), HTML(value='')))"


def unfinished_bar(page):
    output(page, "text/html")["bars"] = [{"state": "progress-bar progress-bar-info", "width": "60%"}]


def missing_widget(page):
    output(page, "text/html").update(kind=WIDGET, text="Error displaying widget: model not found")


def raw_formula(page):
    next(cell for cell in page if cell["formulas"])["formulas"] -= 1


def unread_formula(page):
    page[5]["unread"] = ["Undefined control sequence \\lamda"]


def wide_formula(page):
    page[5]["wide"] = ["formula"]


def lost_fold(page):
    fold(page)["folds"] -= 1


def lost_cell(page):
    page.pop()


def no_alt_text(page):
    page[0]["pictures"] = [{"alt": "", "wide": 117, "shown": 117, "plot": False, "source": "https://badge"}]


PLANTED = {
    no_plot: "shows 0 plots, wanted 1",
    broken_image: "broken or hidden image",
    repr_for_a_table: "HTML object",
    raised: "raised: KeyError: 'lam'",
    other_last_line: "ends with 'something else'",
    not_run: "has the number '[ ]:', wanted [1]:",
    run_twice: "has the number '[25]:', wanted [1]:",
    bar_as_text: "'HBox(children='",
    unfinished_bar: "progress bar that did not finish",
    missing_widget: "shows no widget",
    raw_formula: "typeset formulas of",
    unread_formula: "MathJax cannot read",
    wide_formula: "a formula that is cut off at the right",
    lost_fold: "folded answers of",
    lost_cell: "the page has 44 cells, the notebook 45",
    no_alt_text: "without alt text",
}


def test_a_page_without_faults(page):
    assert faults(STORED, page) == []


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_planted_fault_is_named(page, plant):
    plant(page)
    found = faults(STORED, page)
    assert any(PLANTED[plant] in text for text in found), found
    assert len({text.partition(")")[0] for text in found}) == 1, "one cell is at fault, not others"


def test_last_lines():
    assert last_line("a\n b  c \n\n") == "b c" and last_line("") == ""


def test_formulas_are_counted_outside_code():
    assert formulas("$a$ and `$b$`, \\$5 and $$c\nd$$\n```\n$e$ $f$\n```") == 2
