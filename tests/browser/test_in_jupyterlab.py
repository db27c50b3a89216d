"""Every notebook in JupyterLab in Chromium, run by the menu: plots, tables, formulas, folded answers, last lines.

Two of them always, the others nightly. Skipped without Chromium (apt install chromium) and playwright (pip install
playwright; its own browsers are not needed). BROWSER_SHOTS=folder keeps pictures of the whole pages.
"""

import json

import pytest
from lab_faults import faults
from notebooks.test_notebooks import CPU_SECONDS, NOTEBOOKS

ALWAYS = ("08_gae", "20_interview")  # cheap, with plots, tables, formulas, drills and many folded answers
BOOKS = [
    pytest.param(path, id=path.stem, marks=[] if path.stem in ALWAYS else pytest.mark.nightly) for path in NOTEBOOKS
]


@pytest.mark.parametrize("path", BOOKS)
def test_notebook_shows_what_is_stored(visit, path, record_property):
    book = json.loads(path.read_text())
    seen = visit(book, path.stem, 4 * CPU_SECONDS[path.stem] + 60)
    record_property("seconds in the browser", round(seen.seconds, 1))
    assert not faults(book["cells"], seen.cells) + seen.wrong


@pytest.mark.nightly
def test_notebook_in_the_dark(visit):
    """The page turns dark with the system; plots keep their white paper, so that their black words can be read."""
    path = next(path for path in NOTEBOOKS if path.stem == "08_gae")
    seen = visit(json.loads(path.read_text()), path.stem, 120, scheme="dark")
    plots = [picture for cell in seen.cells for picture in cell["pictures"] if picture["plot"]]
    assert seen.theme == "JupyterLab Dark" and not seen.wrong
    assert plots and all(plot["paper"] == [255, 255, 255, 255] for plot in plots)
