"""Every loss and estimator on extreme batches: finite results and gradients, or a ValueError that names the argument.

Padding is NaN or infinite throughout: it never reaches a result or a gradient. Rows may be permuted and padding deleted
without a difference, and what is linear in its advantages is so at any size.
"""

import math

import pytest
import torch
from hostile.tally import NAMES
from hypothesis import given, settings
from hypothesis import strategies as st

from minirl.advantages import (
    discounted_returns,
    exponential_weights,
    gae,
    group_centered_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
    top_fraction,
)
from minirl.kl import kl_exact, kl_k1, kl_k2, kl_k3
from minirl.logprobs import average_logprobs, entropy, sequence_logprobs, token_logprobs
from minirl.losses.policy import (
    cispo_loss,
    grpo_loss,
    gspo_loss,
    ppo_clip_loss,
    reinforce_loss,
    value_clip_loss,
    value_loss,
    weighted_logprob_loss,
)
from minirl.losses.preference import (
    bradley_terry_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
)
from minirl.masking import blank, fixed_length_mean, masked_mean, masked_whiten, sequence_mean, token_mean
from minirl.rewards import kl_shaped_rewards, length_penalty, missing_eos_penalty

FEW = settings().max_examples * 2 // 5  # of what the profile says: 25 in CI, 2,000 in the nightly one
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
SIZES = st.sampled_from([0.0, 1e-4, 1.0, 30.0, 1e4])
LENGTHS = st.sampled_from([1, 2, 3, 7, 7, 33, 4096])
PADDING = st.sampled_from([math.nan, math.inf, -math.inf, 6e4, 0.0])
MASKS = st.sampled_from(["full", "one token", "ragged", "gaps", "an empty row", "gaps", "ragged"])

# name: (function of its tables and the mask, how many tables of tokens, how many of rows, linear in its last table)
TOKEN_LOSSES = {
    "reinforce_loss": (lambda m, x, a: reinforce_loss(x, a, m)[0], 2, 0, True),
    "reinforce_loss, sequence": (lambda m, x, a: reinforce_loss(x, a, m, reduce=sequence_mean)[0], 2, 0, True),
    "reinforce_loss, fixed": (lambda m, x, a: reinforce_loss(x, a, m, reduce=fixed_length_mean(8))[0], 2, 0, True),
    "ppo_clip_loss": (lambda m, x, o, a: ppo_clip_loss(x, o, a, m)[0], 3, 0, True),
    "ppo_clip_loss, higher": (lambda m, x, o, a: ppo_clip_loss(x, o, a, m, clip_eps_high=0.5)[0], 3, 0, True),
    "value_loss": (lambda m, x, r: value_loss(x, r, m)[0], 2, 0, False),
    "value_clip_loss": (lambda m, x, o, r: value_clip_loss(x, o, r, m)[0], 3, 0, False),
    "grpo_loss": (lambda m, x, o, r, a: grpo_loss(x, o, r, a, m)[0], 3, 1, False),
    "grpo_loss, no KL": (lambda m, x, o, a: grpo_loss(x, o, None, a, m, kl_coef=0)[0], 2, 1, True),
    "gspo_loss": (lambda m, x, o, a: gspo_loss(x, o, a, m)[0], 2, 1, True),
    "cispo_loss": (lambda m, x, o, a: cispo_loss(x, o, a, m)[0], 2, 1, True),
    "weighted_logprob_loss": (lambda m, x, a: weighted_logprob_loss(x, a, m)[0], 1, 1, True),
    "masked_mean": (lambda m, x: masked_mean(x, m), 1, 0, True),
    "token_mean": (lambda m, x: token_mean(x, m), 1, 0, True),
    "sequence_mean": (lambda m, x: sequence_mean(x, m), 1, 0, True),
    "masked_whiten": (lambda m, x: masked_whiten(x, m)[m].pow(2).mean(), 1, 0, False),
    "sequence_logprobs": (lambda m, x: sequence_logprobs(x, m).sum(), 1, 0, True),
    "average_logprobs": (lambda m, x: average_logprobs(x, m).sum(), 1, 0, True),
    "discounted_returns": (lambda m, x: discounted_returns(x, m, gamma=0.9)[m].mean(), 1, 0, True),
    "gae, advantages": (lambda m, x, v: gae(x, v, m, gamma=0.9, lam=0.8)[0][m].mean(), 2, 0, False),
    "gae, returns": (lambda m, x, v: gae(x, v, m)[1][m].mean(), 2, 0, False),
    "k1": (lambda m, x, r: token_mean(kl_k1(blank(x, m), blank(r, m)), m), 2, 0, False),
    "k2": (lambda m, x, r: token_mean(kl_k2(blank(x, m), blank(r, m)), m), 2, 0, False),
    "k3": (lambda m, x, r: token_mean(kl_k3(blank(x, m), blank(r, m)), m), 2, 0, False),
    "kl_shaped_rewards": (lambda m, x, s: kl_shaped_rewards(s, x, m, kl_coef=0.1)[m].mean(), 1, 1, False),
}
SLOW = {"discounted_returns", "gae, advantages", "gae, returns"}  # a Python loop over the tokens


