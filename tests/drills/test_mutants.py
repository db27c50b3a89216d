"""The proof: every wrong version in the bank is caught by the tests of the function it imitates, and says so by name."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minirl.drills import BANK, names
from minirl.drills.desk import DRILLS
from minirl.drills.judge import mutants_of

TESTS = Path(__file__).resolve().parents[1]
FILES = ["test_masking", "test_logprobs", "test_kl", "test_advantages", "test_rewards"]
FILES = [f"{name}.py" for name in FILES] + ["losses/test_policy.py", "losses/test_preference.py"]
FILES += [
    "drills/test_by_hand.py",
    "test_sampling.py::test_nucleus_by_hand",
    "test_model.py::test_last_token_is_the_last_that_counts",
]
FILES += ["test_attention.py::test_naive_attention_is_what_pytorch_computes"]

# how the name of a test speaks of a function, where it is not by the function's own name
SPOKEN = {
    "masked_whiten": "whitening",
    "fixed_length_mean": "reducers|fixed_length",
    "masked_sum_over": "reducers|micro_batches",
    "kl_k1": r"\[k1\]",
    "kl_k2": r"\[k2\]",
    "kl_k3": r"\[k3\]",
    "kl_exact": "exact_kl",
    "AdaptiveKL": "controller",
    "discounted_returns": "returns",
    "group_relative_advantages": "relative",
    "group_centered_advantages": "centered",
    "leave_one_out_advantages": "leave one out",
    "kl_shaped_rewards": "shaped_rewards",
    "missing_eos_penalty": "never_ended_pays_the_penalty",
    "bradley_terry_loss": r"\[bradley_terry",
    "dpo_loss": r"\[dpo",
    "robust_dpo_loss": r"\[robust dpo",
    "ipo_loss": r"\[ipo",
    "simpo_loss": r"\[simpo",
    "orpo_loss": r"\[orpo",
    "kto_loss": r"\[kto",
    "length_penalty": "length_is_charged",
}

# for each function the wrong version whose sign, order or mask is turned round
TURNED = {
    "AdaptiveKL": "ControllerTheWrongWay",
    "bpe_merge": "either_order",
    "bradley_terry_loss": "swapped_bradley_terry",
    "cispo_loss": "unnegated_cispo",
    "discounted_returns": "returns_minus_what_is_ahead",
    "dpo_loss": "swapped_dpo",
    "ensemble_reward": "daring_ensemble",
    "entropy": "negative_entropy",
    "exponential_weights": "best_weighs_least",
    "fixed_length_mean": "fixed_length_of_the_padding",
    "gae": "value_added",
    "group_centered_advantages": "negative_centred",
    "group_relative_advantages": "negative_relative",
    "grpo_loss": "unnegated_grpo",
    "gspo_loss": "unnegated_gspo",
    "ipo_loss": "ipo_the_wrong_way",
    "kl_exact": "negative_kl_exact",
    "kl_k1": "reversed_k1",
    "kl_k2": "negative_k2",
    "kl_k3": "negative_k3",
    "kl_shaped_rewards": "kl_rewarded",
    "kto_loss": "swapped_labels",
    "kv_cache_step": "prepended",
    "last_token": "last_column",
    "leave_one_out_advantages": "negative_leave_one_out",
    "length_penalty": "length_paid",
    "lora_forward": "lora_subtracted",
    "masked_mean": "mean_of_the_padding",
    "masked_sum_over": "sum_of_the_padding",
    "masked_whiten": "negative_whitening",
    "missing_eos_penalty": "penalty_added",
    "naive_attention": "attention_mask_upside_down",
    "nucleus": "tail_kept",
    "orpo_loss": "penalty_the_wrong_way",
    "pass_at_k": "chance_to_miss",
    "ppo_clip_loss": "unnegated_ppo",
    "reinforce_loss": "unnegated_reinforce",
    "response_slice": "slice_at_the_tokens",
    "rms_norm": "rms_over_rows",
    "robust_dpo_loss": "robust_second_sign",
    "rotary": "turned_backwards",
    "sequence_logprobs": "negative_sequence",
    "sequence_mean": "sequence_mean_of_the_padding",
    "sft_loss": "sft_unnegated",
    "simpo_loss": "gamma_added",
    "softmax": "softmax_of_minus",
    "token_logprobs": "cross_entropy_for_logprobs",
    "token_mean": "negative_token_mean",
    "value_clip_loss": "negative_value_clip",
    "value_loss": "negative_value_loss",
    "weighted_logprob_loss": "unnegated_weighted",
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict:
    """{"function.mutant": {"test", "why"} or None}, from one run of mutant_runner.py in a process of its own."""
    path = tmp_path_factory.mktemp("mutants") / "verdicts.json"
    paths = [str(TESTS / "drills"), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "mutant_runner", "--verdicts", str(path)),
            *("-n", "0", "-p", "no:cacheprovider", "--tb=line", "--assert=plain"),
            *(str(TESTS / name) for name in FILES),
        ],
        cwd=TESTS.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert path.exists(), run.stdout + run.stderr
    return json.loads(path.read_text())


def test_the_tests_are_green_without_a_mutant(verdicts):
    assert verdicts["baseline"] == []


def test_every_mutant_is_caught_by_the_tests_of_its_function(verdicts):
    survivors = [name for name, verdict in verdicts.items() if verdict is None]
    assert survivors == []


def test_every_mutant_was_tried(verdicts):
    tried = {f"{name}.{mutant.name}" for name, drill in DRILLS.items() for mutant in mutants_of(drill)}
    assert tried == verdicts.keys() - {"baseline"}
    assert len(tried) > len(BANK) >= 250


def test_the_test_that_catches_a_mutant_names_the_function(verdicts):
    silent = {}
    for name, verdict in verdicts.items():
        function = name.partition(".")[0]
        if name != "baseline" and verdict and not re.search(SPOKEN.get(function, function), verdict["test"]):
            silent[name] = verdict["test"]
    assert silent == {}


def test_a_mutant_is_caught_by_numbers_or_by_a_missing_gradient(verdicts):
    """Not by a name that is missing or a call that fails: such a mutant would prove nothing."""
    odd = {
        name: verdict
        for name, verdict in verdicts.items()
        if name != "baseline" and verdict and not re.search("AssertionError|assert |not close|grad", verdict["why"])
    }
    assert odd == {}


def test_a_turned_sign_or_mask_of_every_function_turns_a_test_red(verdicts):
    assert sorted(TURNED) == names()
    assert [name for name, mutant in TURNED.items() if not verdicts[f"{name}.{mutant}"]] == []
