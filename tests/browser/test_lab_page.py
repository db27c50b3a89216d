"""Small notebooks with planted faults in a real JupyterLab: each is noticed, with the cell and where to look."""

import lab_session
import pytest
from lab_faults import WIDGET, faults

pytestmark = pytest.mark.nightly


def code(text: str, *outputs: dict) -> dict:
    return {"cell_type": "code", "source": text, "outputs": list(outputs), "execution_count": None, "metadata": {}}


def display(**data) -> dict:
    return {"output_type": "display_data", "data": {kind.replace("_", "/", 1): text for kind, text in data.items()}}


STREAM = {"output_type": "stream", "name": "stdout", "text": "done\n"}
DRAWN = {"output_type": "display_data", "data": {WIDGET: {}, "text/plain": "HBox(...)"}}
BAR = "from tqdm.auto import tqdm\nfor step in tqdm(range(20)):\n    {}\nprint('done')"
GONE = "{'application/vnd.jupyter.widget-view+json': {'model_id': 'gone', 'version_major': 2}, 'text/plain': 'Bar()'}"
IMAGE = 'from IPython.display import HTML\ndisplay(HTML(\'<img src="{}" alt="a">\'))'
PICTURE = display(text_html="<img>")


@pytest.fixture
def noticed(visit):
    """What is noticed in a notebook made of these cells."""

    def noticed(*cells: dict, seconds: float = 90) -> list[str]:
        stored = [cell | {"id": f"cell-{number}"} for number, cell in enumerate(cells)]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        book = {"cells": stored, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        seen = visit(book, "planted", seconds)
        return faults(stored, seen.cells) + seen.wrong

    return noticed


def test_progress_bar_is_drawn_and_finished(noticed):
    assert noticed(code(BAR.format("pass"), DRAWN, STREAM)) == []


def test_progress_bar_that_was_left(noticed):
    found = noticed(code(BAR.format("if step == 9: break"), DRAWN, STREAM))
    assert any("progress bar that did not finish" in text for text in found), found


def test_widget_without_its_model(noticed):
    found = noticed(code(f"display({GONE}, raw=True)", DRAWN))
    assert any("cell 0" in text and "widget" in text for text in found), found


def test_cell_that_raises(noticed):
    found = noticed(code("1 + 1"), code("raise KeyError('lam')  # planted"), code("2 + 2"))
    assert "cell 1 (\"raise KeyError('lam')  # planted\") raised: KeyError: 'lam'" in found
    assert any(text.startswith("cell 2") and "has the number '[ ]:', wanted [3]:" in text for text in found)


def test_plot_that_does_not_come(noticed):
    found = noticed(code("figure = None", display(image_png="...")))
    assert found == [
        "cell 0 ('figure = None') shows [], the stored notebook ['image/png']",
        "cell 0 ('figure = None') shows 0 plots, wanted 1",
    ]


def test_image_that_is_not_there(noticed):
    found = noticed(code(IMAGE.format("gone.png"), PICTURE))
    assert any("broken or hidden image" in text for text in found) and any("404" in text for text in found)


def test_another_host_is_asked(noticed):
    found = noticed(code(IMAGE.format("https://example.org/a.png"), PICTURE))
    assert "asked another host: https://example.org/a.png" in found


def test_error_on_the_console(noticed):
    found = noticed(code("get_ipython().run_cell_magic('javascript', '', 'console.error(\"ouch\")')"))
    assert "console: ouch" in found


def test_cell_without_end(noticed, tmp_path):
    from lab_page import Stuck

    with pytest.raises(Stuck) as stuck:
        noticed(code("print(1)"), code("while True:  # planted\n    pass"), seconds=25)
    said = str(stuck.value)
    assert "still running: cell 1 ('while True:  # planted')" in said
    assert (
        f"screenshot: {tmp_path / 'light' / 'planted_failed.png'}" in said
        and (tmp_path / "light" / "planted_failed.png").is_file()
    )
    assert "server:" in said and "Kernel started" in said


def test_page_that_hangs(chromium, tmp_path):
    """A page that computes for ever answers no question; the end of its browser ends the wait."""
    from playwright.sync_api import Error

    program, address = lab_session.start_chromium(tmp_path)
    page = chromium[1].browser_type.connect_over_cdp(address).new_page()
    with lab_session.ended_after(program, 2), pytest.raises(Error, match="closed"):
        page.evaluate("while (true) {}")
    assert program.process.returncode is not None
