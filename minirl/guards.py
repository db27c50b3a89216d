"""Numbers that are not numbers any more end a run: which tensor, where in it, what to go back to, and what to do.

Nothing is skipped and nothing is replaced by zero: a run that goes on after a NaN has learned from something else than its
data, and nobody would know.
"""

import json
import math
from pathlib import Path

from torch import nn

from minirl.disk import write_json
from minirl.types import Tensor

GRADIENT_CEILING = 1e8  # healthy runs stay below 1e3, whatever their reducer; clipping leaves nothing of what is beyond
KL_CEILING = 20.0  # nats a token: there every log-ratio is clamped, so that no gradient leads back
SETBACKS = 3  # how often --on-nonfinite back goes back

CAUSES = (
    "Likely causes: a learning rate that is too high{lr}, a score or logit that was not finite already, log-ratios of a "
    "policy far from the one that sampled, half precision in a loss"
)


class NonFiniteError(ArithmeticError):
    """A loss, a gradient or a statistic is NaN, infinite or beyond its ceiling. The run stops; nothing is hidden."""

    step = 0  # of a run, where one was running


def first_bad(x: Tensor) -> str:
    """What the first entry that is not finite holds, and where: "nan at (3, 17), 2 of 640"."""
    bad = ~x.detach().isfinite()
    if not x.dim():
        return f"{x.item()}"
    where = tuple(bad.nonzero()[0].tolist())
    return f"{x[where].item()} at {where[0] if len(where) == 1 else where}, {int(bad.sum())} of {x.numel()}"


def bad_gradients(named: list[tuple[str, Tensor]]) -> str:
    """The first parameter whose gradient is not finite, in the model's order, and how many there are."""
    bad = [(name, p.grad) for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
    if not bad:  # each is finite; the sum of their squares is not
        return "the norm of the gradient is inf"
    count = f", the first of {len(bad)} tensors that are not finite" if len(bad) > 1 else ""
    return f"the gradient of {bad[0][0]} is {first_bad(bad[0][1])}{count}"


def check_weights(model: nn.Module, where: str) -> None:
    """NonFiniteError, naming the parameter, if one is not finite."""
    for name, p in model.named_parameters():
        p = p.to_local() if hasattr(p, "to_local") else p  # of a sharded model: this rank's share
        if not p.isfinite().all():
            raise NonFiniteError(f"{where} the weight {name} is {first_bad(p)}. {CAUSES.format(lr='')}.")


def check_record(step: int, record: dict[str, float]) -> None:
    """NonFiniteError if a step's statistics are not finite, or beyond a ceiling, so that they are worth no checkpoint."""
    bad = [name for name, value in record.items() if not math.isfinite(value)]
    if bad:
        others = f" (and {', '.join(bad[1:])})" if len(bad) > 1 else ""
        raise NonFiniteError(f"step {step}: {bad[0]} is {record[bad[0]]}{others}. {CAUSES.format(lr='')}.")
    a_token = record.get("kl", 0.0) / max(record.get("length_mean", 1.0), 1.0)
    if a_token > KL_CEILING:
        raise NonFiniteError(
            f"step {step}: kl is {record['kl']:.4g}, {a_token:.3g} nats a token; above {KL_CEILING:g} every log-ratio is "
            f"clamped and nothing pulls the policy back. Likely causes: a learning rate that is too high, kl_coef too low or "
            f"of the wrong sign, a reference that is not the model training began from."
        )
    check_ceiling(step, record.get("grad_norm", 0.0))


def check_ceiling(step: int, grad_norm: float) -> None:
    if grad_norm > GRADIENT_CEILING:
        raise NonFiniteError(
            f"step {step}: grad_norm is {grad_norm:.4g}, above {GRADIENT_CEILING:g}, where float32 keeps no digit of a "
            f"clipped gradient's smaller parts. {CAUSES.format(lr='')}."
        )


# --on-nonfinite back: each time the run goes back is written down before it does, so that a kill in between changes nothing.


def setbacks(out: Path) -> list[dict]:
    """[{"step": where it broke, "back_to": a checkpoint's step or 0, "why": the message}, ...] of OUT/setbacks.json."""
    path = Path(out) / "setbacks.json"
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [{"step": int(s["step"]), "back_to": int(s["back_to"]), "why": str(s["why"])} for s in found]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a list of setbacks ({error}). The learning rate depends on it") from None


def write_setbacks(out: Path, found: list[dict]) -> None:
    write_json(Path(out) / "setbacks.json", found)