def mask_of(kind: str, rows: int, length: int, generator) -> torch.Tensor:
    mask = torch.ones(rows, length, dtype=torch.bool)
    if kind == "one token":
        mask = torch.zeros_like(mask)
        mask[torch.arange(rows), torch.randint(length, (rows,), generator=generator)] = True
    elif kind == "ragged":
        mask = torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=generator)
    elif kind in ("gaps", "an empty row"):
        mask = torch.rand(rows, length, generator=generator) < 0.5
        mask[:, 0] = True
    if kind == "an empty row" and rows > 1:
        mask[0] = False
    return mask


@st.composite
def batches(draw, tables: int, columns: int, longest: int = 4096):
    """(mask, tables (B, T), columns (B,), what stands in the padding)."""
    rows, length, dtype = draw(st.integers(1, 4)), min(draw(LENGTHS), longest), draw(DTYPES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    mask = mask_of(draw(MASKS), rows, length, generator)
    equal = draw(st.booleans())

    def numbers(*shape):
        size = draw(SIZES)
        x = torch.randn(*shape, generator=generator, dtype=torch.float64).clamp(-3, 3) * size
        return (torch.full_like(x, -size) if equal else x).to(dtype)

    pad = draw(PADDING)
    spoilt = [numbers(rows, length).masked_fill(~mask, pad) for _ in range(tables)]
    counted = mask.any(1)
    each = [numbers(rows).masked_fill(~counted, pad) for _ in range(columns)]
    return mask, spoilt, each


def result_and_gradients(function, mask, tables, columns):
    leaves = [x.clone().requires_grad_() for x in (*tables, *columns)]
    result = function(mask, *leaves)
    gradients = [torch.zeros_like(x) for x in leaves]
    if result.requires_grad:
        found = torch.autograd.grad(result, leaves, allow_unused=True)
        gradients = [g if x is None else x for x, g in zip(found, gradients, strict=True)]
    return result.detach(), gradients


def refused_as_documented(name, mask, error) -> bool:
    """A row with nothing counted has no token for its score."""
    named = str(error).partition(":")[0] in ("mask", "scores")
    return name == "kl_shaped_rewards" and named and not mask.any(1).all()


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_extreme_batches(name, unhooked, request):
    function, tables, columns, linear = TOKEN_LOSSES[name]
    counts = dict.fromkeys(NAMES, 0)

    @settings(max_examples=FEW)
    @given(batches(tables, columns, 64 if name in SLOW else 4096), st.randoms(use_true_random=False))
    def holds(batch, chance):
        mask, xs, rows = batch
        counts[NAMES[0]] += 1
        try:
            result, gradients = result_and_gradients(function, mask, xs, rows)
        except ValueError as error:
            counts[NAMES[1]] += 1
            assert refused_as_documented(name, mask, error)
            return
        assert result.isfinite() and result.dtype in (torch.float32, torch.float64)
        assert all((g[~mask] == 0).all() for g in gradients[:tables])  # padding learns nothing
        assert all((g[~mask.any(1)] == 0).all() for g in gradients[tables:])

        clean = [x.masked_fill(~mask, 0.0) for x in xs], [x.masked_fill(~mask.any(1), 0.0) for x in rows]
        same, _ = result_and_gradients(function, mask, *clean)
        assert torch.equal(result, same)  # and changes no bit

        wide = [x.double() for x in clean[0]], [x.double() for x in clean[1]]
        exact, slopes = result_and_gradients(function, mask, *wide)
        # a float16 tensor's gradient is float16 too, and ends at 65,504: exp(20), where log-ratios are cut off, is beyond that
        beyond = [s.abs() > torch.finfo(g.dtype).max / 2 for g, s in zip(gradients, slopes, strict=True)]
        assert all((g.isfinite() | far).all() for g, far in zip(gradients, beyond, strict=True))
        close = {"rtol": 1e-9, "atol": 1e-9 * max(1.0, *(float(x.abs().max()) for x in (*wide[0], *wide[1]))) ** 2}
        order = list(range(len(mask)))
        chance.shuffle(order)
        other, turned = result_and_gradients(function, mask[order], *([x[order] for x in xs] for xs in wide))
        torch.testing.assert_close(other, exact, **close)
        assert all(torch.allclose(g[order], t, **close) for g, t in zip(slopes, turned, strict=True))

        pad = (chance.randrange(3), 1 + chance.randrange(3))  # more padding on both sides
        padded = torch.nn.functional.pad(mask, pad), [torch.nn.functional.pad(x, pad, value=7.0) for x in wide[0]]
        longer, _ = result_and_gradients(function, *padded, wide[1])
        torch.testing.assert_close(longer, exact, **close)
        if linear:
            last = [*wide[0], *wide[1]]
            last[-1] = 3.0 * last[-1]
            thrice, _ = result_and_gradients(function, mask, last[:tables], last[tables:])
            torch.testing.assert_close(thrice, 3 * exact, **close)

    holds()
    request.node.user_properties += counts.items()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [name for name in TOKEN_LOSSES if "mean" not in name and "k" not in name[:1]])
