"""What every kernel is tried on, and how far it may be from its PyTorch twin in float64.

A case is (name of the entry of `minirl.ops`, inputs, knobs). The inputs are drawn in the precision under test, and the twin
gets exactly these numbers as float64: what differs is the kernel's arithmetic alone, and one rounding of what it writes.
Errors are relative to the largest number of the result they belong to.
"""

from dataclasses import dataclass, field

import torch

from minirl.masking import fixed_length_mean, sequence_mean, token_mean
from minirl.ops import TORCH

# of a result in this precision: some rounding errors of sums in float32; one rounding to 8 or 11 bits (the interpreter cuts
# bfloat16 off where a GPU rounds), and a second one for what goes through half-precision gradients of logits
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    op: str
    label: str
    inputs: dict  # in the order of the function's arguments; floating tensors require a gradient if named in `learns`
    knobs: dict = field(default_factory=dict)
    learns: tuple = ()

    def __str__(self):
        return f"{self.op}-{self.label}"


def normal(generator, *shape, dtype=torch.float32, scale=1.0):
    return (scale * torch.randn(*shape, generator=generator)).to(dtype)


def random_mask(generator, B, T):
    """Gaps, padding on either side, a row with nothing counted where there are three, and never nothing at all."""
    mask = torch.rand(B, T, generator=generator) < 0.7
    if B >= 3:
        mask[1] = False
    mask[0, 0] = True
    return mask


def spoilt(x, mask):
    """Not a number wherever it does not count."""
    return x.masked_fill(~mask, float("nan"))


def strided(x, axis):
    """The same numbers, every second along `axis` of a larger table."""
    return (
        torch.stack([x, torch.full_like(x, 7.0)], axis + 1)
        .flatten(axis, axis + 1)
        .index_select(axis, torch.arange(2 * x.shape[axis]))[(slice(None),) * axis + (slice(None, None, 2),)]
    )


def rms_norm_cases(g, dtype):
    for label, shape in {"ragged": (2, 5, 33), "one": (1, 1), "wide": (3, 200), "rows": (17, 16)}.items():
        inputs = {"x": normal(g, *shape, dtype=dtype, scale=3.0), "weight": normal(g, shape[-1], dtype=dtype)}
        eps = 1e-5 if shape[-1] > 1 else 0.5  # one number alone has next to no gradient: its norm is itself
        yield Case("rms_norm", label, inputs, {"eps": eps}, ("x", "weight"))
    x, weight = normal(g, 4, 6, 24, dtype=dtype).transpose(0, 1), normal(g, 24, dtype=dtype)
    yield Case("rms_norm", "transposed", {"x": x, "weight": weight}, {"eps": 1e-6}, ("x", "weight"))
    inputs = {"x": normal(g, 5, 40, dtype=dtype)[:, :24], "weight": weight}
    yield Case("rms_norm", "rows apart", inputs, {"eps": 1e-5}, ("x", "weight"))
    x = strided(normal(g, 5, 24, dtype=dtype), 1)
    yield Case("rms_norm", "channels apart", {"x": x, "weight": strided(weight, 0)}, {"eps": 1e-3}, ("x", "weight"))


def swiglu_cases(g, dtype):
    for label, shape in {"ragged": (2, 3, 37), "one": (1,), "blocks": (3, 64), "long": (2, 130)}.items():
        inputs = {name: normal(g, *shape, dtype=dtype, scale=3.0) for name in ("gate", "up")}
        yield Case("swiglu", label, inputs, {}, ("gate", "up"))
    gate, up = normal(g, 5, 2 * 41, dtype=dtype).chunk(2, dim=-1)
    yield Case("swiglu", "halves of one matrix", {"gate": gate, "up": up}, {}, ("gate", "up"))


def rotate_cases(g, dtype):
    for label, (B, H, S, E, R) in {
        "shared": (2, 3, 5, 8, 1),
        "own": (3, 2, 4, 6, 3),
        "one": (1, 1, 1, 2, 1),
        "many heads": (1, 35, 2, 4, 1),
    }.items():
        angles = normal(g, R, 1, S, E // 2, scale=3.0)
        cos, sin = angles.cos(), angles.sin()
        rope = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]).to(dtype)
        x = normal(g, B, H, S, E, dtype=dtype)
        yield Case("rotate", label, {"x": x, "rope": rope}, {}, ("x",))
        if label == "own":
            view = normal(g, B, S, H, E, dtype=dtype).transpose(1, 2)
            yield Case("rotate", "transposed", {"x": view, "rope": rope}, {}, ("x",))


