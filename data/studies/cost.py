"""The cost model held against this machine: CPU seconds of a decoding step, of reading the answers again for their
log-probabilities, and of an update, for tiny transformers of several widths and batches. The model's constants are fitted
to the rows called "fit"; the rows called "held out" have other widths and batches, larger ones among them. Times are the
least of several tries, since other programs only make a try longer. Two minutes on one CPU core; another run gives
other milliseconds, and about the same ratios.

python data/studies/cost.py
"""

import time

import torch
from store import write

from minirl import cost
from minirl.generate import generate
from minirl.model import Transformer, TransformerConfig
from minirl.rollout import response_logprobs
from minirl.train.optimizer import adamw, update

LAYERS, HEAD, VOCAB, PROMPT, NEW, TRIES = 2, 16, 256, 8, 32, 9
SIZES = {  # widths and batches
    "fit": ((32, 64, 256), (4, 16, 64)),
    "held out": ((48, 128, 384), (8, 32, 128)),
}
SETTINGS = [(LAYERS, HEAD, VOCAB, PROMPT, NEW, TRIES), SIZES]


def shape_of(width: int) -> cost.Model:
    return cost.Model(width, LAYERS, width // HEAD, width // HEAD, HEAD, 3 * width, VOCAB)


def least(work, tries: int = TRIES) -> float:
    """CPU milliseconds of the quickest try."""
    times = []
    for _ in range(tries):
        before = time.process_time()
        work()
        times.append(time.process_time() - before)
    return 1e3 * min(times)


def rows_of(role: str, width: int, batch: int, tries: int = TRIES) -> list[dict]:
    torch.manual_seed(0)
    shape = shape_of(width)
    model = Transformer(TransformerConfig(VOCAB, width, LAYERS, width // HEAD, ffn=3 * width, max_length=PROMPT + NEW))
    optimizer, dice = adamw(model), torch.Generator().manual_seed(0)
    prompts = torch.randint(VOCAB, (batch, PROMPT), generator=dice).tolist()
    rollout = generate(model, prompts, max_new_tokens=NEW, generator=dice)

    def logprobs():
        return response_logprobs(model, rollout.tokens, rollout.starts, NEW)[0]

    phases = {  # what runs; tokens that pass through the layers; keys a query meets on average
        "decode": (
            lambda: generate(model, prompts, max_new_tokens=NEW, generator=dice),
            batch * (PROMPT + NEW - 1),
            (PROMPT + NEW) / 2,
        ),
        "log-probs": (torch.no_grad()(logprobs), batch * (PROMPT + NEW), PROMPT + NEW),
        "update": (
            lambda: update(optimizer, -logprobs().mean(), step=1, lr=1e-5, max_grad_norm=1.0),
            batch * (PROMPT + NEW),
            PROMPT + NEW,
        ),
    }
    rows = []
    for phase, (work, tokens, context) in phases.items():
        flops = cost.forward_flops(shape, tokens, context) * (3 if phase == "update" else 1)
        rows.append(
            {
                "phase": phase,
                "role": role,
                "width": width,
                "batch": batch,
                "starts": NEW if phase == "decode" else 1,  # how often the layers begin anew
                "mflop": flops / 1e6,
                "thousand_numbers": cost.activation_bytes(shape, tokens, width=1) / 1e3,  # written between the products
                "ms": least(work, tries),
            }
        )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = []
    for role, (widths, batches) in SIZES.items():
        for width in widths:
            for batch in batches:
                rows += rows_of(role, width, batch)
                print(rows[-3:], flush=True)
    write("cost", rows, SETTINGS)
