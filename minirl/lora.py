"""LoRA (Hu et al. 2021): a frozen weight, and a thin correction that learns.

    y = x W^T + (alpha / rank) (x A^T) B^T        W (out, in) frozen, A (rank, in), B (out, rank)

B starts at 0, so that the adapted model is the base until the first update. A matrix of a 7B model is 4096 x 4096 = 16.8M
numbers; with rank 16 its correction is 131,072, and only those have gradients and Adam's two moments.

    add_lora(model, rank=16)                 # in place; everything else is frozen
    ref = base_of(model)                     # the reference model of PPO or GRPO: the same tensors, not a second copy
    merged(model)                            # a plain Transformer with the corrections folded in, to save or to sample from
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from minirl.model import Transformer
from minirl.types import Float, Tensor, check_knob, check_size

ATTENTION = ("query", "key", "value", "out")
EVERY_LINEAR = (*ATTENTION, "gate", "up", "down")


class LoRALinear(nn.Linear):
    """A linear layer with a correction. `weight` and `bias` are the base's own tensors, frozen; names in a state dict stay."""

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float):
        if isinstance(base, LoRALinear):
            raise ValueError("model: has LoRA already; fold it in with `merged`, or start from the base")
        most = min(base.in_features, base.out_features)
        if not isinstance(rank, int) or not 1 <= rank <= most:
            raise ValueError(
                f"rank: wanted a whole number in [1, {most}] for {base.out_features} x {base.in_features}, got {rank}"
            )
        check_knob("alpha", alpha, 0, open_low=True)
        nn.Module.__init__(self)  # and not nn.Linear's, which would draw a new weight
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.rank, self.alpha = rank, alpha
        # At least float32: an update of a thousandth of a bfloat16 number would be rounded away.
        like = {"device": base.weight.device, "dtype": torch.promote_types(base.weight.dtype, torch.float32)}
        a = torch.empty(rank, base.in_features, **like)
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))  # as the paper's code and PEFT: uniform within 1 / sqrt(in)
        self.lora_a = nn.Parameter(a)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank, **like))

    @property
    def correction(self) -> Float[Tensor, "O I"]:
        """(alpha / rank) B A, what is added to the weight. Its rank is at most `rank`."""
        return self.alpha / self.rank * (self.lora_b @ self.lora_a)

    def forward(self, x: Tensor) -> Tensor:
        thin = nn.functional.linear(nn.functional.linear(x.to(self.lora_a.dtype), self.lora_a), self.lora_b)
        return super().forward(x) + (self.alpha / self.rank * thin).to(x.dtype)


def add_lora(
    model: Transformer, *, rank: int, alpha: float | None = None, targets: Sequence[str] = EVERY_LINEAR
) -> Transformer:
    """Puts a correction beside each linear layer of the blocks that `targets` names, and freezes everything else.

    alpha None is 2 * rank, the usual choice. A fixed alpha keeps the size of a step where it is when the rank changes:
    Adam moves each number of B by lr, and `rank` of them add up. Changes `model` and returns it. ValueError: a target
    that no block has, or LoRA there already.
    """
    check_size("rank", rank, 0)  # the layers say how large it may be
    alpha = 2.0 * rank if alpha is None else alpha
    found = {name.rpartition(".")[2] for name, m in model.blocks.named_modules() if isinstance(m, nn.Linear)}
    if not targets or not set(targets) <= set(EVERY_LINEAR):
        raise ValueError(f"targets: wanted some of {', '.join(EVERY_LINEAR)}, got {tuple(targets)}")
    if not set(targets) & found:
        raise ValueError(f"targets: wanted some of {', '.join(sorted(found))}, got {tuple(targets)}")
    if any(True for _ in adapted(model)):
        raise ValueError("model: has LoRA already; fold it in with `merged`, or start from the base")
    chosen = [
        (parent, name, child)
        for parent in model.blocks.modules()
        for name, child in parent.named_children()
        if name in targets and isinstance(child, nn.Linear)
    ]
    for _, _, child in chosen:  # before anything is changed: a rank that does not fit leaves the model as it was
        LoRALinear(child, rank=rank, alpha=alpha)
    model.requires_grad_(False)
    for parent, name, child in chosen:
        setattr(parent, name, LoRALinear(child, rank=rank, alpha=alpha))
    return model


def adapted(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """(name, layer) of every layer with a correction."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, LoRALinear))


def base_of(model: Transformer) -> Transformer:
    """The model without its corrections, frozen. It shares every tensor with `model`: no second copy is held."""
    with torch.device("meta"):
        base = Transformer(model.config)
    tensors = {name: p for name, p in model.named_parameters() if not is_correction(name)}
    return _filled(base, {name: p.detach() for name, p in tensors.items()}, model).requires_grad_(False)


def merged(model: Transformer) -> Transformer:
    """A plain Transformer whose weights are W + (alpha / rank) B A, computed in float32 or better and rounded once.

    `model` keeps its base and its corrections as they are, so that there is nothing to undo: unmerging is exact.
    """
    with torch.device("meta"):
        plain = Transformer(model.config)
    tensors = {name: p.detach() for name, p in model.named_parameters() if not is_correction(name)}
    for name, layer in adapted(model):
        wide = torch.promote_types(layer.weight.dtype, torch.float32)
        added = layer.alpha / layer.rank * (layer.lora_b.detach().to(wide) @ layer.lora_a.detach().to(wide))
        tensors[f"{name}.weight"] = (layer.weight.detach().to(wide) + added).to(layer.weight.dtype)
    changed = {f"{name}.weight" for name, _ in adapted(model)}
    return _filled(plain, {name: x if name in changed else x.clone() for name, x in tensors.items()}, model)


def is_correction(name: str) -> bool:
    return name.endswith((".lora_a", ".lora_b"))


def _filled(empty: Transformer, tensors: dict[str, Tensor], like: Transformer) -> Transformer:
    empty.ops = like.ops
    empty.load_state_dict(tensors, strict=False, assign=True)
    if empty.config.tied:
        empty.head.weight = empty.embed.weight
    if empty.config.positions == "rope":
        empty.rope = like.rope
    return empty