def gae_cases(g, dtype):
    for label, (B, T) in {"tile": (3, 16), "ragged": (4, 37), "one": (1, 1), "short": (3, 5)}.items():
        mask = random_mask(g, B, T)
        inputs = {name: spoilt(normal(g, B, T, dtype=dtype), mask) for name in ("rewards", "values")} | {"mask": mask}
        yield Case("gae", label, inputs, {"gamma": 0.97, "lam": 0.9})
        ends = normal(g, B, dtype=dtype).masked_fill(~mask.any(1), float("nan"))
        yield Case("gae", label + " cut off", inputs, {"gamma": 0.97, "lam": 0.9, "last_values": ends})
    full = torch.ones(2, 40, dtype=torch.bool)
    inputs = {name: strided(normal(g, 2, 40, dtype=dtype), 1) for name in ("rewards", "values")} | {"mask": full}
    yield Case("gae", "undiscounted", inputs, {"gamma": 1.0, "lam": 1.0})


def logprob_tables(g, dtype, B, T, mask):
    """New, old and reference log-probabilities, close enough for the clip to act on some and not on others."""
    new = -3 * torch.rand(B, T, generator=g)
    tables = {"logprobs": new, "old_logprobs": new + normal(g, B, T, scale=0.3), "ref_logprobs": new + normal(g, B, T)}
    return {name: spoilt(x.to(dtype), mask) for name, x in tables.items()}


def policy_cases(g, dtype):
    for label, (B, T) in {"tile": (3, 16), "ragged": (5, 21), "one": (1, 1)}.items():
        mask = random_mask(g, B, T)
        tables = logprob_tables(g, dtype, B, T, mask)
        rows = {"advantages": normal(g, B, dtype=dtype).masked_fill(~mask.any(1), float("nan")), "mask": mask}
        each = {"advantages": spoilt(normal(g, B, T, dtype=dtype), mask), "mask": mask}
        alone = tables | {"ref_logprobs": None}
        clip = {"clip_eps": 0.2, "clip_eps_high": 0.3}
        yield Case("grpo_loss", label, tables | rows, clip | {"kl_coef": 0.5}, ("logprobs",))
        for reduce in (token_mean, fixed_length_mean(7)):
            knobs = {"kl_coef": 0.0, "reduce": reduce}
            yield Case("grpo_loss", f"{label} {reduce.__name__}", alone | rows, knobs, ("logprobs",))
        del alone["ref_logprobs"]
        yield Case("ppo_clip_loss", label, alone | each, clip | {"reduce": sequence_mean}, ("logprobs",))
    wild = {
        name: strided(40 * normal(g, 2, 9, dtype=dtype), 1) for name in ("logprobs", "old_logprobs", "ref_logprobs")
    }
    rows = {"advantages": normal(g, 2, dtype=dtype), "mask": torch.ones(2, 9, dtype=torch.bool)}
    yield Case("grpo_loss", "far apart", wild | rows, {}, ("logprobs",))


def head_inputs(g, dtype, B, T, D, V):
    return {
        "hidden": normal(g, B, T, D, dtype=dtype),
        "weight": normal(g, V, D, dtype=dtype, scale=2 * D**-0.5),
        "tokens": torch.randint(V, (B, T), generator=g),
    }


def hidden_logprobs_cases(g, dtype):
    sizes = {"ragged": (3, 7, 19, 101), "splits": (2, 9, 16, 257), "one": (1, 1, 1, 2), "blocks": (2, 16, 32, 96)}
    for label, (B, T, D, V) in sizes.items():
        knobs = {"temperature": 0.7, "entropy_gradient": True}
        yield Case("hidden_logprobs", label, head_inputs(g, dtype, B, T, D, V), knobs, ("hidden", "weight"))
    sharp = head_inputs(g, dtype, 2, 3, 8, 50)
    sharp["hidden"] = 12 * sharp["hidden"]  # nearly all probability on one token
    yield Case("hidden_logprobs", "sharp", sharp, {"entropy_gradient": True}, ("hidden", "weight"))
    view = head_inputs(g, dtype, 2, 5, 12, 70)
    view["hidden"] = normal(g, 2, 9, 12, dtype=dtype)[:, 3:-1]
    view["tokens"] = strided(view["tokens"], 1)
    yield Case("hidden_logprobs", "slice", view, {}, ("hidden", "weight"))


