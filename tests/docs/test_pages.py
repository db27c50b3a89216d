"""Pages made from stored results say what is stored, and say so where nothing is."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import api  # noqa: E402
import build  # noqa: E402
import pages  # noqa: E402

SIDE = {"peak_bytes": 1, "bytes_before": 1, "versions": {"torch": "2.13.0"}}
CPU = {"machine": "a_b", "cores": 2, "load_average": 0.1, "threads": 2, "dtype": "fp32", "clock": "wall", "pairs": 3}
CPU["workloads"] = [
    {"name": "grpo", "model": "tiny", "refused": None, "ours": SIDE | {"seconds": [0.1, 0.2, 0.9]}}
    | {"peer": SIDE | {"seconds": [0.5, 0.3, 0.4]}, "ratio": 2.0, "low": 1.5, "high": 2.5, "minima": 3.0, "must": 1.7},
    {"name": "dpo", "model": "tiny", "refused": "the logits differ"},
    {"name": "help", "model": None, "refused": None, "ours": SIDE | {"seconds": [0.25]}},
]
GPU = {"machine": {"name": "H"}, "versions": {"triton": "3.7", "trl": None}, "checks": [{"passed": True}]}
GPU |= {
    "ceilings": {"copy": 4e12, "matmul": 7e14},
    "rows": [{"name": "GAE", "size": "9", "ceiling": "copy", "goal": "1 ms"}],
}
GPU["rows"][0]["results"] = {
    "minirl": {"ms": 0.5, "share_of_ceiling": 0.25, "extra_bytes": 2e9},
    "torch": {"error": "out of memory"},
}


def test_benchmarks_that_are_not_stored_are_not_shown(tmp_path):
    text = pages.benchmarks(tmp_path)
    assert text.count("No measurement is stored yet") == 2 and "| ---" not in text


def test_benchmarks_show_what_is_stored(tmp_path):
    for name, report in (("cpu.json", CPU), ("gpu.json", GPU)):
        (tmp_path / name).write_text(json.dumps(report))
    text = pages.benchmarks(tmp_path)
    assert "No measurement" not in text
    assert "| `grpo` | tiny | 200.0 | 400.0 | 2.00 | 1.50 to 2.50 | 3.00 | 1.7 |" in text
    assert "| `help` |  | 250.0 |  |  |  |  |  |" in text and "- `dpo` (tiny): the logits differ" in text
    assert "| GAE | 9 | minirl | 0.5 | 25% of copy | 2.00 | 1 ms |" in text and "| torch | out of memory |" in text
    assert "4.00 TB/s" in text and "1 of 1 checks" in text and "trl" not in text


def test_links_lead_to_pages_or_to_the_repository():
    def turned(text: str) -> str:
        return build.links(text, here=ROOT / "notebooks")

    assert turned("[a](../minirl/kl.py)") == "[a](../api/parts.md#minirl-kl)"
    assert turned("[a](08_gae.ipynb)") == "[a](08_gae.ipynb)"
    assert turned("[a](https://arxiv.org/abs/1)") == "[a](https://arxiv.org/abs/1)"
    assert turned("[a](../tests/conformance/README.md)") == "[a](../conformance.md)"
    found = turned("[a](../data/studies/ppo.py)")
    assert found == f"[a](https://github.com/{build.REPOSITORY}/blob/main/data/studies/ppo.py)"
    assert turned(f"[![Open]({build.BADGE})](https://colab)") == "[![Open](../colab.svg)](https://colab)"


def test_plain_text_stays_plain():
    assert pages.cell("a*b_c <think> $5 [x] `k_1`") == r"a\*b\_c \<think\> \$5 \[x\] `k_1`"


def test_the_reference_has_every_module():
    """Of the rooms that are shown module by module; a new one is either documented or said to be inner."""
    package = ROOT / "minirl"
    found = {path.stem for path in package.glob("*.py") if path.stem != "__init__"}
    found |= {path.parent.name for path in package.glob("*/__init__.py")}
    for room in ("losses", "tasks", "train", "kernels"):
        found |= {f"{room}.{path.stem}" for path in (package / room).glob("*.py") if path.stem != "__init__"}
    shown = [name for names in api.SECTIONS.values() for name in names]
    assert len(set(shown)) == len(shown) and set(shown) | api.INNER == found and not set(shown) & api.INNER
