"""What saves memory changes no number: micro-batches, logits in chunks, activations computed again."""

import copy
from dataclasses import replace

import pytest
import torch

from minirl import ops as ops_module
from minirl.masking import fixed_length_mean, sequence_mean, token_mean
from minirl.model import PolicyWithValue, Transformer, TransformerConfig
from minirl.rollout import preference_pairs, response_logprobs, roll_out, rule_scorer
from minirl.run import Run
from minirl.tasks import digit_sum
from minirl.train import critic_free, dpo, grpo, ppo
from minirl.train.memory import in_parts, micro_batches, pair_micro_batches, share, tight

TOKENIZER = digit_sum.tokenizer()
PROMPTS = ["12=", "3456=", "999=", "1=", "77=", "123456="]


@pytest.fixture
def model() -> Transformer:
    """In float64, so that the order of a sum does not matter; lengths differ, some responses never end."""
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=TOKENIZER.vocab_size, width=16, layers=2, heads=2, ffn=16, max_length=32)
    return Transformer(config).double()


def sampled(model, *, group_size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return roll_out(model, TOKENIZER, PROMPTS, max_new_tokens=12, group_size=group_size, generator=generator)[1]


def some_prompts(n, generator):
    return [PROMPTS[i] for i in torch.randint(len(PROMPTS), (n,), generator=generator).tolist()]


def unequal(prompts, responses):
    return [len(response) % 4 + 0.1 * len(prompt) for prompt, response in zip(prompts, responses, strict=True)]


def assert_close(a: torch.nn.Module, b: torch.nn.Module):
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.allclose(x, y, rtol=1e-9, atol=1e-12), name


def test_the_rollout_has_what_makes_it_hard(model):
    lengths = sampled(model).mask.sum(1)
    assert lengths.min() < 5 and lengths.max() == 12


# Micro-batches


def grpo_step(model, micro_batch, row, **knobs):
    config = grpo.GRPOConfig(
        steps=2, prompts=6, group_size=4, minibatch=12, epochs=2, kl_coef=0.1, lr=1e-2, micro_batch=micro_batch, **knobs
    )
    policy, run = copy.deepcopy(model), Run(progress=False)
    scorer = rule_scorer(unequal, TOKENIZER)
    grpo.train(policy, copy.deepcopy(model), TOKENIZER, some_prompts, scorer, config, run, row=row)
    return policy, run.records


NEAR = {  # numbers that are only looked at, whose parts are weighed by counted tokens: GSPO's are means over sequences
    "GSPO": {"ratio_mean", "clip_fraction", "approx_kl"},
    "DAPO": {"entropy"},  # over all tokens, those of truncated responses too
}


@pytest.mark.parametrize("name", ["GRPO", "DR_GRPO", "DAPO", "GSPO", "CISPO", "RLOO", "REINFORCE", "REJECTION", "RWR"])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_micro_batches_change_no_critic_free_row(model, name, size):
    row = getattr(critic_free, name)
    whole, records = grpo_step(model, None, row)
    parts, others = grpo_step(model, size, row)
    assert_close(whole, parts)
    for one, other in zip(records, others, strict=True):
        for key in one.keys() - NEAR.get(name, set()):
            assert one[key] == pytest.approx(other[key], rel=1e-5, abs=1e-7), key


def test_the_average_of_averages_would_be_seen(model, monkeypatch):
    """The mistake of many trainers: each part's own mean, and the mean of those."""

    def averaged(reduce, mask, rows, micro):
        return lambda x, m: reduce(x, m) * len(micro) / len(rows)

    whole, _ = grpo_step(model, None, critic_free.DAPO)
    monkeypatch.setattr(grpo, "share", averaged)
    parts, _ = grpo_step(model, 5, critic_free.DAPO)
    with pytest.raises(AssertionError):
        assert_close(whole, parts)


@pytest.mark.parametrize("size", [1, 5, 16])
def test_micro_batches_do_not_change_ppo(model, size):
    trained, records = [], []
    for micro_batch in (None, size):
        config = ppo.PPOConfig(
            steps=2, batch=24, minibatch=16, max_new_tokens=12, entropy_coef=0.1, lr=1e-2, micro_batch=micro_batch
        )
        actor = PolicyWithValue(copy.deepcopy(model))
        scorer = rule_scorer(unequal, TOKENIZER)
        run = Run(progress=False)
        trained.append(ppo.train(actor, copy.deepcopy(model), TOKENIZER, some_prompts, scorer, config, run))
        records.append(run.records)
    assert_close(*trained)
    for one, other in zip(*records, strict=True):
        for key in one:
            assert one[key] == pytest.approx(other[key], rel=1e-5, abs=1e-7), key


@pytest.mark.parametrize("name", ["DPO", "CDPO", "ROBUST", "IPO", "SIMPO", "ORPO"])
def test_micro_batches_change_no_pair_loss(model, name):
    pairs = preference_pairs(sampled(model), torch.tensor([True, False] * 3))
    trained, records = [], []
    for micro_batch in (None, 1, 4):
        config = dpo.DPOConfig(steps=3, pairs=5, lr=1e-2, micro_batch=micro_batch)
        policy, run = copy.deepcopy(model), Run(progress=False)
        trained.append(dpo.train(policy, copy.deepcopy(model), pairs, config, run, row=getattr(dpo, name)))
        records.append(run.records)
    assert_close(trained[0], trained[1])
    assert_close(trained[0], trained[2])
    for one, other in zip(records[0][1:], records[1][1:], strict=True):  # at step 1 every margin is 0, or rounding
        for key in one:
            assert one[key] == pytest.approx(other[key], rel=1e-5, abs=1e-7), key


@pytest.mark.parametrize("reduce", [token_mean, sequence_mean, fixed_length_mean(7)])
def test_shares_add_up_to_the_whole(model, reduce):
    rollout = sampled(model)
    rows = torch.tensor([3, 0, 8, 9, 5])
    x = torch.randn(rollout.mask.shape, dtype=torch.float64)
    parts = [
        share(reduce, rollout.mask, rows, micro)(x[micro, : part.mask.shape[1]], part.mask)
        for micro, part in micro_batches(rollout, rows, 2)
    ]
    assert len(parts) == 3
    assert torch.allclose(sum(parts), reduce(x[rows], rollout.mask[rows]), rtol=1e-12)


def test_parts_are_sorted_tight_and_whole(model):
    rollout = sampled(model)
    rows = torch.arange(len(rollout))
    seen, widths = [], []
    for micro, part in micro_batches(rollout, rows, 5):
        assert part.mask.any(0).all() and part.starts.min() == 0, "a column is padding in every row"
        for i, row in enumerate(micro.tolist()):
            a, b = rollout[row : row + 1], part[i : i + 1]
            assert torch.equal(a.response[a.mask], b.response[b.mask])
            assert torch.equal(a.logprobs[a.mask], b.logprobs[b.mask])
            prompt = a.tokens[0, a.starts[0] : -a.mask.shape[1]]
            assert torch.equal(prompt, b.tokens[0, b.starts[0] : -b.mask.shape[1]])
        seen += micro.tolist()
        widths.append(part.mask.shape[1])
    assert sorted(seen) == rows.tolist()
    assert widths == sorted(widths, reverse=True) and widths[-1] < widths[0]


def test_a_part_that_counts_nothing_is_left_out(model):
    rollout = sampled(model)
    counted = rollout.mask & rollout.finished[:, None]
    kept = [row for micro, _ in micro_batches(rollout, torch.arange(12), 1, counted=counted) for row in micro.tolist()]
    assert sorted(kept) == rollout.finished.nonzero().squeeze(1).tolist() and len(kept) < 12


def test_pairs_keep_their_tokens(model):
    pairs = preference_pairs(sampled(model), torch.tensor([True, False] * 3))
    seen = []
    for micro, part in pair_micro_batches(pairs, torch.tensor([5, 1, 4, 0]), 3):
        before, after = dpo.pair_logprobs(model, pairs[micro]), dpo.pair_logprobs(model, part)
        assert all(torch.allclose(x, y) for x, y in zip(before, after, strict=True))
        seen += micro.tolist()
    assert sorted(seen) == [0, 1, 4, 5]


def test_in_parts_is_all_at_once(model):
    rollout = sampled(model)

    def read(part):
        return response_logprobs(model, part.tokens, part.starts, part.mask.shape[1])

    for whole, parts in zip(in_parts(read, rollout, None), in_parts(read, rollout, 5), strict=True):
        assert torch.allclose(whole, parts) and not parts.requires_grad


def test_tight_keeps_tokens_behind_a_gap(model):
    rollout = sampled(model)
    mask = rollout.mask.clone()
    mask[:, 3] = False
    part = tight(replace(rollout, mask=mask)[:4])
    assert int(part.mask.sum()) == int(mask[:4].sum())


def test_tight_leaves_a_tight_rollout_alone(model):
    rollout = tight(sampled(model))
    again = tight(rollout)
    assert torch.equal(rollout.tokens, again.tokens) and torch.equal(rollout.starts, again.starts)


@pytest.mark.parametrize("config", [ppo.PPOConfig, grpo.GRPOConfig, dpo.DPOConfig])
@pytest.mark.parametrize("size", [0, -1])
def test_a_micro_batch_is_a_whole_number(config, size):
    with pytest.raises(ValueError, match="micro_batch: wanted a whole number of at least 1"):
        config(micro_batch=size)


# Logits in chunks


def losses_and_gradients(model, rollout):
    model.zero_grad()
    logprobs, entropies = response_logprobs(
        model, rollout.tokens, rollout.starts, rollout.mask.shape[1], temperature=0.7, entropy_gradient=True
    )
    (logprobs.square().sum() + entropies.sum()).backward()
    return [logprobs.detach(), entropies.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("at_once", [1, 500, 1000])
def test_chunks_change_neither_numbers_nor_gradients(model, monkeypatch, at_once):
    rollout = sampled(model)
    whole = losses_and_gradients(model, rollout)
    largest = []
    from_logits = ops_module.token_logprobs
    monkeypatch.setattr(
        ops_module,
        "token_logprobs",
        lambda logits, tokens: largest.append(logits.numel()) or from_logits(logits, tokens),
    )
    monkeypatch.setattr(ops_module, "LOGITS_AT_ONCE", at_once)
    parts = losses_and_gradients(model, rollout)
    assert all(torch.allclose(x, y, rtol=1e-9) for x, y in zip(whole, parts, strict=True))
    one_position = len(rollout) * TOKENIZER.vocab_size
    assert max(largest) <= max(at_once, one_position) < rollout.mask.numel() * TOKENIZER.vocab_size


def test_entropy_has_a_gradient_only_where_it_is_asked_for(model):
    rollout = sampled(model)
    given = model, rollout.tokens, rollout.starts, rollout.mask.shape[1]
    assert not response_logprobs(*given)[1].requires_grad
    assert response_logprobs(*given, entropy_gradient=True)[1].requires_grad


# Activations computed again


def kept_for_the_gradient(model, rollout) -> tuple[int, list]:
    """Bytes that autograd holds between the passes, and the gradients."""
    held = {}

    def note(x):
        held[x.untyped_storage().data_ptr()] = x.untyped_storage()  # several views share one
        return x

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = model(rollout.tokens, starts=rollout.starts).square().mean()
    loss.backward()
    return sum(storage.nbytes() for storage in held.values()), [p.grad.clone() for p in model.parameters()]


def test_recomputing_holds_less_and_changes_no_gradient(model):
    rollout = sampled(model)
    much, gradients = kept_for_the_gradient(model, rollout)
    model.recompute = True
    little, again = kept_for_the_gradient(model, rollout)
    assert little < 0.6 * much, (little, much)
    assert all(torch.allclose(x, y, rtol=1e-9) for x, y in zip(gradients, again, strict=True))


def test_recomputing_samples_the_same(model):
    before = sampled(model)
    model.recompute = True
    assert torch.equal(before.tokens, sampled(model).tokens)


def test_everything_at_once_trains_the_same(model, monkeypatch):
    plain, _ = grpo_step(model, None, critic_free.GRPO)
    model.recompute = True
    monkeypatch.setattr(ops_module, "LOGITS_AT_ONCE", 300)
    saving, _ = grpo_step(model, 5, critic_free.GRPO)
    assert_close(plain, saving)
