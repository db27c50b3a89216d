"""The exact world against brute force: plain loops over sequences, finite differences, and identities."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from minirl import exact
from minirl.exact import World
from minirl.model import Transformer, TransformerConfig
from minirl.rollout import roll_out

WORLDS = [World(3, 3), World(3, 2, eos=2), World(2, 4, eos=None), World(4, 1)]
IDS = [f"V{w.vocab_size}-L{w.max_length}-eos{w.eos}" for w in WORLDS]


def table(world: World, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(world.prefixes), world.vocab_size, generator=generator, dtype=torch.float64)


def scores_of(world: World, seed: int = 9) -> torch.Tensor:
    return torch.randn(len(world), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probability(world: World, logits: torch.Tensor, sequence: tuple[int, ...]) -> float:
    """The product of its conditional probabilities, looked up one by one."""
    p = 1.0
    for t, token in enumerate(sequence):
        row = [math.exp(x) for x in logits[world.prefixes.index(sequence[:t])].tolist()]
        p *= row[token] / sum(row)
    return p


@pytest.mark.parametrize("world", WORLDS, ids=IDS)
def test_every_sequence_is_there_once(world):
    expected = set()
    for length in range(1, world.max_length + 1):
        for sequence in itertools.product(range(world.vocab_size), repeat=length):
            early = world.eos in sequence[:-1]
            if not early and (sequence[-1] == world.eos or length == world.max_length):
                expected.add(sequence)
    assert set(world.sequences) == expected and len(world.sequences) == len(expected) == len(world)
    for row, sequence in enumerate(world.sequences):
        assert world.tokens[row, : len(sequence)].tolist() == list(sequence)
        assert world.mask[row].tolist() == [t < len(sequence) for t in range(world.max_length)]
        assert bool(world.finished[row]) == (sequence[-1] == world.eos)
        assert [world.prefixes[s] for s in world.states[row, : len(sequence)].tolist()] == [
            sequence[:t] for t in range(len(sequence))
        ]


def test_the_number_of_sequences():
    assert len(World(4, 4, eos=None)) == 4**4
    assert len(World(4, 4)) == 1 + 3 + 9 + 27 + 81


@pytest.mark.parametrize("world", WORLDS, ids=IDS)
def test_sequence_probabilities_are_products_and_sum_to_one(world):
    logits = table(world, 1)
    p = exact.sequence_logprobs(world, logits).exp()
    assert_close(p, torch.tensor([probability(world, logits, s) for s in world.sequences], dtype=torch.float64))
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("world", WORLDS, ids=IDS)
def test_kl_entropy_and_total_variation_by_hand(world):
    p = [probability(world, table(world, 1), s) for s in world.sequences]
    q = [probability(world, table(world, 2), s) for s in world.sequences]
    logp, logq = (exact.sequence_logprobs(world, table(world, seed)) for seed in (1, 2))
    pairs = list(zip(p, q, strict=True))
    assert float(exact.kl(logp, logq)) == pytest.approx(sum(a * math.log(a / b) for a, b in pairs))
    assert float(exact.kl(logq, logp)) == pytest.approx(sum(b * math.log(b / a) for a, b in pairs))
    assert float(exact.entropy(logp)) == pytest.approx(-sum(a * math.log(a) for a in p))
    assert float(exact.total_variation(logp, logq)) == pytest.approx(sum(max(a - b, 0) for a, b in pairs))


@pytest.mark.parametrize("world", WORLDS, ids=IDS)
def test_what_is_never_written_adds_nothing(world):
    logits = table(world, 1)
    logits[0, :-1] = -torch.inf  # the first token is always the last of the vocabulary
    logp, logq = (exact.sequence_logprobs(world, x) for x in (logits, table(world, 2)))
    pairs = [(a, b) for a, b in zip(logp.exp().tolist(), logq.exp().tolist(), strict=True) if a > 0]
    assert len(pairs) < len(world)
    assert float(exact.kl(logp, logq)) == pytest.approx(sum(a * math.log(a / b) for a, b in pairs))
    assert float(exact.kl(logq, logp)) == math.inf
    assert float(exact.entropy(logp)) == pytest.approx(-sum(a * math.log(a) for a, _ in pairs))
    again = exact.sequence_logprobs(world, exact.table_of(world, logp))
    assert_close(again.exp(), logp.exp())
    logits.requires_grad_()
    logp = exact.sequence_logprobs(world, logits)
    (gradient,) = torch.autograd.grad(exact.kl(logp, logq) + exact.entropy(logp), logits)
    assert gradient.isfinite().all()


def test_the_kl_of_sequences_is_the_expected_sum_of_the_kls_of_tokens():
    """The chain rule, and the direction: expectations are the policy's."""
    world = WORLDS[0]
    logits, ref = table(world, 1), table(world, 2)
    per_state = (logits.softmax(1) * (logits.log_softmax(1) - ref.log_softmax(1))).sum(1)
    logp = exact.sequence_logprobs(world, logits)
    expected = (logp.exp() * exact.along(world, per_state).sum(1)).sum()
    assert_close(exact.kl(logp, exact.sequence_logprobs(world, ref)), expected)


