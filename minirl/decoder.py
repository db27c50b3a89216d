"""One token for every row, again and again: the transformer as sampling runs it.

Training reads thousands of positions at once, and its time goes into matrix products. Sampling reads one position a row,
and its time goes into starting operations and into reading weights, keys and values. So here

- matrices with the same input are joined: one product for query, key and value, one for gate and up;
- the heads that share keys and values look at them together, and nothing is repeated for them;
- nothing is checked that cannot be wrong: the tokens come from the model itself.

The numbers are those of `Transformer.forward` with a KVCache, up to rounding; a test compares the two for every layout.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from minirl.attention import KVCache, normed
from minirl.model import Transformer
from minirl.types import Float, Int, Tensor

JOINED_AT_MOST = 2**22  # numbers in a joined matrix, which is a copy; a larger product hides the start of an operation


class Decoder:
    """Continues the rows of a cache, which holds what `model.hidden(prompts, cache=cache)` has read.

    `starts` (B,): how many positions at the left of a row are padding, None for none. The model must not change while the
    decoder is in use: the joined matrices are copies.
    """

    def __init__(self, model: Transformer, cache: KVCache, starts: Int[Tensor, " B"] | None = None):
        self.model, self.cache, self.starts = model, cache, starts
        self.counted = torch.arange(cache.capacity, device=cache.keys.device)
        self.layers = [
            (
                block,
                joined(block.attention.query, block.attention.key, block.attention.value),
                joined(block.ffn.up) if block.ffn.gate is None else joined(block.ffn.gate, block.ffn.up),
                *kept,
            )
            for block, *kept in zip(model.blocks, cache.keys, cache.values, strict=True)
        ]

    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Logits after these tokens, which join the cache."""
        length = self.cache.length + 1
        mask = None if self.starts is None else self.counted[:length] >= self.starts[:, None]
        logits = self.at(tokens, slice(length - 1, length), length, mask)
        self.cache.length = length
        return logits

    def at(
        self, tokens: Int[Tensor, " B"], position: slice | Tensor, end: int, mask: Tensor | None
    ) -> Float[Tensor, "B V"]:
        """Logits after `tokens`, which go to one `position` of the cache and look at the keys before `end`, where `mask`,
        (B or 1, end), is True; None: at all of them."""
        model, ops, config = self.model, self.model.ops, self.model.config
        rows, heads, shared = len(tokens), config.heads, config.kv_heads
        own = self.counted[position]
        if self.starts is not None:
            own = (own - self.starts).clamp(min=0)  # a row's positions count from its own beginning
        x = model.embed(tokens)
        if model.positions is not None:
            x = x + model.positions(own)
        else:
            rope = model.rope[:, own, None, None].to(x.dtype)  # (2, 1 or B, 1, 1, E)
        if mask is not None:
            mask = mask[:, None, None]
        for block, qkv, inner, keys, values in self.layers:
            attention, ffn = block.attention, block.ffn
            q_k_v = qkv(normed(block.attention_norm, x, ops)).view(rows, heads + 2 * shared, 1, -1)
            q_k, v = q_k_v[:, : heads + shared], q_k_v[:, heads + shared :]
            if attention.query_norm is not None:
                q, k = q_k[:, :heads], q_k[:, heads:]
                q_k = torch.cat([normed(attention.query_norm, q, ops), normed(attention.key_norm, k, ops)], 1)
            if model.positions is None:
                q_k = ops.rotate(q_k, rope)
            keys[:, :, position], values[:, :, position] = q_k[:, heads:], v
            q = q_k[:, :heads].reshape(rows, shared, heads // shared, -1)
            mixed = looked_up(q, keys[:, :, :end], values[:, :, :end], mask)
            x = x + attention.out(mixed.reshape(rows, -1))

            h = inner(normed(block.ffn_norm, x, ops))
            h = F.gelu(h, approximate="tanh") if ffn.gate is None else ops.swiglu(*h.chunk(2, -1))
            x = x + ffn.down(h)
        return model.head(normed(model.norm, x, ops))


def looked_up(
    q: Float[Tensor, "B G H E"], k: Float[Tensor, "B G S E"], v: Float[Tensor, "B G S E"], mask: Tensor | None
) -> Float[Tensor, "B G H E"]:
    """softmax(q k^T / sqrt(E)) v for one position a row, where H heads share each of G sets of keys and values.

    PyTorch's fused attention is made for many queries; on a CPU two plain products are faster for one.
    """
    if q.device.type != "cpu" or q.dtype not in (torch.float32, torch.float64):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = torch.bmm((q * q.shape[-1] ** -0.5).flatten(0, 1), k.flatten(0, 1).mT).view(*q.shape[:3], -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.bmm(scores.softmax(-1).flatten(0, 1), v.flatten(0, 1)).view_as(q)


def joined(*layers: nn.Linear) -> Callable[[Tensor], Tensor]:
    """x -> the outputs of linear layers side by side, in one product where they are plain and small."""
    if len(layers) == 1:
        return layers[0]
    plain = all(type(layer) is nn.Linear for layer in layers)  # and not LoRA's, say
    if not plain or sum(layer.weight.numel() for layer in layers) > JOINED_AT_MOST:
        return lambda x: torch.cat([layer(x) for layer in layers], -1)
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return lambda x: F.linear(x, weight, bias)
