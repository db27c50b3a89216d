"""Every kernel, forward and backward, against its PyTorch twin in float64. Started by test_kernels.py."""

import os

import cases
import pytest
import torch

from minirl.kernels import TRITON

torch.set_num_threads(1)
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("family", cases.FAMILIES)
def test_equals_its_twin(family, dtype):
    for case in cases.cases(family, dtype):
        cases.check(case, getattr(TRITON, case.op), DEVICE)
