"""The site: built from what is stored, every link checked, nothing loaded from elsewhere.

Skipped without docs/requirements.txt. In a browser (nightly): axe finds nothing serious, formulas are typeset, search
finds, and no page is wider than a phone. That wants Chromium, playwright, and npm for MathJax and axe.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from reading_html import Page, broken_links, loaded_from_elsewhere

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDED = ("sphinx", "myst_nb", "furo")
lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(lacking), reason=f"not installed: {lacking}; see docs/requirements.txt")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built as a reader builds it, formulas aside: nothing is fetched."""
    out = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "docs/build.py", "--draft", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]  # warnings are errors
    assert "WARNING" not in done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path.resolve(): Page(path.resolve()) for path in sorted(site.rglob("*.html"))}


def test_links_and_anchors_lead_somewhere(pages):
    assert not broken_links(pages)


def test_nothing_is_loaded_from_elsewhere(site, pages):
    assert not loaded_from_elsewhere(site, pages)


def test_ids_are_unique(pages):
    twice = {path.name: sorted({x for x in page.ids if page.ids.count(x) > 1}) for path, page in pages.items()}
    assert not {name: ids for name, ids in twice.items() if ids}


def test_every_page_has_a_title_and_one_h1(pages):
    assert all(page.title for page in pages.values())
    assert not [path.name for path, page in pages.items() if len(page.headings) != 1]


def test_every_image_says_what_it_shows(pages):
    for path, page in pages.items():
        for image in page.images:
            assert (image.get("alt") or "").strip(), f"{path.name}: {image.get('src')}"
            assert not image["alt"].endswith((".png", ".svg")), "a file's name is no description"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_lessons_are_whole(site, pages, path):
    """As many folds and figures as are stored, and every cell's code."""
    notebook = json.loads(path.read_text("utf-8"))
    page = pages[(site / "notebooks" / f"{path.stem}.html").resolve()]
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    printed = "".join("".join(output.get("data", {}).get("text/html", [])) for output in outputs)
    assert page.details == text.count("<details>") + printed.count("<details") and page.depth == 0
    figures = [output["metadata"] for output in outputs if "image/png" in output.get("data", {})]
    told = [stored.get("image/png", {}).get("alt") or stored["alt"] for stored in figures]
    assert [image["alt"] for image in page.images if image["src"].endswith(".png")] == told
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    html = page.path.read_text("utf-8")
    assert len(re.findall(r'class="cell_input', html)) == len(code)
    assert not re.search(r"&lt;/?(details|summary)", re.sub(r"<pre>.*?</pre>", "", html, flags=re.DOTALL))


def test_lessons_follow_each_other(site):
    for before, after in pairwise(NOTEBOOKS):
        assert f'class="next-page" href="{after.stem}.html"' in (site / f"notebooks/{before.stem}.html").read_text(
            "utf-8"
        )


def test_notebooks_are_staged_with_nothing_but_links_changed(site):
    for path in NOTEBOOKS:
        stored = json.loads(path.read_text("utf-8"))
        staged = json.loads((site.parent / "stage" / "notebooks" / path.name).read_text("utf-8"))
        for one, other in zip(stored["cells"], staged["cells"], strict=True):
            text, shown = "".join(one["source"]), "".join(other["source"])
            without = re.compile(r"\]\([^()\s]*\)")
            assert without.sub("]", text) == without.sub("]", shown)
            assert one.get("outputs") == other.get("outputs")
            assert "colab-badge.svg" not in shown


def test_the_reference_names_what_the_losses_are(site):
    html = (site / "api" / "losses.html").read_text("utf-8")
    for name in ("policy.ppo_clip_loss", "policy.grpo_loss", "preference.dpo_loss", "preference.kto_loss"):
        assert f'id="minirl.losses.{name}"' in html
    text = re.sub(r"<[^>]+>", "", html)
    assert "logprobs: Float[Tensor, 'B T']" in text and "ratio = exp(logprobs - old_logprobs)" in text


def test_golden_and_conformance_tables_are_whole(site):
    golden = json.loads((ROOT / "data/golden/golden.json").read_text("utf-8"))["functions"]
    html = (site / "golden.html").read_text("utf-8")
    assert all(f">{name}</span>" in html for name in golden) and list((site / "_downloads").rglob("golden.json"))
    results = (ROOT / "tests/conformance/RESULTS.md").read_text("utf-8")
    html = (site / "conformance.html").read_text("utf-8")
    assert html.count("<p>passed</p>") == results.count("| passed |")


