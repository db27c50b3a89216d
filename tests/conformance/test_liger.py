"""Liger-Kernel: its chunked losses, which run in plain PyTorch on a CPU, from hidden states and the weights of the head.

Both sides start there, so that the log-probabilities, the mask and the gradient of the head are compared too. Its code
computes in float32.
"""

from types import SimpleNamespace

import pytest
import torch
from batches import normal

from minirl.logprobs import average_logprobs, sequence_logprobs, token_logprobs
from minirl.losses.policy import cispo_loss, grpo_loss, gspo_loss, weighted_logprob_loss
from minirl.losses.preference import dpo_loss, kto_loss, orpo_loss, robust_dpo_loss, simpo_loss
from minirl.masking import fixed_length_mean, sequence_mean, token_mean

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore")]

WIDTH, VOCABULARY = 8, 11
LENGTH = 9
EAGER = {"compiled": False, "chunk_size": 2}


@pytest.fixture(autouse=True)
def liger(versions):
    chunked_loss = pytest.importorskip("liger_kernel.chunked_loss")  # imports triton, a GPU is not needed
    versions("liger-kernel", "triton")
    return chunked_loss


def model_over(mask) -> SimpleNamespace:
    """Hidden states, tokens and two heads, the policy's and the reference's."""
    tokens = torch.arange(mask.numel()).reshape(mask.shape) * 7 % VOCABULARY
    return SimpleNamespace(
        hidden=normal(20, *mask.shape, WIDTH).float(),
        head=normal(21, VOCABULARY, WIDTH).float() / 2,
        ref_hidden=normal(22, *mask.shape, WIDTH).float(),
        ref_head=normal(23, VOCABULARY, WIDTH).float() / 2,
        tokens=tokens,
        labels=tokens.masked_fill(~mask, -100),
    )


def logprobs_of(model, hidden, head, temperature=1.0):
    return token_logprobs(hidden @ head.T / temperature, model.tokens)


REDUCERS = {
    "grpo": sequence_mean,
    "bnpo": token_mean,
    "dapo": token_mean,  # the divisor it takes unless it is told a larger batch's
    "dr_grpo": fixed_length_mean(LENGTH),
}


