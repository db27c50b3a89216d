"""A test file for a process of its own (see test_t4.py): a T4 that can be asked about and not used.

It stands for the GPU of a free Colab: compute capability 7.5, no Triton, and a bfloat16 that PyTorch calls supported.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import minirl.__main__ as command_line
from minirl import classic, launch
from minirl.classic import models
from minirl.tasks import DATA
from minirl.types import check_precision

SFT = DATA / "weights" / "digit_sum_sft"


@pytest.fixture
def gpu(monkeypatch):
    def pretend(name, capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(command_line, "check_device", lambda name: None)  # this build of PyTorch has no CUDA

    return pretend


@pytest.fixture
def t4(gpu):
    gpu("Tesla T4", (7, 5))


@pytest.fixture
def nothing_long(monkeypatch):
    """A test ends where the run would begin: nothing is downloaded, loaded, or written before the sentence."""

    def begun(*_, **__):
        raise AssertionError("weights are loaded before the sentence")

    monkeypatch.setattr(launch, "starting_model", begun)
    for name in ("load_pretrained", "load_policy_with_value", "local_folder"):
        monkeypatch.setattr(models, name, begun)


def refused(capsys, tmp_path, *words):
    """The one sentence of a command that ends with it."""
    out = tmp_path / "out"
    assert (
        command_line.main(["train", "grpo", "--task", "digit_sum", "--out", str(out), "--device", "cuda", *words]) == 2
    )
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "Traceback" not in shown.err
    assert not out.exists() or not [path for path in out.iterdir() if path.name != ".lock"], "something was written"
    return shown.err


@pytest.mark.parametrize("words", [["--dtype", "bf16", "--lora"], ["--dtype", "bf16"]])
def test_bfloat16_is_refused(t4, nothing_long, capsys, tmp_path, words):
    sentence = refused(capsys, tmp_path, *words)
    for part in ("minirl: --dtype: bfloat16 wants compute capability 8.0", "got Tesla T4 with 7.5", "--dtype fp32"):
        assert part in sentence


def test_triton_is_refused(t4, nothing_long, capsys, tmp_path):
    pytest.importorskip("triton")
    sentence = refused(capsys, tmp_path, "--ops", "triton")
    for part in ("minirl: --ops triton: ", "compute capability 8.0", "got Tesla T4 with 7.5", "Use --ops torch there"):
        assert part in sentence


def test_triton_that_is_missing_is_said(t4, nothing_long, capsys, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("minirl.kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("minirl.kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    sentence = refused(capsys, tmp_path, "--ops", "triton")
    assert "minirl.kernels needs Triton, which is not installed" in sentence and "--ops torch" in sentence


def test_what_it_advises_goes_on(t4, capsys, tmp_path, monkeypatch):
    """fp32, and PyTorch's own functions: no sentence; the run begins."""

    class Begun(Exception):
        pass

    def begun(*_, **__):
        raise Begun

    monkeypatch.setattr(launch, "starting_model", begun)
    words = ["--dtype", "fp32", "--ops", "torch", "--device", "cuda", "--lora"]
    with pytest.raises(Begun):
        command_line.main(["train", "grpo", "--task", "digit_sum", "--out", str(tmp_path / "out"), *words])


@pytest.mark.parametrize("name, capability", [("NVIDIA L4", (8, 9)), ("NVIDIA A100-SXM4-40GB", (8, 0))])
def test_colab_s_paid_gpus_are_accepted(gpu, name, capability):
    gpu(name, capability)
    check_precision("--dtype", torch.bfloat16, "cuda")
    kernels = pytest.importorskip("minirl.kernels", exc_type=ImportError)
    kernels.check_machine("cuda:0")


@pytest.mark.parametrize("dtype, device", [
    (torch.float32, "cuda"), (torch.float16, "cuda:0"), (torch.bfloat16, "cpu"), (torch.bfloat16, "mps"), (None, "cuda"),
])  # fmt: skip
def test_what_a_t4_can_do_is_accepted(t4, dtype, device):
    check_precision("dtype", dtype, device)


def test_an_amd_gpu_is_not_judged_by_nvidia_s_numbers(t4, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    check_precision("dtype", torch.bfloat16, "cuda")


@pytest.mark.parametrize("placed", ["auto", "cuda", {"": "cuda:0"}])
def test_the_classic_room_says_it_too(t4, nothing_long, placed):
    """`torch_dtype=torch.bfloat16, device_map="auto"`: how such programs open a model."""
    names = ("AutoModelForCausalLM", "AutoModelForCausalLMWithValueHead", "AutoModelForSequenceClassification")
    for opens in (getattr(classic, name) for name in names):
        with pytest.raises(ValueError, match=r"torch_dtype: bfloat16 wants .* got Tesla T4 with 7\.5.* Use float32"):
            opens.from_pretrained(str(SFT), torch_dtype=torch.bfloat16, device_map=placed)


def test_the_table_of_kernels_refuses_tensors_there(t4, monkeypatch):
    """Who calls a kernel by hand is told, too, and not by Triton's compiler."""
    kernels = pytest.importorskip("minirl.kernels", exc_type=ImportError)
    x = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, is_floating_point=lambda: True)
    with pytest.raises(ValueError, match=r"got Tesla T4 with 7\.5.* Use --ops torch there"):
        kernels.device.check_tensors(x=x)


def test_nothing_else_of_ours_asks_for_bfloat16():
    """Each place that could put bfloat16 or a kernel on a GPU is tested above; a new one belongs there."""
    root = Path(launch.__file__).parent
    asks = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "torch.bfloat16" in path.read_text() and path.parts[-2] not in ("kernels", "bench")
    }
    assert asks == {"launch.py", "pretrained.py", "classic/models.py", "drills/probes.py", "types.py"}
    places = [path for path in (root.parent / "notebooks").glob("*.ipynb") if "cuda.is_available" in path.read_text()]
    assert not places, "notebooks compute on the CPU, so that all readers see the same numbers"
