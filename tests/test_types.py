import importlib.util
import math
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import jaxtyping
import pytest
import torch
from batches import normal, random_mask

import minirl.types
from minirl.advantages import exponential_weights, gae, group_relative_advantages
from minirl.kl import kl_exact, kl_k1
from minirl.logprobs import entropy, sequence_logprobs, token_logprobs
from minirl.losses.policy import cispo_loss, gspo_loss, ppo_clip_loss, value_clip_loss
from minirl.losses.preference import bradley_terry_loss, dpo_loss, kto_loss, orpo_loss
from minirl.masking import masked_whiten, sequence_mean
from minirl.rewards import kl_shaped_rewards, missing_eos_penalty
from minirl.types import (
    PreferenceBatch,
    Rollout,
    check_dims,
    check_finite,
    check_knob,
    check_mask,
    check_rows,
    check_shapes,
    looks_at_values,
    strict,
    upcast,
)


def rollout() -> Rollout:
    return Rollout(
        tokens=torch.arange(15).view(3, 5),
        response=torch.arange(15).view(3, 5)[:, -2:],
        mask=torch.tensor([[True, True], [True, False], [True, True]]),
        logprobs=-torch.rand(3, 2),
        finished=torch.tensor([True, True, False]),
        prompt_index=torch.tensor([0, 0, 1]),
    )


# The tests' own guard


def test_the_hook_refuses_shapes_that_contradict_an_annotation():
    with pytest.raises(jaxtyping.TypeCheckError, match="logits"):
        entropy(torch.zeros(2, 3))
    with pytest.raises(jaxtyping.TypeCheckError, match="finished"):
        fields_of = {field.name: getattr(rollout(), field.name) for field in fields(Rollout)}
        Rollout(**fields_of | {"finished": torch.ones(4, dtype=torch.bool)})


def test_the_hook_takes_an_int_for_a_float():
    mask = torch.ones(1, 2, dtype=torch.bool)
    ppo_clip_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2), mask, clip_eps=1)


def test_the_hook_can_be_taken_off_for_calls_inside_the_library_too(unhooked):
    with pytest.raises(ValueError, match=r"mask: wanted a torch.bool"):
        sequence_mean(torch.zeros(2, 3), torch.ones(2, 3))


def test_without_jaxtyping_the_annotations_are_plain_tensors(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxtyping", None)  # makes the import fail
    spec = importlib.util.spec_from_file_location("types_on_colab", Path(minirl.types.__file__))
    types_on_colab = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "types_on_colab", types_on_colab)
    spec.loader.exec_module(types_on_colab)
    assert types_on_colab.Float[torch.Tensor, "B T"] is torch.Tensor
    assert types_on_colab.Bool[torch.Tensor, " B"] | None == torch.Tensor | None
    assert types_on_colab.Rollout.__annotations__["tokens"] is torch.Tensor


# Batches


@pytest.mark.parametrize(
    "rows, expected",
    [(slice(1, 3), [1, 2]), (torch.tensor([2, 0]), [2, 0]), (torch.tensor([False, True, False]), [1])],
    ids=["slice", "indices", "mask"],
)
def test_indexing_a_rollout_takes_the_same_rows_of_every_field(rows, expected):
    whole = rollout()
    part = whole[rows]
    assert len(whole) == 3 and len(part) == len(expected)
    for field in fields(Rollout):
        picked = torch.stack([getattr(whole, field.name)[i] for i in expected])
        assert torch.equal(getattr(part, field.name), picked), field.name


def test_a_rollout_without_starts_has_no_padding_on_the_left():
    assert rollout().starts.tolist() == [0, 0, 0]


def test_a_rollout_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        rollout().mask = torch.zeros(3, 2, dtype=torch.bool)


def test_indexing_preferences_keeps_chosen_and_rejected_together():
    tokens = torch.arange(12).view(3, 4)
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    pairs = PreferenceBatch(tokens, tokens + 100, mask, ~mask, starts=torch.tensor([0, 1, 2]))
    part = pairs[torch.tensor([2, 1])]
    assert len(part) == 2
    assert part.chosen.tolist() == [[8, 9, 10, 11], [4, 5, 6, 7]]
    assert part.rejected.tolist() == [[108, 109, 110, 111], [104, 105, 106, 107]]
    assert part.chosen_mask.tolist() == [[False, True], [True, False]]
    assert part.rejected_mask.tolist() == [[True, False], [False, True]]
    assert part.starts.tolist() == [2, 1]


# Checks