def test_what_is_not_finite_where_it_counts_is_named_or_stays_visible(name, bad, unhooked, request):
    """Refused by name; a function that takes it (a mean) gives no finite number back, so that it cannot go unnoticed."""
    function, tables, columns, _ = TOKEN_LOSSES[name]
    counts = dict.fromkeys(NAMES, 0)

    @given(st.integers(0, tables + columns - 1), st.integers(0, 2))
    def holds(which, at):
        mask = torch.tensor([[True, True, False], [True, False, True]])
        xs = [torch.full((2, 3), -1.0) for _ in range(tables)]
        rows = [torch.full((2,), 0.5) for _ in range(columns)]
        counted = mask.nonzero()[at]
        spoilt = [*xs, *rows][which]
        spoilt[tuple(counted) if which < tables else counted[0]] = bad
        counts[NAMES[0]] += 1
        try:
            result = function(mask, *xs, *rows)
        except ValueError as error:
            counts[NAMES[1]] += 1
            assert "wanted finite" in str(error)
        else:
            assert not result.isfinite()

    holds()
    request.node.user_properties += counts.items()


# Pairs

PAIR_LOSSES = {
    "bradley_terry_loss": (lambda *x: bradley_terry_loss(*x)[0], 2),
    "bradley_terry_loss, margin": (lambda *x: bradley_terry_loss(*x, margin=2.0)[0], 2),
    "dpo_loss": (lambda *x: dpo_loss(*x)[0], 4),
    "dpo_loss, smoothed": (lambda *x: dpo_loss(*x, label_smoothing=0.3)[0], 4),
    "robust_dpo_loss": (lambda *x: robust_dpo_loss(*x, label_smoothing=0.3)[0], 4),
    "ipo_loss": (lambda *x: ipo_loss(*x)[0], 4),
    "simpo_loss": (lambda *x: simpo_loss(*x)[0], 2),
    "orpo_loss": (lambda *x: orpo_loss(*x)[0], 2),
    "kto_loss": (lambda x, r: kto_loss(x, r, torch.arange(len(x)) % 2 == 0, 0.5)[0], 2),
}


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_extreme_pairs(name, unhooked, request):
    function, arguments = PAIR_LOSSES[name]
    counts = dict.fromkeys(NAMES, 0)

    @given(st.integers(1, 6), DTYPES, st.lists(SIZES, min_size=4, max_size=4), st.integers(0, 2**32), st.booleans())
    def holds(pairs, dtype, sizes, seed, equal):
        generator = torch.Generator().manual_seed(seed)
        xs = [-torch.rand(pairs, generator=generator) * size for size in sizes[:arguments]]
        xs = [(xs[0] if equal else x).to(dtype) for x in xs]
        leaves = [x.clone().requires_grad_() for x in xs]
        counts[NAMES[0]] += 1
        try:
            loss = function(*leaves)
        except ValueError as error:  # ORPO: a probability of 1 has infinite odds
            counts[NAMES[1]] += 1
            assert name == "orpo_loss" and str(error).split(":")[0] in ("chosen", "rejected")
            assert any((x >= 0).any() for x in xs)
            return
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        assert loss.isfinite() and loss.dtype in (torch.float32, torch.float64)
        assert all(g is None or g.isfinite().all() for g in gradients)
        if name != "kto_loss":  # whose rows are marked by their place
            order = torch.randperm(pairs, generator=generator)
            wide = [x.double() for x in xs]
            torch.testing.assert_close(function(*(x[order] for x in wide)), function(*wide), rtol=1e-9, atol=1e-6)

    holds()
    request.node.user_properties += counts.items()