@pytest.mark.parametrize("world", WORLDS, ids=IDS)
@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_nothing_beats_the_optimum(world, beta):
    ref_logp, scores = exact.sequence_logprobs(world, table(world, 2)), scores_of(world)
    best, value = exact.optimum(ref_logp, scores, beta=beta)
    assert float(best.exp().sum()) == pytest.approx(1)
    assert_close(exact.objective(best, ref_logp, scores, beta=beta), value)
    for seed in range(20):
        other = exact.sequence_logprobs(world, exact.table_of(world, best) + 0.1 * table(world, seed))
        lost = value - exact.objective(other, ref_logp, scores, beta=beta)
        assert lost > 0
        assert_close(lost, beta * exact.kl(other, best))  # the identity behind the closed form


def test_a_large_beta_holds_and_a_small_one_lets_go():
    world = WORLDS[0]
    ref_logp, scores = exact.sequence_logprobs(world, table(world, 2)), scores_of(world)
    held, _ = exact.optimum(ref_logp, scores, beta=1e4)
    free, _ = exact.optimum(ref_logp, scores, beta=1e-3)
    assert exact.total_variation(held, ref_logp) < 1e-3
    assert float(free.exp()[scores.argmax()]) == pytest.approx(1)


@pytest.mark.parametrize("world", WORLDS, ids=IDS)
def test_the_table_of_a_distribution_writes_it(world):
    logp = scores_of(world).log_softmax(0)
    again = exact.sequence_logprobs(world, exact.table_of(world, logp))
    assert_close(again, logp)


@pytest.mark.parametrize("world", WORLDS, ids=IDS)
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_values_are_expected_discounted_sums(world, gamma):
    logits, rewards = table(world, 1), table(world, 3)
    v, q = exact.values(world, logits, rewards, gamma=gamma)
    for state, prefix in enumerate(world.prefixes):
        by_choice = torch.zeros(world.vocab_size, dtype=torch.float64)
        mass = torch.zeros(world.vocab_size, dtype=torch.float64)
        for sequence in world.sequences:
            if sequence[: len(prefix)] != prefix or len(sequence) == len(prefix):
                continue
            steps = range(len(prefix), len(sequence))
            states = [world.prefixes.index(sequence[:t]) for t in steps]
            got = sum(gamma**i * rewards[s, sequence[t]] for i, (s, t) in enumerate(zip(states, steps, strict=True)))
            p = math.prod(float(logits[s].softmax(0)[sequence[t]]) for s, t in zip(states, steps, strict=True))
            by_choice[sequence[len(prefix)]] += p * got
            mass[sequence[len(prefix)]] += p
        assert_close(v[state], by_choice.sum())
        assert_close(q[state], by_choice / mass)


def test_value_of_the_start_is_the_objective():
    world, beta = WORLDS[0], 0.7
    logits, ref, scores = table(world, 1), table(world, 2), scores_of(world)
    k1 = logits.log_softmax(1) - ref.log_softmax(1)
    v, _ = exact.values(world, logits, exact.choice_rewards(world, scores, k1, kl_coef=beta))
    logp, ref_logp = exact.sequence_logprobs(world, logits), exact.sequence_logprobs(world, ref)
    assert_close(v[0], exact.objective(logp, ref_logp, scores, beta=beta))


