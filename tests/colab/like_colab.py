"""Real Pythons and real versions: Colab's, and the oldest that pyproject.toml promises. Notebooks run there, and tests.

    python tests/colab/like_colab.py colab  FOLDER --python python3.13 08_gae 17_gpu_kernels
    python tests/colab/like_colab.py oldest FOLDER --python python3.11 --tests 08_gae

FOLDER is a new virtual environment (or one that an earlier call made) of up to 7 GB: on Linux, PyTorch's wheels for most
Pythons are CUDA's. --torch-index https://download.pytorch.org/whl/cpu has smaller ones. Without names, all notebooks run.
Each first cell calls the real pip, which builds the checkout's last commit: git is told that it is the public repository.
What pip listed before must be there after, in the same versions; what is new may be minirl, and gymnasium with its kin.

Tried in November 2026, on Linux without a GPU:

    Python 3.13.0, torch 2.11.0, triton 3.6.0, numpy 2.1.3, ipykernel 6.17.1, ipywidgets 7.7.5, tokenizers 0.22.2,
        matplotlib 3.10.9, transformers 5.15.1, no jaxtyping, no nbval: all 21 notebooks run, pip changes nothing.
    Python 3.11.7, torch 2.5.0, numpy 1.26.4, tokenizers 0.20.3, matplotlib 3.8.4: 03 and 08 run; 17 does not, since that
        version cannot recompute on the meta device. 1466 of 1471 tests pass: the others want transformers 5.
    The same with torch 2.6.0: 16 and 17 run, and the first 1463 of those tests end alike.

Not tried: Colab itself, IPython 7 (these used IPython 9), a real T4.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import simulated

from minirl import REPOSITORY

SETS = {
    # As Colab was in August 2026. ipykernel decides where the output of a subprocess goes, ipywidgets draws progress bars.
    "colab": [
        "numpy==2.1.*", "tokenizers==0.22.*", "matplotlib==3.10.*", "transformers==5.15.*", "ipywidgets==7.7.*",
        "ipykernel==6.17.1", "safetensors", "tqdm", "torch==2.11.0",
    ],
    # The lower bounds of pyproject.toml, where there is one.
    "oldest": [
        "numpy==1.26.*", "tokenizers==0.20.*", "matplotlib==3.8.*", "transformers==4.46.*", "ipywidgets==8.1.*",
        "ipykernel==6.29.*", "safetensors==0.4.*", "tqdm==4.60.*", "torch==2.5.0",
    ],
}  # fmt: skip
GYMNASIUM = ("gymnasium", "farama-notifications", "cloudpickle")  # what 02_cartpole fetches where it is missing
FOR_TESTS = ["pytest>=8", "hypothesis>=6.100", "jaxtyping>=0.2.34", "beartype>=0.19", "pytest-xdist>=3.7"]
TESTS = (
    "test_model test_generate test_attention test_decoder test_sampling test_tokenizer test_advantages test_kl test_masking "
    "test_logprobs test_rewards test_lora test_checkpoint test_pretrained test_layouts losses"
).split()
QUICK_LOOPS = ["tests/test_main.py", "-k", "loops_train_corrections or cannot_be_saved"]


class Real(simulated.Machine):
    @property
    def environment(self) -> dict[str, str]:
        """As simulated, plus what pip needs, and git's word for where the public repository lies."""
        passed = {
            k: v for k, v in os.environ.items() if k.startswith("PIP_") or k.lower().endswith(("_proxy", "cert_file"))
        }
        git = {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.file://{simulated.ROOT}.insteadOf",
            "GIT_CONFIG_VALUE_0": f"https://github.com/{REPOSITORY}",
        }
        return super().environment | passed | git


