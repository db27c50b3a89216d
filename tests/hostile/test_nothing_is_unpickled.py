"""A pickle is a program. No path that reads from disk may reach one: by the source, at run time, and with a live one."""

import ast
import io
import pickle
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from hostile.good import READERS, write_all
from hostile.tally import ERRORS, note

import minirl

PACKAGE = Path(minirl.__file__).parent
FORBIDDEN = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "joblib", "dill", "cloudpickle", "pickletools"}
UNPICKLERS = {
    ("torch", "load"),
    ("torch", "save"),
    ("torch.serialization", "load"),
    ("numpy", "load"),
    ("np", "load"),
    ("pandas", "read_pickle"),
}
# Code that runs because it is code: a learner's own file, a card's proof, a rule of the user's. None is read as data.
RUNS_CODE = {
    "cards/cards.py",
    "drills/combined.py",
    "drills/command.py",
    "drills/grading/child.py",
    "loops.py",
    "launch.py",
    "bench/worker.py",
}


def unpicklers(source: str) -> list[str]:
    """What of a module's source could unpickle."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom):
            origin = (node.module or "").split(".")
            found += [origin[0]] if origin[0] in FORBIDDEN else []
            names = {alias.name for alias in node.names}
            found += [
                f"{node.module}.{name}" for name in names if (node.module, name) in UNPICKLERS or name in FORBIDDEN
            ]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [f"{node.value.id}.{node.attr}"] if (node.value.id, node.attr) in UNPICKLERS else []
        elif isinstance(node, ast.Call):
            found += ["allow_pickle" for word in node.keywords if word.arg == "allow_pickle"]
    return found


def runs_code(source: str) -> bool:
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    names = {f.id if isinstance(f, ast.Name) else getattr(f, "attr", "") for f in calls if not _is_regex(f)}
    return bool(names & {"exec", "eval", "__import__", "exec_module"})


def _is_regex(function) -> bool:
    return isinstance(function, ast.Attribute) and function.attr == "eval"  # a module's eval(): no dropout


def test_no_module_has_what_unpickles():
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert len(sources) > 100
    assert not {name: found for name, source in sources.items() if (found := unpicklers(source))}
    assert {name for name, source in sources.items() if runs_code(source)} <= RUNS_CODE


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import numpy as np\nread = np.load",
        "f(x, allow_pickle=True)",
        "from os import pickle",
    ],
)
def test_the_scan_sees_what_unpickles(source):
    assert unpicklers(source)


@pytest.mark.parametrize("source", ["exec('1')", "eval('1')", "spec.loader.exec_module(m)", "__import__('os')"])
def test_the_scan_sees_what_runs_code(source):
    assert runs_code(source) and not runs_code("model.eval()")


# At run time


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    write_all(folder)
    return folder


@pytest.fixture
def no_pickle(monkeypatch):
    """Whatever unpickles raises."""

    def forbidden(*args, **kwargs):
        raise AssertionError("something is being unpickled")

    import _pickle

    for module, names in (
        (pickle, ("load", "loads", "Unpickler", "_Unpickler", "_load", "_loads")),
        (_pickle, ("load", "loads", "Unpickler")),
        (torch, ("load",)),
        (torch.serialization, ("load", "_load", "_legacy_load")),
        (numpy, ("load",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, forbidden)


def test_the_guard_sees_an_unpickling(no_pickle, tmp_path):
    for unpickle in (
        lambda: pickle.loads(b"N."),
        lambda: pickle.Unpickler(io.BytesIO(b"N.")).load(),
        lambda: torch.load(tmp_path / "x"),
        lambda: numpy.load(tmp_path / "x"),
    ):
        with pytest.raises(AssertionError, match="unpickled"):
            unpickle()


def copied(good: Path, tmp_path: Path, name: str) -> Path:
    source = good / READERS[name].folder
    if not source.exists():
        pytest.skip("the package that writes this file is not installed")
    target = tmp_path / source.name
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return target


@pytest.mark.parametrize("name", READERS)
def test_no_reader_reaches_an_unpickler(good, tmp_path, no_pickle, name):
    assert READERS[name].read(copied(good, tmp_path, name)) is not None


# A live one


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


def pickles(marker: Path) -> dict[str, bytes]:
    zipped, array = io.BytesIO(), io.BytesIO()
    torch.save(Payload(marker), zipped)
    numpy.save(array, numpy.array([Payload(marker)], dtype=object), allow_pickle=True)
    return {
        "protocol 0": pickle.dumps(Payload(marker), 0),
        "protocol 5": pickle.dumps(Payload(marker), 5),
        "torch.save": zipped.getvalue(),
        "numpy.save": array.getvalue(),
    }


def test_the_payload_is_live(tmp_path):
    marker = tmp_path / "ran"
    for how, content in pickles(marker).items():
        (tmp_path / "file").write_bytes(content)
        if how == "torch.save":
            torch.load(tmp_path / "file", weights_only=False)
        elif how == "numpy.save":
            numpy.load(tmp_path / "file", allow_pickle=True)
        else:
            pickle.loads(content)
        assert marker.exists(), how
        marker.unlink()


KINDS = [("protocol 5", name) for name in READERS]
KINDS += [(kind, name) for kind in ("protocol 0", "torch.save", "numpy.save") for name in ("model", "adapter", "gsm8k")]


@pytest.mark.parametrize("kind, name", KINDS)
def test_a_pickle_under_any_name_is_never_run(good, tmp_path, name, kind, unhooked, request):
    reader, marker = READERS[name], tmp_path / "ran"
    content, refusals = pickles(marker)[kind], 0
    for number, file in enumerate(reader.files):
        (tmp_path / str(number)).mkdir()
        target = copied(good, tmp_path / str(number), name)
        (target / file if file else target).write_bytes(content)
        try:
            reader.read(target)
        except ERRORS as error:
            refusals += 1
            assert Path(file or target).name in str(error) or target.name in str(error)
        assert not marker.exists(), f"{file} was unpickled"
    note(request, tried=len(reader.files), refused=refusals)


@pytest.mark.parametrize(
    "beside", ["pytorch_model.bin", "model.pt", "adapter_model.bin", "optimizer.pt", "training_args.bin"]
)
def test_a_pickle_beside_is_no_model(good, tmp_path, beside, unhooked, request):
    """Without safetensors there is no model, whatever lies there."""
    marker, refusals = tmp_path / "ran", 0
    for name, weights in (("model", "model.safetensors"), ("adapter", "adapter_model.safetensors")):
        target = copied(good, tmp_path, name)
        (target / weights).unlink()
        (target / beside).write_bytes(pickles(marker)["torch.save"])
        with pytest.raises(ERRORS, match=weights):
            READERS[name].read(target)
        refusals += 1
        assert not marker.exists()
    note(request, tried=refusals, refused=refusals)
