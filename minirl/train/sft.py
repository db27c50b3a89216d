"""Supervised fine-tuning: predict the response of a demonstration, given its prompt. The prompt itself is not trained on."""

from dataclasses import dataclass

import torch

from minirl.logprobs import token_logprobs
from minirl.losses.policy import weighted_logprob_loss
from minirl.model import Transformer
from minirl.rollout import encode_examples, response_logits
from minirl.run import Run
from minirl.tokenizer import Tokenizer
from minirl.train.knobs import check_config
from minirl.train.optimizer import adamw, update, warmed_up_then_cosine
from minirl.train.pretrain import Examples


@dataclass(frozen=True)
class SFTConfig:
    steps: int = 60
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 10
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_config(self)


def train(
    model: Transformer, tokenizer: Tokenizer, examples: Examples, config: SFTConfig, run: Run | None = None
) -> Transformer:
    """Minimise -log p(response | prompt) per response token, the end token included."""
    run = run or Run()
    optimizer = adamw(model, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(config.seed)
    done = run.track(model=model, optimizer=optimizer, generator=generator)
    for step in run.steps(done, config.steps):
        prompts, responses = examples(config.batch, generator)
        tokens, mask, starts = encode_examples(tokenizer, prompts, responses, device=model.embed.weight.device)
        length = mask.shape[1]
        logprobs = token_logprobs(response_logits(model, tokens, starts, length), tokens[:, -length:])
        loss, stats = weighted_logprob_loss(logprobs, torch.ones(len(mask), device=mask.device), mask)
        lr = warmed_up_then_cosine(step, config.lr, config.warmup, config.steps)
        stats |= update(optimizer, loss, step=step, lr=lr, max_grad_norm=config.max_grad_norm)
        run.record(step, stats)
    return model
