"""The kernels in processes of their own: Triton's interpreter has to be chosen before anything imports a kernel, and the
shape-checking import hook of these tests would wrap the kernels themselves.

Each check_NAME.py beside this file is a test file for such a process. On a GPU the same files run without the interpreter.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minirl.ops import TORCH

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHECKS = {path.stem.removeprefix("check_"): path for path in HERE.glob("check_*.py")}

# absent on macOS and Windows, and a part of PyTorch's CUDA build on Linux
triton = pytest.mark.skipif("not __import__('importlib').util.find_spec('triton')", reason="Triton is not installed")


def run(command, **environment):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1800
    )


def passes(check, **environment):
    options = ["--noconftest", "-p", "no:cacheprovider", "-o", "addopts=", "-q", "--tb=short"]
    done = run(["-m", "pytest", *options, str(CHECKS[check])], **environment)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@triton
@pytest.mark.parametrize("check", sorted(set(CHECKS) - {"without_gpu"}))
def test_in_the_interpreter(check):
    passes(check, TRITON_INTERPRET="1")


@triton
def test_without_a_gpu(tmp_path):
    passes("without_gpu", TRITON_CACHE_DIR=str(tmp_path))


@triton
@pytest.mark.gpu
@pytest.mark.parametrize("check", ["equality", "properties"])
def test_on_a_gpu(check):
    passes(check)


def test_without_triton_says_what_to_do():
    script = "import sys; sys.modules['triton'] = None; import minirl.ops; import minirl.kernels"
    done = run(["-c", script])
    assert done.returncode == 1
    for words in ("ImportError: minirl.kernels needs Triton", "pip install triton", "--ops torch"):
        assert words in done.stderr


@triton
def test_the_benchmark_without_a_gpu_says_what_to_do():
    done = run(["tests/bench/gpu_kernels.py"], CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and "device: the Triton kernels run on an NVIDIA GPU" in done.stderr


@triton
@pytest.mark.nightly
def test_the_benchmark_in_the_interpreter(tmp_path):
    """Every path of the script on tiny sizes."""
    out = tmp_path / "table.json"
    done = run(["tests/bench/gpu_kernels.py", "--interpret", "--no-compile", "--out", str(out)])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(out.read_text())
    assert report["interpreted"] and all(check["passed"] for check in report["checks"])
    assert len(report["rows"]) == 13
    assert all("ms" in result for row in report["rows"] for who, result in row["results"].items() if "minirl" in who)


def test_the_table_is_frozen():
    with pytest.raises(AttributeError):
        TORCH.gae = None
