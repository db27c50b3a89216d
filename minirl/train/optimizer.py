"""The step every loop takes: a learning rate computed from the step, a finite loss, a clipped gradient, AdamW."""

import math

import torch
from torch import nn

from minirl.types import Stats, Tensor


class NonFiniteError(ArithmeticError):
    """A loss or gradient is NaN or infinite. The run stops before the weights are touched."""


def adamw(model: nn.Module, *, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW over everything that asks for a gradient (Loshchilov & Hutter 2019), in PyTorch's fused form."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, weight_decay=weight_decay, betas=(0.9, 0.95), fused=True)


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
    optimizer: torch.optim.Optimizer, loss: Tensor, *, step: int, lr: float, max_grad_norm: float
) -> Stats:
    """One optimiser step on the gradients that are there, of one backward pass or of several. `loss` is only looked at."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    # Asked once, after both are there: this is the one point of a step where an accelerator is waited for.
    if not torch.isfinite(loss + grad_norm):
        what = "gradient" if torch.isfinite(loss) else "loss"
        value = grad_norm.item() if what == "gradient" else loss.item()
        raise NonFiniteError(
            f"step {step}: the {what} is {value}. Likely causes: a learning rate that is too high (lr = {lr:g}), a score or "
            f"logit that was already not finite, log-ratios of a policy far from the one that sampled. Nothing was updated; "
            f"the last checkpoint is good."
        )
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return {"grad_norm": grad_norm.detach(), "lr": torch.tensor(lr)}
