"""python docs/build.py            the site, into docs/_build/html, from the notebooks' stored outputs
python docs/build.py slides         every notebook as slides, into docs/_build/html/slides
python docs/build.py --draft        without what has to be fetched once from npm: formulas stay TeX

Pages are staged in docs/_build/stage: notebooks with their links turned to pages and nothing else changed, the reference
from the source, tables from stored results. Sphinx then runs with warnings as errors.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS), str(ROOT)]

import api  # noqa: E402
import pages  # noqa: E402
import vendor  # noqa: E402

from minirl import REPOSITORY  # noqa: E402

BUILD = DOCS / "_build"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
HAND_WRITTEN = ("index", "golden", "conformance", "benchmarks", "interview", "teaching", "syllabus", "comparison")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["site", "slides"], default="site")
    parser.add_argument("--out", type=Path, default=BUILD / "html", help="(docs/_build/html)")
    parser.add_argument("--draft", action="store_true", help="fetch nothing: formulas stay TeX")
    parser.add_argument("--only", metavar="NAME", help="slides of this notebook alone")
    args = parser.parse_args()
    try:
        if args.what == "slides":
            from slides import write_slides  # nbconvert is slow to import, and the site does not need it

            return write_slides(args.out / "slides", only=args.only)
        return site(args.out, draft=args.draft)
    except vendor.Missing as missing:
        print(f"docs/build.py: {missing}", file=sys.stderr)
        return 1


def site(out: Path, *, draft: bool = False) -> int:
    """Stage, build, add the formulas' script and the pages to print. The exit status of Sphinx."""
    mathjax = None if draft else vendor.fetch(vendor.MATHJAX)
    stage = out.parent / "stage"
    write_stage(stage)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", str(DOCS)]
    done = subprocess.run([*command, "-d", str(out.parent / "doctrees"), str(stage), str(out)])
    if done.returncode:
        return done.returncode
    script = out / "_static" / "mathjax" / "tex-svg-full.js"
    script.parent.mkdir(parents=True, exist_ok=True)
    if mathjax:
        shutil.copy(mathjax / "es5" / "tex-svg-full.js", script)
        shutil.copy(mathjax / "LICENSE", script.parent)
    else:
        script.write_text("// a draft: formulas stay TeX\n", encoding="utf-8")
    write_printed(out)
    (out / ".nojekyll").touch()  # folders that begin with an underscore are served too
    print(f"Site: {out / 'index.html'}")
    return 0


def write_stage(stage: Path) -> None:
    """Everything Sphinx reads. A file that has not changed keeps its time, so that it is not read again."""
    wanted = {f"{name}.md": hand_written(name) for name in HAND_WRITTEN} | api.pages()
    for path in pages.NOTEBOOKS:
        wanted[f"notebooks/{path.name}"] = staged_notebook(path)
    copies = {"road.png": DOCS / "road.png", "golden.json": ROOT / "data/golden/golden.json"}
    contents = {name: text.encode() for name, text in wanted.items()}
    contents |= {name: path.read_bytes() for name, path in copies.items()}
    contents["colab.svg"] = (DOCS / "_static" / "colab.svg").read_bytes()
    for old in [path for path in stage.rglob("*") if path.is_file()] if stage.is_dir() else []:
        if old.relative_to(stage).as_posix() not in contents:
            old.unlink()
    for name, content in contents.items():
        path = stage / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def hand_written(name: str) -> str:
    """A page of docs/ with its tables filled in: a line `@@TABLE@@` stands for what pages.TABLE() returns."""
    text = (DOCS / f"{name}.md").read_text("utf-8")

    def filled(match: re.Match) -> str:
        found = getattr(pages, match[1].lower())()
        return found[0] if isinstance(found, tuple) else found

    text = re.sub(r"@@(\w+)@@", filled, text)
    return links(text.replace("@REPOSITORY@", REPOSITORY), here=DOCS)


def staged_notebook(path: Path) -> str:
    """The notebook as it is stored, links in its Markdown aside."""
    notebook = json.loads(path.read_text("utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = links("".join(cell["source"]), here=path.parent)
    return json.dumps(notebook, ensure_ascii=False, indent=1)


def links(text: str, *, here: Path) -> str:
    """Links to files of the repository: to their page where there is one, else to the file on GitHub. The badge is ours."""
    depth = "" if here == DOCS else "../"
    pages_of = api.documented()

    def turned(match: re.Match) -> str:
        target, anchor = match[1], match[2] or ""
        if target == BADGE:
            return f"]({depth}colab.svg)"
        if re.match(r"[a-z]+:", target) or not target:
            return match[0]
        file = (here / target).resolve()
        if here == DOCS and file.parent == ROOT / "notebooks":
            return f"](notebooks/{file.name}{anchor})"
        if target.endswith((".ipynb", ".png")) or not file.is_relative_to(ROOT) or not file.exists():
            return match[0]
        name = file.relative_to(ROOT).as_posix()
        if name == "data/golden/README.md":
            return f"]({depth}golden.md{anchor})"
        if name == "tests/conformance/README.md":
            return f"]({depth}conformance.md{anchor})"
        if file.parent == DOCS and file.suffix == ".md":
            return match[0]
        if name in pages_of:
            return f"]({depth}{pages_of[name]})"
        return f"](https://github.com/{REPOSITORY}/blob/main/{name}{anchor})"

    return re.sub(r"\]\(([^()\s#]*)(#[^()\s]*)?\)", turned, text)


def write_printed(out: Path) -> None:
    """The sheet and the cards, as `python -m minirl cards` prints them."""
    from minirl.cards import load, load_evening
    from minirl.cards.printed import cards_page
    from minirl.cards.sheet import sheet_page

    cards = load()
    (out / "cards.html").write_text(cards_page(cards), encoding="utf-8", newline="\n")
    (out / "sheet.html").write_text(sheet_page(load_evening(cards)), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(main())
