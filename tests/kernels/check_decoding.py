"""Sampling with the kernels: the token of the definition, its log-probability, and the loop of recorded steps against the
plain one. Started by test_kernels.py."""

import os
from dataclasses import replace

import pytest
import torch
from check_mutants import broken

from minirl.generate import generate, generate_greedy
from minirl.kernels import TRITON, decoding
from minirl.model import Transformer, TransformerConfig
from minirl.ops import TORCH

torch.set_num_threads(1)
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5], [8, 9, 7, 9]]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("B", "V"), [(1, 1), (5, 7), (4, 64), (3, 65), (6, 300)])
def test_the_token_at_this_place_of_the_cumulative_sum(B, V, dtype, sample=TRITON.sample):
    logits = (3 * torch.randn(B, V, generator=seeded(V))).to(dtype).to(DEVICE)
    logits[:, V // 2 + 1 :: 3] = -torch.inf
    uniform = torch.rand(B, generator=seeded(1)).to(DEVICE)
    tokens, logprobs = sample(logits, uniform, temperature=0.7)
    p = (logits.double() / 0.7).softmax(-1)
    reached = p.cumsum(-1)
    for row, token in enumerate(tokens.tolist()):
        below = reached[row, token - 1].item() if token else 0.0
        assert below - 1e-6 <= uniform[row].item() <= reached[row, token].item() + 1e-6
    exact = p.gather(1, tokens[:, None]).squeeze(1).log()
    torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=2e-5)
    assert (logprobs <= 0).all()


def test_the_ends_of_the_unit_interval_never_give_an_impossible_token():
    logits = torch.full((3, 200), -torch.inf)
    logits[0, 70], logits[1, [5, 130]], logits[2, 199] = 0.0, torch.tensor([1.0, 1.0]), -4.0
    logits = logits.to(DEVICE)
    for uniform, wanted in ((0.0, [70, 5, 199]), (1 - 2**-24, [70, 130, 199]), (1.0, [70, 130, 199])):
        tokens, _ = TRITON.sample(logits, torch.full((3,), uniform, device=DEVICE))
        assert tokens.tolist() == wanted


def test_rows_apart_in_memory_and_a_nucleus():
    table, uniform = torch.randn(6, 90, generator=seeded()).to(DEVICE), torch.rand(3, generator=seeded(1)).to(DEVICE)
    for logits in (table[::2], table[::2].t().contiguous().t(), table[:3, 10:40]):
        for knobs in ({"temperature": 1.3}, {"top_p": 0.5}):
            for found, wanted in zip(
                TRITON.sample(logits, uniform, **knobs), TORCH.sample(logits, uniform, **knobs), strict=True
            ):
                torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("change", "name"), [({"temperature": 0.0}, "temperature"), ({}, "uniform")])
def test_bad_input_is_refused_by_name(change, name):
    logits, uniform = torch.zeros(2, 3, device=DEVICE), torch.zeros(2 if change else 3, device=DEVICE)
    with pytest.raises(ValueError, match=f"^{name}: wanted"):
        TRITON.sample(logits, uniform, **change)


def model(**changes):
    torch.manual_seed(0)
    config = {"vocab_size": 12, "width": 16, "heads": 4, "kv_heads": 2, "ffn": 24, "max_length": 64} | changes
    made = Transformer(TransformerConfig(**config))
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return made.to(DEVICE)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("s = s * tl.exp(m - higher) + ", "s = s + "),
        ("- tl.log(s)", ""),
        ("chosen = tl.load(place + token).to(tl.float32) * scale", "chosen = tl.load(place + token).to(tl.float32)"),
        ("before += tl.sum(p, 0)", "before += 0.0 * tl.sum(p, 0)"),
        ("tl.min(tl.where(exceeds, v, V), 0)", "tl.min(tl.where(exceeds, v, V), 0) - 1"),
        ("* s\n", "\n"),
        ("row * stride", "row * (V - 1)"),
    ],
)
def test_a_broken_kernel_is_noticed(right, wrong, tmp_path):
    mutant = broken("sampling", right, wrong, tmp_path)
    with pytest.raises((AssertionError, ValueError)):
        for B, V in ((4, 64), (6, 300)):
            test_the_token_at_this_place_of_the_cumulative_sum(B, V, torch.float32, mutant.sample)


