"""The transformer, and the two heads reinforcement learning puts on it: a value for every position, a score for a text.

One class under one config. The defaults are Llama's choices (RMSNorm, rotary positions, SwiGLU, grouped key-value heads,
no biases). Qwen2 adds `qkv_bias`, Qwen3 adds `qk_norm`, Llama 3.1 a `rope_scaling`; GPT-2 is

    TransformerConfig(vocab_size=50257, width=768, layers=12, heads=12, ffn=3072, max_length=1024, norm="layernorm",
                      positions="learned", activation="gelu", bias=True, tied=True)

There is no dropout: before the first update the ratio of new to old probabilities must be exactly 1, and not noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from minirl.masking import blank
from minirl.ops import TORCH, Ops
from minirl.rotary import RopeScaling, turns
from minirl.rotary import rotate as rotate  # where a reader looks for it
from minirl.types import (
    Bool,
    Float,
    Int,
    Tensor,
    check_dims,
    check_knob,
    check_mask,
    check_rows,
    check_size,
    looks_at_values,
)

Pool = Callable[[Tensor, Tensor], Tensor]  # (scores (B, T), mask (B, T)) -> (B,)


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a Transformer. `kv_heads` None is `heads`; `head_dim` None is width / heads."""

    vocab_size: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int | None = None  # fewer than heads: each key-value head serves a group of query heads (GQA)
    head_dim: int | None = None
    ffn: int = 176  # hidden width of the feed-forward part
    max_length: int = 512
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = 1e-5
    positions: Literal["rope", "learned"] = "rope"
    rope_base: float = 10000.0
    activation: Literal["swiglu", "gelu"] = "swiglu"
    bias: bool = False
    tied: bool = False  # the head's weight is the embedding's
    qkv_bias: bool = False  # a bias on queries, keys and values alone, where `bias` is False (Qwen2)
    qk_norm: bool = False  # queries and keys are normalised in each head before they turn (Qwen3)
    rope_scaling: RopeScaling | None = None

    def __post_init__(self):
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "ffn", "max_length"):
            check_size(name, getattr(self, name))
        if self.head_dim is None:
            if self.width % self.heads:
                raise ValueError(f"width: wanted a multiple of heads ({self.heads}), got {self.width}")
            object.__setattr__(self, "head_dim", self.width // self.heads)
        check_size("head_dim", self.head_dim)
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: wanted a divisor of heads ({self.heads}), got {self.kv_heads}")
        choices = {"norm": ("rmsnorm", "layernorm"), "positions": ("rope", "learned"), "activation": ("swiglu", "gelu")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: wanted {' or '.join(map(repr, allowed))}, got {getattr(self, name)!r}")
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim: rotary positions turn pairs and want an even number, got {self.head_dim}")
        check_knob("norm_eps", self.norm_eps, 0, open_low=True)
        check_knob("rope_base", self.rope_base, 1, open_low=True)
        if self.bias and self.qkv_bias:
            raise ValueError("qkv_bias: wanted False where bias is True, which says it for every matrix")
        if not (self.rope_scaling is None or (isinstance(self.rope_scaling, RopeScaling) and self.positions == "rope")):
            raise ValueError(f"rope_scaling: wanted a RopeScaling, with rotary positions, got {self.rope_scaling!r}")


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

    def repeat(self, n: int) -> "KVCache":
        """Each row n times, consecutively: the prompt is read once and continued n times. Room is not copied."""
        layers, rows, *rest = self.keys.shape
        other, end = object.__new__(KVCache), self.length
        other.keys, other.values = (self.keys.new_empty(layers, n * rows, *rest) for _ in range(2))
        other.keys[..., :end, :] = self.keys[..., :end, :].repeat_interleave(n, dim=1)
        other.values[..., :end, :] = self.values[..., :end, :].repeat_interleave(n, dim=1)
        other.length = end
        return other


def rope_table(config: TransformerConfig) -> Float[Tensor, "2 L E"]:
    """cos and signed sin of the angle of every position and channel of a head: see `minirl.rotary.turns`."""
    return turns(config.head_dim, config.max_length, config.rope_base, config.rope_scaling)


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
    queries = keys[past:, None]
    mask = keys <= queries
    if starts is not None:
        mask = mask & (keys >= torch.minimum(starts[:, None, None, None], queries))
    return mask


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

    def forward(self, x: Tensor, rope: Tensor | None, mask: Tensor | None, cache: KVCache | None, ops: Ops = TORCH):
        B, S, _ = x.shape
        q, k, v = (
            project(x).view(B, S, -1, self.config.head_dim).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        if self.query_norm is not None:
            q, k = normed(self.query_norm, q, ops), normed(self.key_norm, k, ops)
        if rope is not None:
            q, k = ops.rotate(q, rope), ops.rotate(k, rope)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        if q.shape[1] != k.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and S > 1)
        return self.out(mixed.transpose(1, 2).reshape(B, S, -1))


class FeedForward(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gate = nn.Linear(config.width, config.ffn, config.bias) if config.activation == "swiglu" else None
        self.up = nn.Linear(config.width, config.ffn, config.bias)
        self.down = nn.Linear(config.ffn, config.width, config.bias)

    def forward(self, x: Tensor, ops: Ops = TORCH) -> Tensor:
        if self.gate is None:
            return self.down(F.gelu(self.up(x), approximate="tanh"))
        return self.down(ops.swiglu(self.gate(x), self.up(x)))


class Block(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int):
        super().__init__()
        norm = nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm
        self.attention_norm, self.attention = norm(config.width, eps=config.norm_eps), Attention(config, layer)
        self.ffn_norm, self.ffn = norm(config.width, eps=config.norm_eps), FeedForward(config)

    def forward(self, x: Tensor, rope: Tensor | None, mask: Tensor | None, cache: KVCache | None, ops: Ops = TORCH):
        x = x + self.attention(normed(self.attention_norm, x, ops), rope, mask, cache, ops)
        return x + self.ffn(normed(self.ffn_norm, x, ops), ops)


class Transformer(nn.Module):
    """A decoder-only language model: tokens (B, S) to logits (B, S, V), of which position t predicts token t + 1.

    Embeddings start from normal(0, 0.02). Every other matrix starts with standard deviation 1/sqrt(inputs), which keeps
    signals at their size at any width; the two projections that write into the residual stream are divided by
    sqrt(2 * layers), so that it does not grow with depth (GPT-2, Radford et al. 2019, section 2.3). GPT-2's 0.02
    everywhere suits a width of 768 and starves one of 64: the digit world is then not learned in 300 steps.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.recompute = False  # True: a block's insides are computed again for the gradient, and not kept until then
        self.ops = TORCH  # what it computes with: the table of minirl.ops, or minirl.kernels.TRITON
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.max_length, config.width) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = (nn.RMSNorm if config.norm == "rmsnorm" else nn.LayerNorm)(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embed.weight
        if config.positions == "rope":
            self.register_buffer("rope", rope_table(config), persistent=False)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() == 2:
                std = 0.02 if name.startswith(("embed", "positions")) else p.shape[1] ** -0.5
                writes_stream = name.endswith(("attention.out.weight", "ffn.down.weight"))
                nn.init.normal_(p, std=std / math.sqrt(2 * config.layers) if writes_stream else std)

    def _apply(self, fn, recurse=True):
        """What `.to(...)` and its relatives go through. The angles follow to a device, but keep their precision: weights
        that become bfloat16 and float32 again would otherwise keep rounded positions."""
        super()._apply(fn, recurse)
        if self.config.positions == "rope":
            self.rope = rope_table(self.config).to(self.embed.weight.device)
        return self

    def forward(
        self, tokens: Int[Tensor, "B S"], *, starts: Int[Tensor, " B"] | None = None, cache: KVCache | None = None
    ) -> Float[Tensor, "B S V"]:
        """Logits. `starts`: how many tokens at the left of each row are padding, None for none (see Rollout); what the
        padded positions themselves give means nothing. `cache`: the tokens continue what it holds, and are added to it;
        `starts` then still counts from the row's beginning.

        ValueError: tokens not (B, S) integers below the vocabulary's size, or more of them than max_length or the cache.
        """
        return self.head(self.hidden(tokens, starts=starts, cache=cache))

    def hidden(
        self, tokens: Int[Tensor, "B S"], *, starts: Int[Tensor, " B"] | None = None, cache: KVCache | None = None
    ) -> Float[Tensor, "B S D"]:
        """What the head reads: the residual stream after the last norm. Arguments as in `forward`."""
        past = 0 if cache is None else cache.length
        starts = self._checked(tokens, starts, cache)
        positions = torch.arange(past, past + tokens.shape[1], device=tokens.device)
        mask = attention_mask(past, tokens.shape[1], starts, tokens.device)
        if starts is not None:
            positions = (positions - starts[:, None]).clamp(min=0)
        x = self.embed(tokens)
        rope = None
        if self.positions is not None:
            x = x + self.positions(positions)
        else:
            rope = self.rope[:, positions].unsqueeze(-3).to(x.dtype)  # (2, 1 or B, 1, S, E): the same for all heads
        again = cache is None and self.recompute and torch.is_grad_enabled()
        for block in self.blocks:
            run = partial(checkpoint, block, use_reentrant=False) if again else block
            x = run(x, rope, mask, cache, self.ops)
        if cache is not None:
            cache.length += tokens.shape[1]
        return normed(self.norm, x, self.ops)

    def _checked(self, tokens: Tensor, starts: Tensor | None, cache: KVCache | None) -> Tensor | None:
        """Raises on bad input; gives starts back, as None where it is known that there is no padding."""
        check_dims(2, tokens=tokens)
        if tokens.is_floating_point() or tokens.dtype == torch.bool or tokens.numel() == 0:
            raise ValueError(f"tokens: wanted integers, at least one, got {tuple(tokens.shape)} of {tokens.dtype}")
        length = tokens.shape[1] + (0 if cache is None else cache.length)
        if length > self.config.max_length:
            raise ValueError(f"tokens: {length} positions do not fit into max_length {self.config.max_length}")
        if cache is not None and (length > cache.keys.shape[3] or len(tokens) != cache.keys.shape[1]):
            room = f"{cache.keys.shape[1]} rows of {cache.keys.shape[3]}"
            raise ValueError(f"cache: has room for {room} positions, got {len(tokens)} rows of {length}")
        if looks_at_values(tokens):
            low, high = tokens.aminmax()
            if low < 0 or high >= self.config.vocab_size:
                found = f"{int(low)} to {int(high)}"
                raise ValueError(f"tokens: wanted numbers in [0, {self.config.vocab_size}), got {found}")
        if starts is None:
            return None
        check_rows(tokens, starts=starts)
        if looks_at_values(starts):
            low, high = starts.aminmax()
            most = length if cache is None else cache.keys.shape[3]  # a row may begin behind what has been read so far
            if low < 0 or high > most:
                raise ValueError(f"starts: wanted numbers in [0, {most}], got {int(low)} to {int(high)}")
            if high == 0:
                return None
        return starts


class PolicyWithValue(nn.Module):
    """A policy and V(s) at every position, from a linear head on the policy's own trunk, or on a `critic`'s.

    The head starts at 0, so that the first advantages are the rewards and not noise.
    """

    def __init__(self, policy: Transformer, critic: Transformer | None = None):
        super().__init__()
        self.policy, self.critic = policy, critic
        self.value_head = zero_head((policy if critic is None else critic), bias=True)

    @property
    def config(self) -> TransformerConfig:
        return self.policy.config

    def forward(
        self, tokens: Int[Tensor, "B S"], *, starts: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B S V"], Float[Tensor, "B S"]]:
        """(logits, values); values[:, t] is the value of the state that has seen the tokens up to t."""
        hidden, values = self.hidden_and_values(tokens, starts)
        return self.policy.head(hidden), values

    def hidden_and_values(
        self, tokens: Int[Tensor, "B S"], starts: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B S"]]:
        """What the policy's head reads, and the values."""
        hidden = self.policy.hidden(tokens, starts=starts)
        seen = hidden if self.critic is None else self.critic.hidden(tokens, starts=starts)
        return hidden, self.value_head(seen.to(self.value_head.weight.dtype)).squeeze(-1)


class RewardModel(nn.Module):
    """A score for a response: one number at each of its tokens, made into one by `pool` (last_token or summed).

    Scores are read at the response tokens themselves, which have seen the text up to and with that token; log-probs are
    read one position before. No bias: only differences of scores mean anything (Bradley-Terry).
    """

    def __init__(self, trunk: Transformer, pool: Pool):
        super().__init__()
        self.trunk, self.pool = trunk, pool
        self.score = zero_head(trunk, bias=False)

    @property
    def config(self) -> TransformerConfig:
        return self.trunk.config

    def forward(
        self, tokens: Int[Tensor, "B S"], mask: Bool[Tensor, "B T"], *, starts: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, " B"]:
        return self.pool(self.token_scores(tokens, mask, starts=starts), mask)

    def token_scores(
        self, tokens: Int[Tensor, "B S"], mask: Bool[Tensor, "B T"], *, starts: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B T"]:
        """The score read at each response token, tokens[:, -T:]."""
        check_dims(2, tokens=tokens, mask=mask)
        check_mask(mask)
        if len(mask) != len(tokens) or mask.shape[1] > tokens.shape[1]:
            raise ValueError(f"mask: wanted the last columns of tokens {tuple(tokens.shape)}, got {tuple(mask.shape)}")
        hidden = self.trunk.hidden(tokens, starts=starts)[:, -mask.shape[1] :]
        return self.score(hidden.to(self.score.weight.dtype)).squeeze(-1)


def last_token(scores: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """The score at each row's last counted token, found by the mask and not by the last column; 0 for an empty row."""
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = (columns * mask).amax(1, keepdim=True)  # 1-based, so that 0 says that nothing is counted
    return blank(scores.gather(1, (last - 1).clamp(min=0)), last > 0).squeeze(1)


def summed(scores: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """The sum over counted tokens: each token's score is then its share of the reward."""
    return blank(scores, mask).sum(1)


def zero_head(trunk: Transformer, *, bias: bool) -> nn.Linear:
    """D -> 1, starting at 0 for every input, in float32 at least: it learns from nothing."""
    weight = trunk.embed.weight
    dtype = torch.promote_types(weight.dtype, torch.float32)
    head = nn.Linear(trunk.config.width, 1, bias, device=weight.device, dtype=dtype)
    for p in head.parameters():
        nn.init.zeros_(p)
    return head
