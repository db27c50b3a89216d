"""Every notebook as slides. Where a slide ends is computed here, from headings, paragraphs and kinds of cells: the notebooks
are read by people, and hold no marks for it.

A heading begins a section (arrow right). Below it (arrow down) come its paragraphs, a slideful at a time, each cell's code,
then what the code prints. An answer comes on a slide of its own, after its question.
"""

import json
import re
import shutil
from pathlib import Path

import nbformat
import vendor
from nbconvert import SlidesExporter
from pages import NOTEBOOKS
from traitlets.config import Config

from minirl import REPOSITORY

DOCS = Path(__file__).resolve().parent
WORDS = 110  # of text on a slide, at most, unless one paragraph has more
BESIDE = 3  # lines of code, at most, that stand above what they show
REMARK = 60  # words that still fit below a printed table
ROWS = 14  # of a list or a table
FOLD = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", re.DOTALL)


def write_slides(out: Path, *, only: str | None = None) -> int:
    """One HTML file a notebook, and the files they share, in the folder `out`. ValueError names a notebook there is not."""
    chosen = [path for path in NOTEBOOKS if only in (None, path.stem)]
    if not chosen:
        raise ValueError(f"--only: wanted one of {', '.join(path.stem for path in NOTEBOOKS)}; got {only!r}")
    assets = out / "assets"
    mathjax, reveal = vendor.fetch(vendor.MATHJAX), vendor.fetch(vendor.REVEAL)
    (assets / "mathjax").mkdir(parents=True, exist_ok=True)
    shutil.copy(mathjax / "es5" / "tex-svg-full.js", assets / "mathjax")
    shutil.copytree(reveal, assets / "reveal", dirs_exist_ok=True)
    for path in chosen:
        (out / f"{path.stem}.html").write_text(deck(path), encoding="utf-8")
    print(f"Slides: {out} ({len(chosen)} decks)")
    return 0


def deck(path: Path) -> str:
    """One notebook as an HTML page of slides."""
    settings = Config()
    settings.SlidesExporter.reveal_url_prefix = "assets/reveal"
    settings.SlidesExporter.reveal_theme = "white"
    settings.SlidesExporter.extra_template_basedirs = [str(DOCS / "_templates")]
    settings.SlidesExporter.template_name = "slides"
    settings.TagRemovePreprocessor.enabled = True
    settings.TagRemovePreprocessor.remove_input_tags = ["only-output"]
    notebook = nbformat.reads(json.dumps(as_slides(json.loads(path.read_text("utf-8")))), as_version=4)
    title = re.search(r"^# (.+)$", notebook.cells[0].source, re.M)[1]
    notebook.metadata["title"] = title
    html, _ = SlidesExporter(config=settings).from_notebook_node(notebook, resources={"metadata": {"name": path.stem}})
    return html


def as_slides(notebook: dict) -> dict:
    """The notebook cut into cells of a slide each, with the `slide_type` that nbconvert reads."""
    cells = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cells += markdown_slides(elsewhere(text), after_text=bool(cells) and "beside" in cells[-1]["metadata"])
        elif cell["execution_count"] != 1:  # the first prepares Colab: nothing to look at
            cells += code_slides(cell)
    for number, cell in enumerate(cells):
        cell["id"] = f"slide-{number}"
    return {"cells": cells, "metadata": notebook["metadata"], "nbformat": 4, "nbformat_minor": 5}


def elsewhere(text: str) -> str:
    """Links to notebooks lead to their slides, links to other files to the repository; the badge goes."""
    text = re.sub(r"^\[!\[Open in Colab\].*\n?", "", text, flags=re.M)
    text = re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.html)", text)
    return re.sub(r"\]\(\.\./([^)]+)\)", rf"](https://github.com/{REPOSITORY}/blob/main/\1)", text)