def head_loss_cases(g, dtype):
    for label, (B, T, D, V) in {"ragged": (4, 5, 19, 101), "tiles": (4, 3, 16, 200), "one": (2, 1, 3, 2)}.items():
        inputs, mask = head_inputs(g, dtype, B, T, D, V), random_mask(g, B, T)
        logits = (inputs["hidden"].double() @ inputs["weight"].double().T) / 0.7
        new = logits.log_softmax(-1).gather(-1, inputs["tokens"].unsqueeze(-1)).squeeze(-1)
        old, ref = (spoilt((new + normal(g, B, T, scale=0.3)).to(torch.float32), mask) for _ in range(2))
        inputs["hidden"] = inputs["hidden"].masked_fill(~mask.unsqueeze(-1), float("nan"))
        rows, each = normal(g, B), spoilt(normal(g, B, T), mask)
        knobs, learns = {"temperature": 0.7}, ("hidden", "weight")
        tables = inputs | {"old_logprobs": old, "ref_logprobs": ref, "advantages": rows, "mask": mask}
        yield Case("grpo_head_loss", label, tables, knobs | {"kl_coef": 0.5}, learns)
        alone = tables | {"ref_logprobs": None}
        yield Case("grpo_head_loss", label + " alone", alone, knobs | {"kl_coef": 0.0, "reduce": token_mean}, learns)
        tables = inputs | {"old_logprobs": old, "advantages": each, "mask": mask}
        yield Case("ppo_head_loss", label, tables, knobs, learns)
        refs = {
            "ref_chosen": -3 * torch.rand(B // 2, generator=g),
            "ref_rejected": -3 * torch.rand(B // 2, generator=g),
        }
        yield Case(
            "dpo_head_loss", label, inputs | refs | {"mask": mask}, {"beta": 0.3, "label_smoothing": 0.1}, learns
        )


FAMILIES = {
    "rmsnorm": rms_norm_cases,
    "swiglu": swiglu_cases,
    "rope": rotate_cases,
    "advantages": gae_cases,
    "policy": policy_cases,
    "logprobs": hidden_logprobs_cases,
    "heads": head_loss_cases,
}


def cases(family, dtype, seed=0):
    return list(FAMILIES[family](torch.Generator().manual_seed(seed), dtype))


def evaluate(function, case, cast=lambda x: x, device="cpu"):
    """{name: tensor}: results, statistics, and the gradients of fixed random multiples of the results."""

    def moved(name, x):
        if not isinstance(x, torch.Tensor):
            return x
        x = (cast(x.detach()) if x.is_floating_point() else x).to(device)
        return x.requires_grad_() if name in case.learns else x

    inputs = {name: moved(name, x) for name, x in case.inputs.items()}
    knobs = {name: moved(name, x) for name, x in case.knobs.items()}
    result = function(*inputs.values(), **knobs)
    outputs, stats = result if isinstance(result, tuple) and isinstance(result[1], dict) else (result, {})
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = {f"output {i}": x for i, x in enumerate(outputs)} | {f"stat {name}": x for name, x in stats.items()}
    if case.learns:
        g = torch.Generator().manual_seed(1)
        graded = [x for x in outputs if x.requires_grad]
        multiples = [torch.randn(x.shape, generator=g).to(torch.float16).to(x) for x in graded]
        leaves = [inputs[name] for name in case.learns]
        gradients = torch.autograd.grad(graded, leaves, multiples)
        found |= {f"gradient {name}": x for name, x in zip(case.learns, gradients, strict=True)}
    return {name: x.detach() for name, x in found.items()}


def errors(case, function, device="cpu"):
    """{name: (error relative to the largest true number, precision it was written in)}."""
    truth = evaluate(getattr(TORCH, case.op), case, cast=torch.Tensor.double)
    found = evaluate(function, case, device=device)
    assert found.keys() == truth.keys(), (found.keys(), truth.keys())
    result = {}
    for name, true in truth.items():
        got = found[name].cpu()
        assert got.shape == true.shape, f"{case}: {name} has shape {tuple(got.shape)}, wanted {tuple(true.shape)}"
        size = true.abs().max().clamp(min=1e-3 if name.startswith(("output", "stat")) else 1e-9)
        result[name] = (((got.double() - true).abs().max() / size).item(), got.dtype)
    return result


def check(case, function, device="cpu"):
    for name, (error, dtype) in errors(case, function, device).items():
        # a log-probability and a loss are float32 whatever came in; only what was rounded may be off by a rounding
        assert error <= TOLERANCE[dtype], (
            f"{case}: {name} is off by {error:.1e} of its size, {dtype} allows {TOLERANCE[dtype]}"
        )
