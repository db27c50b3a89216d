"""Worlds to learn in. A task is a module, text in and text out:

    tokenizer() -> Tokenizer                       what its texts are made of
    prompts(n, generator) -> list[str]             n questions
    score(prompts, responses) -> Tensor (B,)       how good each answer is, float32
    MAX_NEW_TOKENS                                 room for an answer, end token included

and, where the loops that learn from texts shall run on it,

    pretraining_examples(n, generator) -> (prompts, responses)
    demonstrations(n, generator) -> (prompts, responses)      for SFT

All chance comes from the generator passed in.
"""

from pathlib import Path

_package = Path(__file__).resolve().parents[1]

# Data files lie inside an installed package, and beside the package in a checkout.
DATA = _package / "data" if (_package / "data").is_dir() else _package.parent / "data"
