"""What the fields of the loops' configs may be. A name means the same in every config, so that one table does for all."""

import math
from dataclasses import fields

from minirl.types import check_knob, check_size

WHOLE = {  # the least each may be
    "steps": 0,
    "total_steps": 1,
    "batch": 1,
    "minibatch": 1,
    "micro_batch": 1,
    "epochs": 1,
    "pairs": 1,
    "prompts": 1,
    "group_size": 1,
    "max_new_tokens": 1,
    "environments": 1,
    "length": 1,
    "warmup": 0,
    "resample": 0,
    "kl_horizon": 1,
}
MOST_SEED = 2**40  # a batch's own seed is a million times larger, and a generator takes 64 bits
POSITIVE = ("beta", "temperature", "clip_eps", "clip_eps_high", "value_clip_eps", "kl_target")
NOT_NEGATIVE = ("lr", "weight_decay", "kl_coef", "max_kl", "missing_eos_penalty", "value_coef", "gamma", "lam")
NOT_NEGATIVE += ("correction", "label_smoothing", "desirable_weight", "undesirable_weight")
FINITE = ("entropy_coef", "margin")


def check_config(config) -> None:
    """ValueError, naming the field, for a config that no loop could follow. numpy's numbers become Python's, for JSON."""
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        if value is None and field.default is None:
            continue
        if name in WHOLE:
            check_size(name, value, WHOLE[name])
        elif name == "seed":
            check_size(name, value, -MOST_SEED)
            check_knob(name, value, -MOST_SEED, MOST_SEED)
        elif name == "max_grad_norm":
            if value != math.inf:
                check_knob(name, value, 0, open_low=True)
        elif name in (*POSITIVE, *NOT_NEGATIVE, *FINITE):
            most = 1 if name == "clip_eps" else 0.5 if name == "label_smoothing" else math.inf
            least = -math.inf if name in FINITE else int(name == "correction")
            check_knob(name, value, least, most, open_low=name in POSITIVE, open_high=name == "label_smoothing")
        else:
            continue
        if type(value) not in (int, float):
            object.__setattr__(config, name, int(value) if name in WHOLE or name == "seed" else float(value))