def pip(machine: Real, *arguments: str) -> str:
    done = subprocess.run(
        [machine.python, "-m", "pip", "--disable-pip-version-check", *arguments],
        env=machine.environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"pip {' '.join(arguments)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def build(folder: Path, python: str, wanted: list[str], index: list[str]) -> Real:
    if not (folder / "bin" / "python").exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
    found = subprocess.check_output(
        [folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    machine = Real(folder, folder / "bin" / "python", Path(found.strip()))
    pip(machine, "install", "-q", "--no-cache-dir", "--no-compile", *index, *wanted)
    if not (machine.site / "google" / "colab").exists():
        shutil.copytree(simulated.HERE / "stub" / "google", machine.site / "google", dirs_exist_ok=True)
        simulated.add_kernel(machine)
    shutil.rmtree(machine.content, ignore_errors=True)
    machine.content.mkdir()
    return machine


def listed(machine: Real) -> set[str]:
    return set(pip(machine, "list", "--format=freeze").splitlines())


def notebook(machine: Real, name: str) -> str:
    """One line: how it went."""
    path = simulated.ROOT / "notebooks" / f"{name}.ipynb"
    pip(machine, "uninstall", "-y", "minirl", *GYMNASIUM)
    before, stored = listed(machine), nbformat.read(path, 4)
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    try:
        book = simulated.run(path, machine, timeout=600)
    except nbclient.exceptions.CellExecutionError as error:
        return f"FAILED\n{str(error)[-3000:]}"
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - started
    after = listed(machine)
    new = {line.partition("==")[0].lower() for line in after - before}
    if changed := sorted(before - after) + sorted(new - {"minirl", *GYMNASIUM}):
        return f"FAILED: pip changed {', '.join(changed)}"
    other = simulated.differences(stored, book)
    same = "the same" if simulated.last_line(book) == simulated.last_line(stored) else "ANOTHER"
    digits = f", other digits in cells {', '.join(map(str, other))}" if other else ""
    noise = [output for cell in simulated.code(book) for output in cell["outputs"] if output.get("name") == "stderr"]
    said = "".join(f"\n  stderr: {output['text'].strip()[:300]}" for output in noise)
    return f"ran, {seconds:.0f} CPU seconds, {same} last line{digits}{said}"


def tests(machine: Real) -> int:
    """The library's own tests there, on the checkout's files; the packages they need lie beside the environment."""
    beside = machine.folder / "for_tests"
    if not beside.exists():
        pip(machine, "install", "-q", "--target", str(beside), "--no-deps", *FOR_TESTS, "iniconfig", "pluggy", "execnet",
            "sortedcontainers", "wadler-lindig", "pygments")  # fmt: skip
    files = [f"tests/{name}.py" if name.startswith("test_") else f"tests/{name}" for name in TESTS]
    code = 0
    for chosen in (files, QUICK_LOOPS):
        options = ["-p", "no:cacheprovider", "-o", "addopts=", "-m", "not nightly and not gpu", "-q", "--tb=short"]
        done = subprocess.run(
            [machine.python, "-m", "pytest", *options, *chosen],
            env=machine.environment
            | {"PYTHONPATH": f"{beside}{os.pathsep}{simulated.ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=simulated.ROOT,
        )
        code = code or done.returncode
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--torch-index", metavar="URL", help="an index of PyTorch's, beside the usual one")
    parser.add_argument("--tests", action="store_true", help="and a choice of the library's tests")
    args = parser.parse_args()
    index = ["--extra-index-url", args.torch_index] if args.torch_index else []
    machine = build(args.folder.resolve(), args.python, SETS[args.set], index)
    wanted = [word.partition("=")[0] for word in SETS[args.set]]
    versions = json.loads(pip(machine, "list", "--format=json"))
    print(
        *(f"{found['name']} {found['version']}" for found in versions if found["name"] in wanted), sep=", ", flush=True
    )
    code = 0
    for name in args.notebooks or [path.stem for path in simulated.NOTEBOOKS]:
        line = notebook(machine, name)
        print(f"{name}: {line}", flush=True)
        code = code or line.startswith("FAILED") or "ANOTHER" in line
    return (tests(machine) if args.tests else 0) or int(code)


if __name__ == "__main__":
    sys.exit(main())
