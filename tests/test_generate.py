"""Sampling: seeds, what the log-probabilities are of, the frequencies, the nucleus, the end token, groups, refusals."""

import pytest
import torch

from minirl import sampling
from minirl.generate import generate, generate_greedy, nucleus
from minirl.logprobs import response_slice, token_logprobs
from minirl.model import PolicyWithValue, Transformer, TransformerConfig
from minirl.types import Rollout

V = 12
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3], [5], [8, 9, 7, 9]]


def make(**changes) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(
        TransformerConfig(**{"vocab_size": V, "width": 16, "heads": 2, "ffn": 24, "max_length": 32} | changes)
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(std=0.4)
    return model


MODEL = make()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fields(rollout: Rollout) -> list[torch.Tensor]:
    return list(vars(rollout).values())


# One rollout, in every way it can be laid out


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"heads": 4, "kv_heads": 2},
        {"norm": "layernorm", "positions": "learned", "activation": "gelu", "bias": True, "tied": True},
    ],
    ids=["plain", "grouped", "gpt2"],
)
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8), (1.7, 1.0)])
@pytest.mark.parametrize("group_size", [1, 3])
def test_logprobs_are_those_of_the_distribution_sampled_from(config, temperature, top_p, group_size):
    """Recomputed row by row, without a cache, padding or groups."""
    model = make(**config)
    knobs = {"max_new_tokens": 9, "temperature": temperature, "top_p": top_p, "group_size": group_size}
    eos = int(generate(model, PROMPTS, **knobs, generator=seeded()).response[0, 3])  # one that will be sampled
    rollout = generate(model, PROMPTS, **knobs, eos=eos, generator=seeded())
    assert rollout.prompt_index.tolist() == [i for i in range(4) for _ in range(group_size)]
    lengths = set()
    for row in range(len(rollout)):
        prompt = PROMPTS[rollout.prompt_index[row]]
        response = rollout.response[row][rollout.mask[row]]
        lengths.add(len(response))
        logits = model(torch.tensor([prompt + response.tolist()])) / temperature
        probs = nucleus(response_slice(logits, len(response))[0].softmax(-1), top_p)
        expected = probs.gather(1, response[:, None]).squeeze(1).log()
        torch.testing.assert_close(rollout.logprobs[row][rollout.mask[row]], expected, atol=1e-5, rtol=0)
    assert len(lengths) > 1  # rows of different lengths were among them


def test_layout_is_the_one_training_reads():
    rollout = generate(MODEL, PROMPTS, max_new_tokens=9, temperature=0.7, group_size=2, eos=0, generator=seeded())
    B, T = rollout.response.shape
    assert (B, T) == (8, int(rollout.mask.sum(1).max()))
    assert torch.equal(rollout.tokens[:, -T:], rollout.response)
    for row in range(B):
        prompt = PROMPTS[rollout.prompt_index[row]]
        start = rollout.starts[row]
        assert start == 7 - len(prompt)
        assert rollout.tokens[row, start:-T].tolist() == prompt
        assert not rollout.tokens[row, :start].any()
    # and with it the whole batch, padded as it is, gives the same log-probs
    logits = response_slice(MODEL(rollout.tokens, starts=rollout.starts), T) / 0.7
    expected = token_logprobs(logits, rollout.response)
    torch.testing.assert_close(rollout.logprobs[rollout.mask], expected[rollout.mask], atol=1e-5, rtol=0)
    assert not rollout.logprobs[~rollout.mask].any()


def test_results_may_meet_autograd():
    rollout = generate(MODEL, PROMPTS, max_new_tokens=4, generator=seeded())
    logprobs = token_logprobs(response_slice(MODEL(rollout.tokens, starts=rollout.starts), 4), rollout.response)
    (logprobs * rollout.logprobs.exp()).sum().backward()  # saves the rollout's tensor for the backward pass
    assert MODEL.embed.weight.grad.isfinite().all()
    assert not any(x.requires_grad or x.is_inference() for x in fields(rollout))
    MODEL.zero_grad()


# Randomness


def test_same_seed_same_bits():
    sample = lambda seed: generate(MODEL, PROMPTS, max_new_tokens=8, group_size=2, eos=0, generator=seeded(seed))  # noqa: E731
    assert all(torch.equal(a, b) for a, b in zip(fields(sample(1)), fields(sample(1)), strict=True))
    assert not torch.equal(sample(1).response[:, :2], sample(2).response[:, :2])


def test_without_a_generator_the_global_one_is_used():
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(generate(MODEL, PROMPTS, max_new_tokens=8).response)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_given_generator_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    generate(MODEL, PROMPTS, max_new_tokens=3, generator=seeded())
    assert torch.equal(before, torch.get_rng_state())


def test_how_much_noise_is_used_does_not_depend_on_what_was_sampled():
    after = []
    for eos in (None, 0, 5):
        generator = seeded()
        generate(MODEL, PROMPTS, max_new_tokens=8, eos=eos, generator=generator)
        after.append(torch.rand(1, generator=generator))
    assert after[0] == after[1] == after[2]


