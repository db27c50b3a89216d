"""The words of the trade: axis letters, the two kinds of batch, the names of statistics, and the checks every room uses.

Axis letters, used in every annotation of the library:

    B  rows of a batch            T  response positions         S  prompt and response positions together
    N  preference pairs           V  vocabulary                 D  width of the model
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real

import torch
from torch import Tensor

try:
    from jaxtyping import Bool, Float, Int
except ImportError:  # Colab has no jaxtyping: the annotations then read the same and check nothing

    class _Anything:
        def __class_getitem__(cls, item):
            return item[0]

    Bool = Float = Int = _Anything

Stats = dict[str, Tensor]
Reducer = Callable[[Tensor, Tensor], Tensor]  # (x, mask) -> scalar: see minirl.masking

STATS = {
    "loss": "what the optimiser minimises",
    "policy_loss": "the policy's part of a combined loss",
    "value_loss": "the value head's part of a combined loss, before its coefficient",
    "kl": "KL(policy || reference) of a response: the sum over its tokens, averaged over responses",
    "approx_kl": "drift from the policy that sampled, per token: the mean of k3(old, new), unbiased for KL(old || new)",
    "kl_coef": "the weight of the KL penalty at this step",
    "entropy": "mean entropy of the next-token distribution, in nats",
    "ratio_mean": "mean of pi_new(a) / pi_old(a); 1, up to rounding, before the first update",
    "clip_fraction": "share of terms whose gradient the clip removed",
    "reward_mean": "mean score of a response, without KL penalty",
    "reward_std": "standard deviation of the scores over the batch",
    "gold_mean": "mean of the hidden true reward, where a world has one",
    "value_mean": "mean of the critic's values before the update",
    "return_mean": "mean of what they are fitted to",
    "advantage_std": "standard deviation of the advantages before whitening",
    "dead_groups": "share of groups whose scores are all equal, so that they teach nothing",
    "explained_variance": "1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 a constant one",
    "length_mean": "mean number of counted response tokens",
    "finished": "share of responses that ended with the end token",
    "accuracy": "share of pairs in the right order, or of answers that are right",
    "worked_share": "share of answers with the working written out",
    "margin": "mean difference between chosen and rejected, in the loss's own units",
    "chosen_logprobs": "mean log-probability of the chosen response, a sum or a mean over its tokens as the loss takes it",
    "rejected_logprobs": "mean log-probability of the rejected response, a sum or a mean over its tokens as the loss takes it",
    "grad_norm": "norm of the gradient before clipping",
    "lr": "learning rate of this step",
    "setbacks": "how often the run has gone back to a checkpoint, with half the learning rate each time",
    "sampling_gap": "mean difference, in nats, of a token's log-probability between the engine that samples and the trainer",
}


@dataclass(frozen=True)
class Rollout:
    """B sampled responses. Prompts are padded on the left and responses on the right, so that the response of every row
    fills the last T columns of `tokens`, and one slice serves the whole batch."""

    tokens: Int[Tensor, "B S"]  # prompt and response
    response: Int[Tensor, "B T"]  # tokens[:, -T:]
    mask: Bool[Tensor, "B T"]  # True on response tokens, the end token included, False after it
    logprobs: Float[Tensor, "B T"]  # under the distribution that was sampled from; 0 where the mask is False
    finished: Bool[Tensor, " B"]  # ended with the end token, and not for want of room
    prompt_index: Int[Tensor, " B"]  # which of the prompts given a row answers
    starts: Int[Tensor, " B"] | None = None  # tokens[b, :starts[b]] is padding; None: there is none

    def __post_init__(self):
        if self.starts is None:
            object.__setattr__(self, "starts", torch.zeros_like(self.prompt_index))

    def __getitem__(self, rows: Tensor | slice) -> "Rollout":
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class PreferenceBatch:
    """N pairs of responses to the same N prompts, laid out like a Rollout."""

    chosen: Int[Tensor, "N S"]
    rejected: Int[Tensor, "N S"]
    chosen_mask: Bool[Tensor, "N T"]
    rejected_mask: Bool[Tensor, "N T"]
    starts: Int[Tensor, " N"]  # prompts are shared, so the padding before them is too

    def __getitem__(self, rows: Tensor | slice) -> "PreferenceBatch":
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def __len__(self) -> int:
        return len(self.chosen)


# Checks. Shapes and knobs are always checked. Looking at values makes an accelerator wait, so that is done on the CPU,
# and elsewhere only on request.

_strict = False


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Inside this context values are checked on accelerators too, at the price of a synchronisation per check."""
    global _strict
    before, _strict = _strict, True
    try:
        yield
    finally:
        _strict = before


def looks_at_values(x: Tensor) -> bool:
    return x.device.type == "cpu" or _strict


def check_size(name: str, value: int, least: int = 1) -> None:
    if not is_whole(value) or value < least:
        most = " and below 2^63" if isinstance(value, int) and value > least else ""
        raise ValueError(f"{name}: wanted a whole number of at least {least}{most}, got {shortened(value)}")


def check_generator(generator: torch.Generator) -> None:
    if not isinstance(generator, torch.Generator):
        raise ValueError(f"generator: wanted a torch.Generator, got {shortened(generator)}")


def check_texts(**texts: list[str]) -> None:
    """Lists of texts, as many in each as in the first."""
    (first, expected), *_ = texts.items()
    for name, found in texts.items():
        if not isinstance(found, list | tuple) or not all(isinstance(text, str) for text in found):
            wrong = found if not isinstance(found, list | tuple) else next(x for x in found if not isinstance(x, str))
            raise ValueError(f"{name}: wanted a list of texts, got {shortened(wrong)}")
        if len(found) != len(expected):
            raise ValueError(f"{name}: wanted one for each of {len(expected)} {first}, got {len(found)}")


