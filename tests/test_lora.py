"""LoRA against W + (alpha / rank) B A written out, and what it leaves alone."""

import copy

import pytest
import torch

from minirl.generate import generate
from minirl.lora import ATTENTION, EVERY_LINEAR, LoRALinear, adapted, add_lora, base_of, is_correction, merged
from minirl.model import PolicyWithValue, Transformer, TransformerConfig
from minirl.train.optimizer import adamw

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def make(seed: int = 0, **changes) -> Transformer:
    torch.manual_seed(seed)
    config = {"vocab_size": 13, "width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 20, "max_length": 32}
    return Transformer(TransformerConfig(**(config | changes)))


def adapt(model: Transformer, **knobs) -> Transformer:
    """With corrections that are not 0 any more."""
    add_lora(model, **({"rank": 3} | knobs))
    with torch.no_grad():
        for _, layer in adapted(model):
            layer.lora_b.normal_(std=0.1)
    return model


def test_values_and_gradients_are_those_of_the_weight_plus_the_correction():
    torch.manual_seed(0)
    base = torch.nn.Linear(7, 5).double()
    layer = LoRALinear(base, rank=2, alpha=6.0)
    layer.lora_b.data.normal_()
    x = torch.randn(4, 7, dtype=torch.float64)
    a, b = layer.lora_a.detach().clone().requires_grad_(), layer.lora_b.detach().clone().requires_grad_()
    written = x @ (base.weight + 3.0 * b @ a).T + base.bias
    torch.testing.assert_close(layer(x), written)
    weights = torch.randn_like(written)
    ours = torch.autograd.grad((layer(x) * weights).sum(), [layer.lora_a, layer.lora_b])
    for mine, theirs in zip(ours, torch.autograd.grad((written * weights).sum(), [a, b]), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(layer.correction, 3.0 * b @ a)
    assert torch.linalg.matrix_rank(layer.correction) == 2


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"activation": "gelu", "bias": True, "positions": "learned"}])
def test_the_adapted_model_starts_as_the_base(changes):
    model = make(**changes)
    before = model(TOKENS)
    assert torch.equal(add_lora(model, rank=4)(TOKENS), before)


@pytest.mark.parametrize("targets", [ATTENTION, EVERY_LINEAR, ("query", "value")])
def test_only_the_corrections_learn(targets):
    model = add_lora(make(), rank=2, targets=targets)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if is_correction(name)}
    assert {name.rpartition(".")[2] for name, _ in adapted(model)} == set(targets)
    assert len(list(adapted(model))) == 2 * len(targets)  # two blocks
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = adamw(model)
    for _ in range(2):  # A has no gradient while B is 0
        optimizer.zero_grad()
        model(TOKENS).square().sum().backward()
        optimizer.step()
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == trained


def test_parameters_are_counted():
    model = add_lora(make(), rank=2, targets=("query", "down"))
    # rank * (in + out): query 24 -> 24, down 20 -> 24, in two blocks
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 2 * ((24 + 24) + (20 + 24))


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"bias": True}])
def test_merging_says_the_same_and_unmerging_is_exact(changes):
    base = make(**changes)
    model = adapt(copy.deepcopy(base))
    plain = merged(model)
    assert not list(adapted(plain)) and {n for n, _ in plain.named_parameters()} == {
        n for n, _ in base.named_parameters()
    }
    torch.testing.assert_close(plain(TOKENS), model(TOKENS))
    assert (model(TOKENS) - base(TOKENS)).abs().max() > 0.01  # there is something to merge
    assert torch.equal(base_of(model)(TOKENS), base(TOKENS))
    with torch.no_grad():  # a copy of its own
        for p in plain.parameters():
            p.zero_()
    assert torch.equal(base_of(model)(TOKENS), base(TOKENS))


def test_merging_in_bfloat16_rounds_once():
    model = adapt(make()).bfloat16()
    plain, (name, layer) = merged(model), next(adapted(model))
    wide = layer.weight.double() + layer.alpha / layer.rank * layer.lora_b.double() @ layer.lora_a.double()
    got = dict(plain.named_parameters())[f"{name}.weight"]
    assert got.dtype == torch.bfloat16 and torch.equal(got, wide.bfloat16())


def test_the_reference_is_no_second_copy():
    model = adapt(make(tied=True))
    ref = base_of(model)
    held = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in held and not p.requires_grad for p in ref.parameters())
    assert ref.head.weight is ref.embed.weight
    assert next(p for n, p in model.named_parameters() if is_correction(n)).requires_grad  # and the model still learns


def test_adapted_models_sample_save_state_and_carry_a_value_head():
    model = adapt(make())
    policy = PolicyWithValue(model)
    generator = torch.Generator().manual_seed(0)
    rollout = generate(policy, [[1, 2]], max_new_tokens=5, group_size=3, generator=generator)
    again = generate(
        merged(model), [[1, 2]], max_new_tokens=5, group_size=3, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(rollout.tokens, again.tokens)
    other = PolicyWithValue(add_lora(make(seed=1), rank=3))
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.policy(TOKENS), model(TOKENS))
    assert policy.value_head.weight.requires_grad


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"rank": 0}, "rank: wanted a whole number in \\[1, 24\\]"),
        ({"rank": 21}, "rank: wanted a whole number in \\[1, 12\\]"),  # key and value are 12 x 24
        ({"rank": 2, "alpha": 0.0}, "alpha"),
        ({"rank": 2, "targets": ("q_proj",)}, "targets: wanted some of query"),
        ({"rank": 2, "targets": ()}, "targets"),
    ],
)
def test_bad_knobs_are_named_and_leave_the_model_alone(knobs, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        add_lora(model, **knobs)
    assert not list(adapted(model)) and all(p.requires_grad for p in model.parameters())


def test_targets_that_this_model_has_not():
    with pytest.raises(ValueError, match="targets: wanted some of down, key"):
        add_lora(make(activation="gelu"), rank=2, targets=("gate",))


def test_twice_is_refused():
    model = add_lora(make(), rank=2)
    with pytest.raises(ValueError, match="has LoRA already"):
        add_lora(model, rank=2)