# Logits


@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 9]),
    st.sampled_from([1, 2, 50]),
    DTYPES,
    SIZES,
    st.booleans(),
    st.integers(0, 2**32),
)
def logits_hold(rows, length, vocabulary, dtype, size, excluded, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, ref = (torch.randn(rows, length, vocabulary, generator=generator).clamp(-3, 3) * size for _ in range(2))
    tokens = torch.randint(vocabulary, (rows, length), generator=generator)
    if excluded and vocabulary > 1:  # half of the tokens cannot come, in the policy alone
        logits[..., : vocabulary // 2] = -math.inf
        tokens = tokens.clamp(min=vocabulary // 2)
    logits, ref = logits.to(dtype), ref.to(dtype)
    for function in (
        lambda x: token_logprobs(x, tokens),
        entropy,
        lambda x: kl_exact(x, ref),
        lambda x: kl_exact(ref, ref) + 0 * entropy(x),
    ):
        leaf = logits.clone().requires_grad_()
        found = function(leaf)
        (slope,) = torch.autograd.grad(found.sum(), leaf)
        assert found.isfinite().all() and slope.isfinite().all() and found.dtype in (torch.float32, torch.float64)
    assert (token_logprobs(logits, tokens) <= 0).all() and (entropy(logits) >= -1e-6).all()
    assert (entropy(logits) <= math.log(vocabulary) + 1e-5).all() and (
        kl_exact(logits, ref) >= -1e-3 * max(size, 1)
    ).all()
    assert (kl_exact(logits, logits) == 0).all()
    shift = logits.double() + 17.0  # adding a constant changes no probability
    torch.testing.assert_close(
        token_logprobs(shift, tokens), token_logprobs(logits.double(), tokens), rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(entropy(shift), entropy(logits.double()), rtol=1e-9, atol=1e-9)


def test_extreme_logits(unhooked):
    logits_hold()


# Rows

ROW_FUNCTIONS = {
    "group_relative_advantages": lambda x: group_relative_advantages(x, 2),
    "group_relative_advantages, eps 0": lambda x: group_relative_advantages(x, 2, eps=0),
    "group_centered_advantages": lambda x: group_centered_advantages(x, 2),
    "leave_one_out_advantages": lambda x: leave_one_out_advantages(x, 2),
    "exponential_weights": lambda x: exponential_weights(x, beta=1e-3),
    "exponential_weights, large": lambda x: exponential_weights(x, beta=1e6),
    "top_fraction": lambda x: top_fraction(x, fraction=0.3),
    "length_penalty": lambda x: length_penalty(x, torch.ones(len(x), 9).bool(), coef=0.1),
    "missing_eos_penalty": lambda x: missing_eos_penalty(x, x > 0, penalty=1.0) - x.to(torch.float32),
}


@pytest.mark.parametrize("name", ROW_FUNCTIONS)
def test_extreme_rows(name, unhooked):
    """Finite, whatever the size; groups of equal rewards teach nothing, weights have mean 1."""

    @given(st.integers(1, 5), DTYPES, SIZES, st.booleans(), st.integers(0, 2**32))
    def holds(groups, dtype, size, equal, seed):
        generator = torch.Generator().manual_seed(seed)
        x = (torch.randn(2 * groups, generator=generator).clamp(-3, 3) * size).to(dtype)
        x = torch.full_like(x, float(x[0])) if equal else x
        found = ROW_FUNCTIONS[name](x)
        assert found.isfinite().all() and found.shape == x.shape
        if "weights" in name or name == "top_fraction":
            torch.testing.assert_close(found.mean().double(), torch.tensor(1.0).double(), rtol=1e-5, atol=1e-5)
        if equal and "advantages" in name:
            assert (found == 0).all()
        if "advantages" in name:  # whole groups may change places
            turned = ROW_FUNCTIONS[name](x.view(-1, 2).flip(0).reshape(-1))
            torch.testing.assert_close(turned, found.view(-1, 2).flip(0).reshape(-1))

    holds()
