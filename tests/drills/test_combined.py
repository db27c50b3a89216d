"""Two mistakes at once: planted by merging the code of two wrong versions, and named when a learner makes both."""

import pytest
import torch
import torch.nn.functional as F

from minirl.drills import check, names
from minirl.drills import solutions as plain
from minirl.drills.bank import RIGHT
from minirl.drills.combined import edits_between, merged_tokens, pairs_of, planted, tokens_of
from minirl.drills.desk import DRILLS
from minirl.drills.judge import mutants_of

every = pytest.mark.parametrize("name", names())


def banked(name):
    return {mutant.name: mutant for mutant in mutants_of(DRILLS[name]) if mutant.name != "no_gradient"}


@every
def test_the_right_version_in_the_words_of_the_wrong_ones_is_right(name):
    assert check(name, RIGHT[DRILLS[name].of]).status == "ok"


CANCEL = {("nucleus", "cut_where_the_sum_passes", "one_token_more")}  # two mistakes that undo each other


def test_planted_pairs_are_named_as_themselves():
    """Or, where one of the two hides the other, as something simpler; never taken for right, but where they cancel."""
    right, named, tried = set(), 0, 0
    for name in names():
        for first, second, function in pairs_of(list(banked(name).values())):
            result = check(name, function)
            tried, named = tried + 1, named + (result.mistake == f"{first.name} + {second.name}")
            if result.status == "ok":
                right.add((name, first.name, second.name))
            assert result.status != "todo", (first.name, second.name)
    assert right == CANCEL
    assert tried > 850 and named / tried > 0.92


# As a learner writes them


def swapped_and_without_beta(chosen, rejected, ref_chosen, ref_rejected, beta):
    return F.softplus((chosen - ref_chosen) - (rejected - ref_rejected)).mean()


def gae_value_added_and_no_recursion(rewards, values, mask, gamma, lam):
    following = torch.cat([values[:, 1:] * mask[:, 1:], torch.zeros_like(values[:, :1])], 1)
    advantages = (rewards + gamma * following + values) * mask
    return advantages, advantages - values * mask


def ppo_old_over_new_and_max(logprobs, old_logprobs, advantages, mask, clip_eps):
    ratio = torch.exp(old_logprobs - logprobs)
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)
    return -torch.max(ratio * advantages, clipped * advantages)[mask].mean()


def grpo_k1_and_by_tokens(logprobs, old_logprobs, ref_logprobs, advantages, mask, clip_eps, kl_coef):
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)
    a = advantages[:, None]
    return (-torch.min(ratio * a, clipped * a) + kl_coef * (logprobs - ref_logprobs))[mask].mean()


def unscaled_attention_without_mask(q, k, v, mask):
    return torch.einsum("bhqk,bhke->bhqe", torch.einsum("bhqe,bhke->bhqk", q, k).softmax(-1), v)


def sequence_mean_without_mask_and_flipped(x, mask):
    return -x.mean()


@pytest.mark.parametrize(
    "name, function, mistakes",
    [
        ("dpo_loss", swapped_and_without_beta, {"swapped_dpo", "dpo_without_beta"}),
        ("ppo_clip_loss", ppo_old_over_new_and_max, {"old_over_new", "max_for_min"}),
        ("grpo_loss", grpo_k1_and_by_tokens, {"k1_in_the_loss", "grpo_by_tokens"}),
        ("naive_attention", unscaled_attention_without_mask, {"attention_without_scale", "attention_without_mask"}),
        ("sequence_mean", sequence_mean_without_mask_and_flipped, {"sequence_mean_over_everything", "sign_flipped"}),
    ],
)
def test_two_mistakes_of_a_learner_are_both_named(name, function, mistakes):
    result = check(name, function)
    assert result.status == "mistake" and set(result.mistake.split(" + ")) == mistakes
    bank = banked(name)
    for mistake in mistakes & bank.keys():
        assert bank[mistake].sentence in result.message
    assert result.message.startswith(f"{name}: two mistakes at once.\n1. ")


def test_a_mistake_and_no_gradient():
    result = check("kl_k3", lambda logprobs, ref_logprobs: -plain.kl_k3(logprobs, ref_logprobs).detach())
    assert result.mistake == "negative_k3 + no_gradient"


def test_three_mistakes_are_beyond_it():
    result = check("gae", gae_value_added_and_no_recursion)
    assert result.status == "wrong" and result.mistake is None


# The merge


def tokens(text):
    return tuple((1, word) for word in text.split())


def merge(base, *versions):
    merged = merged_tokens(base, *(edits_between(base, version) for version in versions))
    return None if merged is None else tuple(merged)


def test_merge_by_hand():
    base = tokens("a b c d e")
    assert merge(base, tokens("a B c d e"), tokens("a b c D e")) == tokens("a B c D e")
    assert merge(base, tokens("a c d e"), tokens("a b c d e f")) == tokens("a c d e f")
    assert merge(base, tokens("a X c d e"), tokens("a Y c d e")) is None  # the same place
    assert merge(base, tokens("a b c d e f"), tokens("a b c d e g")) is None  # two additions at one place
    assert merge(base, tokens("X Y c d e"), tokens("a Y c d e")) is None  # overlapping


def test_tokens_leave_out_what_does_not_compute():
    def one(x):
        """A docstring."""
        return x + 1  # a comment

    def two(x):
        return x + 1

    assert tokens_of(one) == tokens_of(two)


def test_what_cannot_be_planted_is_passed_over():
    bank = banked("response_slice")
    first, second = bank["slice_at_the_tokens"], bank["slice_of_the_prompt"]
    assert planted(first, second) is None
    assert all(function is not None for _, _, function in pairs_of(list(bank.values())))