def test_every_card_is_there_to_unfold(site, pages):
    cards = [json.loads(line) for line in (ROOT / "data/interview.jsonl").read_text("utf-8").splitlines()]
    page = pages[(site / "interview.html").resolve()]
    assert page.details == len(cards) and {card["id"] for card in cards} <= set(page.ids)
    assert {site / "sheet.html", site / "cards.html"} <= {path for path in site.iterdir()}


def test_javascript_of_the_golden_page_runs(tmp_path):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    source = re.search(r"```javascript\n(.*?)```", (ROOT / "docs/golden.md").read_text("utf-8"), re.DOTALL)[1]
    (tmp_path / "check.js").write_text(source)
    text = (ROOT / "data/golden/golden.json").read_text("utf-8")
    for content, wanted in ((text, 0), (text.replace("0.0409090909090909", "0.0409090999090909", 1), 1)):
        (tmp_path / "golden.json").write_text(content)
        done = subprocess.run(["node", "check.js"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert bool(done.returncode) == bool(wanted), done.stderr


# In a browser.

SEEN = ["index.html", "notebooks/08_gae.html", "api/parts.html", "interview.html", "golden.html", "conformance.html"]


@pytest.fixture(scope="module")
def browser(site):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium: install it, or name it in CHROMIUM")
    sys.path.insert(0, str(ROOT / "docs"))
    import vendor

    try:
        mathjax, axe = vendor.fetch(vendor.MATHJAX), vendor.fetch(vendor.AXE)
    except vendor.Missing as missing:
        pytest.skip(str(missing))
    shutil.copy(mathjax / "es5" / "tex-svg-full.js", site / "_static" / "mathjax" / "tex-svg-full.js")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium, (axe / "axe.min.js").read_text("utf-8")
        chromium.close()


def opened(browser, path: Path, *, width: int, scheme: str = "light"):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function("!window.MathJax || (MathJax.startup && MathJax.startup.promise)")
    page.evaluate("window.MathJax ? MathJax.startup.promise : null")
    return page


@pytest.mark.nightly
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", SEEN)
def test_axe_finds_nothing_serious(site, browser, name, scheme):
    chromium, axe = browser
    page = opened(chromium, site / name, width=1280, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    page.close()
    serious = [rule for rule in found if rule["impact"] in ("serious", "critical")]
    assert not serious, [(rule["id"], [node["html"][:200] for node in rule["nodes"]][:5]) for rule in serious]


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*SEEN, *(f"notebooks/{path.stem}.html" for path in NOTEBOOKS)])
def test_on_a_phone(site, browser, name):
    """No page is wider than 390 pixels, all formulas are typeset, and nothing is asked of the network."""
    page = opened(browser[0], site / name, width=390)
    wide, errors, left = page.evaluate(
        "[document.documentElement.scrollWidth, document.querySelectorAll('mjx-merror').length, "
        "[...document.querySelectorAll('article .math')].filter(x => !x.querySelector('mjx-container')).length]"
    )
    asked = [url for url in page.asked if not url.startswith(("file:", "data:"))]
    page.close()
    assert wide <= 390 and errors == 0 and left == 0 and not asked, (wide, errors, left, asked)


@pytest.mark.nightly
def test_search_finds_a_folded_answer(site, browser):
    page = opened(browser[0], site / "search.html", width=1280)
    page.goto((site / "search.html").as_uri() + "?q=lottery")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    found = [link.get_attribute("href") for link in page.query_selector_all("#search-results li a")]
    page.close()
    assert any("08_gae" in link for link in found), found


@pytest.mark.nightly
def test_slides_open_without_a_network(browser, tmp_path):
    command = [sys.executable, "docs/build.py", "slides", "--only", "08_gae", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    page = opened(browser[0], tmp_path / "slides" / "08_gae.html", width=1280)
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    total, errors, formulas = page.evaluate(
        "[Reveal.getTotalSlides(), document.querySelectorAll('mjx-merror').length, "
        "document.querySelectorAll('mjx-container').length]"
    )
    seen = set()
    for _ in range(total):
        seen.add(page.evaluate("Reveal.getSlidePastCount()"))
        page.keyboard.press("Space")
    asked = [url for url in page.asked if not url.startswith(("file:", "data:"))]
    page.close()
    assert total > 50 and len(seen) > 50 and formulas > 50 and errors == 0 and not asked
