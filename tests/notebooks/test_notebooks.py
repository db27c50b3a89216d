"""What a notebook must be besides right: read without running, on any machine. That it runs is nbval's part:

pytest --nbval --nbval-current-env notebooks
"""

import ast
import base64
import json
import re
import resource
from pathlib import Path

import nbclient
import nbformat
import pytest

from minirl import REPOSITORY

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

PNG = b"\x89PNG\r\n\x1a\n"
SECRET_PLACES = re.compile(r"(?<![\w.])/(home|root|Users|tmp|work|mnt|content|usr|opt|private)/|[A-Z]:\\Users|file://")


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def outputs(path: Path) -> list[dict]:
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


def images(path: Path) -> list[dict]:
    return [output for output in outputs(path) if "image/png" in output.get("data", {})]


def words(markdown: str) -> int:
    """Words a reader meets: without folded answers, and without the addresses of links."""
    open_text = re.sub(r"<details>.*?</details>", "", markdown, flags=re.DOTALL)
    open_text = re.sub(r"\]\([^)]*\)", "]", open_text)
    return len(re.findall(r"[^\W_]+(?:['.-][^\W_]+)*", open_text))


def core(path: Path) -> str:
    """The Markdown outside starred sections, which may be skipped: a starred heading counts up to the next heading."""
    text = "\n\n".join(source(cell) for cell in cells(path, "markdown"))
    sections = re.split(r"(?m)^(?=#{1,3} )", text)
    return "".join(section for section in sections if "★" not in section.partition("\n")[0])


def test_executed_in_order(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))


def test_no_error_and_no_stderr(path):
    wrong = [output for output in outputs(path) if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert not wrong


def test_nothing_of_one_machine_or_one_run(path):
    notebook = json.loads(path.read_text())
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}, "widgets make GitHub refuse a notebook"
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
    text = "\n".join(map(source, notebook["cells"]))
    for output in outputs(path):
        kept = {kind: data for kind, data in output.get("data", {}).items() if kind != "image/png"}
        text += json.dumps(kept) + "".join(output.get("text", []))
    found = SECRET_PLACES.search(text)
    assert not found, text[max(found.start() - 40, 0) : found.end() + 40]


def test_cells_are_short(path):
    long = {cell["execution_count"]: n for cell in cells(path, "code") if (n := source(cell).count("\n") + 1) > 30}
    assert not long
    wide = [line for cell in cells(path, "code") for line in source(cell).splitlines() if len(line) > 120]
    assert not wide


def test_warnings_are_not_silenced(path):
    for cell in cells(path, "code"):
        assert not re.search(r"filterwarnings|simplefilter|catch_warnings|%%capture|redirect_std", source(cell))


def test_output_is_no_wall_of_text(path):
    for output in outputs(path):
        text = "".join(output.get("text", output.get("data", {}).get("text/plain", [])))
        assert text.count("\n") <= 20 and len(text) <= 2000
        assert not re.search("[\u2500-\u257f]|[-=+|*#_]{6,}", text), "boxes and rules are drawn, not typed"


def test_printed_lines_are_short(path):
    """JupyterLab breaks a longer line of plain text anywhere, in a word or a number too; HTML it breaks at spaces."""
    richer = {"text/html", "text/markdown", "image/png"}
    plain = [output for output in outputs(path) if not richer & output.get("data", {}).keys()]
    texts = ["".join(output.get("text", output.get("data", {}).get("text/plain", []))) for output in plain]
    long = [line for text in texts for line in text.splitlines() if len(line) > 100]
    assert not long


def test_claims_are_asserted(path):
    asserted = [
        node
        for cell in cells(path, "code")
        for node in ast.walk(ast.parse(source(cell)))
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant)
    ]
    assert asserted


