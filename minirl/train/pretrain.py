"""Pretraining: predict every next token of a text, prompt and response alike."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from minirl.logprobs import predicting, token_logprobs
from minirl.masking import masked_mean
from minirl.model import Transformer
from minirl.rollout import encode_examples
from minirl.run import Run
from minirl.tokenizer import Tokenizer
from minirl.train.knobs import check_config
from minirl.train.optimizer import adamw, update, warmed_up_then_cosine

Examples = Callable[[int, torch.Generator], tuple[list[str], list[str]]]  # n, generator -> prompts, responses


@dataclass(frozen=True)
class PretrainConfig:
    steps: int = 300
    batch: int = 128
    lr: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_config(self)


def train(
    model: Transformer, tokenizer: Tokenizer, examples: Examples, config: PretrainConfig, run: Run | None = None
) -> Transformer:
    """Minimise -log p(text) per token over fresh examples. `loss` in the records is in nats a token."""
    run = run or Run()
    optimizer = adamw(model, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(config.seed)
    done = run.track(model=model, optimizer=optimizer, generator=generator)
    for step in run.steps(done, config.steps):
        prompts, responses = examples(config.batch, generator)
        tokens, mask, starts = encode_examples(tokenizer, prompts, responses, device=model.embed.weight.device)
        length = tokens.shape[1] - 1  # every token after the first has a position that predicts it
        logits = model.head(model.hidden(tokens, starts=starts, at=predicting(length)))
        is_text = torch.ones_like(tokens, dtype=torch.bool)
        is_text[:, -mask.shape[1] :] = mask
        is_text &= torch.arange(tokens.shape[1], device=tokens.device) > starts.unsqueeze(1)
        loss = -masked_mean(token_logprobs(logits, tokens[:, 1:]), is_text[:, 1:])
        lr = warmed_up_then_cosine(step, config.lr, config.warmup, config.steps)
        stats = update(optimizer, loss, step=step, lr=lr, max_grad_norm=config.max_grad_norm)
        run.record(step, {"loss": loss.detach()} | stats)
    return model