ERRORS = {
    "shapes": (
        lambda: check_shapes(a=torch.zeros(2, 3), b=torch.zeros(2, 1)),
        r"b: wanted shape \(2, 3\) like a, got \(2, 1\)",
    ),
    "one dimension": (lambda: check_dims(1, a=torch.zeros(2, 3)), r"a: wanted 1 dimension, got shape \(2, 3\)"),
    "two dimensions": (lambda: check_dims(2, a=torch.zeros(2)), r"a: wanted 2 dimensions, got shape \(2,\)"),
    "rows": (
        lambda: check_rows(torch.zeros(2, 3), a=torch.zeros(3)),
        r"a: wanted one number a row, shape \(2,\), got \(3,\)",
    ),
    "rows, a table": (lambda: check_rows(torch.zeros(2, 3), a=torch.zeros(2, 3)), r"a: wanted .*\(2,\), got \(2, 3\)"),
    "float mask": (lambda: check_mask(torch.ones(2), "m"), r"m: wanted a torch.bool .*got torch.float32"),
    "int mask": (lambda: check_mask(torch.ones(2, dtype=torch.int64)), r"mask: wanted a torch.bool .*got torch.int64"),
    "all False": (lambda: check_mask(torch.zeros(2, 3, dtype=torch.bool)), r"mask: nothing is counted.*\(2, 3\)"),
    "nan": (
        lambda: check_finite(a=torch.tensor([0, math.nan, math.inf])),
        r"a: wanted finite numbers, got nan at 1 \(2 in all\)",
    ),
    "inf in a table": (lambda: check_finite(a=torch.tensor([[0, 1], [2, -math.inf]])), r"a: .*got -inf at \(1, 1\)"),
    "nan, no dimension": (
        lambda: check_finite(a=torch.tensor(math.nan)),
        r"a: wanted finite numbers, got nan \(1 in all\)",
    ),
    "knob below": (lambda: check_knob("k", -0.1, 0, 1), r"k: wanted a finite number in \[0, 1\], got -0.1"),
    "knob above": (lambda: check_knob("k", 1.1, 0, 1), r"k: wanted .*\[0, 1\], got 1.1"),
    "knob at the open low end": (lambda: check_knob("k", 0, 0, 1, open_low=True), r"k: wanted .*\(0, 1\], got 0"),
    "knob at the open high end": (lambda: check_knob("k", 1, 0, 1, open_high=True), r"k: wanted .*\[0, 1\), got 1"),
    "knob nan": (lambda: check_knob("k", math.nan), r"k: wanted .*\(-inf, inf\), got nan"),
    "knob inf": (lambda: check_knob("k", math.inf, 0), r"k: wanted .*\[0, inf\), got inf"),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS)
def test_a_check_names_the_argument_what_it_got_and_what_it_wanted(call, message, unhooked):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_checks_pass_what_is_right():
    check_shapes(a=torch.zeros(2, 3), b=torch.ones(2, 3))
    check_dims(2, a=torch.zeros(2, 3))
    check_rows(torch.zeros(2, 3), a=torch.zeros(2))
    check_mask(torch.tensor([False, True]))
    check_finite(torch.tensor([True, False]), a=torch.tensor([1.0, math.nan]))
    for value in (0, 0.5, 1):
        check_knob("k", value, 0, 1)


@pytest.mark.parametrize(
    "dtype, computes_in",
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.int64, torch.float32),
        (torch.bool, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision_of_the_computation(dtype, computes_in):
    assert upcast(torch.ones(2, dtype=dtype)).dtype == computes_in


# Values are looked at on the CPU always, on an accelerator on request. The "meta" device stands for the accelerator: it
# holds no values, so that looking at one is an error there.


def on_accelerator(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_strict_looks_at_values_on_an_accelerator_as_long_as_it_lasts():
    assert looks_at_values(torch.zeros(1)) and not looks_at_values(on_accelerator(1))
    with strict():
        assert looks_at_values(on_accelerator(1))
        with strict():
            pass
        assert looks_at_values(on_accelerator(1))
    assert not looks_at_values(on_accelerator(1))


def test_strict_ends_with_an_error_inside_it():
    with pytest.raises(KeyError), strict():
        raise KeyError
    assert not looks_at_values(on_accelerator(1))


x, row, logits = on_accelerator(4, 3), on_accelerator(4), on_accelerator(4, 3, 5)
mask, flags = on_accelerator(4, 3, dtype=torch.bool), on_accelerator(4, dtype=torch.bool)
ON_ACCELERATOR = {
    "masked_whiten": lambda: masked_whiten(x, mask),
    "sequence_mean": lambda: sequence_mean(x, mask),
    "token_logprobs": lambda: token_logprobs(logits, on_accelerator(4, 3, dtype=torch.int64)),
    "sequence_logprobs": lambda: sequence_logprobs(x, mask),
    "gae": lambda: gae(x, x, mask, last_values=row)[0],
    "group_relative_advantages": lambda: group_relative_advantages(row, 2),
    "exponential_weights": lambda: exponential_weights(row, beta=1.0),
    "kl_shaped_rewards": lambda: kl_shaped_rewards(row, x, mask, kl_coef=0.1),
    "missing_eos_penalty": lambda: missing_eos_penalty(row, flags, penalty=1.0),
    "ppo_clip_loss": lambda: ppo_clip_loss(x, x, x, mask)[0],
    "value_clip_loss": lambda: value_clip_loss(x, x, x, mask)[0],
    "gspo_loss": lambda: gspo_loss(x, x, row, mask)[0],
    "cispo_loss": lambda: cispo_loss(x, x, row, mask)[0],
    "bradley_terry_loss": lambda: bradley_terry_loss(row, row)[0],
    "dpo_loss": lambda: dpo_loss(row, row, row, row)[0],
    "orpo_loss": lambda: orpo_loss(row, row)[0],
    "kto_loss": lambda: kto_loss(row, row, flags, on_accelerator())[0],
}


@pytest.mark.parametrize("call", ON_ACCELERATOR.values(), ids=ON_ACCELERATOR)
def test_nothing_synchronises_unasked(call):
    assert call().device.type == "meta"
    with strict(), pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        call()


def test_kl_needs_no_values_at_all():
    with strict():
        assert kl_exact(logits, logits).shape == kl_k1(x, x).shape == (4, 3)


def test_the_batches_of_these_tests_have_what_they_promise():
    for seed in range(20):
        counted = random_mask(seed)
        assert counted[0].all() and not counted[1].any()
        assert random_mask(seed, empty_row=False).any(1).all()
    assert not torch.equal(random_mask(0), random_mask(1)) and not torch.equal(normal(0, 3), normal(1, 3))
