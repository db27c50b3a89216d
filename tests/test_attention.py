"""Attention, from its definition."""

import pytest
import torch
import torch.nn.functional as F

from minirl.attention import attention_mask, naive_attention


@pytest.mark.parametrize("starts", [None, torch.tensor([0, 2, 5])], ids=["full", "padded"])
def test_naive_attention_is_what_pytorch_computes(starts):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = attention_mask(0, 5, torch.zeros(3, dtype=torch.long) if starts is None else starts, "cpu")
    ours, theirs = naive_attention(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    direction = torch.randn_like(ours)
    gradients = (torch.autograd.grad(out, (q, k, v), direction) for out in (ours, theirs))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
