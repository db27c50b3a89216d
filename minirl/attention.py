"""Attention: who may look at whom, the keys and values that are kept, and the layer."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from minirl.config import TransformerConfig
from minirl.ops import TORCH, Ops
from minirl.types import Bool, Float, Int, Tensor

At = slice | Tensor  # positions: a stretch of every row, or (B,), one of each row


def naive_attention(
    q: Float[Tensor, "B H S E"], k: Float[Tensor, "B H K E"], v: Float[Tensor, "B H K E"], mask: Bool[Tensor, "..."]
) -> Float[Tensor, "B H S E"]:
    """softmax(q k^T / sqrt(E)) v, written out (Vaswani et al. 2017, eq. 1). For reading and for tests; the model calls
    PyTorch's fused version. `mask` is True where a query (second to last axis) may look at a key (last axis)."""
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()  # minus the maximum: the same ratios, and no overflow
    return weights / weights.sum(-1, keepdim=True) @ v


def attention_mask(past: int, length: int, starts: Tensor | None, device) -> Bool[Tensor, "..."] | None:
    """(B or 1, 1, length, past + length), True where a query may look: at keys up to itself, behind the padding.

    A padded query looks at itself alone, or softmax would divide 0 by 0. None where `is_causal` says the same for less.
    """
    if starts is None and (past == 0 or length == 1):
        return None
    keys = torch.arange(past + length, device=device)
    return _looks(keys, keys[past:, None], starts)


def attention_mask_at(past: int, length: int, starts: Tensor | None, at: At, device) -> Bool[Tensor, "..."]:
    """The rows of that mask which belong to the queries `at` some of the `length` new positions."""
    keys = torch.arange(past + length, device=device)
    queries = keys[past:][at][:, None] if isinstance(at, slice) else past + at[:, None, None, None]
    return _looks(keys, queries, starts)


def _looks(keys: Tensor, queries: Tensor, starts: Tensor | None) -> Tensor:
    mask = keys <= queries
    if starts is not None:
        mask = mask & (keys >= torch.minimum(starts[:, None, None, None], queries))
    return mask


def picked(x: Tensor, at: At | None) -> Tensor:
    """x (B, S, ...) at some positions, (B, K, ...). None: all of them."""
    if at is None:
        return x
    return x[:, at] if isinstance(at, slice) else x[torch.arange(len(x), device=x.device), at].unsqueeze(1)


def rope_at(rope: Tensor, at: At | None) -> Tensor:
    """The angles at some positions: (2, R, 1, S, E) to (2, R, 1, K, E). R is 1 where all rows count alike, else B."""
    if at is None or isinstance(at, slice):
        return rope if at is None else rope[..., at, :]
    rows = torch.arange(len(at), device=at.device) if rope.shape[1] > 1 else torch.zeros_like(at)
    return rope[:, rows, 0, at][:, :, None, None]


class KVCache:
    """Keys and values of the positions seen so far, in tensors that are as long as they will ever be.

    `length` positions are filled, the same number in every row: rows of different lengths are padded on the left.
    """

    def __init__(self, config: TransformerConfig, batch: int, length: int, device=None, dtype=None):
        shape = (config.layers, batch, config.kv_heads, length, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes a layer's new keys and values (B, kv_heads, S, head_dim) and gives back all it has.

        The Transformer moves `length` on once all layers have written.
        """
        end = self.length + k.shape[2]
        keys, values = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
        keys[:, :, self.length :], values[:, :, self.length :] = k, v
        return keys, values

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def repeat(self, n: int) -> "KVCache":
        """Each row n times, consecutively: the prompt is read once and continued n times. Room is not copied."""
        layers, rows, *rest = self.keys.shape
        other, end = object.__new__(KVCache), self.length
        other.keys, other.values = (self.keys.new_empty(layers, n * rows, *rest) for _ in range(2))
        other.keys[..., :end, :] = self.keys[..., :end, :].repeat_interleave(n, dim=1)
        other.values[..., :end, :] = self.values[..., :end, :].repeat_interleave(n, dim=1)
        other.length = end
        return other


class SharedPrompt:
    """Keys and values of prompts that several rows continue, with their gradient: each prompt is read once.

    shared = SharedPrompt(rows)                                       # rows (B,): whose prompt a row continues
    model.hidden(prompts, starts=starts, cache=shared)                # (P, S, D)
    model.hidden(responses, starts=starts[rows], cache=shared)        # (B, T, D), as if each row began with its prompt
    """

    capacity = 0  # it grows

    def __init__(self, rows: Int[Tensor, " B"]):
        self.rows, self.kept, self.length = rows, [], 0

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.length == 0:
            self.kept.append((k, v))
            return k, v
        prompt_k, prompt_v = self.kept[layer]
        return torch.cat([self.spread(prompt_k), k], 2), torch.cat([self.spread(prompt_v), v], 2)

    def spread(self, x: Float[Tensor, "P ..."]) -> Float[Tensor, "B ..."]:
        """x[rows], as a lookup: its gradient is summed in one order. That of indexing is not on two CPU threads, and then
        no two runs have the same bits."""
        return F.embedding(self.rows, x.flatten(1)).unflatten(1, x.shape[1:])


Cache = KVCache | SharedPrompt


def normed(layer: nn.Module, x: Tensor, ops: Ops) -> Tensor:
    return ops.rms_norm(x, layer.weight, eps=layer.eps) if isinstance(layer, nn.RMSNorm) else layer(x)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        bias = config.bias or config.qkv_bias
        self.query = nn.Linear(config.width, config.heads * config.head_dim, bias)
        self.key = nn.Linear(config.width, config.kv_heads * config.head_dim, bias)
        self.value = nn.Linear(config.width, config.kv_heads * config.head_dim, bias)
        self.out = nn.Linear(config.heads * config.head_dim, config.width, config.bias)
        self.query_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.key_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else None

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        rope: Tensor | None,  # (2, 1 or B, 1, S, E)
        mask: Tensor | None,
        cache: Cache | None,
        ops: Ops = TORCH,
        at: At | None = None,  # the queries that are asked for; None: all
    ) -> Float[Tensor, "B K D"]:
        E = self.config.head_dim
        q = self.query(picked(x, at)).unflatten(-1, (-1, E)).transpose(1, 2)
        k, v = (project(x).unflatten(-1, (-1, E)).transpose(1, 2) for project in (self.key, self.value))
        if self.query_norm is not None:
            q, k = normed(self.query_norm, q, ops), normed(self.key_norm, k, ops)
        if rope is not None:
            q, k = ops.rotate(q, rope_at(rope, at)), ops.rotate(k, rope)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        if q.shape[1] != k.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1)
        return self.out(mixed.transpose(1, 2).flatten(2))
