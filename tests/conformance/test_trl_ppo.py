"""TRL 0.11, the last with the classic PPOTrainer: its loss, its advantages, its rewards and what they are made of.

The trainers are made without their constructors; see test_trl.py for those of today.
"""

from types import SimpleNamespace

import pytest
import torch
from batches import normal

from minirl.advantages import gae
from minirl.kl import AdaptiveKL, kl_exact, kl_k1, kl_k2
from minirl.logprobs import average_logprobs, entropy, sequence_logprobs, token_logprobs
from minirl.losses.policy import ppo_clip_loss, value_clip_loss
from minirl.losses.preference import dpo_loss, ipo_loss, kto_loss, orpo_loss, robust_dpo_loss, simpo_loss
from minirl.masking import masked_mean, masked_whiten
from minirl.rewards import kl_shaped_rewards

pytestmark = [pytest.mark.nightly, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def trl(versions):
    trl = pytest.importorskip("trl")
    if tuple(int(part) for part in trl.__version__.split(".")[:2]) >= (0, 12):
        pytest.skip("the PPOTrainer was removed in TRL 0.12")
    versions("trl", "transformers")
    return trl


def bare(trainer_class, **attributes):
    trainer = object.__new__(trainer_class)
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def ppo_trainer(trl, **config):
    defaults = {"cliprange": 0.2, "cliprange_value": 0.4, "vf_coef": 0.1, "ratio_threshold": 1e9}
    config = SimpleNamespace(**defaults | {"gamma": 1.0, "lam": 0.95, "whiten_rewards": False} | config)
    return bare(trl.PPOTrainer, config=config, kl_ctl=SimpleNamespace(value=0.3))


def whitened_their_way(x, mask):
    """Ours divides by n, theirs by n - 1."""
    n = mask.sum()
    return masked_whiten(x, mask) * ((n - 1) / n.double()).sqrt()


# What stands outside a mask is left as it comes out by TRL, and 0 here: theirs is multiplied by the mask.


def test_masked_mean(trl, batch, agree):
    from trl.core import masked_mean as their_mean

    agree(lambda x: masked_mean(x, batch.mask), lambda x: their_mean(x, batch.mask), batch.logprobs)


def test_masked_whiten(trl, batch, agree):
    from trl.core import masked_whiten as their_whiten

    weights = normal(30, *batch.mask.shape)

    def ours(x):
        return (whitened_their_way(x, batch.mask) * weights).sum()

    def theirs(x):
        return (their_whiten(x, batch.mask) * batch.mask * weights).sum()

    agree(ours, theirs, batch.logprobs)


def test_token_logprobs_and_entropy(trl, agree):
    from trl.core import entropy_from_logits, logprobs_from_logits

    tokens = torch.arange(12).reshape(3, 4) % 5
    weights, others = normal(31, 3, 4), normal(32, 3, 4)

    def ours(logits):
        return (token_logprobs(logits, tokens) * weights + entropy(logits) * others).sum()

    def theirs(logits):
        return (logprobs_from_logits(logits, tokens) * weights + entropy_from_logits(logits) * others).sum()

    agree(ours, theirs, 2 * normal(33, 3, 4, 5))


# PPO.


def test_ppo(trl, right_padded, agree):
    """The policy's part, and the same count of clipped tokens."""
    batch = right_padded
    clipped = {}

    def ours(logprobs):
        loss, stats = ppo_clip_loss(logprobs, batch.old_logprobs, batch.token_advantages, batch.mask, clip_eps=0.2)
        clipped["ours"] = stats["clip_fraction"]
        return loss

    def theirs(logprobs):
        loss, _, stats = ppo_trainer(trl).loss(
            batch.old_logprobs,
            batch.values,
            torch.zeros(*batch.mask.shape, 3),
            batch.values,
            logprobs,
            batch.mask,
            batch.token_advantages,
            batch.values,
        )
        clipped.setdefault("theirs", stats["policy/clipfrac"])
        return loss

    agree(ours, theirs, batch.logprobs)
    assert clipped["ours"].item() == pytest.approx(clipped["theirs"].item()) and clipped["ours"] > 0.2


def test_value_loss(trl, right_padded, agree):
    """The critic's part, which they return times its coefficient."""
    batch = right_padded
    returns = batch.values + batch.token_advantages

    def ours(values):
        return 0.1 * value_clip_loss(values, batch.values, returns, batch.mask, clip_eps=0.4)[0]

    def theirs(values):
        _, loss, _ = ppo_trainer(trl, vf_coef=0.1).loss(
            batch.logprobs,
            batch.values,
            torch.zeros(*batch.mask.shape, 3),
            values,
            batch.logprobs,
            batch.mask,
            batch.token_advantages,
            returns,
        )
        return loss

    agree(ours, theirs, batch.values + 0.5 * normal(34, *batch.mask.shape))


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.6), (1.0, 0.0)])
def test_gae(trl, right_padded, agree, gamma, lam):
    """They whiten the advantages, and would count a gap as a step; there is none here."""
    batch = right_padded
    rewards = normal(35, *batch.mask.shape)
    advantages, returns = gae(rewards, batch.values, batch.mask, gamma=gamma, lam=lam)
    _, theirs, their_returns = ppo_trainer(trl, gamma=gamma, lam=lam).compute_advantages(
        batch.values, rewards, batch.mask
    )
    agree.as_data(whitened_their_way(advantages, batch.mask), theirs * batch.mask)
    agree.as_data(returns, their_returns * batch.mask)


