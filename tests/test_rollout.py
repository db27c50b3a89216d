import math

import pytest
import torch

from minirl.generate import generate
from minirl.kl import kl_exact
from minirl.logprobs import entropy, token_logprobs
from minirl.model import PolicyWithValue, RewardModel, Transformer, TransformerConfig, summed
from minirl.rollout import (
    best_of,
    best_of_kl_bound,
    centred_scorer,
    encode_examples,
    ensemble_scorer,
    join,
    lay_out,
    model_scorer,
    preference_pairs,
    response_logits,
    response_logprobs_and_values,
    responses_text,
    roll_out,
    rule_scorer,
    sequence_kl,
)
from minirl.tasks import digit_sum


def tiny(seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    vocabulary = digit_sum.tokenizer().vocab_size
    return Transformer(TransformerConfig(vocab_size=vocabulary, width=16, layers=1, heads=2, ffn=16, max_length=32))


def sampled(model, prompts=("12=", "3456="), *, group_size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return roll_out(
        model, digit_sum.tokenizer(), list(prompts), max_new_tokens=6, group_size=group_size, generator=generator
    )


def test_recomputed_logprobs_are_the_samplers():
    """One model, two code paths: cached sampling and one pass over prompts of different lengths."""
    model = tiny()
    _, rollout = sampled(model)
    logits = response_logits(model, rollout.tokens, rollout.starts, rollout.response.shape[1])
    logprobs = token_logprobs(logits, rollout.response)
    assert torch.allclose(logprobs[rollout.mask], rollout.logprobs[rollout.mask], atol=1e-5)


def test_training_refuses_a_nucleus_and_says_why():
    with pytest.raises(ValueError, match=r"top_p: training wants 1\.0, got 0\.9.*two different distributions"):
        roll_out(tiny(), digit_sum.tokenizer(), ["12="], max_new_tokens=3, top_p=0.9)


def test_temperature_divides_the_logits():
    model = tiny()
    generator = torch.Generator().manual_seed(0)
    rollout = generate(model, [[1, 2, 3]], max_new_tokens=5, temperature=0.5, generator=generator)
    logits = response_logits(model, rollout.tokens, rollout.starts, 5, temperature=0.5)
    assert torch.allclose(token_logprobs(logits, rollout.response), rollout.logprobs, atol=1e-5)


def test_values_are_read_where_the_token_is_predicted():
    model = PolicyWithValue(tiny())
    torch.nn.init.normal_(model.value_head.weight)
    _, rollout = sampled(model)
    length = rollout.response.shape[1]
    logprobs, entropies, values = response_logprobs_and_values(model, rollout.tokens, rollout.starts, length)
    all_logits, all_values = model(rollout.tokens, starts=rollout.starts)
    first = rollout.tokens.shape[1] - length
    for t in range(length):
        assert torch.allclose(values[:, t], all_values[:, first + t - 1], atol=1e-6)
        at = all_logits[:, first + t - 1 : first + t]
        assert torch.allclose(logprobs[:, t], token_logprobs(at, rollout.response[:, t : t + 1]).squeeze(1), atol=1e-5)
        assert torch.allclose(entropies[:, t], entropy(at).squeeze(1), atol=1e-5)


def test_text_is_what_was_counted():
    model = tiny()
    _, rollout = sampled(model)
    tokenizer = digit_sum.tokenizer()
    for row, text in enumerate(responses_text(rollout, tokenizer)):
        counted = rollout.response[row][rollout.mask[row]].tolist()
        assert tokenizer.encode(text) == [token for token in counted if token != tokenizer.eos_id]


def test_prompts_come_back_one_a_row():
    texts, rollout = sampled(tiny(), ["12=", "3="], group_size=3)
    assert texts == ["12="] * 3 + ["3="] * 3
    assert rollout.prompt_index.tolist() == [0, 0, 0, 1, 1, 1]


def test_join_changes_nothing_but_padding():
    model = tiny()
    _, a = sampled(model, ["12="], group_size=3)
    _, b = sampled(model, ["345678=", "9="], group_size=3, seed=1)
    both = join([a, b])
    assert both.prompt_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    tokenizer = digit_sum.tokenizer()
    assert responses_text(both, tokenizer) == responses_text(a, tokenizer) + responses_text(b, tokenizer)
    logits = response_logits(model, both.tokens, both.starts, both.response.shape[1])
    again = token_logprobs(logits, both.response)
    assert torch.allclose(again[both.mask], both.logprobs[both.mask], atol=1e-5)


def test_lay_out_pads_prompts_left_and_responses_right():
    tokens, mask, starts = lay_out([[1, 2, 3], [4]], [[5], [6, 7]])
    assert tokens.tolist() == [[1, 2, 3, 5, 0], [0, 0, 4, 6, 7]]
    assert mask.tolist() == [[True, False], [True, True]]
    assert starts.tolist() == [0, 2]


def test_examples_end_with_the_end_token():
    tokenizer = digit_sum.tokenizer()
    tokens, mask, _ = encode_examples(tokenizer, ["12="], [":3"])
    assert tokens[0, -mask.shape[1] :].tolist() == [*tokenizer.encode(":3"), tokenizer.eos_id]


def test_pairs_keep_the_sampled_tokens_and_the_order_asked_for():
    _, rollout = sampled(tiny(), ["12=", "345="], group_size=2)
    pairs = preference_pairs(rollout, torch.tensor([True, False]))
    assert torch.equal(pairs.chosen, rollout.tokens[[0, 3]])
    assert torch.equal(pairs.rejected, rollout.tokens[[1, 2]])
    assert torch.equal(pairs.chosen_mask, rollout.mask[[0, 3]])
    assert torch.equal(pairs.starts, rollout.starts[[0, 3]])


def test_best_of_picks_the_highest_of_each_group():
    _, rollout = sampled(tiny(), ["12=", "345="], group_size=2)
    best = best_of(rollout, torch.tensor([0.0, 1.0, 3.0, 2.0]), 2)
    assert torch.equal(best.tokens, rollout.tokens[[1, 2]])


def test_best_of_n_stays_below_its_bound():
    """Four equally likely outcomes, best of two by a strict order: the winner's chances are 1, 3, 5 and 7 in 16."""
    kl = sum(p / 16 * math.log(p / 16 * 4) for p in (1, 3, 5, 7))
    assert 0 < kl < best_of_kl_bound(2) == pytest.approx(math.log(2) - 0.5)
    assert best_of_kl_bound(1) == 0


def test_best_of_refuses_what_is_no_group():
    _, rollout = sampled(tiny())
    with pytest.raises(ValueError, match="group_size: wanted a divisor of 4 rows, got 3"):
        best_of(rollout, torch.zeros(4), 3)
    with pytest.raises(ValueError, match="scores"):
        best_of(rollout, torch.zeros(3), 3)


def test_an_ensemble_does_not_pay_for_disagreement():
    texts, rollout = sampled(tiny())
    one, two = torch.tensor([1.0, 2.0, 0.0, 5.0]), torch.tensor([1.0, 4.0, 0.0, -5.0])
    scorer = ensemble_scorer([lambda p, r: one, lambda p, r: two], caution=0.5)
    # means 1, 3, 0, 0; standard deviations 0, sqrt 2, 0, 5 sqrt 2
    expected = [1.0, 3 - 0.5 * 2**0.5, 0.0, -2.5 * 2**0.5]
    assert scorer(texts, rollout).tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="scorers: wanted at least two"):
        ensemble_scorer([lambda p, r: one])


def table(scores):
    """A scorer that looks the score up by the first response token, so that two rollouts score differently."""
    return lambda prompts, rollout: torch.tensor(scores)[rollout.response[:, 0] % len(scores)]


def test_a_centred_scorer_has_mean_zero_on_the_reference_and_keeps_every_difference():
    texts, rollout = sampled(tiny(), group_size=8)
    others, elsewhere = sampled(tiny(1), ["78="], group_size=8, seed=2)
    scorer = table([3.0, 7.0, 4.0])
    centred = centred_scorer(scorer, texts, rollout)
    assert centred(texts, rollout).mean().item() == pytest.approx(0, abs=1e-6)
    shift = scorer(others, elsewhere) - centred(others, elsewhere)
    assert torch.allclose(shift, scorer(texts, rollout).mean().expand(8))


def test_constants_do_not_count_as_disagreement_after_centring():
    """Bradley-Terry leaves each member's constant free, so an ensemble must not depend on it."""
    texts, rollout = sampled(tiny(), group_size=8)
    others, elsewhere = sampled(tiny(1), ["78="], group_size=8, seed=2)
    members = [[3.0, 7.0, 4.0], [1.0, 2.0, 6.0], [0.0, 5.0, 5.0]]

    def bound(constants):
        scorers = [table([x + c for x in row]) for row, c in zip(members, constants, strict=True)]
        centred = [centred_scorer(scorer, texts, rollout) for scorer in scorers]
        return ensemble_scorer(centred)(others, elsewhere), ensemble_scorer(scorers)(others, elsewhere)

    (plain, raw), (moved, raw_moved) = bound([0.0, 0.0, 0.0]), bound([0.0, 10.0, -30.0])
    assert torch.allclose(plain, moved, atol=1e-4)
    assert (raw - raw_moved).min() > 10  # what the constants do to the raw bound


def test_a_centred_scorer_refuses_what_has_no_mean():
    texts, rollout = sampled(tiny())
    with pytest.raises(ValueError, match="scores: wanted finite numbers"):
        centred_scorer(lambda p, r: torch.full((len(r),), math.inf), texts, rollout)
    with pytest.raises(ValueError, match="scores"):
        centred_scorer(lambda p, r: torch.zeros(len(r) + 1), texts, rollout)


def test_a_rule_must_give_one_number_a_response():
    texts, rollout = sampled(tiny())
    with pytest.raises(ValueError, match="one score a response"):
        rule_scorer(lambda prompts, responses: [1.0], digit_sum.tokenizer())(texts, rollout)
    with pytest.raises(ValueError, match="scores: wanted finite numbers, got inf at 2"):
        rule_scorer(lambda p, r: [0.0, 1.0, float("inf"), 0.0], digit_sum.tokenizer())(texts, rollout)


def test_a_reward_model_scores_alike_in_any_batches():
    judge = RewardModel(tiny(), summed)
    torch.nn.init.normal_(judge.score.weight)
    texts, rollout = sampled(tiny(), group_size=4)
    assert torch.allclose(model_scorer(judge, rows=3)(texts, rollout), model_scorer(judge)(texts, rollout), atol=1e-5)


@torch.no_grad()
def test_sequence_kl_is_the_sum_of_exact_token_kls():
    policy, ref = tiny(0), tiny(1)
    _, rollout = sampled(policy, ["12="], group_size=1)
    length = rollout.response.shape[1]
    by_hand = 0.0
    for t in range(int(rollout.mask.sum())):
        seen = rollout.tokens[:, : rollout.tokens.shape[1] - length + t]
        by_hand += float(kl_exact(policy(seen)[:, -1:], ref(seen)[:, -1:]))
    assert sequence_kl(policy, ref, rollout).item() == pytest.approx(by_hand, abs=1e-4)


@torch.no_grad()
def test_sequence_kl_estimates_the_kl_of_whole_responses():
    """Its mean over samples agrees with the mean of log pi - log ref, which has the same expectation and more noise."""
    policy, ref = tiny(0), tiny(1)
    for p in policy.parameters():
        p.data *= 1.5
    _, rollout = sampled(policy, ["12="], group_size=4000)
    logits = response_logits(ref, rollout.tokens, rollout.starts, rollout.response.shape[1])
    k1 = ((rollout.logprobs - token_logprobs(logits, rollout.response)) * rollout.mask).sum(1)
    exact = sequence_kl(policy, ref, rollout)
    error = (k1 - exact).std() / 4000**0.5
    assert abs(k1.mean() - exact.mean()) < 4 * error
    assert exact.std() < k1.std()
    assert exact.mean() > 10 * error  # and the two would not agree on anything else
