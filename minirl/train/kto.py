"""KTO (Ethayarajh et al. 2024): each response is judged good or bad on its own, and no pairs are needed."""

from dataclasses import dataclass

import torch

from minirl.logprobs import sequence_logprobs, token_logprobs
from minirl.losses.preference import kto_loss
from minirl.model import Transformer
from minirl.rollout import response_logits
from minirl.run import Run
from minirl.train.knobs import check_config
from minirl.train.optimizer import adamw, update, warmed_up
from minirl.train.reward_model import nth_batch
from minirl.types import Bool, Int, PreferenceBatch, Tensor


@dataclass(frozen=True)
class KTOConfig:
    steps: int = 120
    batch: int = 128  # responses a step
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    lr: float = 3e-4
    warmup: int = 10
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_config(self)


def train(
    policy: Transformer, ref: Transformer, data: PreferenceBatch, config: KTOConfig, run: Run | None = None
) -> Transformer:
    """Push desirable responses above, and undesirable ones below, the point of reference z.

    The chosen halves of the pairs count as desirable, the rejected ones as not; that they were pairs is forgotten.
    """
    run = run or Run()
    tokens = torch.cat([data.chosen, data.rejected])
    mask = torch.cat([data.chosen_mask, data.rejected_mask])
    starts = data.starts.repeat(2)
    desirable = torch.arange(len(tokens), device=tokens.device) < len(data)
    optimizer = adamw(policy)
    done = run.track(policy=policy, optimizer=optimizer)
    for step in run.steps(done, config.steps):
        rows = nth_batch(step, len(tokens), config.batch, seed=config.seed)
        logprobs = summed_logprobs(policy, tokens[rows], mask[rows], starts[rows])
        with torch.no_grad():
            ref_logprobs = summed_logprobs(ref, tokens[rows], mask[rows], starts[rows])
            # z, the KL, is estimated on answers to other prompts: each prompt gets its neighbour's response
            strangers = mismatched(tokens[rows], mask.shape[1])
            strange_mask = mask[rows].roll(1, 0)
            kl = (
                summed_logprobs(policy, strangers, strange_mask, starts[rows])
                - summed_logprobs(ref, strangers, strange_mask, starts[rows])
            ).mean()
        loss, stats = kto_loss(
            logprobs,
            ref_logprobs,
            desirable[rows],
            kl,
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
        )
        lr = warmed_up(step, config.lr, config.warmup)
        stats |= update(optimizer, loss, step=step, lr=lr, max_grad_norm=config.max_grad_norm)
        run.record(step, stats)
    return policy


def summed_logprobs(
    model: Transformer, tokens: Int[Tensor, "B S"], mask: Bool[Tensor, "B T"], starts: Int[Tensor, " B"]
) -> Tensor:
    length = mask.shape[1]
    logits = response_logits(model, tokens, starts, length)
    return sequence_logprobs(token_logprobs(logits, tokens[:, -length:]), mask)


def mismatched(tokens: Int[Tensor, "B S"], length: int) -> Int[Tensor, "B S"]:
    """Each row's prompt with the response of the row before it."""
    return torch.cat([tokens[:, :-length], tokens[:, -length:].roll(1, 0)], 1)