def chi_square(counts: torch.Tensor, probs: torch.Tensor) -> float:
    expected = counts.sum() * probs
    assert not counts[probs == 0].any()
    return float(((counts - expected) ** 2 / expected)[probs > 0].sum())


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7), (2.0, 0.5)])
def test_frequencies_are_the_probabilities(temperature, top_p):
    n, prompt = 20_000, [3, 1, 4]
    rollout = generate(
        MODEL,
        [prompt],
        max_new_tokens=1,
        temperature=temperature,
        top_p=top_p,
        group_size=n,
        generator=seeded(5),
    )
    counts = torch.bincount(rollout.response[:, 0], minlength=V)
    logits = MODEL(torch.tensor([prompt]))[0, -1].detach()
    probs = nucleus((logits / temperature).softmax(-1)[None], top_p)[0]
    assert chi_square(counts, probs) < 35  # 11 degrees of freedom: exceeded once in 4,000 seeds
    wrong = nucleus((logits / (temperature * 1.15)).softmax(-1)[None], top_p)[0]
    assert chi_square(counts, wrong) > 50  # and a temperature off by 15% would be seen


def test_pairs_of_tokens_have_the_probability_of_the_sequence():
    """The second token sees the first: the cache holds the sampled token, at the right position."""
    n = 20_000
    rollout = generate(MODEL, [[7, 2]], max_new_tokens=2, group_size=n, generator=seeded(6))
    pairs = torch.bincount(rollout.response[:, 0] * V + rollout.response[:, 1], minlength=V * V)
    first = MODEL(torch.tensor([[7, 2]]))[0, -1].softmax(-1)
    second = MODEL(torch.tensor([[7, 2, a] for a in range(V)]))[:, -1].softmax(-1)
    probs = (first[:, None] * second).flatten().detach()
    common = probs > 1e-3
    assert chi_square(pairs[common], probs[common] / probs[common].sum()) < 2 * int(common.sum())
    wrong = (first[:, None] * first).flatten().detach()
    assert chi_square(pairs[common], wrong[common] / wrong[common].sum()) > 10 * int(common.sum())


def test_rows_of_a_group_are_independent():
    rollout = generate(MODEL, [[3, 1, 4]], max_new_tokens=1, group_size=20_000, generator=seeded(8))
    a, b = rollout.response[:, 0].view(-1, 2).T
    joint = torch.bincount(a * V + b, minlength=V * V)
    probs = MODEL(torch.tensor([[3, 1, 4]]))[0, -1].softmax(-1).detach()
    both = (probs[:, None] * probs).flatten()
    common = both > 1e-3
    assert chi_square(joint[common], both[common] / both[common].sum()) < 2 * int(common.sum())


# The two parts of the draw


def test_top_p_never_leaves_the_nucleus():
    rollout = generate(MODEL, PROMPTS, max_new_tokens=12, top_p=0.6, group_size=50, generator=seeded())
    probs = response_slice(MODEL(rollout.tokens, starts=rollout.starts), 12).softmax(-1).detach()
    taken = probs.gather(2, rollout.response[..., None])
    more_probable = (probs * (probs > taken)).sum(-1)
    assert (more_probable < 0.6 + 1e-5).all()
    free = generate(MODEL, PROMPTS, max_new_tokens=12, group_size=50, generator=seeded())
    probs = response_slice(MODEL(free.tokens, starts=free.starts), 12).softmax(-1).detach()
    assert ((probs * (probs > probs.gather(2, free.response[..., None]))).sum(-1) > 0.6).any()


# The end


def test_the_end_token_counts_and_nothing_after_it():
    rollout = generate(MODEL, PROMPTS, max_new_tokens=6, group_size=40, eos=5, generator=seeded())
    for response, mask, finished in zip(rollout.response.tolist(), rollout.mask, rollout.finished, strict=True):
        length = int(mask.sum())
        assert mask[:length].all()  # no gaps
        assert finished == (5 in response)
        if finished:
            assert response.index(5) == length - 1  # the first end token is the last that counts
            assert set(response[length:]) <= {5}
        else:
            assert length == 6
    assert 0 < rollout.finished.float().mean() < 1  # both kinds were there
    last = rollout.mask[:, -1] & rollout.finished
    assert last.any()  # an end token in the last column is an end, not a truncation


def test_stopping_early_changes_nothing_but_the_width():
    free = generate(MODEL, PROMPTS[:2], max_new_tokens=24, generator=seeded())
    eos = int(free.response.mode().values[0])
    long = generate(MODEL, PROMPTS[:2], max_new_tokens=24, eos=eos, generator=seeded())
    assert long.finished.all() and 1 <= long.response.shape[1] < 24
    T = long.response.shape[1]
    assert torch.equal(long.response[long.mask], free.response[:, :T][long.mask])
    torch.testing.assert_close(long.logprobs[long.mask], free.logprobs[:, :T][long.mask])


