"""TRL 1.x: the loss code of its trainers, on an instance that has only what that code reads.

Nothing is loaded or trained. Each trainer is made without its constructor and is given our log-probabilities where it
would have run a model. What follows `theirs` in a test is their convention; what follows `ours` is how ours is turned
into it.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from batches import normal

from minirl.advantages import group_centered_advantages, group_relative_advantages, leave_one_out_advantages
from minirl.kl import kl_k1
from minirl.logprobs import average_logprobs, entropy, sequence_logprobs, token_logprobs
from minirl.losses.policy import cispo_loss, grpo_loss, gspo_loss, ppo_clip_loss, weighted_logprob_loss
from minirl.losses.preference import (
    bradley_terry_loss,
    dpo_loss,
    ipo_loss,
    kto_loss,
    orpo_loss,
    robust_dpo_loss,
    simpo_loss,
)
from minirl.masking import fixed_length_mean, masked_sum_over, sequence_mean, token_mean

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore")]

LENGTH = 9  # the longest response allowed, for the constant divisor
TOKENS = 31  # counted over all micro-batches of one step, for DAPO's divisor


@pytest.fixture(autouse=True)
def trl(versions):
    trl = pytest.importorskip("trl", minversion="1.0")
    versions("trl", "transformers")
    return trl


def bare(trainer_class, **attributes):
    """An instance without its constructor, in a process of its own, that logs into nowhere."""

    def unchanged(x, *args, **kwargs):
        return x

    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        gather=unchanged,
        gather_for_metrics=unchanged,
        reduce=unchanged,
    )
    trainer = object.__new__(trainer_class)
    defaults = {
        "accelerator": accelerator,
        "model": SimpleNamespace(training=True),
        "args": SimpleNamespace(),
        "aux_loss_enabled": False,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    for name, value in (defaults | attributes).items():
        setattr(trainer, name, value)
    return trainer


# GRPO and what it has become.


def grpo_loss_of(trl, batch, logprobs, *, mask=None, **settings):
    """GRPOTrainer's loss, and under it the names of its configuration."""
    settings = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
    } | settings
    trainer = bare(
        trl.GRPOTrainer,
        **settings,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        max_completion_length=LENGTH,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
    )
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (logprobs, logprobs.detach(), None)
    mask = batch.mask.long()
    inputs = {
        "prompt_ids": mask[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old_logprobs,
        "ref_per_token_logps": batch.ref_logprobs,
        "num_items_in_batch": torch.tensor(TOKENS),
    }
    return trainer._compute_loss(None, inputs)


REDUCERS = {  # loss_type: the reducer it stands for
    "grpo": sequence_mean,
    "bnpo": token_mean,
    "dapo": masked_sum_over(TOKENS),
    "dr_grpo": fixed_length_mean(LENGTH),
    "luspo": fixed_length_mean(1),
}


@pytest.mark.parametrize("loss_type", REDUCERS)
def test_grpo(trl, batch, agree, loss_type):
    def ours(logprobs):
        loss, _ = grpo_loss(
            logprobs,
            batch.old_logprobs,
            batch.ref_logprobs,
            batch.advantages,
            batch.mask,
            clip_eps=0.2,
            clip_eps_high=0.28,
            kl_coef=0.04,
            reduce=REDUCERS[loss_type],
        )
        # a row with nothing counted is in their mean over rows, as a zero
        return loss * batch.counted_rows if loss_type == "grpo" else loss

    def theirs(logprobs):
        return grpo_loss_of(trl, batch, logprobs, loss_type=loss_type, beta=0.04, epsilon_high=0.28)

    agree(ours, theirs, batch.logprobs)


def test_gspo(trl, batch, agree):
    def ours(logprobs):
        loss, _ = gspo_loss(
            logprobs, batch.old_logprobs, batch.advantages, batch.mask, clip_eps=0.03, clip_eps_high=0.05
        )
        return loss * batch.counted_rows

    def theirs(logprobs):
        level = {"importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.05}
        return grpo_loss_of(trl, batch, logprobs, **level)

    agree(ours, theirs, batch.logprobs)


def test_cispo(trl, batch, agree):
    def ours(logprobs):
        reduce = masked_sum_over(TOKENS)
        return cispo_loss(
            logprobs, batch.old_logprobs, batch.advantages, batch.mask, clip_eps_high=0.25, reduce=reduce
        )[0]

    def theirs(logprobs):
        # the ceiling itself, not its distance from 1
        return grpo_loss_of(trl, batch, logprobs, loss_type="cispo", epsilon_high=1 + 0.25)

    agree(ours, theirs, batch.logprobs)


def scored(trl, trainer_class, batch, **settings):
    """A trainer's own way from scores to advantages."""
    lengths = [max(int(n), 1) for n in batch.mask.sum(1)]
    rows = len(lengths)
    trainer = bare(
        trainer_class,
        **settings,
        environment_factories=None,
        environments=None,
        tools=None,
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        num_generations=2,
        num_iterations=1,
        use_vllm=False,
        ref_model=SimpleNamespace(),
        multi_objective_aggregation="sum_then_normalize",
        reward_weights=torch.ones(1, dtype=torch.float64),
        reward_func_names=["score"],
        reward_clip_range=None,
        normalize_advantages=False,
        _logs=defaultdict(list, rewards=defaultdict(list)),
        _pending_extra_logs={},
        _pending_metrics={},
        _tokenizer=SimpleNamespace(pad_token_id=0),
        args=SimpleNamespace(
            per_device_train_batch_size=rows,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            gradient_checkpointing_kwargs=None,
        ),
    )
    trainer.model.is_gradient_checkpointing = False

    def logprobs_of(model, *args, **kwargs):
        return (batch.logprobs if model is trainer.model else batch.ref_logprobs), None, None

    answers = [[1] * 2] * rows, [[1] * n for n in lengths]
    texts = ["answer"] * rows
    trainer._get_per_token_logps_and_entropies = logprobs_of
    trainer._calculate_rewards = lambda *args: batch.scores.unsqueeze(1)
    if trainer_class is trl.RLOOTrainer:
        trainer._generate = lambda prompts: (*answers, texts)
    else:
        trainer._generate = lambda prompts: (*answers, None, texts, None, {}, None, None)
    return trainer._generate_and_score_completions([{"prompt": "question"}] * rows)


@pytest.mark.parametrize("scale_rewards", ["group", "none"])
def test_grpo_advantages(trl, right_padded, agree, scale_rewards):
    if scale_rewards == "group":
        ours = group_relative_advantages(right_padded.scores, 2, eps=1e-4)
    else:
        ours = group_centered_advantages(right_padded.scores, 2)
    theirs = scored(trl, trl.GRPOTrainer, right_padded, scale_rewards=scale_rewards, beta=0.0)["advantages"]
    agree.as_data(ours, theirs)


def test_rloo_advantages(trl, right_padded, agree):
    """Their KL is k1, summed over the answer, and taken off the score before the baseline."""
    kl = kl_k1(right_padded.logprobs, right_padded.ref_logprobs)
    ours = leave_one_out_advantages(right_padded.scores - 0.3 * sequence_logprobs(kl, right_padded.mask), 2)
    theirs = scored(trl, trl.RLOOTrainer, right_padded, beta=0.3)["advantages"]
    agree.as_data(ours, theirs)


def test_rloo(trl, batch, agree):
    """Their ratio is that of the whole answer: PPO on one action a row, whose log-probability is the sum."""
    old_logps = sequence_logprobs(batch.old_logprobs, batch.mask)

    def ours(logprobs):
        one_action = batch.mask.any(1, keepdim=True)
        logps = sequence_logprobs(logprobs, batch.mask)
        columns = logps.unsqueeze(1), old_logps.unsqueeze(1), batch.advantages.unsqueeze(1)
        loss, _ = ppo_clip_loss(*columns, one_action, clip_eps=0.4)
        # a row with nothing counted has ratio 1 and is in their mean over rows
        constant = -(batch.advantages * ~batch.mask.any(1)).mean()
        return loss * batch.counted_rows + constant

    def theirs(logprobs):
        trainer = bare(trl.RLOOTrainer, epsilon_low=0.4, epsilon_high=0.4)
        trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (logprobs, logprobs.detach(), None)
        mask = batch.mask.long()
        inputs = {
            "prompt_ids": mask[:, :1],
            "prompt_mask": mask[:, :1],
            "completion_ids": mask,
            "completion_mask": mask,
            "advantages": batch.advantages,
            "old_logps": old_logps,
        }
        return trainer._compute_loss(None, inputs)

    agree(ours, theirs, batch.logprobs)


# Preferences.


def answers_of(logprobs, mask):
    """The outputs a model of theirs would have: zero where a label is masked, and some statistics that only get logged."""
    return SimpleNamespace(
        log_probs=logprobs * mask,
        entropy=torch.zeros_like(logprobs),
        mean_logits=torch.zeros_like(logprobs),
        is_top1=torch.zeros_like(mask),
    )


def with_prompt(mask):
    """The mask over prompt and response: one prompt token in front."""
    return torch.cat([torch.zeros_like(mask[:, :1]), mask], 1).long()


def dpo_loss_of(trl, logprobs, mask, ref, loss_type, *, beta, label_smoothing=0.0):
    trainer = bare(
        trl.DPOTrainer,
        loss_types=[loss_type],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        beta=beta,
        label_smoothing=label_smoothing,
        ld_alpha=None,
        precompute_ref_logps=True,
        use_weighting=False,
    )
    inputs = {
        "input_ids": with_prompt(mask),
        "attention_mask": with_prompt(mask),
        "completion_mask": with_prompt(mask),
        "ref_chosen_logps": ref.chunk(2)[0],
        "ref_rejected_logps": ref.chunk(2)[1],
    }
    return trainer._compute_loss(lambda **kwargs: answers_of(logprobs, mask), inputs, return_outputs=False)


def test_dpo(trl, pairs, agree):
    def ours(logprobs):
        return dpo_loss(*sequence_logprobs(logprobs, pairs.mask).chunk(2), *pairs.ref.chunk(2), beta=0.3)[0]

    def theirs(logprobs):
        return dpo_loss_of(trl, logprobs, pairs.mask, pairs.ref, "sigmoid", beta=0.3)

    agree(ours, theirs, pairs.logprobs)


def test_smoothed_dpo(trl, pairs, agree):
    """TRL 1.x smooths no sigmoid loss; its AOT loss does, and is that loss where a batch is one pair."""

    def ours(logprobs):
        logps = sequence_logprobs(logprobs, pairs.mask)
        return dpo_loss(*logps.chunk(2), *pairs.ref.chunk(2), beta=0.3, label_smoothing=0.2)[0]

    def theirs(logprobs):
        each = [[n, n + 5] for n in range(5)]
        losses = [
            dpo_loss_of(trl, logprobs[n], pairs.mask[n], pairs.ref[n], "aot", beta=0.3, label_smoothing=0.2)
            for n in each
        ]
        return torch.stack(losses).mean()

    agree(ours, theirs, pairs.logprobs)


def test_robust_dpo(trl, pairs, agree):
    def ours(logprobs):
        logps = sequence_logprobs(logprobs, pairs.mask)
        return robust_dpo_loss(*logps.chunk(2), *pairs.ref.chunk(2), beta=0.3, label_smoothing=0.2)[0]

    def theirs(logprobs):
        return dpo_loss_of(trl, logprobs, pairs.mask, pairs.ref, "robust", beta=0.3, label_smoothing=0.2)

    agree(ours, theirs, pairs.logprobs)


@pytest.mark.parametrize("loss_type, loss", [("ipo", ipo_loss), ("sigmoid_norm", dpo_loss)])
def test_length_averaged(trl, pairs, agree, loss_type, loss):
    """They divide by the length inside; ours takes the averages, of the reference too."""
    ref = pairs.ref / pairs.mask.sum(1)

    def ours(logprobs):
        return loss(*average_logprobs(logprobs, pairs.mask).chunk(2), *ref.chunk(2), beta=0.3)[0]

    def theirs(logprobs):
        return dpo_loss_of(trl, logprobs, pairs.mask, pairs.ref, loss_type, beta=0.3)

    agree(ours, theirs, pairs.logprobs)


def test_sft(trl, pairs, agree):
    """Of the chosen responses, a mean over all their tokens."""

    def ours(chosen):
        return weighted_logprob_loss(chosen, torch.ones(5), pairs.mask[:5], reduce=token_mean)[0]

    def theirs(chosen):
        logprobs = torch.cat([chosen, pairs.logprobs[5:]])
        return dpo_loss_of(trl, logprobs, pairs.mask, pairs.ref, "sft", beta=0.3)

    agree(ours, theirs, pairs.logprobs[:5])


@pytest.mark.parametrize("kl", [1.4, -0.8])
def test_kto(trl, pairs, agree, kl):
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}

    def ours(logprobs):
        logps = sequence_logprobs(logprobs, pairs.mask)
        return kto_loss(logps, pairs.ref, pairs.desirable, kl, beta=0.3, **weights)[0]

    def theirs(logprobs):
        trainer = bare(
            trl.KTOTrainer, loss_type="kto", beta=0.3, calculate_KL=True, precompute_ref_logps=True, **weights
        )
        # the estimate is a mean over the batch of log-ratios of mismatched answers, clamped by them
        trainer._compute_kl_logps = lambda model, inputs: torch.full_like(pairs.ref, kl)
        inputs = {
            "input_ids": with_prompt(pairs.mask),
            "attention_mask": with_prompt(pairs.mask),
            "completion_mask": with_prompt(pairs.mask),
            "label": pairs.desirable,
            "ref_logps": pairs.ref,
            "ref_KL_logps": torch.zeros_like(pairs.ref),
        }
        return trainer._compute_loss(lambda **kwargs: answers_of(logprobs, pairs.mask), inputs, False)

    agree(ours, theirs, pairs.logprobs)


@pytest.mark.parametrize("margin", [False, True])
def test_reward_model(trl, pairs, agree, margin):
    margins = {"margin": pairs.margin} if margin else {}

    def ours(scores):
        return bradley_terry_loss(*scores.chunk(2), **margins)[0]

    def theirs(scores):
        trainer = bare(trl.RewardTrainer, args=SimpleNamespace(center_rewards_coefficient=None))
        inputs = {"attention_mask": pairs.mask} | margins
        return trainer.compute_loss(lambda **kwargs: SimpleNamespace(logits=scores.unsqueeze(1)), inputs)

    agree(ours, theirs, pairs.scores)


def test_orpo(trl, pairs, agree):
    """Their SFT term is the cross-entropy of prompt and response, a mean over tokens; it is replaced by ours here."""
    orpo = pytest.importorskip("trl.experimental.orpo")

    def ours(logprobs):
        return orpo_loss(*average_logprobs(logprobs, pairs.mask).chunk(2), lam=0.3)[0]

    def theirs(logprobs):
        chosen, rejected = average_logprobs(logprobs, pairs.mask).chunk(2)
        trainer = bare(orpo.ORPOTrainer, beta=0.3)
        trainer.concatenated_forward = lambda *args: (chosen, rejected, chosen, rejected, -chosen.mean())
        return trainer.get_batch_loss_metrics(None, {})[0]

    agree(ours, theirs, pairs.logprobs)


def test_simpo(trl, pairs, agree):
    cpo = pytest.importorskip("trl.experimental.cpo")

    def ours(logprobs):
        return simpo_loss(*average_logprobs(logprobs, pairs.mask).chunk(2), beta=2.5, gamma=0.8)[0]

    def theirs(logprobs):
        chosen, rejected = average_logprobs(logprobs, pairs.mask).chunk(2)
        settings = {"loss_type": "simpo", "simpo_gamma": 0.8, "alpha": 0.0, "cpo_alpha": 0.0, "label_smoothing": 0.0}
        trainer = bare(cpo.CPOTrainer, beta=2.5, **settings)
        trainer.concatenated_forward = lambda *args: (chosen, rejected, chosen, rejected, torch.zeros(()))
        return trainer.get_batch_loss_metrics(None, {})[0]

    agree(ours, theirs, pairs.logprobs)


# Log-probabilities.


def test_token_logprobs(trl, agree):
    from trl.trainer.utils import selective_log_softmax

    tokens = torch.arange(12).reshape(3, 4) % 5
    weights = normal(11, 3, 4)

    def ours(logits):
        return (token_logprobs(logits / 0.7, tokens) * weights).sum()

    def theirs(logits):
        return (selective_log_softmax(logits, tokens, temperature=0.7) * weights).sum()

    agree(ours, theirs, 2 * normal(10, 3, 4, 5))


def test_entropy(trl, agree):
    from trl.trainer.utils import entropy_from_logits

    weights = normal(11, 3, 4)

    def ours(logits):
        return (entropy(logits) * weights).sum()

    def theirs(logits):
        return (entropy_from_logits(logits) * weights).sum()

    agree(ours, theirs, 2 * normal(10, 3, 4, 5))
