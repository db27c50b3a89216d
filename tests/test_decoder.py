"""The decoder continues a cache with the numbers of the model itself, for every kind of layer."""

from dataclasses import replace

import pytest
import torch

from minirl import decoder
from minirl.attention import KVCache
from minirl.decoder import Decoder, looked_up
from minirl.lora import add_lora
from minirl.model import Transformer, TransformerConfig, naive_attention

BASE = TransformerConfig(vocab_size=11, width=24, layers=3, heads=6, ffn=40, max_length=32)
CONFIGS = {
    "llama": BASE,
    "grouped keys": replace(BASE, kv_heads=2),
    "one key head": replace(BASE, kv_heads=1, head_dim=8),
    "qwen2": replace(BASE, kv_heads=3, qkv_bias=True),
    "qwen3": replace(BASE, kv_heads=2, qk_norm=True),
    "gpt2": replace(BASE, norm="layernorm", positions="learned", activation="gelu", bias=True, tied=True),
}


def randomised(config: TransformerConfig) -> Transformer:
    """Every weight away from its start: a norm of ones or a bias of zeros would hide that it is left out."""
    torch.manual_seed(0)
    model = Transformer(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def continued(model: Transformer, starts: list[int] | None, steps: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits of the decoder, logits of one pass without a cache) after each of the new tokens, (B, steps, V)."""
    tokens = torch.randint(model.config.vocab_size, (3, 5 + steps), generator=torch.Generator().manual_seed(1))
    padding = None if starts is None else torch.tensor(starts)
    cache = KVCache(model.config, 3, 5 + steps, dtype=model.embed.weight.dtype)
    with torch.inference_mode():
        model.hidden(tokens[:, :5], starts=padding, cache=cache)
        steady = Decoder(model, cache, padding)
        stepped = [steady.step(tokens[:, 5 + step]) for step in range(steps)]
        assert cache.length == 5 + steps
        return torch.stack(stepped, 1), model(tokens, starts=padding)[:, 5:]


@pytest.mark.parametrize("starts", [None, [0, 2, 4]], ids=["equal prompts", "padded prompts"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_gives_the_logits_of_a_whole_pass(name, starts):
    stepped, whole = continued(randomised(CONFIGS[name]), starts)
    torch.testing.assert_close(stepped, whole, rtol=0, atol=1e-11)


def test_corrections_of_lora_take_part():
    model = randomised(BASE)
    plain, _ = continued(model, None)
    add_lora(model, rank=2)
    for name, p in model.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(p)
    stepped, whole = continued(model, None)
    torch.testing.assert_close(stepped, whole, rtol=0, atol=1e-11)
    assert (stepped - plain).abs().max() > 0.1


def test_large_matrices_are_not_copied(monkeypatch):
    layers = [torch.nn.Linear(4, 3), torch.nn.Linear(4, 2)]
    x, copied = torch.ones(1, 4), decoder.joined(*layers)
    monkeypatch.setattr(decoder, "JOINED_AT_MOST", 19)
    shared = decoder.joined(*layers)
    before = copied(x)
    torch.testing.assert_close(shared(x), before)
    layers[0].weight.data.zero_()
    assert torch.equal(copied(x), before)
    assert torch.equal(shared(x)[0, :3], layers[0].bias)


def test_a_position_may_be_a_tensor_and_the_keys_more_than_are_filled():
    """The form a recorded graph replays: a fixed number of keys, of which a mask shows those that are there."""
    model = randomised(CONFIGS["grouped keys"])
    tokens = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(1))
    cache = KVCache(model.config, 3, 16, dtype=torch.double)
    cache.keys.zero_(), cache.values.zero_()
    with torch.inference_mode():
        model.hidden(tokens[:, :5], cache=cache)
        steady = Decoder(model, cache)
        for step in range(5, 9):
            position = torch.tensor([step])
            logits = steady.at(tokens[:, step], position, 16, torch.arange(16) <= position.unsqueeze(1))
            torch.testing.assert_close(logits, model(tokens[:, : step + 1])[:, -1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_one_look_is_attention_by_definition(dtype, masked):
    torch.manual_seed(2)
    q, k, v = torch.randn(3, 2, 4, 8), torch.randn(3, 2, 7, 8), torch.randn(3, 2, 7, 8)
    mask = torch.rand(3, 1, 1, 7) > 0.4
    mask[..., 3] = True
    mask = mask if masked else None
    found = looked_up(q.to(dtype), k.to(dtype), v.to(dtype), mask)
    q, k, v = (x.to(dtype).double() for x in (q, k, v))
    wanted = naive_attention(q, k, v, torch.ones(7, dtype=torch.bool) if mask is None else mask)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 3e-2)
