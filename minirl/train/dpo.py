"""DPO (Rafailov et al. 2023) and its relatives: preferences without sampling, a reward model or a critic.

    row      log-probabilities   loss                                   reference
    DPO      summed              -log sigmoid(beta h)                   yes
    CDPO     summed              labels wrong with probability e        yes
    ROBUST   summed              the same, made unbiased                yes
    IPO      averaged            (h - 1 / (2 beta))^2                   yes
    SIMPO    averaged            -log sigmoid(beta d - gamma)           no
    ORPO     averaged            SFT + odds ratio                       no

`dpo.train(..., row=IPO)` runs a row. KTO, which needs no pairs, has a loop of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from minirl.logprobs import average_logprobs, sequence_logprobs
from minirl.losses.preference import dpo_loss, ipo_loss, orpo_loss, robust_dpo_loss, simpo_loss
from minirl.model import Transformer
from minirl.ranks import ALONE, Ranks
from minirl.rollout import response_logprobs
from minirl.run import Run
from minirl.train.knobs import check_config
from minirl.train.memory import added, in_parts, pair_micro_batches
from minirl.train.optimizer import adamw, follow_gradient, warmed_up
from minirl.train.reward_model import nth_batch
from minirl.types import PreferenceBatch, Stats, Tensor


@dataclass(frozen=True)
class DPOConfig:
    steps: int = 120
    pairs: int = 64  # a step
    micro_batch: int | None = field(default=None, repr=False)  # pairs in memory at a time; changes no number
    beta: float = 0.1  # SimPO's is of another size: 2 and more
    label_smoothing: float = 0.1  # of CDPO and ROBUST
    gamma: float = 1.0  # margin of SIMPO
    lam: float = 0.1  # weight of ORPO's odds ratio
    lr: float = 3e-4
    warmup: int = 10
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_config(self)


@dataclass(frozen=True)
class PairLoss:
    pool: Callable[[Tensor, Tensor], Tensor]  # (logprobs (N, T), mask) -> (N,)
    loss: Callable[..., tuple[Tensor, Stats]]  # (chosen, rejected, ref_chosen, ref_rejected, config)


DPO = PairLoss(sequence_logprobs, lambda c, r, rc, rr, config: dpo_loss(c, r, rc, rr, beta=config.beta))
CDPO = PairLoss(
    sequence_logprobs,
    lambda c, r, rc, rr, config: dpo_loss(c, r, rc, rr, beta=config.beta, label_smoothing=config.label_smoothing),
)
ROBUST = PairLoss(
    sequence_logprobs,
    lambda c, r, rc, rr, config: robust_dpo_loss(
        c, r, rc, rr, beta=config.beta, label_smoothing=config.label_smoothing
    ),
)
IPO = PairLoss(average_logprobs, lambda c, r, rc, rr, config: ipo_loss(c, r, rc, rr, beta=config.beta))
SIMPO = PairLoss(average_logprobs, lambda c, r, rc, rr, config: simpo_loss(c, r, beta=config.beta, gamma=config.gamma))
ORPO = PairLoss(average_logprobs, lambda c, r, rc, rr, config: orpo_loss(c, r, lam=config.lam))


def train(
    policy: Transformer,
    ref: Transformer,
    data: PreferenceBatch,
    config: DPOConfig,
    run: Run | None = None,
    *,
    row: PairLoss = DPO,
    ranks: Ranks = ALONE,
) -> Transformer:
    """Raise the log-probability of chosen over rejected responses, relative to the reference. `ranks` are the processes that
    share the work: see minirl.ranks."""
    run = run or Run()
    # the reference never changes: its log-probabilities are computed once
    ref_chosen, ref_rejected = in_parts(
        lambda part: pair_logprobs(ref, part, row.pool), data, config.micro_batch or 128, ranks
    )
    optimizer = adamw(policy)
    done = run.track(policy=policy, optimizer=optimizer)
    for step in run.steps(done, config.steps):
        rows = nth_batch(step, len(data), config.pairs, seed=config.seed)
        optimizer.zero_grad()
        total, means = 0.0, {}
        for micro, part in pair_micro_batches(data, rows, config.micro_batch, ranks=ranks):
            chosen, rejected = pair_logprobs(policy, part, row.pool)
            loss, stats = row.loss(chosen, rejected, ref_chosen[micro], ref_rejected[micro], config)
            loss = loss * (len(micro) / len(rows))  # every loss here is a mean over pairs
            loss.backward()
            total, means = total + loss.detach(), added(means, stats, len(micro) / len(rows))
        total, means = ranks.total({"loss": total})["loss"], ranks.total(means)
        lr = warmed_up(step, config.lr, config.warmup)
        update_stats = follow_gradient(optimizer, total, step=step, lr=lr, max_grad_norm=config.max_grad_norm)
        run.record(step, means | update_stats | {"loss": total})
    return policy


def pair_logprobs(
    model: Transformer, pairs: PreferenceBatch, pool: Callable[[Tensor, Tensor], Tensor] = sequence_logprobs
) -> tuple[Tensor, Tensor]:
    """Pooled log-probabilities (N,) of the chosen and of the rejected responses, in one pass over the model."""
    tokens = torch.cat([pairs.chosen, pairs.rejected])
    mask = torch.cat([pairs.chosen_mask, pairs.rejected_mask])
    length = mask.shape[1]
    both = torch.arange(len(pairs), device=tokens.device).repeat(2)  # a pair has one prompt
    logprobs, _ = response_logprobs(model, tokens, pairs.starts.repeat(2), length, prompt_index=both)
    return pool(logprobs, mask).chunk(2)