@pytest.mark.parametrize("kl_penalty, ours", [("kl", kl_k1), ("mse", kl_k2)])
def test_rewards(trl, batch, agree, kl_penalty, ours):
    """The score lies on the last counted token, gaps or not; their last row must count something, as ours must."""
    rows = batch.mask.any(1)
    logprobs, ref_logprobs, mask, scores = (
        x[rows] for x in (batch.logprobs, batch.ref_logprobs, batch.mask, batch.scores)
    )
    rewards = kl_shaped_rewards(scores, ours(logprobs, ref_logprobs), mask, kl_coef=0.3)
    theirs, _, kl = ppo_trainer(trl, kl_penalty=kl_penalty).compute_rewards(scores, logprobs, ref_logprobs, mask)
    agree.as_data(rewards, theirs * mask)
    if kl_penalty == "kl":
        agree.as_data(ours(logprobs, ref_logprobs), kl)


def test_kl_exact(trl, agree):
    ref = normal(37, 3, 4, 5).log_softmax(-1)
    weights = normal(38, 3, 4)

    def ours(logits):
        return (kl_exact(logits, ref) * weights).sum()

    def theirs(logits):
        penalty = ppo_trainer(trl, kl_penalty="full")._kl_penalty(logits.log_softmax(-1), ref)
        return (penalty * weights).sum()

    agree(ours, theirs, normal(36, 3, 4, 5))


def test_adaptive_kl(trl, agree):
    ours = AdaptiveKL(0.2, target=6.0, horizon=10_000)
    theirs = trl.trainer.AdaptiveKLController(0.2, 6.0, 10_000)
    updates = [(3.0, 256), (6.5, 256), (30.0, 512), (-1.0, 64), (6.0, 256)]
    followed = []
    for kl, n_steps in updates:
        theirs.update(kl, n_steps)
        followed.append((ours.update(kl, n_steps), theirs.value))
    agree.as_data(*torch.tensor(followed, dtype=torch.float64).T)


# Preferences, in the functions of that time.


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("loss_type, loss", [("sigmoid", dpo_loss), ("robust", robust_dpo_loss)])
def test_dpo(trl, pairs, agree, loss_type, loss, label_smoothing):
    def ours(logprobs):
        logps = sequence_logprobs(logprobs, pairs.mask)
        return loss(*logps.chunk(2), *pairs.ref.chunk(2), beta=0.3, label_smoothing=label_smoothing)[0]

    def theirs(logprobs):
        logps = sequence_logprobs(logprobs, pairs.mask)
        return dpo_trainer(trl, loss_type, label_smoothing).dpo_loss(*logps.chunk(2), *pairs.ref.chunk(2))[0].mean()

    agree(ours, theirs, pairs.logprobs)


def dpo_trainer(trl, loss_type, label_smoothing):
    return bare(
        trl.DPOTrainer,
        accelerator=SimpleNamespace(device="cpu"),
        loss_type=loss_type,
        label_smoothing=label_smoothing,
        beta=0.3,
        reference_free=False,
        f_divergence_type=trl.trainer.dpo_config.FDivergenceType.REVERSE_KL,
    )


def test_ipo(trl, pairs, agree):
    """They average over the length before the loss is called."""
    ref = pairs.ref / pairs.mask.sum(1)

    def ours(logprobs):
        return ipo_loss(*average_logprobs(logprobs, pairs.mask).chunk(2), *ref.chunk(2), beta=0.3)[0]

    def theirs(logprobs):
        averages = average_logprobs(logprobs, pairs.mask)
        return dpo_trainer(trl, "ipo", 0.0).dpo_loss(*averages.chunk(2), *ref.chunk(2))[0].mean()

    agree(ours, theirs, pairs.logprobs)


def test_simpo(trl, pairs, agree):
    def ours(logprobs):
        return simpo_loss(*average_logprobs(logprobs, pairs.mask).chunk(2), beta=2.5, gamma=0.8)[0]

    def theirs(logprobs):
        settings = {"loss_type": "simpo", "simpo_gamma": 0.8, "label_smoothing": 0.0, "beta": 2.5}
        trainer = bare(trl.CPOTrainer, accelerator=SimpleNamespace(device="cpu"), **settings)
        return trainer.cpo_loss(*average_logprobs(logprobs, pairs.mask).chunk(2))[0].mean()

    agree(ours, theirs, pairs.logprobs)


def test_orpo(trl, pairs, agree):
    """Their function returns the odds-ratio part, to be taken off an SFT loss."""

    def ours(logprobs):
        return orpo_loss(*average_logprobs(logprobs, pairs.mask).chunk(2), lam=0.3)[0]

    def theirs(logprobs):
        chosen, rejected = average_logprobs(logprobs, pairs.mask).chunk(2)
        trainer = bare(trl.ORPOTrainer, accelerator=SimpleNamespace(device="cpu"), beta=0.3)
        return -chosen.mean() - trainer.odds_ratio_loss(chosen, rejected)[0].mean()

    agree(ours, theirs, pairs.logprobs)


@pytest.mark.parametrize("kl", [1.4, -0.8])
def test_kto(trl, pairs, agree, kl):
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
    good = pairs.desirable

    def ours(logprobs):
        logps = sequence_logprobs(logprobs, pairs.mask)
        return kto_loss(logps, pairs.ref, good, kl, beta=0.3, **weights)[0]

    def theirs(logprobs):
        accelerator = SimpleNamespace(device="cpu", gather=lambda x: x)
        trainer = bare(trl.KTOTrainer, accelerator=accelerator, loss_type="kto", beta=0.3, calculate_KL=True, **weights)
        logps, nothing = sequence_logprobs(logprobs, pairs.mask), torch.zeros_like(pairs.ref)
        split = logps[good], logps[~good], nothing + kl, pairs.ref[good], pairs.ref[~good], nothing
        return trainer.kto_loss(*split)[0].mean()

    agree(ours, theirs, pairs.logprobs)