def test_at_the_optimum_no_choice_has_an_advantage():
    """r - beta log(pi / ref) is the same for every answer there, so that there is nothing left to learn."""
    world, beta = WORLDS[0], 0.7
    ref, scores = table(world, 2), scores_of(world)
    best, value = exact.optimum(exact.sequence_logprobs(world, ref), scores, beta=beta)
    logits = exact.table_of(world, best)
    k1 = logits - ref.log_softmax(1)
    v, q = exact.values(world, logits, exact.choice_rewards(world, scores, k1, kl_coef=beta))
    assert_close(q, v.unsqueeze(1).expand_as(q))
    assert_close(v[0], value)


def test_choice_rewards_add_up_along_a_sequence():
    world = WORLDS[0]
    scores, k1 = scores_of(world), table(world, 4)
    total = exact.along(world, exact.choice_rewards(world, scores, k1, kl_coef=0.5)).sum(1)
    assert_close(total, scores - 0.5 * exact.along(world, k1).sum(1))


def test_autograd_of_the_objective_is_its_finite_difference():
    world, beta = WORLDS[1], 0.5
    ref_logp, scores = exact.sequence_logprobs(world, table(world, 2)), scores_of(world)
    logits = table(world, 1).requires_grad_()

    def value(at: torch.Tensor) -> torch.Tensor:
        return exact.objective(exact.sequence_logprobs(world, at), ref_logp, scores, beta=beta)

    (gradient,) = torch.autograd.grad(value(logits), logits)
    for entry in itertools.product(range(logits.shape[0]), range(logits.shape[1])):
        step = torch.zeros_like(logits)
        step[entry] = 1e-5
        slope = (value(logits.detach() + step) - value(logits.detach() - step)) / 2e-5
        assert float(slope) == pytest.approx(float(gradient[entry]), abs=1e-8)


def test_the_policy_gradient_theorem():
    """sum_y p(y) sum_t A(s_t, a_t) grad log pi(a_t | s_t) is the gradient of J, with the exact advantages of the exact world."""
    world = WORLDS[0]
    logits, scores = table(world, 1).requires_grad_(), scores_of(world)
    logp = exact.sequence_logprobs(world, logits)
    (gradient,) = torch.autograd.grad((logp.exp() * scores).sum(), logits)
    with torch.no_grad():
        v, q = exact.values(world, logits, exact.choice_rewards(world, scores))
        advantages = exact.along(world, q - v.unsqueeze(1))
    surrogate = (logp.exp().detach() * (advantages * exact.token_logprobs(world, logits)).sum(1)).sum()
    assert_close(torch.autograd.grad(surrogate, logits)[0], gradient)


@pytest.mark.parametrize("batch", [1, 2])
def test_expected_gradient_of_reinforce_is_the_gradient_and_its_variance_is_that_of_samples(batch):
    world = World(2, 2, eos=0)
    logits, scores = table(world, 1).requires_grad_(), scores_of(world)
    p = exact.sequence_logprobs(world, logits).exp().detach()

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return -(exact.sequence_logprobs(world, logits)[rows] * scores[rows]).mean()

    mean, variance = exact.expected_gradient(loss, logits, p, batch=batch)
    (gradient,) = torch.autograd.grad((exact.sequence_logprobs(world, logits).exp() * scores).sum(), logits)
    assert_close(mean, -gradient)
    draws = torch.multinomial(p, 2000 * batch, replacement=True, generator=torch.Generator().manual_seed(0))
    samples = torch.stack([torch.autograd.grad(loss(rows), logits)[0] for rows in draws.view(-1, batch)])
    sampled = samples.var(0).sum()
    assert float(variance) == pytest.approx(float(sampled), rel=0.1)


def test_expected_gradient_of_a_batch_that_teaches_nothing_is_zero():
    world = WORLDS[0]
    logits = table(world, 1).requires_grad_()
    elsewhere = torch.zeros(1, requires_grad=True)
    uniform = torch.full((len(world),), 1 / len(world), dtype=torch.float64)
    mean, variance = exact.expected_gradient(lambda rows: elsewhere.sum(), logits, uniform)
    assert not mean.any() and variance == 0