@pytest.fixture
def rollout(batch):
    """The shared batch with the log-probabilities of a model, near which the old ones lie."""
    model = model_over(batch.mask)
    logprobs = logprobs_of(model, model.hidden, model.head, 0.7)
    old_logprobs = logprobs - 0.3 * normal(24, *batch.mask.shape).float()
    ref_logprobs = logprobs + 0.5 * normal(25, *batch.mask.shape).float()
    given = {"old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs, "advantages": batch.advantages.float()}
    return SimpleNamespace(**{**vars(batch), **given}, model=model)


def grpo_of(liger, rollout, hidden, head, **settings):
    loss = liger.LigerFusedLinearGRPOLoss(**EAGER, temperature=0.7, max_completion_length=LENGTH, **settings)
    return loss(
        hidden,
        head,
        rollout.model.tokens,
        rollout.mask,
        rollout.advantages,
        ref_per_token_logps=rollout.ref_logprobs,
        old_per_token_logps=rollout.old_logprobs,
    )[0]


@pytest.mark.parametrize("loss_type", REDUCERS)
def test_grpo(liger, rollout, agree, loss_type):
    def ours(hidden, head):
        loss, _ = grpo_loss(
            logprobs_of(rollout.model, hidden, head, 0.7),
            rollout.old_logprobs,
            rollout.ref_logprobs,
            rollout.advantages,
            rollout.mask,
            clip_eps=0.2,
            clip_eps_high=0.28,
            kl_coef=0.04,
            reduce=REDUCERS[loss_type],
        )
        # a row with nothing counted is in their mean over rows, as a zero
        return loss * rollout.counted_rows.float() if loss_type == "grpo" else loss

    def theirs(hidden, head):
        settings = {"loss_type": loss_type, "beta": 0.04, "epsilon_low": 0.2, "epsilon_high": 0.28}
        return grpo_of(liger, rollout, hidden, head, **settings)

    agree(ours, theirs, rollout.model.hidden, rollout.model.head)


def test_gspo(liger, rollout, agree):
    def ours(hidden, head):
        logprobs = logprobs_of(rollout.model, hidden, head, 0.7)
        loss, _ = gspo_loss(
            logprobs, rollout.old_logprobs, rollout.advantages, rollout.mask, clip_eps=0.03, clip_eps_high=0.05
        )
        return loss * rollout.counted_rows.float()

    def theirs(hidden, head):
        level = {"importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.05}
        return grpo_of(liger, rollout, hidden, head, loss_type="grpo", beta=0.0, **level)

    agree(ours, theirs, rollout.model.hidden, rollout.model.head)


def test_cispo(liger, rollout, agree):
    def ours(hidden, head):
        logprobs = logprobs_of(rollout.model, hidden, head, 0.7)
        return cispo_loss(logprobs, rollout.old_logprobs, rollout.advantages, rollout.mask, clip_eps_high=0.25)[0]

    def theirs(hidden, head):
        # the ceiling itself, not its distance from 1
        return grpo_of(liger, rollout, hidden, head, loss_type="cispo", beta=0.0, epsilon_high=1 + 0.25)

    agree(ours, theirs, rollout.model.hidden, rollout.model.head)


@pytest.mark.parametrize("loss_type", ["sigmoid", "robust"])
def test_dpo(liger, pairs, agree, loss_type):
    model = model_over(pairs.mask)
    ref = sequence_logprobs(logprobs_of(model, model.ref_hidden, model.ref_head), pairs.mask)

    def ours(hidden, head):
        four = *sequence_logprobs(logprobs_of(model, hidden, head), pairs.mask).chunk(2), *ref.chunk(2)
        if loss_type == "robust":
            return robust_dpo_loss(*four, beta=0.3, label_smoothing=0.2)[0]
        return dpo_loss(*four, beta=0.3)[0]

    def theirs(hidden, head):
        loss = liger.LigerFusedLinearDPOLoss(**EAGER, beta=0.3, loss_type=loss_type, label_smoothing=0.2)
        return loss(head, hidden, model.labels, ref_input=model.ref_hidden, ref_weight=model.ref_head)[0]

    agree(ours, theirs, model.hidden, model.head)


def test_orpo(liger, pairs, agree):
    """Their SFT term is a mean over all tokens of the chosen responses, ours a mean over responses."""
    model = model_over(pairs.mask)

    def ours(hidden, head):
        logprobs = logprobs_of(model, hidden, head)
        chosen, rejected = average_logprobs(logprobs, pairs.mask).chunk(2)
        ones = torch.ones(len(chosen))
        over_tokens, _ = weighted_logprob_loss(logprobs[: len(ones)], ones, pairs.mask[: len(ones)])
        over_responses = -chosen.mean()
        return orpo_loss(chosen, rejected, lam=0.3)[0] - over_responses + over_tokens

    def theirs(hidden, head):
        return liger.LigerFusedLinearORPOLoss(**EAGER, beta=0.3)(head, hidden, model.labels)[0]

    agree(ours, theirs, model.hidden, model.head)


def test_simpo(liger, pairs, agree):
    model = model_over(pairs.mask)

    def ours(hidden, head):
        averages = average_logprobs(logprobs_of(model, hidden, head), pairs.mask)
        return simpo_loss(*averages.chunk(2), beta=2.5, gamma=0.8)[0]

    def theirs(hidden, head):
        loss = liger.LigerFusedLinearSimPOLoss(**EAGER, beta=2.5, gamma=0.8, compute_nll_loss=False)
        return loss(head, hidden, model.labels)[0]

    agree(ours, theirs, model.hidden, model.head)


@pytest.mark.parametrize("kl", [1.4, -0.8])
def test_kto(liger, pairs, agree, kl):
    """They weigh both kinds alike, and leave it to the caller that the KL is not negative."""
    model = model_over(pairs.mask)
    ref = sequence_logprobs(logprobs_of(model, model.ref_hidden, model.ref_head), pairs.mask)

    def ours(hidden, head):
        logps = sequence_logprobs(logprobs_of(model, hidden, head), pairs.mask)
        return kto_loss(logps, ref, pairs.desirable, kl, beta=0.3)[0]

    def theirs(hidden, head):
        loss = liger.LigerFusedLinearKTOLoss(**EAGER, beta=0.3, use_ref_model=True)
        labels = {"preference_labels": pairs.desirable, "kl": torch.tensor(max(kl, 0.0))}
        reference = {"ref_input": model.ref_hidden, "ref_weight": model.ref_head}
        return loss(hidden, head, model.labels, **labels, **reference)[0]

    agree(ours, theirs, model.hidden, model.head)
