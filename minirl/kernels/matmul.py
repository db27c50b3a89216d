"""Matrix products that are left to cuBLAS: it runs at the speed of the tensor cores, and a kernel of ours would not.

Half-precision inputs are summed in float32, and leave in the precision of `out`. A CPU (the interpreter) gets there by
casting first.
"""

import torch

from minirl.types import Tensor


def multiply(a: Tensor, b: Tensor, *, out: Tensor) -> None:
    """out = a @ b."""
    if a.device.type == "cpu":
        out.copy_(a.float() @ b.float())
    elif out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def multiply_add(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, with total in float32."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif a.device.type == "cpu":
        total.addmm_(a.float(), b.float())
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def padded(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty (rows, columns) whose rows begin at multiples of 64 bytes: cuBLAS is slow on rows that begin anywhere."""
    return torch.empty((rows, -(-columns // 32) * 32), dtype=dtype, device=device)[:, :columns]