MODEL = {"width": 16, "layers": 1, "heads": 2, "ffn": 16, "max_length": 8}


def test_policy_logits_are_what_the_model_says_after_each_prefix():
    torch.manual_seed(0)
    for world in WORLDS:
        model = Transformer(TransformerConfig(vocab_size=world.vocab_size, **MODEL))
        logits = exact.policy_logits(world, model)
        for state, prefix in enumerate(world.prefixes):
            assert_close(logits[state], model(torch.tensor([[*exact.PROMPT, *prefix]]))[0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eos", [0, None])
def test_sampled_sequences_have_the_exact_probabilities(eos):
    """The sampler, the tokenizer and the world agree on what a sequence is."""
    torch.manual_seed(0)
    world = World(3, 3, eos=eos)
    model = Transformer(TransformerConfig(vocab_size=3, positions="learned", **MODEL))
    prompts, rollout = roll_out(
        model,
        world.tokenizer(),
        world.prompts(4000),
        max_new_tokens=3,
        generator=torch.Generator().manual_seed(1),
    )
    rows = world.rows(rollout.response, rollout.mask)
    with torch.no_grad():
        logp = exact.sequence_logprobs(world, exact.policy_logits(world, model))
    seen = torch.bincount(rows, minlength=len(world)) / len(rows)
    assert (seen - logp.exp()).abs().sum() / 2 < 0.04
    assert_close(rollout.logprobs.sum(1), logp[rows], atol=1e-5, rtol=1e-5)
    assert (rollout.finished == world.finished[rows]).all()
    assert_close(world.scorer(torch.arange(float(len(world))))(prompts, rollout), rows.float())


def test_letters_are_tokens():
    world = World(3, 3)
    tokenizer = world.tokenizer()
    assert tokenizer.vocab_size == 3 and tokenizer.eos_id == 0
    assert tokenizer.encode("a") == exact.PROMPT and tokenizer.encode("bcb") == [1, 2, 1]
    assert World(3, 3, eos=None).tokenizer().eos_id is None


def test_rotary_positions_cannot_count_equal_tokens_and_learned_ones_can():
    """Why a world without an end token wants learned positions: attention averages equal values, whatever the weights."""
    torch.manual_seed(0)
    world = World(2, 3, eos=None)
    same = [world.prefixes.index(prefix) for prefix in ((), (0,), (0, 0))]
    rotary = Transformer(TransformerConfig(vocab_size=2, **MODEL))
    learned = Transformer(TransformerConfig(vocab_size=2, positions="learned", **MODEL))
    a, b, c = exact.policy_logits(world, rotary)[same]
    assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert_close(a, c, atol=1e-5, rtol=1e-5)
    a, b, _ = exact.policy_logits(world, learned)[same]
    assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: World(1, 3), "vocab_size"),
        (lambda: World(3, 0), "max_length"),
        (lambda: World(20, 8), "max_length: 20 tokens and 8 steps are"),
        (lambda: World(3, 3, eos=3), "eos"),
        (lambda: World(3, 3, eos=2).tokenizer(), "eos"),
        (lambda: exact.optimum(torch.zeros(3), torch.zeros(3), beta=0.0), "beta"),
        (lambda: exact.kl(torch.zeros(3), torch.zeros(4)), "logq"),
        (lambda: exact.values(WORLDS[0], table(WORLDS[0], 1), table(WORLDS[0], 1), gamma=1.1), "gamma"),
        (lambda: WORLDS[0].scorer(torch.zeros(2)), "scores"),
        (
            lambda: exact.expected_gradient(
                lambda r: r.sum(), torch.zeros(1, requires_grad=True), torch.ones(50) / 50, batch=4
            ),
            "batch",
        ),
        (lambda: WORLDS[0].rows(torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool)), "response"),
    ],
)
def test_bad_input_is_named(make, match, unhooked):
    with pytest.raises(ValueError, match=match):
        make()
