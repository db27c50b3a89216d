"""Two claims about the transformer on seeds 11, 12, 13, on which nothing was chosen: cached and uncached logits agree, and
no model beats the corpus's entropy unless its mask shows it the target. About a minute and a half on one CPU core.

python data/studies/transformer.py
"""

from dataclasses import asdict

import torch
from standing_in import standing_in
from store import write

from minirl import model as model_module
from minirl.logprobs import token_logprobs
from minirl.model import KVCache, Transformer
from minirl.rollout import encode_examples, response_logits, responses_text, roll_out
from minirl.run import Run
from minirl.tasks import stories
from minirl.train import sft
from minirl.train.settings import tiny_transformer

CONFIG = sft.SFTConfig(steps=150, batch=64, lr=4e-3)
SEEDS, HELD_OUT, SAMPLED = (11, 12, 13), 2000, 200
SETTINGS = [asdict(CONFIG), SEEDS, HELD_OUT, SAMPLED]


def sees_next(past: int, length: int, starts, device) -> torch.Tensor:
    """The planted mistake: a query may look one position too far, at the token it has to predict."""
    keys = torch.arange(past + length, device=device)
    return keys <= keys[past:, None] + 1


@torch.no_grad()
def row(seed: int, mask: str) -> dict:
    """One model, trained and measured under one mask. The held-out stories are the same for both."""
    tokenizer = stories.tokenizer()
    torch.manual_seed(seed)
    model, run = Transformer(tiny_transformer(tokenizer.vocab_size)), Run(progress=False)
    with torch.enable_grad():
        sft.train(model, tokenizer, stories.stories, sft.SFTConfig(**(asdict(CONFIG) | {"seed": seed})), run)

    dice = torch.Generator().manual_seed(1000 + seed)
    prompts, responses = stories.stories(HELD_OUT, dice)
    tokens, counted, starts = encode_examples(tokenizer, prompts, responses)
    length = counted.shape[1]
    logprobs = token_logprobs(response_logits(model, tokens, starts, length), tokens[:, -length:])
    author = -sum(map(stories.author_logprob, prompts, responses)) / int(counted.sum())

    openings, told = roll_out(model, tokenizer, stories.prompts(SAMPLED, dice), max_new_tokens=40, generator=dice)
    parsed = [stories.parses(f"{x} {y}") for x, y in zip(openings, responses_text(told, tokenizer), strict=True)]
    return {
        "seed": seed,
        "mask": mask,
        "train_loss": sum(record["loss"] for record in run.records[-20:]) / 20,
        "held_out_loss": -float(logprobs[counted].mean()),
        "author_loss": author,
        "parses": sum(parsed) / SAMPLED,
        "cache_difference": cache_difference(model, tokens[:16]) if mask == "causal" else None,
    }


def cache_difference(model: Transformer, tokens: torch.Tensor) -> float:
    """The largest difference between logits read in one go and one token at a time."""
    cache = KVCache(model.config, *tokens.shape)
    steps = [model(tokens[:, t : t + 1], cache=cache) for t in range(tokens.shape[1])]
    return float((torch.cat(steps, 1) - model(tokens)).abs().max())


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = []
    for seed in SEEDS:
        rows.append(row(seed, "causal"))
        with standing_in(model_module, {"attention_mask": sees_next}):
            rows.append(row(seed, "one too far"))
    write("transformer", rows, SETTINGS)
