"""The PyTorch side of the table of operations, against definitions written out."""

import pytest
import torch

from minirl import ops
from minirl.losses.policy import grpo_loss, ppo_clip_loss
from minirl.ops import TORCH


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rms_norm_and_swiglu_are_their_formulas():
    x, weight, up = normal(0, 3, 5), normal(1, 5), normal(2, 3, 5)
    naive = [
        [v / (sum(u * u for u in row) / 5 + 0.1) ** 0.5 * w for v, w in zip(row, weight, strict=True)] for row in x
    ]
    assert torch.allclose(TORCH.rms_norm(x, weight, eps=0.1), torch.tensor(naive, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(TORCH.swiglu(x, up), x / (1 + torch.exp(-x)) * up, rtol=1e-12)


@pytest.fixture
def head():
    """Hidden states, a head, tokens, and the log-probability of every token, from the definition."""
    hidden, weight = normal(3, 4, 3, 6), normal(4, 9, 6)
    tokens = torch.randint(9, (4, 3), generator=torch.Generator().manual_seed(5))
    scores = torch.exp(torch.einsum("btd,vd->btv", hidden, weight) / 0.7)
    return hidden, weight, tokens, torch.log(scores / scores.sum(-1, keepdim=True))


MASK = torch.tensor([[True, True, True], [False, False, False], [True, False, True], [True, True, False]])


@pytest.mark.parametrize("at_once", [1, 80, 10_000])
def test_hidden_logprobs_are_the_definition(head, monkeypatch, at_once):
    hidden, weight, tokens, logp = head
    monkeypatch.setattr(ops, "LOGITS_AT_ONCE", at_once)
    logprobs, entropies = TORCH.hidden_logprobs(hidden.requires_grad_(), weight, tokens, temperature=0.7)
    for b in range(4):
        for t in range(3):
            assert logprobs[b, t].item() == pytest.approx(logp[b, t, tokens[b, t]].item(), rel=1e-12)
            assert entropies[b, t].item() == pytest.approx(-sum(p.exp() * p for p in logp[b, t]).item(), rel=1e-12)
    assert logprobs.requires_grad and not entropies.requires_grad
    _, entropies = TORCH.hidden_logprobs(hidden, weight, tokens, entropy_gradient=True)
    assert entropies.requires_grad


def test_head_losses_are_the_losses_of_their_logprobs(head):
    hidden, weight, tokens, logp = head
    logprobs = logp.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    old, ref, each = logprobs + 0.3 * normal(6, 4, 3), logprobs + normal(7, 4, 3), normal(8, 4, 3)
    spoilt = hidden.masked_fill(~MASK.unsqueeze(-1), torch.nan).requires_grad_()
    knobs = {"clip_eps": 0.1, "clip_eps_high": 0.3}
    found = TORCH.grpo_head_loss(
        spoilt, weight, tokens, old, ref, each[:, 0], MASK, temperature=0.7, kl_coef=0.2, **knobs
    )
    wanted, stats = grpo_loss(logprobs, old, ref, each[:, 0], MASK, kl_coef=0.2, **knobs)
    assert found[0].item() == pytest.approx(wanted.item(), rel=1e-10)
    assert found[1].keys() == stats.keys() | {"entropy"}
    entropies = -(logp.exp() * logp).sum(-1)
    assert found[1]["entropy"].item() == pytest.approx(entropies[MASK].mean().item(), rel=1e-10)
    found[0].backward()
    assert spoilt.grad.isfinite().all() and (spoilt.grad[~MASK] == 0).all() and (spoilt.grad[MASK] != 0).any()

    found, _ = TORCH.ppo_head_loss(hidden, weight, tokens, old, each, MASK, temperature=0.7, **knobs)
    assert found.item() == pytest.approx(ppo_clip_loss(logprobs, old, each, MASK, **knobs)[0].item(), rel=1e-10)


def test_dpo_head_loss_is_the_formula_for_each_pair(head):
    hidden, weight, tokens, _ = head
    logp = (hidden @ weight.T).log_softmax(-1)
    mask = MASK.roll(1, 0)  # the second pair's chosen response counts
    chosen, rejected = normal(9, 2), normal(10, 2)
    terms = []
    for pair in range(2):
        summed = [
            sum(logp[row, t, tokens[row, t]] for t in range(3) if mask[row, t]) for row in (2 * pair, 2 * pair + 1)
        ]
        h = (summed[0] - chosen[pair]) - (summed[1] - rejected[pair])
        terms.append(torch.log(1 + torch.exp(-0.3 * torch.as_tensor(h))))
    found, stats = TORCH.dpo_head_loss(hidden, weight, tokens, chosen, rejected, mask, beta=0.3)
    assert found.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-10)
    assert stats.keys() >= {"loss", "accuracy", "margin"}


def test_bad_shapes_are_refused(head, unhooked):
    hidden, weight, tokens, _ = head
    with pytest.raises(ValueError, match=r"weight: wanted \(V, 6\) to go with hidden, got \(9, 5\)"):
        TORCH.hidden_logprobs(hidden, weight[:, :5], tokens)
    with pytest.raises(ValueError, match=r"tokens: wanted shape \(4, 3\) like hidden, got \(4, 2\)"):
        TORCH.hidden_logprobs(hidden, weight, tokens[:, :2])
    with pytest.raises(ValueError, match="temperature: wanted"):
        TORCH.hidden_logprobs(hidden, weight, tokens, temperature=0.0)
    with pytest.raises(ValueError, match=r"mask: wanted shape \(4, 3\)"):
        TORCH.ppo_head_loss(hidden, weight, tokens, tokens.double(), tokens.double(), MASK[:, :2])
    with pytest.raises(ValueError, match="hidden: wanted two rows a pair, 6, got 4"):
        TORCH.dpo_head_loss(hidden, weight, tokens, normal(0, 3), normal(0, 3), MASK)
    with pytest.raises(ValueError, match=r"up: wanted shape \(2,\) like gate"):
        TORCH.swiglu(torch.ones(2), torch.ones(3))
