"""The transformer, and the two heads reinforcement learning puts on it: a value for every position, a score for a text.

One class under one config. The defaults are Llama's choices (RMSNorm, rotary positions, SwiGLU, grouped key-value heads,
no biases). Qwen2 adds `qkv_bias`, Qwen3 adds `qk_norm`, Llama 3.1 a `rope_scaling`; GPT-2 is

    TransformerConfig(vocab_size=50257, width=768, layers=12, heads=12, ffn=3072, max_length=1024, norm="layernorm",
                      positions="learned", activation="gelu", bias=True, tied=True)

There is no dropout: before the first update the ratio of new to old probabilities must be 1, up to rounding, and not noise.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from minirl.attention import At, Attention, Cache, KVCache, attention_mask, attention_mask_at, normed, picked
from minirl.attention import naive_attention as naive_attention  # where a reader looks for it
from minirl.config import TransformerConfig
from minirl.masking import blank
from minirl.ops import TORCH, Ops
from minirl.rotary import RopeScaling as RopeScaling
from minirl.rotary import rotate as rotate
from minirl.rotary import turns
from minirl.types import Bool, Float, Int, Tensor, check_dims, check_mask, check_rows, looks_at_values

Pool = Callable[[Tensor, Tensor], Tensor]  # (scores (B, T), mask (B, T)) -> (B,)


def rope_table(config: TransformerConfig) -> Float[Tensor, "2 L E"]:
    """cos and signed sin of the angle of every position and channel of a head: see `minirl.rotary.turns`."""
    return turns(config.head_dim, config.max_length, config.rope_base, config.rope_scaling)


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

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        rope: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        ops: Ops = TORCH,
        at: At | None = None,
    ) -> Float[Tensor, "B K D"]:
        """Keys and values come from every position, the rest is computed where it is asked for."""
        x = picked(x, at) + self.attention(normed(self.attention_norm, x, ops), rope, mask, cache, ops, at)
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
        self, tokens: Int[Tensor, "B S"], *, starts: Int[Tensor, " B"] | None = None, cache: Cache | None = None
    ) -> Float[Tensor, "B S V"]:
        """Logits. `starts`: how many tokens at the left of each row are padding, None for none (see Rollout); what the
        padded positions themselves give means nothing. `cache`: the tokens continue what it holds, and are added to it;
        `starts` then still counts from the row's beginning.

        ValueError: tokens not (B, S) integers below the vocabulary's size, or more of them than max_length or the cache.
        """
        return self.head(self.hidden(tokens, starts=starts, cache=cache))

    def hidden(
        self,
        tokens: Int[Tensor, "B S"],
        *,
        starts: Int[Tensor, " B"] | None = None,
        cache: Cache | None = None,
        at: At | None = None,
    ) -> Float[Tensor, "B K D"]:
        """What the head reads: the residual stream after the last norm. Arguments as in `forward`.

        `at`: the positions of `tokens` that are wanted, a slice, or (B,) one of each row. The other positions then end
        with their keys and values in the last block, which saves most of that block for them. None: all.
        """
        past = 0 if cache is None else cache.length
        starts = self._checked(tokens, starts, cache)
        positions = torch.arange(past, past + tokens.shape[1], device=tokens.device)
        mask = last_mask = attention_mask(past, tokens.shape[1], starts, tokens.device)
        if at is not None:
            last_mask = attention_mask_at(past, tokens.shape[1], starts, at, tokens.device)
        if starts is not None:
            positions = (positions - starts[:, None]).clamp(min=0)
        x = self.embed(tokens)
        rope = None
        if self.positions is not None:
            x = x + self.positions(positions)
        else:
            rope = self.rope[:, positions].unsqueeze(-3).to(x.dtype)  # (2, 1 or B, 1, S, E): the same for all heads
            rope = rope if rope.dim() == 5 else rope.unsqueeze(1)
        again = cache is None and self.recompute and torch.is_grad_enabled()
        *body, last = (partial(checkpoint, block, use_reentrant=False) if again else block for block in self.blocks)
        for block in body:
            x = block(x, rope, mask, cache, self.ops)
        x = last(x, rope, last_mask, cache, self.ops, at)
        if cache is not None:
            cache.length += tokens.shape[1]
        return normed(self.norm, x, self.ops)

    def _checked(self, tokens: Tensor, starts: Tensor | None, cache: Cache | None) -> Tensor | None:
        """Raises on bad input; gives starts back, as None where it is known that there is no padding."""
        check_dims(2, tokens=tokens)
        if tokens.is_floating_point() or tokens.dtype == torch.bool or tokens.numel() == 0:
            raise ValueError(f"tokens: wanted integers, at least one, got {tuple(tokens.shape)} of {tokens.dtype}")
        length = tokens.shape[1] + (0 if cache is None else cache.length)
        if length > self.config.max_length:
            raise ValueError(f"tokens: {length} positions do not fit into max_length {self.config.max_length}")
        if isinstance(cache, KVCache) and (length > cache.capacity or len(tokens) != cache.keys.shape[1]):
            room = f"{cache.keys.shape[1]} rows of {cache.capacity}"
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
            # a row may begin behind what has been read so far
            most = length if cache is None else max(length, cache.capacity)
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
        self, tokens: Int[Tensor, "B S"], starts: Int[Tensor, " B"] | None = None, at: At | None = None
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B K"]]:
        """What the policy's head reads, and the values; `at` as in `Transformer.hidden`."""
        hidden = self.policy.hidden(tokens, starts=starts, at=at)
        seen = hidden if self.critic is None else self.critic.hidden(tokens, starts=starts, at=at)
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
        if self.pool is not last_token:
            return self.pool(self.token_scores(tokens, mask, starts=starts), mask)
        self._check(tokens, mask)
        T = mask.shape[1]
        # 1-based, so that 0 says: nothing is counted
        last = (torch.arange(1, T + 1, device=mask.device) * mask).amax(1)
        hidden = self.trunk.hidden(tokens, starts=starts, at=tokens.shape[1] - T + (last - 1).clamp(min=0))
        return blank(self.score(hidden.to(self.score.weight.dtype))[:, 0, 0], last > 0)

    def token_scores(
        self, tokens: Int[Tensor, "B S"], mask: Bool[Tensor, "B T"], *, starts: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B T"]:
        """The score read at each response token, tokens[:, -T:]."""
        self._check(tokens, mask)
        hidden = self.trunk.hidden(tokens, starts=starts, at=slice(-mask.shape[1], None))
        return self.score(hidden.to(self.score.weight.dtype)).squeeze(-1)

    def _check(self, tokens: Tensor, mask: Tensor) -> None:
        check_dims(2, tokens=tokens, mask=mask)
        check_mask(mask)
        if len(mask) != len(tokens) or mask.shape[1] > tokens.shape[1]:
            raise ValueError(f"mask: wanted the last columns of tokens {tuple(tokens.shape)}, got {tuple(mask.shape)}")


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
