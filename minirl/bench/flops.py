"""The same work counted and not timed: operations of the matrix products in one unit, and the least there can be.

A count is the same on every machine, so a test can hold it: a shortcut that is lost (prompts read once for a group, the last
layer only where it is asked for) shows at once.
"""

from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from minirl.bench.ours import WORKLOADS
from minirl.bench.workloads import GROUP, NEW, PAIR_LENGTH, PAIR_PROMPT, PAIRS, PROMPT, ROWS, SIZES
from minirl.model import TransformerConfig

PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm)  # attention's own are batched: bmm, or no product at all


class Enough(Exception):
    """Ends a loop that would go on."""


def counted(name: str, folder: Path, spec: dict) -> int:
    """Operations in the matrix products of one unit of our side, the second one: the first prepares things."""
    _, units = WORKLOADS[name](folder, spec)
    counter, counting = FlopCounterMode(display=False), ExitStack()

    def pause() -> None:
        if counter.get_total_flops() > 0:
            raise Enough
        counting.enter_context(counter)

    with counting, suppress(Enough):
        units(pause)
    return sum(n for operation, n in counter.get_flop_counts()["Global"].items() if operation in PRODUCTS)


def least(name: str, size: str) -> int:
    """The floor: every weight once at every position that has to be read, and twice more for a gradient. A prompt is read
    once for all that continue it; the last layer, keys and values apart, runs only where something is asked for; the first
    epoch of PPO gives the old log-probabilities."""
    config, groups = SIZES[size], ROWS // GROUP
    continued, answers = ROWS * (NEW - 1), 2 * PAIRS * (PAIR_LENGTH - PAIR_PROMPT - 1)
    sampled = forward(config, ROWS * PROMPT + continued, ROWS + continued)
    grouped = forward(config, groups * PROMPT + continued, groups + continued)
    pairs = forward(config, PAIRS * PAIR_PROMPT + answers, PAIRS + answers)
    judged = forward(config, ROWS * (PROMPT + NEW), ROWS, head=False)
    return {
        "generate": sampled,
        "generate_groups": grouped,
        "grpo": 4 * grouped,
        "dpo": 4 * pairs,
        "dpo_precomputed": 3 * pairs,
        "reward_model": 3 * forward(config, 2 * PAIRS * PAIR_LENGTH, 2 * PAIRS, head=False),
        "ppo": (1 + 1 + 4 * 3) * sampled + judged,
    }[name]


def forward(config: TransformerConfig, positions: int, asked: int, *, head: bool = True) -> int:
    """Operations of a forward pass over `positions`, of which `asked` are read from the last layer."""
    D, E = config.width, config.head_dim
    keys_and_values = 2 * D * config.kv_heads * E
    rest = 2 * D * config.heads * E + (3 if config.activation == "swiglu" else 2) * D * config.ffn
    body = (config.layers - 1) * (keys_and_values + rest) * positions
    last = keys_and_values * positions + rest * asked
    return 2 * (body + last + (D * config.vocab_size * asked if head else 0))
