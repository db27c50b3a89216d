"""A machine like Colab in a folder: what is there, what is missing, what is already imported, and a pip that keeps watch.

    machine = build(folder)               a Python environment of links into the one the tests run in
    book = run(notebook, machine)         the notebook, executed there in an empty folder
    asked(machine)                        what pip was asked for

Nothing is fetched. The release that first cells install is the checkout's own files. like_colab.py beside this file does
the same with another Python, other versions and the real pip.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import nbclient
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from traitlets import default

from minirl import REPOSITORY

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RELEASE = f"git+https://github.com/{REPOSITORY}"

# Not on Colab, or not to be relied on; ours, because a first cell has to fetch it; pip, because ours stands in its place.
# Names of files and folders in site-packages, up to the first dot, hyphen or plus sign.
ABSENT = set(
    "minirl _editable_impl_minirl jaxtyping beartype nbval hypothesis _hypothesis_pytestplugin pytest _pytest pytest_xdist "
    "xdist peft genanki gguf ruff gymnasium Farama_Notifications farama_notifications hatchling wadler_lindig google pip".split()
)

T4 = '''"""Makes PyTorch believe in Colab's free GPU. Whoever then computes on it fails: there is none."""
import torch

torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_name = lambda device=None: "Tesla T4"
torch.cuda.get_device_capability = lambda device=None: (7, 5)
torch.cuda.is_bf16_supported = lambda including_emulation=True: including_emulation
'''


@dataclass(frozen=True)
class Machine:
    folder: Path
    python: Path  # of the machine
    site: Path  # its site-packages

    @property
    def content(self) -> Path:
        """Where Colab's notebooks run: a folder with nothing of ours."""
        return self.folder / "content"

    @property
    def environment(self) -> dict[str, str]:
        """Of every process there. Nothing leads back to the checkout; PYTHONPATH is set, and to nothing, as on Colab."""
        return {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "PYTHONPATH": "/env/python",
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "IPYTHONDIR": str(self.folder / "ipython"),
            "OMP_NUM_THREADS": "1",
        }


def build(folder: Path, *, gpu: bool = False) -> Machine:
    """The machine, without minirl. `gpu`: kernels start with a T4 that can be asked about and not used."""
    venv.create(folder, symlinks=True)
    found = Path(sysconfig.get_path("purelib"))
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)}))
    for path in found.iterdir():
        name = path.name.partition(".")[0].partition("-")[0].partition("+")[0]
        if name not in ABSENT and path.suffix != ".pth" and path.name != "__pycache__":
            (site / path.name).symlink_to(path)
    for stub in ("google", "pip"):
        shutil.copytree(HERE / "stub" / stub, site / stub, ignore=shutil.ignore_patterns("__pycache__"))
    machine = Machine(folder, Path(folder) / "bin" / "python", site)
    machine.content.mkdir()
    settings = {"network": True, "releases": {RELEASE: str(release(folder / "release"))}, "shelf": str(found)}
    (folder / "machine.json").write_text(json.dumps(settings))
    add_kernel(machine, gpu)
    return machine


def add_kernel(machine: Machine, gpu: bool = False) -> None:
    """A kernel that has imported google.colab before the first cell, as Colab's has."""
    startup = machine.folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-colab.py").write_text("import google.colab\n" + (T4 if gpu else ""))
    kernel = machine.folder / "kernels" / "colab"
    kernel.mkdir(parents=True)
    command = [str(machine.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Colab", "language": "python"}))


def release(folder: Path) -> Path:
    """The files a clone would hold: those that git knows or would not ignore. Without git, all."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "minirl", "data"], cwd=ROOT, capture_output=True, text=True
    )
    names = listed.stdout.splitlines() if listed.returncode == 0 else []
    names = names or [str(p.relative_to(ROOT)) for top in ("minirl", "data") for p in (ROOT / top).rglob("*.*")]
    for name in [*names, "pyproject.toml"]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def set_network(machine: Machine, there: bool) -> None:
    path = machine.folder / "machine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"network": there}))


def asked(machine: Machine) -> list[dict]:
    log = machine.folder / "pip.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def run(notebook: Path, machine: Machine, *, timeout: int = 300) -> nbformat.NotebookNode:
    """The executed notebook; nbclient's CellExecutionError at the first cell that fails."""
    book = nbformat.read(notebook, 4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = []

    class Manager(AsyncKernelManager):  # a class: what nbclient makes itself, it also shuts down
        @default("kernel_spec_manager")
        def _machine_s(self):
            return KernelSpecManager(kernel_dirs=[str(machine.folder / "kernels")])

    client = nbclient.NotebookClient(
        book,
        kernel_name="colab",
        kernel_manager_class=Manager,
        timeout=timeout,
        record_timing=False,
        resources={"metadata": {"path": str(machine.content)}},
    )
    return client.execute(env=machine.environment)


def python(machine: Machine, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(machine.python), *arguments],
        env=machine.environment,
        cwd=machine.content,
        capture_output=True,
        text=True,
        timeout=600,
    )


def said(cell: dict) -> list[str]:
    """What a cell shows, without its pictures: their pixels depend on the versions of fonts and libraries."""
    shown = []
    for output in cell["outputs"]:
        data = output.get("data", {})
        if output["output_type"] == "stream":
            shown.append((output["name"], "".join(output["text"])))
        elif "image/png" not in data:
            shown += [
                (kind, "".join(data[kind])) for kind in ("text/html", "text/markdown", "text/plain") if kind in data
            ]
    merged = []
    for kind, text in shown:  # one print may arrive as two messages
        if merged and merged[-1][0] == kind == "stdout":
            merged[-1] = (kind, merged[-1][1] + text)
        else:
            merged.append((kind, text))
    return [text for _, text in merged]


def code(book: dict) -> list[dict]:
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def fixed(cell: dict) -> bool:
    """Whether its output is the same in every run."""
    return "nbval-ignore-output" not in cell["metadata"].get("tags", [])


def differences(stored: dict, found: dict) -> list[int]:
    """The execution counts of the cells that say something else than the stored ones."""
    pairs = zip(code(stored), code(found), strict=True)
    return [n for n, (old, new) in enumerate(pairs, start=1) if fixed(old) and said(old) != said(new)]


def last_line(book: dict) -> str:
    lines = [line for cell in code(book) if fixed(cell) for text in said(cell) for line in text.splitlines()]
    return lines[-1] if lines else ""


if __name__ == "__main__":  # python tests/colab/simulated.py NOTEBOOK FOLDER: one notebook on a machine in a new folder
    print(last_line(run(Path(sys.argv[1]), build(Path(sys.argv[2])))))