RECORDED = replace(TORCH, respond=decoding.respond)


@pytest.mark.parametrize("keys_at_once", [1, 256])
@pytest.mark.parametrize("eos", [None, 7])
@pytest.mark.parametrize("prompts", [PROMPTS, [[1, 2], [3, 4]]], ids=["padded", "equal"])
def test_recorded_steps_write_what_plain_ones_write(prompts, eos, keys_at_once, monkeypatch, recorded=RECORDED):
    monkeypatch.setattr(decoding, "KEYS_AT_ONCE", keys_at_once)
    for changes in ({}, {"norm": "layernorm", "positions": "learned", "activation": "gelu", "bias": True}):
        policy, results = model(**changes), []
        for ops in (TORCH, recorded):
            policy.ops = ops
            results.append(
                generate(
                    policy, prompts, max_new_tokens=20, group_size=3, eos=eos, temperature=0.8, generator=seeded(2)
                )
            )
        for name, plain in vars(results[0]).items():
            torch.testing.assert_close(getattr(results[1], name), plain, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("self.position.add_(1)", "pass"),
        ("<= self.position", "< self.position"),
        ("self.running.logical_and_(tokens != self.eos)", "pass"),
        ("if decoder.starts is not None:", "if False:"),
        ("masked_fill(~self.running, 0.0)", "masked_fill(self.running, 0.0)"),
        ("length + done > end", "length + done > end + 1"),
    ],
)
def test_a_broken_loop_is_noticed(right, wrong, tmp_path, monkeypatch):
    mutant = broken("decoding", right, wrong, tmp_path)
    monkeypatch.setattr(mutant, "KEYS_AT_ONCE", 1)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        recorded = replace(TORCH, respond=mutant.respond)
        test_recorded_steps_write_what_plain_ones_write(PROMPTS, 7, 1, monkeypatch, recorded)


def test_greedy_and_one_step():
    policy = model()
    for steps in (1, 9):
        plain = generate_greedy(policy, PROMPTS, max_new_tokens=steps, eos=3)
        policy.ops = RECORDED
        recorded = generate_greedy(policy, PROMPTS, max_new_tokens=steps, eos=3)
        policy.ops = TORCH
        assert torch.equal(plain.tokens, recorded.tokens) and torch.equal(plain.finished, recorded.finished)


def test_the_whole_table_samples():
    policy = model()
    policy.ops = TRITON
    rollout = generate(policy, PROMPTS, max_new_tokens=3, group_size=2, eos=7, generator=seeded(3))
    policy.ops = TORCH
    plain = generate(policy, PROMPTS, max_new_tokens=3, group_size=2, eos=7, generator=seeded(3))
    assert torch.equal(rollout.tokens, plain.tokens)
    torch.testing.assert_close(rollout.logprobs, plain.logprobs, rtol=0, atol=1e-4)


@pytest.mark.skipif(DEVICE == "cpu", reason="waiting for a GPU needs one")
def test_a_recorded_step_never_waits_for_the_gpu():
    policy = model()
    policy.ops = TRITON
    generate(policy, PROMPTS, max_new_tokens=4, eos=None, generator=seeded())
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop = decoding.Loop(*made_loop(policy))
        step = loop.recorded(32)
        for _ in range(5):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def made_loop(policy):
    from minirl.attention import KVCache
    from minirl.decoder import Decoder

    cache = KVCache(policy.config, 4, 32, DEVICE)
    policy.hidden(torch.zeros(4, 3, dtype=torch.long, device=DEVICE), cache=cache)
    uniform = torch.rand(4, device=DEVICE)
    return Decoder(policy, cache), lambda logits, step: policy.ops.sample(logits, uniform), 4, 20, None
