"""One notebook in JupyterLab as a reader meets it: opened, run by the menu, waited for, unfolded, photographed."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Error, Page
from playwright.sync_api import TimeoutError as Late

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
DRAWN_BADGE = '<svg xmlns="http://www.w3.org/2000/svg" width="117" height="20"><rect width="117" height="20"/></svg>'
HARMLESS: dict[str, str] = {}  # pattern of what the console may say: why

# Cells that wait or run have a star; a cell that raises takes the star from those that wait.
SETTLED = """() => document.querySelector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
  && ![...document.querySelectorAll('.jp-InputPrompt')].some(prompt => prompt.textContent.includes('*'))"""

STARTED = "() => [...document.querySelectorAll('.jp-InputPrompt')].some(p => /^\\[[*\\d]/.test(p.textContent.trim()))"

UNFOLD = """() => [...document.querySelectorAll('.jp-Notebook details > summary')].map(summary => {
  const fold = summary.parentElement;
  if (!fold.open) summary.click();
  const shown = fold.open && fold.offsetHeight > summary.offsetHeight;
  const answer = fold.innerText.slice(summary.innerText.length).trim();
  return shown && answer ? null : `the folded answer to "${summary.innerText.slice(0, 60)}" stays folded or is empty`;
}).filter(Boolean)"""

CELLS = """() => {
const corner = img => {  // red, green, blue and opacity of the first pixel of a plot
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
  canvas.drawImage(img, 0, 0);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const kind = output => {  // JupyterLab gives widgets no type, and errors that of stderr
  const error = [...output.querySelectorAll('span.ansi-red-fg')].length && /\\bTraceback \\(/.test(output.innerText);
  const widget = output.querySelector('.jupyter-widgets') && 'application/vnd.jupyter.widget-view+json';
  return error ? 'application/vnd.jupyter.error' : output.dataset.mimeType ?? widget ?? '';
};
const cut = (thing, cell) => {  // does it, or what it holds, reach beyond the right edge of its cell?
  const edge = cell.getBoundingClientRect().right + 1;
  const parts = [thing, ...thing.querySelectorAll('mjx-math, mjx-math *, td, th')];
  return parts.some(part => part.getBoundingClientRect().right > edge);
};
return [...document.querySelectorAll('.jp-Notebook .jp-Cell')].map(cell => ({
  kind: cell.classList.contains('jp-CodeCell') ? 'code' : 'markdown',
  prompt: cell.querySelector('.jp-InputPrompt')?.innerText.trim() ?? '',
  outputs: [...cell.querySelectorAll('.jp-OutputArea-output')].map(output => ({
    kind: kind(output),
    text: output.innerText,
    widgets: output.querySelectorAll('.jupyter-widgets').length,
    bars: [...output.querySelectorAll('[role=progressbar], .progress-bar')].map(bar =>
      ({state: bar.className, width: bar.style.width})),
  })),
  pictures: [...cell.querySelectorAll('img')].map(img =>
    ({alt: img.alt, wide: img.complete ? img.naturalWidth : 0, shown: img.getBoundingClientRect().width,
      plot: !!img.closest('.jp-RenderedImage'), source: img.src.slice(0, 80),
      paper: img.src.startsWith('data:') && img.naturalWidth ? corner(img) : null})),
  formulas: cell.querySelectorAll('mjx-container').length,
  wide: [...cell.querySelectorAll('mjx-container, table, img')].filter(thing => cut(thing, cell)).map(thing =>
    thing.tagName.toLowerCase().replace('mjx-container', 'formula')),
  unread: [...cell.querySelectorAll('mjx-merror')].map(bad => bad.innerText),
  folds: cell.querySelectorAll('details').length,
  text: cell.classList.contains('jp-CodeCell') ? '' : cell.querySelector('.jp-RenderedMarkdown')?.innerText ?? '',
}))}"""


@dataclass
class Visit:
    cells: list[dict]  # what the page shows
    wrong: list[str]  # what went wrong beside it
    seconds: float  # until the last cell was done
    theme: str


class Stuck(AssertionError):
    """The notebook did not get to its end; the message says in which cell it was."""


def first_line(cell: dict) -> str:
    return "".join(cell["source"]).strip().partition("\n")[0][:80]


def listen(page: Page) -> list[str]:
    """A list that fills with what goes wrong: errors of the console, answers of 400 and above, other hosts asked."""
    heard: list[str] = []

    def strangers(route):
        if route.request.url == BADGE:  # all that a lesson loads from elsewhere: drawn here, network or not
            route.fulfill(content_type="image/svg+xml", body=DRAWN_BADGE)
        else:
            heard.append(f"asked another host: {route.request.url}")
            route.abort()

    page.route(lambda url: url.startswith("http") and not url.startswith("http://127.0.0.1:"), strangers)
    page.on("console", lambda said: heard.append(f"console: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: heard.append(f"page error: {error}"))
    page.on("response", lambda got: heard.append(f"{got.status}: {got.url}") if got.status >= 400 else None)
    return heard


def harmful(heard: list[str]) -> list[str]:
    return [text for text in heard if not any(re.search(pattern, text) for pattern in HARMLESS)]


def open_notebook(page: Page, lab, name: str, cells: int) -> None:
    """Until the kernel is idle and every cell is in the page."""
    page.goto(f"{lab.url}/lab/tree/{name}.ipynb?reset&token={lab.token}")
    page.wait_for_function(
        "n => document.querySelectorAll('.jp-Notebook .jp-Cell').length == n"
        " && document.querySelector('.jp-Notebook-ExecutionIndicator[data-status=\"idle\"]')",
        arg=cells,
        timeout=60_000,
    )
    page.wait_for_timeout(500)  # the menu knows the notebook a moment after the page does


def run_all(page: Page, tries: int = 3) -> None:
    """Run > Run All Cells, as a reader does it; again if no cell starts, since a menu opened too early does nothing."""
    for _ in range(tries):
        page.locator(".jp-Notebook .jp-Cell").first.click(position={"x": 30, "y": 8})  # beside its text
        page.locator(".lm-MenuBar-item", has_text=re.compile("^Run$")).click()
        page.locator('[data-command="runmenu:run-all"]').click()
        try:
            page.wait_for_function(STARTED, timeout=5_000)
            return
        except Late:
            page.keyboard.press("Escape")
    raise Stuck(f"no cell started to run in {tries} tries")


def wait(page: Page, cells: list[dict], seconds: float) -> None:
    """Until no cell runs or waits for its turn. Stuck names the cell that runs."""
    try:
        page.wait_for_function(SETTLED, timeout=1000 * max(seconds, 1), polling=250)
    except Late:
        prompts = page.evaluate(
            "[...document.querySelectorAll('.jp-InputPrompt')].map(prompt => prompt.textContent.trim())"
        )
        code = [(number, cell) for number, cell in enumerate(cells) if cell["cell_type"] == "code"]
        running = [
            f"cell {number} ({first_line(cell)!r})"
            for (number, cell), prompt in zip(code, prompts, strict=False)
            if not re.match(r"\[\d", prompt)
        ]
        raise Stuck(f"after {seconds:.0f} s still running: {running[0] if running else 'no cell'}") from None


def see(page: Page) -> list[dict]:
    """What the page shows, cell by cell."""
    page.wait_for_timeout(300)  # the last picture is in the page before it is decoded
    return page.evaluate(CELLS)


def unfold(page: Page) -> list[str]:
    """Open every folded answer, two of them by the mouse; what is wrong with what this shows."""
    summaries = page.locator(".jp-Notebook details > summary")
    for summary in (summaries.first, summaries.last) if summaries.count() > 1 else ():
        summary.click()
        if not summary.evaluate("summary => summary.parentElement.open"):
            return [f"a click does not unfold {summary.inner_text()[:60]!r}"]
    return page.evaluate(UNFOLD)


def photograph(page: Page, folder: Path, name: str, *, height: int = 1700) -> list[Path]:
    """The whole notebook as pictures NAME_01.png, NAME_02.png, ..., from top to bottom."""
    folder.mkdir(parents=True, exist_ok=True)
    page.set_viewport_size({"width": page.viewport_size["width"], "height": height})
    outer = page.locator(".jp-WindowedPanel-outer").first
    outer.evaluate("panel => panel.scrollTop = 0")
    paths, last = [], -1.0
    while (top := outer.evaluate("panel => panel.scrollTop")) != last and len(paths) < 40:
        page.wait_for_timeout(150)
        paths.append(folder / f"{name}_{len(paths) + 1:02d}.png")
        outer.screenshot(path=paths[-1])
        last = top
        outer.evaluate("panel => panel.scrollTop += panel.clientHeight - 40")
    return paths


def visit(page: Page, lab, name: str, cells: list[dict], seconds: float, shots: Path) -> Visit:
    """Open, run, wait, look, unfold, photograph. Stuck where the last cell is not done within `seconds`."""
    heard, begin = listen(page), time.monotonic()
    try:
        open_notebook(page, lab, name, len(cells))
        run_all(page)
        wait(page, cells, seconds - (time.monotonic() - begin))
        spent = time.monotonic() - begin
        visited = Visit(see(page), unfold(page), spent, page.evaluate("document.body.dataset.jpThemeName"))
        if "BROWSER_SHOTS" in os.environ:
            photograph(page, shots, name)
        visited.wrong += harmful(heard)
        return visited
    except (Error, Stuck) as error:
        shots.mkdir(parents=True, exist_ok=True)
        path = shots / f"{name}_failed.png"
        try:
            page.screenshot(path=path, timeout=10_000)
        except Error:
            path = "none could be taken"
        said = "\n".join(heard[-5:])
        raise Stuck(f"{name}: {error}\nscreenshot: {path}\nbrowser: {said}\nserver:\n{lab.program.tail()}") from None
