"""What is written out by hand is what the libraries do that usually do it."""

import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import BPE

from minirl.drills import by_hand
from minirl.lora import LoRALinear
from minirl.model import KVCache, Transformer, TransformerConfig, naive_attention, rope_table, rotate
from minirl.rollout import ensemble_scorer
from minirl.types import Rollout

close = torch.testing.assert_close


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients_agree(ours, theirs, *inputs: torch.Tensor):
    """Both depend on the inputs in the same way, in values and in gradients along a random direction."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    one, two = ours(*leaves), theirs(*leaves)
    close(one, two)
    direction = draw(*one.shape, seed=9)
    for a, b in zip(*(torch.autograd.grad(x, leaves, direction) for x in (one, two)), strict=True):
        close(a, b)


@pytest.mark.parametrize("shape", [(1, 2), (3, 4), (2, 7)])
def test_softmax_is_pytorchs(shape):
    logits = 3 * draw(*shape)
    gradients_agree(by_hand.softmax, lambda x: torch.softmax(x, -1), logits)
    close(by_hand.softmax(logits).sum(-1), torch.ones(shape[0], dtype=torch.float64))
    assert by_hand.softmax(logits + 5000).isfinite().all()


@pytest.mark.parametrize("shape", [(1, 2), (3, 4), (5, 8)])
def test_rms_norm_is_pytorchs(shape):
    x, weight = draw(*shape), draw(shape[1], seed=1)
    for eps in (1e-5, 0.3):
        ours, theirs = partial(by_hand.rms_norm, eps=eps), partial(F.rms_norm, normalized_shape=(shape[1],), eps=eps)
        gradients_agree(ours, lambda x, weight, theirs=theirs: theirs(x, weight=weight), x, weight)


@pytest.mark.parametrize("length, channels, base", [(1, 2, 100.0), (5, 4, 100.0), (7, 8, 10_000.0)])
def test_rotary_is_what_the_model_does_to_queries_and_keys(length, channels, base):
    config = TransformerConfig(
        vocab_size=5, width=channels, layers=1, heads=1, kv_heads=1, ffn=4, max_length=length, rope_base=base
    )
    x = draw(length, channels).requires_grad_()
    ours, theirs = by_hand.rotary(x, base=base), rotate(x, rope_table(config).double())
    close(ours, theirs, atol=1e-6, rtol=1e-6)
    a, b = (torch.autograd.grad(y.square().sum() + y[0, 0], x)[0] for y in (ours, theirs))
    close(a, b, atol=1e-6, rtol=1e-6)


def test_rotary_keeps_lengths_and_sees_distances_only():
    x, base = draw(6, 4), 50.0
    turned = by_hand.rotary(x, base=base)
    close(turned.norm(dim=1), x.norm(dim=1))
    q, k = draw(4, seed=2), draw(4, seed=3)
    scores = by_hand.rotary(q.expand(6, 4), base=base) @ by_hand.rotary(k.expand(6, 4), base=base).T
    close(scores[1:, 1:], scores[:-1, :-1])


def test_kv_cache_step_is_the_last_row_of_attention_without_a_cache():
    heads, length, width = 2, 5, 4
    q, k, v = (draw(heads, length, width, seed=seed) for seed in (1, 2, 3))
    keys, values = k[:, :0], v[:, :0]
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    whole = naive_attention(q[None], k[None], v[None], mask)[0]
    for t in range(length):
        mixed, keys, values = by_hand.kv_cache_step(q[:, t], k[:, t], v[:, t], keys, values)
        close(mixed, whole[:, t])
    assert torch.equal(keys, k) and torch.equal(values, v)


def test_kv_cache_step_keeps_what_the_models_cache_keeps():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(vocab_size=7, width=8, layers=1, heads=2, ffn=8, max_length=9)).double()
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    cache = KVCache(model.config, 1, 5, dtype=torch.float64)
    model(tokens, cache=cache)
    keys, values = cache.keys[0, 0, :, :4], cache.values[0, 0, :, :4]
    new_k, new_v = cache.keys[0, 0, :, 4], cache.values[0, 0, :, 4]
    _, longer_keys, longer_values = by_hand.kv_cache_step(new_k, new_k, new_v, keys, values)
    assert torch.equal(longer_keys, cache.keys[0, 0]) and torch.equal(longer_values, cache.values[0, 0])


def test_bpe_merge_is_one_merge_of_a_tokenizer():
    vocab = {"a": 0, "b": 1, "aa": 2}
    tokenizer = Tokenizer(BPE(vocab, [("a", "a")]))
    for letters in itertools.product("ab", repeat=6):
        text = "".join(letters)
        tokens = [vocab[letter] for letter in text]
        assert by_hand.bpe_merge(tokens, (0, 0), 2) == tokenizer.encode(text).ids, text
    vocab = {"a": 0, "b": 1, "ab": 2}
    tokenizer = Tokenizer(BPE(vocab, [("a", "b")]))
    assert by_hand.bpe_merge([0, 0, 1, 1, 0, 1], (0, 1), 2) == tokenizer.encode("aabbab").ids
    assert by_hand.bpe_merge([], (0, 1), 2) == [] and by_hand.bpe_merge([0], (0, 1), 2) == [0]


@pytest.mark.parametrize("rank, alpha", [(1, 2.0), (3, 6.0), (2, 0.5)])
def test_lora_forward_is_the_layer_of_the_library(rank, alpha):
    torch.manual_seed(rank)
    layer = LoRALinear(torch.nn.Linear(5, 4, bias=False).double(), rank=rank, alpha=alpha)
    torch.nn.init.normal_(layer.lora_b)
    x = draw(3, 5)
    ours = by_hand.lora_forward(x, layer.weight, layer.lora_a, layer.lora_b, alpha=alpha)
    close(ours, layer(x))
    thin = [layer.lora_a, layer.lora_b]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), thin) for y in (ours, layer(x))), strict=True):
        close(a, b)
    close(by_hand.lora_forward(x, layer.weight, layer.lora_a, 0 * layer.lora_b, alpha=alpha), x @ layer.weight.T)


def test_sft_loss_is_cross_entropy_with_ignored_labels():
    logits, tokens = draw(3, 6, 5), torch.randint(0, 5, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0]]).bool()
    labels = tokens.masked_fill(~mask, -100)
    ours, theirs = by_hand.sft_loss, lambda x, *_: F.cross_entropy(x[:, :-1].mT, labels[:, 1:])
    gradients_agree(lambda x: ours(x, tokens, mask), theirs, logits)
    assert by_hand.sft_loss(logits, tokens, mask) > 0


def test_ensemble_reward_is_what_the_scorer_pays():
    scores = draw(4, 3)
    members = [lambda prompts, rollout, row=row: row for row in scores]
    table, flags = torch.zeros(3, 1), torch.ones(3, dtype=torch.bool)
    rollout = Rollout(table.long(), table.long(), table.bool(), table, flags, flags.long())
    for caution in (0.0, 1.0, 2.5):
        paid = ensemble_scorer(members, caution=caution)([""] * 3, rollout)
        close(by_hand.ensemble_reward(scores, caution=caution), paid)


@pytest.mark.parametrize("n, k", [(3, 1), (4, 2), (5, 5), (6, 3)])
def test_pass_at_k_counts_the_subsets(n, k):
    correct = torch.arange(n + 1)
    for c, chance in zip(correct.tolist(), by_hand.pass_at_k(n, correct, k).tolist(), strict=True):
        right = [1] * c + [0] * (n - c)
        drawn = list(itertools.combinations(range(n), k))
        assert math.isclose(chance, sum(any(right[i] for i in subset) for subset in drawn) / len(drawn))
