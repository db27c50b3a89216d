"""A free Colab's GPU is a T4: what it cannot do is said in one sentence, before anything long starts.

The checks are in a process of their own, without the shape-checking import hook, which would wrap the kernels themselves.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def test_a_t4():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    options = ["--noconftest", "-p", "no:cacheprovider", "-o", "addopts=", "-q", "--tb=short"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(HERE / "check_t4.py")],
        env=environment,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
