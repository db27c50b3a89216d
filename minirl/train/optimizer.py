"""The step every loop takes: a learning rate computed from the step, a finite loss, a clipped gradient, AdamW."""

import math

import torch
from torch import nn

from minirl.guards import CAUSES, NonFiniteError, bad_gradients, check_ceiling, first_bad
from minirl.types import Stats, Tensor


def adamw(model: nn.Module, *, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW over everything that asks for a gradient (Loshchilov & Hutter 2019), in PyTorch's fused form."""
    names, parameters = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
    optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay, betas=(0.9, 0.95), fused=True)
    optimizer.param_groups[0]["param_names"] = list(names)  # where PyTorch 2.6 and later keep them
    return optimizer


def warmed_up(step: int, lr: float, warmup: int) -> float:
    """Linear from lr / warmup at step 1 to lr at step `warmup`, then constant. A function of the step: nothing to save."""
    return lr * min(1.0, step / max(warmup, 1))


def warmed_up_then_cosine(step: int, lr: float, warmup: int, steps: int) -> float:
    """The same warm-up, then half a cosine down to a tenth of lr at the last step."""
    if step <= warmup:
        return warmed_up(step, lr, warmup)
    progress = (step - warmup) / max(steps - warmup, 1)
    return lr * (0.55 + 0.45 * math.cos(math.pi * progress))


def update(optimizer: torch.optim.Optimizer, loss: Tensor, *, step: int, lr: float, max_grad_norm: float) -> Stats:
    """One optimiser step on `loss`. NonFiniteError, before anything changes, if the loss or the gradient is not finite."""
    optimizer.zero_grad()
    loss.backward()
    return follow_gradient(optimizer, loss.detach(), step=step, lr=lr, max_grad_norm=max_grad_norm)


def follow_gradient(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    *,
    step: int,
    lr: float,
    max_grad_norm: float,
    parts: Stats | None = None,
) -> Stats:
    """One optimiser step on the gradients that are there, of one backward pass or of several. `loss` is only looked at, and
    `parts`, what it is the sum of, only named if it is not finite.

    NonFiniteError, before any weight or moment changes, names what was not finite first: the part of the loss, or the
    parameter and the place in its gradient.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # Asked here, after all is computed: this is the one point of a step where an accelerator is waited for.
    if not torch.isfinite(loss):
        name, value = next(
            ((name, x) for name, x in (parts or {}).items() if not x.isfinite().all()), ("loss", loss.detach())
        )
        raise NonFiniteError(f"step {step}: the {name} is {first_bad(value)}. {because(lr)}")
    try:
        grad_norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm, error_if_nonfinite=True)
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
        raise NonFiniteError(f"step {step}: {bad_gradients(named(optimizer))}. {because(lr)}") from None
    if hasattr(grad_norm, "full_tensor"):  # of a sharded model: every rank knows its share
        grad_norm = grad_norm.full_tensor()
    check_ceiling(step, grad_norm.item())
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return {"grad_norm": grad_norm.detach(), "lr": torch.tensor(lr)}


def because(lr: float) -> str:
    return f"{CAUSES.format(lr=f' (lr = {lr:g})')}. Nothing was updated."


def named(optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    """The parameters with their names in the model, or their numbers where nobody wrote them down."""
    found = []
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or [f"parameter {i} of group {number}" for i in range(len(group["params"]))]
        found += zip(names, group["params"], strict=True)
    return found
