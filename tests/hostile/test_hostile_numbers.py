"""Every public function of numbers, with every argument replaced in turn by what does not belong there.

CALLS holds a call of each that is right. HOSTILE says, for each kind of argument, what is put in its place. Whatever it is,
the answer is a ValueError that names the argument.
"""

import inspect
import math

import numpy
import pytest
import torch
from hostile.tally import refused

from minirl import exact, kl, logprobs, masking, rewards, samples
from minirl.advantages import (
    discounted_returns,
    exponential_weights,
    gae,
    group_centered_advantages,
    group_relative_advantages,
    leave_one_out_advantages,
    top_fraction,
)
from minirl.losses import correction, policy, preference

B, T, V, N = 4, 3, 5, 4


def table(*shape, seed=0, like_logprobs=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return -x.abs() - 0.1 if like_logprobs else x


MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
TOKENS = torch.arange(B * T).view(B, T) % V
LOGP = table(B, T, like_logprobs=True)
OLD = table(B, T, seed=1, like_logprobs=True)
REF = table(B, T, seed=2, like_logprobs=True)
ROWS = table(B, seed=3)
WORLD = exact.World(3, 2)
SEQUENCES = torch.full((len(WORLD),), -math.log(len(WORLD)))
CHOICES = table(*WORLD.child.shape, seed=4)
LEARNED = CHOICES.clone().requires_grad_()
PAIRS = {"chosen": table(N, like_logprobs=True), "rejected": table(N, seed=5, like_logprobs=True)}
REFS = {"ref_chosen": table(N, seed=6, like_logprobs=True), "ref_rejected": table(N, seed=7, like_logprobs=True)}

CALLS = {
    masking.masked_mean: {"x": LOGP, "mask": MASK},
    masking.masked_whiten: {"x": LOGP, "mask": MASK, "eps": 1e-8},
    masking.token_mean: {"x": LOGP, "mask": MASK},
    masking.sequence_mean: {"x": LOGP, "mask": MASK},
    masking.fixed_length_mean: {"length": 3},
    masking.masked_sum_over: {"denominator": 3.0},
    logprobs.response_slice: {"x": table(B, T + 2), "length": T},
    logprobs.token_logprobs: {"logits": table(B, T, V), "tokens": TOKENS},
    logprobs.entropy: {"logits": table(B, T, V)},
    logprobs.sequence_logprobs: {"logprobs": LOGP, "mask": MASK},
    logprobs.average_logprobs: {"logprobs": LOGP, "mask": MASK},
    kl.kl_k1: {"logprobs": LOGP, "ref_logprobs": REF},
    kl.kl_k2: {"logprobs": LOGP, "ref_logprobs": REF},
    kl.kl_k3: {"logprobs": LOGP, "ref_logprobs": REF},
    kl.kl_exact: {"logits": table(B, T, V), "ref_logits": table(B, T, V, seed=1)},
    kl.AdaptiveKL: {"kl_coef": 0.1, "target": 6.0, "horizon": 100},
    kl.AdaptiveKL(0.1, target=6.0, horizon=100).update: {"kl": 1.0, "n_steps": 4},
    discounted_returns: {"rewards": LOGP, "mask": MASK, "gamma": 0.9},
    gae: {"rewards": LOGP, "values": OLD, "mask": MASK, "gamma": 0.9, "lam": 0.8, "last_values": ROWS},
    group_relative_advantages: {"rewards": ROWS, "group_size": 2, "eps": 1e-4},
    group_centered_advantages: {"rewards": ROWS, "group_size": 2},
    leave_one_out_advantages: {"rewards": ROWS, "group_size": 2},
    exponential_weights: {"scores": ROWS, "beta": 0.5},
    top_fraction: {"scores": ROWS, "fraction": 0.5},
    rewards.kl_shaped_rewards: {"scores": ROWS, "kl": LOGP, "mask": MASK, "kl_coef": 0.1},
    rewards.missing_eos_penalty: {"scores": ROWS, "finished": MASK[:, 2], "penalty": 1.0},
    rewards.length_penalty: {"scores": ROWS, "mask": MASK, "coef": 0.1, "free_length": 1},
    rewards.format_bonus: {"scores": ROWS, "responses": ["a"] * B, "pattern": "a+", "bonus": 1.0},
    rewards.language_bonus: {"scores": ROWS, "responses": ["a"] * B, "words": {"a"}, "bonus": 1.0},
    policy.reinforce_loss: {"logprobs": LOGP, "advantages": OLD, "mask": MASK},
    policy.ppo_clip_loss: {
        "logprobs": LOGP,
        "old_logprobs": OLD,
        "advantages": REF,
        "mask": MASK,
        "clip_eps": 0.2,
        "clip_eps_high": 0.3,
    },
    policy.value_loss: {"values": LOGP, "returns": OLD, "mask": MASK},
    policy.value_clip_loss: {"values": LOGP, "old_values": OLD, "returns": REF, "mask": MASK, "clip_eps": 0.2},
    policy.grpo_loss: {
        "logprobs": LOGP,
        "old_logprobs": OLD,
        "ref_logprobs": REF,
        "advantages": ROWS,
        "mask": MASK,
        "clip_eps": 0.2,
        "clip_eps_high": 0.3,
        "kl_coef": 0.1,
    },
    policy.gspo_loss: {"logprobs": LOGP, "old_logprobs": OLD, "advantages": ROWS, "mask": MASK, "clip_eps": 0.2},
    policy.cispo_loss: {"logprobs": LOGP, "old_logprobs": OLD, "advantages": ROWS, "mask": MASK, "clip_eps_high": 0.2},
    policy.weighted_logprob_loss: {"logprobs": LOGP, "weights": ROWS, "mask": MASK},
    correction.truncated_importance_weights: {"logprobs": LOGP, "sampler_logprobs": OLD, "mask": MASK, "cap": 2.0},
    correction.sampling_gap: {"logprobs": LOGP, "sampler_logprobs": OLD, "mask": MASK},
    preference.bradley_terry_loss: PAIRS | {"margin": 0.5},
    preference.dpo_loss: PAIRS | REFS | {"beta": 0.1, "label_smoothing": 0.1},
    preference.robust_dpo_loss: PAIRS | REFS | {"beta": 0.1, "label_smoothing": 0.1},
    preference.ipo_loss: PAIRS | REFS | {"beta": 0.1},
    preference.simpo_loss: PAIRS | {"beta": 0.1, "gamma": 0.1},
    preference.orpo_loss: PAIRS | {"lam": 0.1},
    preference.kto_loss: {
        "logprobs": LOGP[:, 0],
        "ref_logprobs": REF[:, 0],
        "desirable": MASK[:, 2],
        "kl": 0.1,
        "beta": 0.1,
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
    },
    exact.World: {"vocab_size": 3, "max_length": 2},
    WORLD.rows: {"response": WORLD.tokens, "mask": WORLD.mask},
    WORLD.prompts: {"n": 2},
    WORLD.scorer: {"scores": SEQUENCES},
    exact.along: {"world": WORLD, "table": CHOICES},
    exact.token_logprobs: {"world": WORLD, "logits": CHOICES},
    exact.sequence_logprobs: {"world": WORLD, "logits": CHOICES},
    exact.kl: {"logp": SEQUENCES, "logq": SEQUENCES},
    exact.entropy: {"logp": SEQUENCES},
    exact.total_variation: {"logp": SEQUENCES, "logq": SEQUENCES},
    exact.objective: {"logp": SEQUENCES, "ref_logp": SEQUENCES, "scores": SEQUENCES, "beta": 0.5},
    exact.optimum: {"ref_logp": SEQUENCES, "scores": SEQUENCES, "beta": 0.5},
    exact.table_of: {"world": WORLD, "logp": SEQUENCES},
    exact.choice_rewards: {"world": WORLD, "scores": SEQUENCES, "kl": CHOICES, "kl_coef": 0.1},
    exact.values: {"world": WORLD, "logits": CHOICES, "rewards": CHOICES, "gamma": 0.9},
    exact.expected_gradient: {
        "loss": lambda rows: (LEARNED[0, 0] * rows).sum(),
        "parameter": LEARNED,
        "probabilities": SEQUENCES.exp(),
        "batch": 1,
    },
    samples.win_rate: {"first": ROWS, "second": ROWS},
}


def called(function) -> str:
    owner = getattr(function, "__module__", "minirl").removeprefix("minirl.")
    return f"{owner}.{function.__qualname__}"


TENSOR = {
    "None": lambda x: None,
    "list": lambda x: x.tolist(),
    "text": lambda x: "x",
    "numpy": lambda x: numpy.zeros(x.shape),
    "complex": lambda x: x.to(torch.complex64),
    "sparse": lambda x: x.to_sparse(),
    "more dimensions": lambda x: x[None],
    "fewer rows": lambda x: x[:-1],
    "transposed": lambda x: x.transpose(0, -1)[:2],
}
HOSTILE = {
    "tensor": TENSOR | {"on meta": lambda x: x.to("meta")},
    "mask": TENSOR
    | {
        "float": lambda x: x.float(),
        "int": lambda x: x.long(),
        "columns of another": lambda x: x[:, :1],
        "all False": lambda x: torch.zeros_like(x),
        "no rows": lambda x: x[:0],
        "no columns": lambda x: x[:, :0],
    },
    "flags": TENSOR | {"float": lambda x: x.float(), "int": lambda x: x.long()},
    "tokens": TENSOR
    | {
        "float": lambda x: x.float(),
        "negative": lambda x: x - 100,
        "beyond": lambda x: x + 5,
        "overflow": lambda x: x + 2**62,
    },
    "knob": {
        "None": lambda x: None,
        "nan": lambda x: math.nan,
        "inf": lambda x: math.inf,
        "text": lambda x: "0.1",
        "bool": lambda x: True,
        "list": lambda x: [0.1],
        "numpy nan": lambda x: numpy.float32("nan"),
        "huge": lambda x: 10**400,
        "long text": lambda x: "0.1" * 1_000_000,
    },
    "count": {
        "None": lambda x: None,
        "zero": lambda x: 0,
        "negative": lambda x: -1,
        "fraction": lambda x: 2.5,
        "text": lambda x: "2",
        "bool": lambda x: True,
        "nan": lambda x: math.nan,
        "inf": lambda x: math.inf,
        "int64 overflow": lambda x: 2**63,
        "huge": lambda x: 10**400,
        "numpy": lambda x: numpy.float64(2.5),
    },
}
WELCOME = {  # (function, argument): what is no error there
    (gae, "last_values"): {"None"},
    (policy.ppo_clip_loss, "clip_eps_high"): {"None"},
    (policy.grpo_loss, "clip_eps_high"): {"None"},
    (WORLD.prompts, "n"): {"zero"},
    (rewards.length_penalty, "free_length"): {"zero", "fraction", "numpy"},
    (rewards.length_penalty, "mask"): {"columns of another"},
    (masking.fixed_length_mean, "length"): {"fraction", "numpy"},
    (kl.AdaptiveKL, "horizon"): {"fraction", "numpy"},
    (logprobs.response_slice, "x"): {"more dimensions"},
    (exact.expected_gradient, "parameter"): {"numpy", "more dimensions", "fewer rows", "transposed", "on meta"},
    (exact.expected_gradient, "probabilities"): {"fewer rows", "transposed", "on meta"},
    (kl.AdaptiveKL(0.1, target=6.0, horizon=100).update, "n_steps"): {"fraction", "numpy"},
    (exact.choice_rewards, "kl"): {"None"},
}
# of two arguments; either is named
CONTRADICTIONS = {
    "more dimensions",
    "fewer rows",
    "transposed",
    "no rows",
    "no columns",
    "columns of another",
    "on meta",
}


def kind_of(x) -> str | None:
    if isinstance(x, torch.Tensor):
        if x.dtype == torch.bool:
            return "mask" if x.dim() == 2 else "flags"
        return "tensor" if x.is_floating_point() else "tokens"
    return {float: "knob", int: "count"}.get(type(x))


def welcome(function) -> dict:
    own = {name: set(kinds) for (other, name), kinds in WELCOME.items() if called(other) == called(function)}
    alone = [name for name, x in CALLS[function].items() if isinstance(x, torch.Tensor)]
    if len(alone) == 1:  # there is nothing beside it to contradict its rows or its device
        own.setdefault(alone[0], set()).update({"fewer rows", "transposed", "on meta"})
    return own


CASES = [
    pytest.param(
        function,
        list(arguments) if how in CONTRADICTIONS else [name],
        name,
        change,
        id=f"{called(function)}-{name}-{how}",
    )
    for function, arguments in CALLS.items()
    for name, x in arguments.items()
    if kind_of(x)
    for how, change in HOSTILE[kind_of(x)].items()
    if how not in welcome(function).get(name, ())
]


@pytest.mark.parametrize("function, blamed, name, change", CASES)
def test_an_argument_that_does_not_belong_is_refused_by_its_name(function, blamed, name, change, unhooked, request):
    arguments = CALLS[function]
    before = {key: x.clone() if isinstance(x, torch.Tensor) else x for key, x in arguments.items()}
    said = refused(request, lambda: function(**arguments | {name: change(arguments[name])}))
    assert said.partition(":")[0] in blamed, said
    for key, x in before.items():  # and the others are as they were
        assert torch.equal(x, arguments[key]) if isinstance(x, torch.Tensor) else x == arguments[key]


@pytest.mark.parametrize("function", CALLS, ids=called)
def test_the_call_itself_is_right(function, unhooked):
    function(**CALLS[function])


def test_every_public_function_of_numbers_is_called():
    modules = (masking, logprobs, kl, rewards, policy, preference, exact)
    public = {
        f"{module.__name__.removeprefix('minirl.')}.{name}"
        for module in modules
        for name, thing in vars(module).items()
        if inspect.isfunction(thing) and thing.__module__ == module.__name__ and not name.startswith("_")
    }
    helpers = {"masking.blank", "logprobs.predicting", "kl.clamp_log_ratio", "exact.policy_logits", "exact.check_table"}
    assert public - {called(function) for function in CALLS} == helpers