def test_pictures(path):
    found = images(path)
    assert 1 <= len(found) <= 8
    for output in found:
        data = base64.b64decode("".join(output["data"]["image/png"]))
        assert data.startswith(PNG) and len(data) < 300_000
        alt = output["metadata"].get("image/png", {}).get("alt", output["metadata"].get("alt", ""))
        assert len(alt.split()) >= 8, f"wanted a text that tells what the picture shows, got {alt!r}"
    assert not [output for output in outputs(path) if "image/svg+xml" in output.get("data", {})], "SVG differs each run"


def test_core_path_keeps_its_length(path):
    assert words(core(path)) <= 2500
    assert len(cells(path, "code")) <= 25


def test_something_is_on_screen_early(path):
    """The failure that motivates the lesson comes within 250 words."""
    read = 0
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            read += words(source(cell))
        elif cell["outputs"]:
            break
    assert read <= 250


def test_reader_predicts(path):
    """At least three questions, each with a code cell after it and before the next one."""
    order = [
        "code" if cell["cell_type"] == "code" else "predict"
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == "code" or "**Predict.**" in source(cell)
    ]
    assert order.count("predict") >= 3
    assert "predict predict" not in " ".join(order) and order[-1] == "code"


def test_parts_that_every_notebook_has(path):
    text = "\n\n".join(source(cell) for cell in cells(path, "markdown"))
    for heading in ("Say it in 60 seconds", "Toy, full size, does not transfer", "In five lines", "Papers"):
        assert re.search(rf"(?m)^## .*{heading}", text), heading
    spoken = re.search(r"(?ms)^## Say it in 60 seconds\n+(>.*?)\n\n", text)
    assert words(spoken[1]) <= 130
    summary = re.search(r"(?ms)^## In five lines\n+(.*?)(?=^## )", text)
    assert len(re.findall(r"(?m)^\d\. ", summary[1])) == 5
    assert text.count("<details>") == text.count("</details>") == text.count("<summary>") >= 3
    assert words(text) < words(text.replace("<details>", "")), "answers are folded"


def test_colab_link_and_release(path):
    first, setup = source(cells(path, "markdown")[0]), source(cells(path, "code")[0])
    name = path.relative_to(ROOT).as_posix()
    assert f"](https://colab.research.google.com/github/{REPOSITORY}/blob/main/{name})" in first
    assert f"git+https://github.com/{REPOSITORY}" in setup and "--no-deps" in setup
    assert "torch.set_num_threads(" in setup, "results must not depend on the number of cores"


def test_links_resolve(path):
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\(([^)\s]+)\)", source(cell)):
            if not re.match(r"https://|#", target):
                assert (path.parent / target.partition("#")[0]).exists(), target


def test_library_source_on_the_page_is_the_library_s(path):
    library = [file.read_text() for file in (ROOT / "minirl").rglob("*.py")]
    for output in outputs(path):
        shown = "".join(output.get("data", {}).get("text/markdown", []))
        if shown.startswith("```python"):
            code = shown.removeprefix("```python\n").removesuffix("\n```")
            assert any(code in text for text in library), code.splitlines()[0]


CPU_SECONDS = {  # one thread, kernel start and imports included
    "00_start_here": 40,
    "01_policy_gradients": 25,
    "02_cartpole": 35,
    "03_transformer": 25,
    "04_pretraining_and_sft": 35,
    "05_reward_model": 40,
    "06_policy_gradients_for_text": 15,
    "07_kl": 15,
    "08_gae": 15,
    "09_ppo": 50,
    "10_reward_hacking": 40,
    "11_dpo": 35,
    "12_grpo": 35,
    "13_reasoning": 40,
    "14_r1_road": 25,
    "15_which_one": 20,
    "16_real_models": 35,
    "17_gpu_kernels": 25,
    "18_scaling_out": 25,
    "19_errata": 25,
    "20_interview": 15,
}


@pytest.mark.nightly
def test_keeps_its_seconds(path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    book = nbformat.read(path, 4)
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    assert spent <= CPU_SECONDS[path.stem], f"{spent:.0f} CPU seconds"


def test_stored_size(path):
    assert sum(notebook.stat().st_size for notebook in NOTEBOOKS) < 12e6
    assert path.stat().st_size < 1.5e6