def markdown_slides(text: str, *, after_text: bool = False) -> list[dict]:
    """Slides of one Markdown cell. A short remark after printed text stays on its slide, and is shown second."""
    cells = []
    for section in re.split(r"(?m)^(?=#{1,3} )", text):
        first = True
        for kind, part in parts(section):
            begins = first and section.startswith("#")
            remark = after_text and not cells and not begins and kind == "text" and len(part.split()) <= REMARK
            remark = remark and not part.startswith("**Predict.")
            cells.append(slide("markdown", part, "slide" if begins else "fragment" if remark else "subslide"))
            first = False
    return cells


def parts(section: str) -> list[tuple[str, str]]:
    """("text", a slideful) and ("answer", what a fold holds, its summary as heading), in order."""
    found, end = [], 0
    for fold in FOLD.finditer(section):
        found += [("text", part) for part in slidefuls(section[end : fold.start()])]
        found += [("answer", f"### {fold[1]}\n\n{part}") for part in slidefuls(fold[2])]
        end = fold.end()
    return found + [("text", part) for part in slidefuls(section[end:])]


def slidefuls(text: str) -> list[str]:
    """Paragraphs packed up to WORDS; a prediction begins a slide, a heading or a line that ends in a colon ends none."""
    packed = []
    for block in blocks(text):
        size = len(block.split())
        last = packed[-1] if packed else ""
        glued = last.rstrip().endswith(":") or re.fullmatch(r"#+ [^\n]+", last.strip())
        fits = len(last.split()) + size <= WORDS and last.count("\n") + block.count("\n") <= ROWS
        if packed and (glued or (fits and not block.startswith("**Predict."))):
            packed[-1] += "\n\n" + block
        else:
            packed.append(block)
    return packed


def blocks(text: str) -> list[str]:
    """Paragraphs, lists, tables and displayed formulas; code in fences stays in one piece, long lists and tables do not."""
    pieces = re.split(r"(^```.*?^```$)", text, flags=re.M | re.DOTALL)
    return [
        part
        for i, piece in enumerate(pieces)
        for block in ([piece] if i % 2 else re.split(r"\n\s*\n(?! )", piece))
        if block.strip()
        for part in cut(block.strip("\n"))
    ]


def cut(block: str) -> list[str]:
    """A list or a table of more words than a slide holds, in parts; each part of a table has its head."""
    head, rows = [], re.split(r"\n(?=\d+\. |[-*] )", block)
    if block.startswith("|"):
        head, rows = block.split("\n")[:2], block.split("\n")[2:]
    if len(block.split()) <= WORDS or len(rows) == 1:
        return [block]
    packed = []
    for row in rows:
        if packed and len(" ".join(packed[-1]).split()) + len(row.split()) <= WORDS:
            packed[-1].append(row)
        else:
            packed.append([row])
    return ["\n".join([*head, *part]) for part in packed]


def code_slides(cell: dict) -> list[dict]:
    """The code, then what it prints on one slide, and each figure on one of its own."""
    code = slide("code", "".join(cell["source"]), "subslide", count=cell["execution_count"])
    groups = []
    for output in cell["outputs"]:
        figure = "image/png" in output.get("data", {})
        if figure or not groups or "image/png" in groups[-1][-1].get("data", {}):
            groups.append([output])
        else:
            groups[-1].append(output)
    after = []
    for group in groups:
        one = slide("code", "", "subslide", count=cell["execution_count"])
        one["outputs"], one["metadata"]["tags"] = group, ["only-output"]
        if "image/png" not in group[-1].get("data", {}):
            one["metadata"]["beside"] = True  # there is room for a remark
        after.append(one)
    if after and len(code["source"].splitlines()) <= BESIDE:  # a line or two need no slide without what they show
        code["outputs"] = after.pop(0)["outputs"]
        code["metadata"]["beside"] = True
    return [code, *after]


def slide(kind: str, source: str, slide_type: str, *, count: int | None = None) -> dict:
    cell = {"cell_type": kind, "source": source, "metadata": {"slideshow": {"slide_type": slide_type}}}
    return cell | ({"outputs": [], "execution_count": count} if kind == "code" else {})
