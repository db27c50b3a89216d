"""Wrong versions of the advantages taken from a group of answers, and of exponential weights."""

import torch

from minirl.advantages import (
    exponential_weights,
    group_centered_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
)
from minirl.drills.bank import Case, Drill, numbers, right, wrong

# GRPO's


@right(group_relative_advantages)
def right_relative(rewards, group_size, *, eps=1e-4):
    groups = rewards.view(-1, group_size)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + eps)).view(-1)


@wrong(
    group_relative_advantages,
    "The standard deviation is the population's; ours divides by G - 1: a group of two gives +-.707 and not +-1.",
    seen="GRPO-Zero and nano-aha-moment, which choose it",
)
def population_std(rewards, group_size, *, eps=1e-4):
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True, correction=0) + eps)).view(-1)


@wrong(
    group_relative_advantages,
    "Mean and spread are the whole batch's: each prompt's answers are compared among themselves.",
)
def whole_batch_relative(rewards, group_size, *, eps=1e-4):
    return (rewards - rewards.mean()) / (rewards.std() + eps)


@wrong(group_relative_advantages, "The mean is the group's, the spread the whole batch's: take both from the group.")
def spread_of_the_batch(rewards, group_size, *, eps=1e-4):
    groups = rewards.view(-1, group_size)
    return ((groups - groups.mean(1, keepdim=True)) / (rewards.std() + eps)).view(-1)


@wrong(
    group_relative_advantages, "eps is missing: a group of equal rewards is 0 / 0 = NaN, and one NaN ends the training."
)
def without_eps(rewards, group_size, *, eps=1e-4):
    groups = rewards.view(-1, group_size)
    return ((groups - groups.mean(1, keepdim=True)) / groups.std(1, keepdim=True)).view(-1)


@wrong(group_relative_advantages, "This divides by the variance: divide by its root, the standard deviation.")
def divided_by_variance(rewards, group_size, *, eps=1e-4):
    groups = rewards.view(-1, group_size)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.var(1, keepdim=True) + eps)).view(-1)


@wrong(
    group_relative_advantages, "The mean is not subtracted: without a baseline, a positive reward praises every answer."
)
def not_centred(rewards, group_size, *, eps=1e-4):
    groups = rewards.view(-1, group_size)
    return (groups / (groups.std(1, keepdim=True) + eps)).view(-1)


@wrong(group_relative_advantages, "The division by the standard deviation is missing: this is Dr. GRPO's advantage.")
def not_divided(rewards, group_size, *, eps=1e-4):
    groups = rewards.view(-1, group_size)
    return (groups - groups.mean(1, keepdim=True)).view(-1)


@wrong(group_relative_advantages, "The groups are mixed up: a group is consecutive rows, so view(-1, group_size).")
def interleaved_relative(rewards, group_size, *, eps=1e-4):
    groups = rewards.view(group_size, -1)
    return ((groups - groups.mean(0)) / (groups.std(0) + eps)).view(-1)


@wrong(group_relative_advantages, "The sign is wrong: a reward above the mean is an advantage above 0.")
def negative_relative(rewards, group_size, *, eps=1e-4):
    groups = rewards.view(-1, group_size)
    return ((groups.mean(1, keepdim=True) - groups) / (groups.std(1, keepdim=True) + eps)).view(-1)


# Dr. GRPO's


@right(group_centered_advantages)
def right_centred(rewards, group_size):
    groups = rewards.view(-1, group_size)
    return (groups - groups.mean(1, keepdim=True)).view(-1)


@wrong(
    group_centered_advantages,
    "The mean is the whole batch's: an answer is compared with the others to the same prompt.",
)
def whole_batch_centred(rewards, group_size):
    return rewards - rewards.mean()


@wrong(
    group_centered_advantages, "No division here: by the spread of the group, easy and hard prompts would gain weight."
)
def centred_and_divided(rewards, group_size):
    groups = rewards.view(-1, group_size)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).view(-1)


@wrong(
    group_centered_advantages,
    "The baseline leaves the answer itself out: that is RLOO. Here it is the mean of the whole group.",
)
def centred_on_the_others(rewards, group_size):
    groups = rewards.view(-1, group_size)
    return (groups - (groups.sum(1, keepdim=True) - groups) / (group_size - 1)).view(-1)


@wrong(group_centered_advantages, "The groups are mixed up: a group is consecutive rows, so view(-1, group_size).")
def interleaved_centred(rewards, group_size):
    groups = rewards.view(group_size, -1)
    return (groups - groups.mean(0)).view(-1)


@wrong(group_centered_advantages, "The sign is wrong: a reward above the mean is an advantage above 0.")
def negative_centred(rewards, group_size):
    groups = rewards.view(-1, group_size)
    return (groups.mean(1, keepdim=True) - groups).view(-1)


@wrong(group_centered_advantages, "Nothing is subtracted: without a baseline, a positive reward praises every answer.")
def plain_rewards(rewards, group_size):
    return rewards.clone()


# RLOO's


@right(leave_one_out_advantages)
def right_leave_one_out(rewards, group_size):
    groups = rewards.view(-1, group_size)
    return (groups - (groups.sum(1, keepdim=True) - groups) / (group_size - 1)).view(-1)


