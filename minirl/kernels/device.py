"""Where the kernels run: on an NVIDIA GPU of compute capability 8.0 or newer, or in Triton's interpreter for tests.

TRITON_INTERPRET=1, set before Python starts, makes every kernel a NumPy program on CPU tensors. That is for reading and
testing: it is thousands of times slower, runs one program after the other (so it sees no race), and computes with blocks
as small as INTERPRETED chooses them.
"""

import os

import torch

from minirl.types import Tensor

try:
    import triton
except ImportError as error:
    raise ImportError(
        "minirl.kernels needs Triton, which is not installed. On Linux: pip install triton==3.7.1 (a CUDA build of "
        "PyTorch brings its own). Without it everything runs on PyTorch alone: --ops torch"
    ) from error

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
NO_KERNELS = "Use --ops torch there: the same functions in PyTorch"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_machine(device: torch.device | str) -> None:
    """ValueError, with what to do, where `device` cannot run the kernels."""
    device = torch.device(device)
    if INTERPRETED:
        if device.type != "cpu":
            raise ValueError(f"device: TRITON_INTERPRET=1 runs the kernels on CPU tensors, got {device}. Unset it")
    elif device.type != "cuda" or not torch.cuda.is_available():
        found = "no GPU was found" if device.type == "cuda" else f"got {device}"
        raise ValueError(
            f"device: the Triton kernels run on an NVIDIA GPU, {found}. {NO_KERNELS}; or set TRITON_INTERPRET=1 before "
            f"Python starts to try the kernels, slowly, on a CPU"
        )
    elif torch.version.hip is not None:
        raise ValueError(f"device: the Triton kernels were written for NVIDIA GPUs, got an AMD one. {NO_KERNELS}")
    elif (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        name, found = torch.cuda.get_device_name(device), ".".join(map(str, capability))
        raise ValueError(
            f"device: the Triton kernels want compute capability 8.0 or newer (Ampere: A100, RTX 30), got {name} with "
            f"{found}: it has no bfloat16, and Triton no longer supports it. {NO_KERNELS}"
        )


def check_tensors(**tensors: Tensor) -> None:
    """All on one device that runs the kernels, in a precision they have."""
    (first, x), *others = tensors.items()
    for name, other in others:
        if other.device != x.device:
            raise ValueError(f"{name}: wanted it on {x.device} like {first}, got {other.device}")
    for name, x in tensors.items():
        if x.is_floating_point() and x.dtype not in DTYPES:
            raise ValueError(
                f"{name}: the Triton kernels take float32, bfloat16 and float16, got {x.dtype}. {NO_KERNELS}"
            )
    check_machine(x.device)


def check_no_gradient(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(f"{name}: wanted data without a gradient, got a tensor that requires one: detach it")


def dense_rows(x: Tensor) -> Tensor:
    """x, or a copy where neighbours in its last axis are not neighbours in memory. Kernels step over rows by a stride."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def as_rows(x: Tensor) -> Tensor:
    """(..., D) as (N, D) with dense rows; a copy only where the leading axes cannot be seen as one."""
    return dense_rows(x.reshape(-1, x.shape[-1]))


def blocks(n: int, size: int) -> int:
    return triton.cdiv(n, size)


def power_of_two(n: int) -> int:
    return triton.next_power_of_2(n)
