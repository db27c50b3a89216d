"""What the site needs from npm: one file of MathJax, a few of reveal.js. Pinned, checked by SHA-512, kept in docs/_build/vendor.

Nothing of it is committed. Once fetched, it is never fetched again, and the pages load nothing from the network.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

VENDOR = Path(__file__).resolve().parent / "_build" / "vendor"


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    sha512: str  # of the archive, as npm writes it
    files: tuple[str, ...]  # a path in the archive; one that ends with / takes all below it


MATHJAX = Package(
    "mathjax",
    "3.2.2",
    "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
    ("es5/tex-svg-full.js", "LICENSE"),
)
REVEAL = Package(
    "reveal.js",
    "5.2.1",
    "r7//6mIM5p34hFiDMvYfXgyjXqGRta+/psd9YtytsgRlrpRzFv4RbH76TXd2qD+7ZPZEbpBDhdRhJaFgfQ7zNQ==",
    (
        "dist/reveal.js",
        "dist/reveal.css",
        "dist/theme/white.css",
        "dist/theme/fonts/source-sans-pro/",
        "LICENSE",
    ),
)
AXE = Package(  # only the accessibility test wants it
    "axe-core",
    "4.10.3",
    "Xm7bpRXnDSX2YE2YFfBk2FnF0ep6tmG7xPh8iHee8MIcrgq762Nkce856dYtJYLkuIoYZvGfTs/PbZhideTcEg==",
    ("axe.min.js", "LICENSE"),
)


class Missing(Exception):
    """A package is neither kept nor to be had; the message says what to do."""


def fetch(package: Package) -> Path:
    """The folder that holds the package's files; asks npm only when they are not there yet. Missing where that fails."""
    folder = VENDOR / f"{package.name}-{package.version}"
    if folder.is_dir():
        return folder
    spec = f"{package.name}@{package.version}"
    if shutil.which("npm") is None:
        raise Missing(
            f"{spec} is not in {folder}, and npm is not installed to fetch it. Install Node.js (apt install npm, brew "
            f"install node, winget install OpenJS.NodeJS), or unpack the archive of {spec} there by hand, without its "
            "folder `package`; or build with --draft, which leaves formulas as TeX."
        )
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            ["npm", "pack", "--silent", spec], cwd=scratch, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            raise Missing(f"npm could not fetch {spec}: {done.stderr.strip()[-300:]} (--draft builds without it)")
        unpack(archives[0], package, folder)
    return folder


def unpack(archive: Path, package: Package, folder: Path) -> None:
    """The package's files of an archive whose hash is right. Missing names a hash that is not, or a file that lacks."""
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise Missing(f"{package.name}@{package.version}: wanted SHA-512 {package.sha512}, got {found}")
    with tarfile.open(archive) as tar:
        files = {member.name.removeprefix("package/"): member for member in tar.getmembers() if member.isfile()}
        chosen = {
            name: member
            for name, member in files.items()
            if any(name == wanted or (wanted.endswith("/") and name.startswith(wanted)) for wanted in package.files)
        }
        for wanted in package.files:
            if not any(name.startswith(wanted) for name in chosen):
                raise Missing(f"{package.name}@{package.version} has no {wanted}")
        unfinished = folder.with_name(folder.name + ".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        for name, member in chosen.items():
            target = unfinished / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(tar.extractfile(member).read())
    unfinished.rename(folder)