@wrong(
    leave_one_out_advantages,
    "The answer sits in its own baseline: average the OTHER rewards, or multiply by G / (G - 1).",
)
def own_reward_in_the_baseline(rewards, group_size):
    groups = rewards.view(-1, group_size)
    return (groups - groups.mean(1, keepdim=True)).view(-1)


@wrong(leave_one_out_advantages, "The others are G - 1, not G: divide their sum by how many they are.")
def others_divided_by_group_size(rewards, group_size):
    groups = rewards.view(-1, group_size)
    return (groups - (groups.sum(1, keepdim=True) - groups) / group_size).view(-1)


@wrong(leave_one_out_advantages, "The others are those of the whole batch: leave one out of its own group.")
def one_left_out_of_the_batch(rewards, group_size):
    return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


@wrong(leave_one_out_advantages, "The baseline is a sum: divide it by group_size - 1.")
def sum_of_the_others(rewards, group_size):
    groups = rewards.view(-1, group_size)
    return (groups - (groups.sum(1, keepdim=True) - groups)).view(-1)


@wrong(leave_one_out_advantages, "The groups are mixed up: a group is consecutive rows, so view(-1, group_size).")
def interleaved_leave_one_out(rewards, group_size):
    groups = rewards.view(group_size, -1)
    return (groups - (groups.sum(0) - groups) / (group_size - 1)).view(-1)


@wrong(leave_one_out_advantages, "The sign is wrong: the baseline is subtracted from the reward.")
def negative_leave_one_out(rewards, group_size):
    groups = rewards.view(-1, group_size)
    return ((groups.sum(1, keepdim=True) - groups) / (group_size - 1) - groups).view(-1)


# Exponential weights


@right(exponential_weights)
def right_weights(scores, *, beta):
    return len(scores) * torch.softmax(scores / beta, dim=0)


@wrong(exponential_weights, "Softmax alone has mean 1 / B: multiply by B, so that the loss keeps its size.")
def weights_that_sum_to_one(scores, *, beta):
    return torch.softmax(scores / beta, dim=0)


@wrong(exponential_weights, "beta multiplies: it is a temperature, so divide the scores by it.")
def scores_times_beta(scores, *, beta):
    return len(scores) * torch.softmax(scores * beta, dim=0)


@wrong(exponential_weights, "beta is missing: softmax(scores / beta).")
def weights_without_beta(scores, *, beta):
    return len(scores) * torch.softmax(scores, dim=0)


@wrong(
    exponential_weights, "These weights are not normalised: their mean has to be 1, or they scale the learning rate."
)
def unnormalised_weights(scores, *, beta):
    return (scores / beta).exp()


@wrong(exponential_weights, "The sign is wrong: the best score gets the largest weight.")
def best_weighs_least(scores, *, beta):
    return len(scores) * torch.softmax(-scores / beta, dim=0)


@wrong(exponential_weights, "The weights are exponential in the score, not proportional to it.")
def weights_in_proportion(scores, *, beta):
    return len(scores) * scores / scores.sum()


# The drills


def _rewards(seed: int, groups: int, group_size: int) -> Case:
    return Case({"rewards": numbers(seed, groups * group_size), "group_size": group_size}, {})


GROUPS = [
    _rewards(0, 1, 2),
    _rewards(1, 1, 3),
    Case({"rewards": torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64), "group_size": 2}, {}),
    _rewards(2, 3, 2),
    _rewards(3, 2, 4),
]
GROUP_HINT = "The rows of a group stand together: rewards.view(-1, group_size) has one group a row. End with .view(-1)."

DRILLS = [
    Drill(
        group_relative_advantages,
        GROUPS,
        (
            GROUP_HINT,
            "Subtract the mean of the group, divide by its standard deviation. Which one, n or n - 1? And equal rewards?",
            "groups.std(1, keepdim=True) is the unbiased one; eps is added to it, outside the root.",
        ),
        outputs=["advantages"],
        tolerance=1e-3,  # any small eps will do
    ),
    Drill(
        group_centered_advantages,
        GROUPS,
        (GROUP_HINT, "The mean over axis 1, with keepdim=True.", "groups - mean, and nothing else."),
        outputs=["advantages"],
    ),
    Drill(
        leave_one_out_advantages,
        GROUPS,
        (
            GROUP_HINT,
            "The sum of the others is the sum of the group minus one's own reward. How many others are there?",
            "groups - (sum - groups) / (group_size - 1).",
        ),
        outputs=["advantages"],
    ),
    Drill(
        exponential_weights,
        [
            Case({"scores": numbers(10 + n, n)}, {"beta": beta})
            for n, beta in [(1, 1.0), (2, 2.0), (3, 0.5), (4, 1.0), (6, 3.0)]
        ],
        (
            "A softmax over the batch, with a temperature.",
            "The temperature divides the scores. What is the mean of the weights, and what should it be?",
            "len(scores) * torch.softmax(scores / beta, dim=0).",
        ),
        outputs=["weights"],
    ),
]
