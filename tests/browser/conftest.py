"""One JupyterLab and one Chromium for all tests of a file, and a visit to a notebook in them."""

import copy
import json
import os
from pathlib import Path

import lab_session
import pytest


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    running = lab_session.start_lab(folder, folder / "notebooks")
    yield running
    running.program.end()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """(program, browser); skipped, with the reason, where playwright or a Chromium is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    try:
        lab_session.chromium_path()
    except lab_session.NotStarted as missing:
        pytest.skip(str(missing))
    program, address = lab_session.start_chromium(tmp_path_factory.mktemp("chromium"))
    try:
        with playwright.sync_playwright() as running:
            yield program, running.chromium.connect_over_cdp(address)
    finally:
        program.end()


@pytest.fixture
def visit(chromium, lab, tmp_path):
    """Runs a copy of a stored notebook, without its outputs: what the page shows has then run in it.

    Past its limit the browser is killed, so that nothing can wait for ever.
    """
    import lab_page

    program, browser = chromium
    shots = Path(os.environ.get("BROWSER_SHOTS") or tmp_path)

    def visit(book: dict, name: str, seconds: float, scheme: str = "light") -> lab_page.Visit:
        book = copy.deepcopy(book)
        for cell in book["cells"]:
            if cell["cell_type"] == "code":
                cell.update(outputs=[], execution_count=None)
        (lab.notebooks / f"{name}.ipynb").write_text(json.dumps(book))
        context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        try:
            with lab_session.ended_after(program, seconds + 120):
                return lab_page.visit(context.new_page(), lab, name, book["cells"], seconds, shots / scheme)
        finally:
            context.close()
            lab.end_kernels()

    return visit
