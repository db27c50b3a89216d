"""Options of pytest that people add by themselves: the tests pass with them."""

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_report_in_xml_and_more_examples_of_any_file(tmp_path):
    """A file that records a property, and that is none of those in tests/hostile."""
    report = tmp_path / "report.xml"
    words = ["-o", "addopts=", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=nightly", f"--junitxml={report}"]
    tests = ["tests/test_kill.py", "-k", "stored"]
    command = [sys.executable, "-m", "pytest", *words, *tests]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    recorded = {found.get("name"): found.get("value") for found in xml.parse(report).iter("property")}
    assert recorded == {"faults survived earlier": "40"}