def check_tensors(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name}: wanted a tensor, got {type(x).__name__} ({shortened(x)})")
        if x.is_complex() or x.layout != torch.strided:
            raise ValueError(f"{name}: wanted a dense tensor of real numbers, got {x.layout} of {x.dtype}")


def check_shapes(**tensors: Tensor) -> None:
    """All tensors have the shape of the first, and lie where it lies. Nothing in the library broadcasts silently."""
    check_tensors(**tensors)
    (first, expected), *others = tensors.items()
    for name, x in others:
        if x.shape != expected.shape:
            raise ValueError(f"{name}: wanted shape {tuple(expected.shape)} like {first}, got {tuple(x.shape)}")
    check_together(expected, **tensors)


def check_together(x: Tensor, /, **others: Tensor) -> None:
    check_tensors(**others)
    for name, other in others.items():
        if other.device != x.device:
            raise ValueError(f"{name}: wanted it on {x.device}, where the other tensors lie, got it on {other.device}")


def check_dims(dims: int, **tensors: Tensor) -> None:
    check_tensors(**tensors)
    for name, x in tensors.items():
        if x.dim() != dims:
            raise ValueError(f"{name}: wanted {dims} dimension{'s' * (dims != 1)}, got shape {tuple(x.shape)}")


def check_rows(rows_of: Tensor, **tensors: Tensor) -> None:
    """Each tensor holds one number for each row of `rows_of`."""
    check_tensors(**tensors)
    for name, x in tensors.items():
        if x.shape != rows_of.shape[:1]:
            raise ValueError(f"{name}: wanted one number a row, shape ({rows_of.shape[0]},), got {tuple(x.shape)}")
    check_together(rows_of, **tensors)


def check_mask(mask: Tensor, name: str = "mask") -> None:
    check_tensors(**{name: mask})
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}: wanted a torch.bool tensor (True = counts), got {mask.dtype}")
    if looks_at_values(mask) and not mask.any():
        raise ValueError(f"{name}: nothing is counted, every entry is False (shape {tuple(mask.shape)})")


def check_finite(mask: Tensor | None = None, **tensors: Tensor) -> None:
    check_tensors(**tensors)
    for name, x in tensors.items():
        if looks_at_values(x):
            bad = ~x.isfinite() if mask is None else ~x.isfinite() & mask
            if bad.any():
                where = tuple(bad.nonzero()[0].tolist())
                at = f" at {where[0] if len(where) == 1 else where}" if where else ""
                raise ValueError(f"{name}: wanted finite numbers, got {x[where].item()}{at} ({int(bad.sum())} in all)")


def check_knob(
    name: str, value: float | Tensor, low: float = -math.inf, high: float = math.inf, *, open_low=False, open_high=False
) -> None:
    """`value` lies in [low, high]; `open_low` and `open_high` leave that end out."""
    number = value.item() if isinstance(value, Tensor) and value.dim() == 0 else value
    if good := is_finite(number):
        below = number <= low if open_low else number < low
        above = number >= high if open_high else number > high
    if not good or below or above:
        interval = f"{'(' if open_low or low == -math.inf else '['}{low}, {high}{')' if open_high or high == math.inf else ']'}"
        raise ValueError(f"{name}: wanted a finite number in {interval}, got {shortened(number)}")


def check_precision(name: str, dtype: torch.dtype | None, device: torch.device | str) -> None:
    """NVIDIA GPUs older than Ampere (Colab's free T4) only imitate bfloat16. PyTorch calls that supported."""
    gpu = torch.device(device).type == "cuda" and torch.cuda.is_available() and torch.version.hip is None
    if dtype == torch.bfloat16 and gpu and (found := torch.cuda.get_device_capability(device)) < (8, 0):
        raise ValueError(
            f"{name}: bfloat16 wants compute capability 8.0 or newer (A100, L4, RTX 30), got "
            f"{torch.cuda.get_device_name(device)} with {found[0]}.{found[1]}, which only imitates it, slowly. "
            f"Use float32 there (on the command line: --dtype fp32)"
        )


def is_whole(number: object) -> bool:
    """A whole number that int64 holds, and no bool."""
    return isinstance(number, Integral) and not isinstance(number, bool) and abs(number) < 2**63


def is_finite(number: object) -> bool:
    """A number, no bool, that neither float64 nor int64 is too small for."""
    if not isinstance(number, Real) or isinstance(number, bool):
        return False
    return is_whole(number) if isinstance(number, Integral) else math.isfinite(number)


def all_finite(x: Tensor) -> bool:
    """A sum tells, in one pass and without a second tensor, unless it overflows."""
    return math.isfinite(x.sum(dtype=torch.float32)) or bool(x.isfinite().all())


def shortened(value: object) -> str:
    """A value as it was written, cut to what fits into a message. An int of a million digits is not written out at all."""
    if isinstance(value, int) and abs(value) >= 2**200:
        return f"a number of {value.bit_length()} bits"
    if not isinstance(value, str | int | float | list | tuple | dict | None):
        return f"{type(value).__name__} {value}"[:80]
    text = repr(value[:80] if isinstance(value, str | list | tuple) else value)
    return text if len(text) <= 80 else text[:77] + "..."


def upcast(x: Tensor) -> Tensor:
    """bfloat16, half and integers compute in float32; float64 stays float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
