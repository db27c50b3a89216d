"""Whole notebooks on the simulated Colab: they run to their end and say what the stored ones say."""

import nbclient
import nbformat
import pytest
import simulated

CHEAP = ("08_gae",)
ONLY_IN_A_CLONE = {"16_real_models": [7]}  # this cell reads tests/golden, and says so where that is missing
NIGHTLY = tuple(path.stem for path in simulated.NOTEBOOKS if path.stem not in CHEAP)


def entries(machine):
    return {path.name for path in machine.site.iterdir()}


def runs(name, folder, **kind):
    path = simulated.ROOT / "notebooks" / f"{name}.ipynb"
    machine = simulated.build(folder / "machine", **kind)
    before = entries(machine)
    book = simulated.run(path, machine)
    stored = nbformat.read(path, 4)
    assert simulated.differences(stored, book) == ONLY_IN_A_CLONE.get(name, [])
    assert simulated.last_line(book) == simulated.last_line(stored) != ""
    calls = simulated.asked(machine)
    assert len(calls) == 1 + (name == "02_cartpole") and not [call for call in calls if "forbidden" in call]
    new = {entry.partition("-")[0].lower() for entry in entries(machine) - before - {"__pycache__"}}
    assert new == {"minirl", "gymnasium", "farama_notifications"} if name == "02_cartpole" else {"minirl"}
    assert not list(machine.content.iterdir()), "a notebook leaves nothing beside it"


@pytest.mark.parametrize("name", CHEAP)
def test_runs(name, tmp_path):
    runs(name, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("name", NIGHTLY)
def test_runs_too(name, tmp_path):
    runs(name, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["16_real_models", "17_gpu_kernels", "18_scaling_out"])
def test_runs_where_a_t4_is(name, tmp_path):
    """A notebook that saw the GPU and moved there would fail: the machine only pretends to have one."""
    runs(name, tmp_path, gpu=True)


def notebook(folder, *cells):
    path = folder / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), path)
    return path


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    return simulated.build(tmp_path_factory.mktemp("colab") / "machine")


@pytest.mark.parametrize("words, forbidden", [
    (["torch==2.5.0"], ["torch"]),
    (["-U", "numpy"], ["numpy"]),
    (["-q", "--no-deps", "ipywidgets>=99"], ["ipywidgets"]),
    (["--force-reinstall", "transformers"], ["numpy", "tokenizers"]),  # by what it depends on
    (["-q", "-U", "jupyter", "matplotlib"], ["jupyter", "matplotlib"]),
])  # fmt: skip
def test_the_watch_on_pip_barks(machine, words, forbidden):
    before = entries(machine)
    done = simulated.python(machine, "-m", "pip", "install", *words)
    assert done.returncode == 1 and "this would change what Colab brings along" in done.stderr
    assert simulated.asked(machine)[-1]["forbidden"] == forbidden
    assert entries(machine) == before


@pytest.mark.parametrize(
    "words", [["download", "tqdm"], ["install", "-r", "requirements.txt"], ["install", "--user", "x"]]
)
def test_what_the_watch_does_not_know_fails(machine, words):
    assert "does not know" in simulated.python(machine, "-m", "pip", *words).stderr


def test_the_watch_lets_pass_what_changes_nothing(machine):
    done = simulated.python(machine, "-m", "pip", "install", "-q", "torch>=2.5", "numpy", "matplotlib>=3.8")
    assert (done.returncode, done.stderr) == (0, "") and simulated.asked(machine)[-1]["changes"] == {}


def test_nothing_of_ours_is_there_before_the_first_cell(machine, tmp_path):
    absent = "minirl jaxtyping beartype nbval hypothesis pytest peft gymnasium".split()
    there = "torch numpy ipywidgets matplotlib tokenizers safetensors transformers tqdm triton".split()
    cell = f"import importlib.util, sys\nprint([n for n in {absent + there} if importlib.util.find_spec(n)], sys.path)"
    cell += "\nassert 'google.colab' in sys.modules"
    book = simulated.run(notebook(tmp_path, cell), machine)
    [text] = simulated.said(book.cells[0])
    assert (
        text.startswith(f"{there} ")
        and str(simulated.ROOT / "minirl") not in text
        and f"'{simulated.ROOT}'" not in text
    )


def test_a_cell_that_fails_is_seen(machine, tmp_path):
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="No module named 'jaxtyping'"):
        simulated.run(notebook(tmp_path, "import jaxtyping"), machine)


def test_another_last_line_is_seen(machine, tmp_path):
    stored = nbformat.read(notebook(tmp_path, "print(1)", "print(2)"), 4)
    one, two = (simulated.run(notebook(tmp_path, "print(1)", f"print({n})"), machine) for n in (2, 3))
    assert simulated.differences(one, two) == [2] and simulated.last_line(two) == "3"
    assert simulated.differences(stored, one) == [1, 2] and simulated.last_line(stored) == ""
