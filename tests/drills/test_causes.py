"""Wrong answers that are in no bank still get a sentence that helps."""

import pytest
import torch

from minirl.drills import check
from minirl.drills import solutions as plain

token_mean = plain.token_mean


def of(name, change):
    """The plain right version of a function, with its result changed."""
    return lambda *args, **knobs: change(getattr(plain, name)(*args, **knobs))


def shifted(x):
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


def advanced(x):
    return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)


def first_only(logprobs, mask):
    return (logprobs * mask).sum(1) * (torch.arange(len(mask)) == 0)


calls = [0]


def other_each_time(x, mask):
    calls[0] += 1
    return token_mean(x, mask) + 0.01 * calls[0]


def half_through_detach(values, returns, mask):
    loss = plain.value_loss(values, returns, mask)
    return 0.3 * loss + 0.7 * loss.detach()


def beta_forgotten_and_margin(chosen, rejected, ref_chosen, ref_rejected, beta):
    h = chosen - ref_chosen - rejected + ref_rejected
    return (h**2 - 3 * h).mean()


def in_place(rewards, mask, gamma):
    for t in reversed(range(rewards.shape[1] - 1)):
        rewards[:, t] += gamma * (rewards[:, t + 1] * mask[:, t + 1]).abs()
    return rewards * mask


def stops_one_before_the_end(rewards, mask, gamma):
    returns = plain.discounted_returns(rewards, mask, gamma)
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return returns.masked_fill(last, 7.0)


def over_kl_coef(scores, kl, mask, kl_coef):
    return plain.kl_shaped_rewards(scores, kl, mask, kl_coef) / kl_coef


def looks_at_padding(scores, mask):
    return plain.last_token(scores, mask) + 0.1 * (scores * ~mask).sum(1)


UNKNOWN = {
    "sign": ("masked_whiten", of("masked_whiten", lambda x: -3 * x), "-3 times the right number everywhere"),
    "factor": ("kl_k2", of("kl_k2", lambda x: x * 4), "4 times the right number everywhere"),
    "half": ("value_loss", lambda v, r, m: plain.value_loss(v, r, m) / 2, "half the right number everywhere"),
    "times B": (
        "sequence_mean",
        lambda x, m: ((x * m).sum(1) / m.sum(1)).sum() * len(x),
        None,  # B^2: nothing fits, and the counterexample stands alone
    ),
    "times the width": ("token_mean", lambda x, m: token_mean(x, m) * m.shape[1], "times the width of the table, padding"),
    "by the rows": ("value_loss", lambda v, r, m: plain.value_loss(v, r, m) / len(v), "divided by the number of rows"),
    "by a knob": ("kl_shaped_rewards", over_kl_coef, "divided by kl_coef"),
    "exp": ("sequence_logprobs", lambda x, m: -plain.sequence_logprobs(x, m).exp().log1p(), None),
    "log": ("exponential_weights", of("exponential_weights", lambda x: -x.log()), "minus the log of the right number"),
    "square": ("softmax", of("softmax", lambda x: x * x), "the square of the right number"),
    "offset": ("kl_k3", of("kl_k3", lambda x: x + 0.25), "off by the same +0.25 everywhere"),
    "complement": ("pass_at_k", lambda n, c, k: 2 - plain.pass_at_k(n, c, k), None),
    "late": ("discounted_returns", of("discounted_returns", shifted), "one position too late"),
    "early": ("discounted_returns", of("discounted_returns", advanced), "one position too early"),
    "reversed": ("leave_one_out_advantages", of("leave_one_out_advantages", lambda x: x.flip(0)), "in reverse order"),
    "sorted": ("exponential_weights", of("exponential_weights", lambda x: x.sort().values), "in another order"),
    "random": ("token_mean", other_each_time, "other numbers each time"),
    "padding": ("last_token", looks_at_padding, "padding"),
    "unused": ("dpo_loss", beta_forgotten_and_margin, "changes of beta do not move"),
    "in place": ("discounted_returns", in_place, "rewards in place"),
    "last": ("discounted_returns", stops_one_before_the_end, "wrong only on the last counted token"),
    "part detached": ("value_loss", half_through_detach, "0.3 times the right one everywhere"),
    "no gradient": ("dpo_loss", lambda c, *rest, beta: plain.dpo_loss(c.detach(), *rest, beta), "No gradient reaches chosen"),
    "B x B": ("sequence_logprobs", lambda x, m: (x * m).sum(1, keepdim=True) + 0 * x[:, 0], "broadcasting made B x B"),
    "not reduced": ("value_loss", lambda v, r, m: (v - r) ** 2 / 2 * m, "One number for the whole batch is wanted"),
    "keepdim": ("sequence_logprobs", lambda x, m: (x * m).sum(1, keepdim=True), "axis of length 1 is left over"),
    "transposed": ("kl_k1", lambda a, b: (a - b).T, "transposed"),
    "reduced": ("kl_k1", lambda a, b: (a - b).mean(), "One number came back"),
    "last axis": ("softmax", lambda logits: logits.softmax(-1).sum(-1), "last axis is summed"),
    "too short": ("kl_k1", lambda a, b: (a - b)[:, 1:], "1 too short"),
    "one element": ("token_mean", lambda x, m: token_mean(x, m).view(1), "A scalar is wanted, without axes"),
    "rows": ("sequence_logprobs", first_only, None),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_wrong_answer_in_no_bank_gets_a_cause(case):
    name, function, words = UNKNOWN[case]
    result = check(name, function)
    assert (result.status, result.mistake) == ("wrong", None)
    assert "expected" in result.message and "got" in result.message
    if words is not None:
        assert words in result.message, result.message


def test_most_of_them_get_one():
    assert sum(words is not None for _, _, words in UNKNOWN.values()) / len(UNKNOWN) > 0.85


def test_a_cause_is_not_claimed_where_it_is_not_so():
    def strange(x, mask):
        return (x * mask).pow(3).sum() / mask.sum() + mask.sum() ** 0.5

    message = check("token_mean", strange).message
    for claim in ("everywhere", "one position", "padding changes", "order", "depend", "number times", "divided by the"):
        assert claim not in message, message
