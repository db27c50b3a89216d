"""`python -m pip install ...` on the simulated Colab (see ../../simulated.py): no network, and nothing real is touched.

It writes down what is asked for, works out what pip would install or change, and fails if that is something which Colab
brings along. Releases and missing packages come from folders of this machine. The real pip has its turn in like_colab.py.
"""

import json
import os
import re
import shutil
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
from pathlib import Path

from packaging.requirements import Requirement

MACHINE = Path(sys.prefix)
SITE = Path(__file__).resolve().parents[1]
# A change to one of these wants a restart of the runtime, takes minutes, or breaks the page the reader looks at.
COLAB_S_OWN = {"torch", "numpy", "jupyter", "ipykernel", "ipywidgets", "ipython", "matplotlib", "tokenizers", "triton"}
CHANGES_ALL = {"--force-reinstall", "--ignore-installed", "-I"}
CHANGES_NAMED = {"--upgrade", "-U"}
KNOWN = {"-q", "--quiet", "--no-deps"} | CHANGES_ALL | CHANGES_NAMED


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def release_of(url: str) -> tuple[dict, Path]:
    """The project table and the folder of a release that is fetched with git."""
    settings = json.loads((MACHINE / "machine.json").read_text())
    if settings["network"] and url in settings["releases"]:
        folder = Path(settings["releases"][url])
        return tomllib.loads((folder / "pyproject.toml").read_text()), folder
    print(f"  fatal: unable to access '{url.removeprefix('git+')}/': Could not resolve host", file=sys.stderr)
    sys.exit("ERROR: git did not run successfully. exit code: 128")


def needed(name: str) -> list[str]:
    return distribution(name).requires or []


def plan(words: list[str], options: set[str]) -> tuple[dict[str, str], list[tuple[dict, Path]]]:
    """What pip would install or change, by name, and the releases among it."""
    changes, releases, seen = {}, [], set()
    queue = []
    for word in words:
        if word.startswith("git+"):
            table, folder = release_of(word)
            changes[plain(table["project"]["name"])] = "new"
            releases.append((table, folder))
            queue += [(text, False) for text in table["project"]["dependencies"]]
        else:
            queue.append((word, True))
    while queue:
        text, named = queue.pop()
        if not named and "--no-deps" in options:
            continue
        requirement = Requirement(text)
        name = plain(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(name)
        except PackageNotFoundError:
            changes[name] = "new"
            queue += [(text, False) for text in shelf()[name].requires or []] if name in shelf() else []
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            changes[name] = f"{found} is not {requirement.specifier}"
        elif options & CHANGES_ALL or (named and options & CHANGES_NAMED):
            changes[name] = "installed again"
        if name not in seen:
            seen.add(name)
            queue += [(text, False) for text in needed(name)]
    return changes, releases


def shelf() -> dict:
    """What can be had here in place of a package registry: the packages the tests themselves are run with."""
    settings = json.loads((MACHINE / "machine.json").read_text())
    if not settings["network"]:
        sys.exit("ERROR: Could not find a version that satisfies the requirement (from versions: none)")
    return {plain(found.name): found for found in distributions(path=[settings["shelf"]])}


def put(name: str) -> None:
    """A link to each file or folder of the package."""
    found = shelf()[name]
    where = Path(found.locate_file(""))
    for top in sorted({path.parts[0] for path in found.files if path.parts[0] not in ("..", "__pycache__")}):
        if not (SITE / top).exists():
            (SITE / top).symlink_to(where / top)


def build(table: dict, folder: Path) -> None:
    """What hatchling makes of a release, as pyproject.toml tells it. Kept like pip's wheels: a second install is a move."""
    if (SITE / table["project"]["name"]).exists():
        return  # once more is nothing new; that it was asked for is in the log
    wheel = MACHINE / "wheel"
    if not wheel.exists():
        rules = table["tool"]["hatch"]["build"]["targets"]["wheel"]
        for package in rules["packages"]:
            shutil.copytree(folder / package, wheel / Path(package).name)
        for source, target in rules["force-include"].items():
            shutil.copytree(folder / source, wheel / target)
        project = table["project"]
        facts = [
            f"Name: {project['name']}",
            "Version: 0",
            *(f"Requires-Dist: {text}" for text in project["dependencies"]),
        ]
        (info := wheel / f"{project['name']}-0.dist-info").mkdir()
        (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.3", *facts, ""]))
    for part in wheel.iterdir():
        os.rename(part, SITE / part.name)
    wheel.rmdir()


def main(arguments: list[str]) -> int:
    options = {word for word in arguments[1:] if word.startswith("-")}
    words = [word for word in arguments[1:] if not word.startswith("-")]
    line = {"asked": arguments, "changes": {}}
    try:
        if arguments[:1] != ["install"] or options - KNOWN:
            sys.exit(f"ERROR: the simulated pip does not know this: {' '.join(arguments)}")
        line["changes"], releases = plan(words, options)
        if forbidden := line["changes"].keys() & COLAB_S_OWN:
            line["forbidden"] = sorted(forbidden)
            sys.exit(f"ERROR: this would change what Colab brings along: {', '.join(sorted(forbidden))}")
        for table, folder in releases:
            build(table, folder)
        ours = {plain(table["project"]["name"]) for table, _ in releases}
        for name in line["changes"].keys() - ours:
            put(name)
        return 0
    finally:
        with open(MACHINE / "pip.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
