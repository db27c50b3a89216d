"""Without a GPU and without the interpreter: what is refused, and every kernel through the real compiler, for GPUs that are
not there. That holds the types, the blocks and the shared memory of a real launch, which the interpreter does not see. Triton
brings NVIDIA's assembler along. Started by test_kernels.py.
"""

from types import SimpleNamespace

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from minirl import kernels
from minirl.kernels import TRITON, device, policy

SHARED = {80: 166_912, 86: 101_376, 90: 232_448}  # bytes a program may have: A100, RTX 30, H100


class Absent:
    """A driver for a GPU that is described and not there."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # compiled kernels are kept by device

    def get_current_stream(self, device):
        return 0


def launch_everything(dtype, sizes):
    """Each entry of the table once for each (B, T, D, V), forward and backward."""

    def normal(*shape, dtype=torch.float32):
        return torch.randn(*shape, dtype=dtype).requires_grad_(dtype != torch.float32)

    def learnt(loss):
        loss.backward()

    for B, T, D, V in sizes:
        mask, tokens = torch.ones(B, T, dtype=torch.bool), torch.zeros(B, T, dtype=torch.long)
        old, rows = normal(B, T), normal(B)
        learnt(TRITON.rms_norm(normal(B, D, dtype=dtype), normal(D, dtype=dtype), eps=1e-5).sum())
        learnt(TRITON.swiglu(normal(B, D, dtype=dtype), normal(B, D, dtype=dtype)).sum())
        learnt(TRITON.rotate(normal(B, T, 2, D, dtype=dtype).transpose(1, 2), torch.ones(2, 1, 1, T, D)).sum())
        TRITON.sample(normal(B, V, dtype=dtype), rows.detach())
        TRITON.gae(old, old, mask)
        TRITON.gae(old, old, mask, last_values=rows)
        learnt(TRITON.grpo_loss(old.clone().requires_grad_(), old, old, rows, mask)[0])
        learnt(TRITON.ppo_clip_loss(old.clone().requires_grad_(), old, old, mask)[0])
        hidden, weight = normal(B, T, D, dtype=dtype), normal(V, D, dtype=dtype)
        logprobs, entropies = TRITON.hidden_logprobs(hidden, weight, tokens, entropy_gradient=True)
        learnt(logprobs.sum() + entropies.sum())
        learnt(TRITON.hidden_logprobs(hidden, weight, tokens)[0].sum())
        learnt(TRITON.grpo_head_loss(hidden, weight, tokens, old, old, rows, mask)[0])
        if B > 1:
            learnt(TRITON.dpo_head_loss(hidden, weight, tokens, normal(B // 2), normal(B // 2), mask)[0])


@pytest.mark.parametrize(
    ("capability", "dtype"), [(80, torch.float16), (90, torch.bfloat16)], ids=["A100 half", "H100 bfloat16"]
)
def test_every_kernel_compiles(capability, dtype, monkeypatch):
    compiled, run = {}, JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        compiled.setdefault(f"{self.__module__.rpartition('.')[2]}.{self.__name__}", []).append(kernel)

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(device, "check_machine", lambda device: None)
    properties = SimpleNamespace(shared_memory_per_block_optin=SHARED[capability])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    # nothing is computed: results are whatever memory held
    monkeypatch.setattr(policy, "check_finite", lambda *args, **kwargs: None)
    monkeypatch.setattr("minirl.losses.preference.check_finite", lambda *args, **kwargs: None)
    triton.runtime.driver.set_active(Absent(capability))
    sizes = [(4, 32, 128, 512)]
    if capability == 90:
        sizes.append((1, 1, 2, 3))  # the compiler takes an argument of 1 for a constant
    launch_everything(dtype, sizes)

    assert len(compiled) == 14, sorted(compiled)
    for name, versions in compiled.items():
        for kernel in versions:
            # a tile that fits an A100 in half precision has to fit the consumer GPUs of its generation as well
            assert kernel.metadata.shared <= SHARED[86 if capability == 80 else capability], name
    tensor_cores = {80: "mma.sync", 90: "wgmma"}[capability]
    for name in ("online_softmax.forward_kernel", "online_softmax.backward_kernel"):
        assert any(tensor_cores in kernel.asm["ptx"] for kernel in compiled[name])
    for name in ("heads.clipped_kernel", "heads.write_kernel"):  # gradients over logits need their barrier
        assert all("bar.sync" in kernel.asm["ptx"] for kernel in compiled[name])


@pytest.fixture
def gpu(monkeypatch):
    """Pretends there is one."""

    def pretend(name, capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


def refusal(device_name):
    with pytest.raises(ValueError) as error:
        kernels.check_machine(device_name)
    return str(error.value)


def test_an_old_gpu_says_what_to_do(gpu):
    gpu("Tesla T4", (7, 5))
    message = refusal("cuda")
    for words in ("compute capability 8.0 or newer", "got Tesla T4 with 7.5", "no bfloat16", "--ops torch"):
        assert words in message


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_newer_gpus_are_accepted(gpu, capability):
    gpu("a GPU", capability)
    kernels.check_machine("cuda")


def test_an_amd_gpu_is_refused(gpu, monkeypatch):
    gpu("an AMD GPU", (9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert "written for NVIDIA GPUs" in refusal("cuda")


def test_no_gpu_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device_name, found in {"cpu": "got cpu", "cuda": "no GPU was found"}.items():
        message = refusal(device_name)
        for words in ("the Triton kernels run on an NVIDIA GPU", found, "--ops torch", "TRITON_INTERPRET=1"):
            assert words in message
    with pytest.raises(ValueError, match="run on an NVIDIA GPU, got cpu"):
        TRITON.rms_norm(torch.ones(2, 4), torch.ones(4), eps=1e-5)
