"""A reward model: a score for a response, learned from which of two responses a labeller preferred."""

from dataclasses import dataclass

import torch

from minirl.losses.preference import bradley_terry_loss
from minirl.model import RewardModel
from minirl.run import Run
from minirl.train.knobs import check_config
from minirl.train.optimizer import adamw, update, warmed_up_then_cosine
from minirl.types import PreferenceBatch, Stats, Tensor


@dataclass(frozen=True)
class RewardModelConfig:
    steps: int = 160
    pairs: int = 64  # a step
    lr: float = 1e-3
    warmup: int = 10
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    margin: float = 0.0
    seed: int = 0

    def __post_init__(self):
        check_config(self)


def train(model: RewardModel, data: PreferenceBatch, config: RewardModelConfig, run: Run | None = None) -> RewardModel:
    """Minimise the Bradley-Terry loss over the pairs, in an order that is new in every epoch."""
    run = run or Run()
    optimizer = adamw(model, weight_decay=config.weight_decay)
    done = run.track(model=model, optimizer=optimizer)
    for step in run.steps(done, config.steps):
        batch = data[nth_batch(step, len(data), config.pairs, seed=config.seed)]
        chosen, rejected = pair_scores(model, batch)
        loss, stats = bradley_terry_loss(chosen, rejected, margin=config.margin)
        lr = warmed_up_then_cosine(step, config.lr, config.warmup, config.steps)
        stats |= update(optimizer, loss, step=step, lr=lr, max_grad_norm=config.max_grad_norm)
        run.record(step, stats)
    return model


def nth_batch(step: int, n: int, size: int, *, seed: int) -> Tensor:
    """Rows of the step-th batch (from 1): epochs of a fresh permutation each, computed from the step alone, so that the
    position in the data needs no saving. A last batch that would be short is filled from the next epoch."""
    rows = []
    for position in range((step - 1) * size, step * size):
        epoch, place = divmod(position, n)
        if not rows or place == 0:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(n, generator=generator)
        rows.append(order[place])
    return torch.stack(rows)


def pair_scores(model: RewardModel, pairs: PreferenceBatch) -> tuple[Tensor, Tensor]:
    """Scores of both responses of each pair, in one pass over the model."""
    tokens = torch.cat([pairs.chosen, pairs.rejected])
    mask = torch.cat([pairs.chosen_mask, pairs.rejected_mask])
    return model(tokens, mask, starts=pairs.starts.repeat(2)).chunk(2)


@torch.no_grad()
def evaluate(model: RewardModel, pairs: PreferenceBatch) -> Stats:
    """Loss, accuracy against the labels, and mean margin on held-out pairs."""
    scores = [pair_scores(model, pairs[i : i + 128]) for i in range(0, len(pairs), 128)]
    chosen, rejected = (torch.cat(side) for side in zip(*scores, strict=True))
    return bradley_terry_loss(chosen, rejected)[1]