def test_how_often_the_loop_looks_for_the_end_changes_nothing(monkeypatch):
    """On an accelerator it looks now and then, and takes steps that nobody needs."""
    model, steps = make(), []
    model.head.register_forward_hook(lambda *_: steps.append(1))
    sample = lambda: generate(model, PROMPTS[:2], max_new_tokens=24, eos=5, group_size=2, generator=seeded(2))  # noqa: E731
    often = sample()
    assert often.finished.all() and len(steps) == often.response.shape[1] < 24
    monkeypatch.setattr(sampling, "asks_now", lambda device, step: False)
    seldom = sample()
    assert len(steps) == often.response.shape[1] + 24
    assert all(torch.equal(a, b) for a, b in zip(fields(often), fields(seldom), strict=True))


def test_no_end_token_means_full_length():
    rollout = generate(MODEL, PROMPTS, max_new_tokens=6, generator=seeded())
    assert rollout.mask.all() and rollout.response.shape == (4, 6) and not rollout.finished.any()


def certain(token: int) -> Transformer:
    """A model that always says `token`."""
    model = make(positions="learned", norm="layernorm", bias=True)
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.fill_(1.0)
        model.head.weight.zero_()
        model.head.weight[token] = 100.0
    return model


def test_an_immediate_end_is_a_response_of_one_token():
    rollout = generate(certain(0), PROMPTS, max_new_tokens=6, eos=0, generator=seeded())
    assert rollout.response.tolist() == [[0]] * 4 and rollout.mask.all() and rollout.finished.all()
    assert not rollout.logprobs.any()


# Greedy


def test_greedy_takes_the_most_probable_token_of_temperature_1():
    rollout = generate_greedy(MODEL, PROMPTS, max_new_tokens=7, eos=0)
    for row, prompt in enumerate(PROMPTS):
        tokens = list(prompt)
        for t in range(int(rollout.mask[row].sum())):
            logprobs = MODEL(torch.tensor([tokens]))[0, -1].log_softmax(-1)
            assert rollout.response[row, t] == logprobs.argmax()
            assert abs(rollout.logprobs[row, t] - logprobs.max()) < 1e-5
            tokens.append(int(logprobs.argmax()))
        assert rollout.finished[row] == (tokens[-1] == 0)


def test_a_low_temperature_is_nearly_greedy():
    cold = generate(MODEL, PROMPTS, max_new_tokens=7, temperature=1e-3, generator=seeded())
    assert torch.equal(cold.response, generate_greedy(MODEL, PROMPTS, max_new_tokens=7).response)


# Models and errors


def test_a_policy_with_value_samples_from_its_policy():
    both = PolicyWithValue(MODEL, make(width=8))
    ours, theirs = (generate(m, PROMPTS, max_new_tokens=5, eos=0, generator=seeded()) for m in (both, MODEL))
    assert all(torch.equal(a, b) for a, b in zip(fields(ours), fields(theirs), strict=True))


def test_training_mode_and_half_precision():
    assert MODEL.training
    evaluated = generate(make().eval(), PROMPTS, max_new_tokens=5, generator=seeded())
    assert torch.equal(evaluated.response, generate(MODEL, PROMPTS, max_new_tokens=5, generator=seeded()).response)
    half = generate(make().bfloat16(), PROMPTS, max_new_tokens=5, generator=seeded())
    assert half.logprobs.dtype == torch.float32 and (half.logprobs < 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "prompts: wanted at least one"),
        ({"prompts": [[1], []]}, "prompts: prompt 1 is empty"),
        ({"prompts": [[1], [2, V]]}, "prompts: prompt 1 has a token outside"),
        ({"prompts": [[-1]]}, "prompts: prompt 0 has a token outside"),
        ({"prompts": [[1] * 28]}, "prompts: 28 prompt tokens and max_new_tokens=5 .* max_length 32"),
        ({"max_new_tokens": 0}, "max_new_tokens: "),
        ({"temperature": 0.0}, "temperature: "),
        ({"temperature": -1.0}, "temperature: "),
        ({"temperature": float("nan")}, "temperature: "),
        ({"top_p": 0.0}, "top_p: "),
        ({"top_p": 1.1}, "top_p: "),
        ({"group_size": 0}, "group_size: "),
        ({"eos": V}, "eos: "),
        ({"eos": -1}, "eos: "),
    ],
)
def test_bad_input_is_refused_by_name(changes, message, unhooked):
    arguments = {"prompts": PROMPTS, "max_new_tokens": 5} | changes
    with pytest.raises(ValueError, match=f"^{message}"):
        generate(MODEL, **arguments)
    if changes.keys() <= {"prompts", "max_new_tokens", "eos"}:
        with pytest.raises(ValueError, match=f"^{message}"):
            generate_greedy(MODEL, **arguments)


def test_a_prompt_that_just_fits():
    rollout = generate(MODEL, [[1] * 27], max_new_tokens=5, generator=seeded())
    MODEL(rollout.tokens)  # can be trained on
