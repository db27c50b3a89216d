"""Kernels broken on purpose: the comparison with the twin has to notice each of them. Started by test_kernels.py."""

import importlib.util
from pathlib import Path

import cases
import pytest
import torch

import minirl.kernels

torch.set_num_threads(1)
SOURCES = Path(minirl.kernels.__file__).parent
USERS = {  # kernels whose functions live in another file: (that file, the names it takes, the cases)
    "online_softmax": (minirl.kernels.logprobs, ("forward_kernel", "merge_kernel", "backward_kernel"), "logprobs"),
    "heads": (minirl.kernels.head_losses, ("clipped_kernel", "read_kernel", "write_kernel", "run_head"), "heads"),
}

# (module, the mistake, right, wrong)
MUTANTS = [
    ("rmsnorm", "eps outside the root", "/ D + eps)", "/ D) + eps"),
    ("rmsnorm", "mean over the padded width", "(tl.sum(h * n, 0) / D)", "(tl.sum(h * n, 0) / BLOCK_D)"),
    ("rmsnorm", "weight left out of dx", "h = gradient * w", "h = gradient"),
    ("rmsnorm", "rows of other programs lost", "range(first, N, programs)", "range(first, N, 2 * programs)"),
    ("rmsnorm", "row stride forgotten", "row * stride_x", "row * D"),
    ("swiglu", "silu without its slope", "(1.0 + a * (1.0 - s))", "1.0"),
    ("swiglu", "one piece a row", "(program % pieces) * BLOCK + tl", "tl"),
    ("swiglu", "gate and up swapped", "gradient * a * s", "gradient * b * s"),
    ("rope", "the same turn backward", "partner if BACKWARD else e", "e"),
    ("rope", "partner is the neighbour", "(e + E // 2) % E", "e ^ 1"),
    ("rope", "positions of row 0 for all", "rope + b * r_b + s * r_s", "rope + s * r_s"),
    ("rope", "heads beyond the first block lost", "range(0, H, BLOCK_H)", "range(0, 1, BLOCK_H)"),
    (
        "advantages",
        "gaps end the episode",
        "keep = tl.where(counts, gamma_lam, 1.0)",
        "keep = tl.where(counts, gamma_lam, 0.0)",
    ),
    (
        "advantages",
        "next value not carried",
        "value_behind = tl.sum(tl.where(t == first, next_value, 0.0), 0)",
        "value_behind = 0.0",
    ),
    (
        "advantages",
        "advantage not carried",
        "advantage += reach * advantage_behind",
        "advantage += 0.0 * advantage_behind",
    ),
    ("advantages", "scan forward in time", "((keep, delta), 0, compose, reverse=True)", "((keep, delta), 0, compose)"),
    (
        "advantages",
        "next value of a gap",
        "mask + t + 1, mask=t + 1 < T, other=0) > 0",
        "mask + t, mask=t + 1 < T, other=0) >= 0",
    ),
    ("advantages", "composed the wrong way round", "delta2 + keep2 * delta1", "delta1 + keep1 * delta2"),
    ("advantages", "last tile lost", "tiles = tl.cdiv(T, BLOCK_T)", "tiles = tl.maximum(T // BLOCK_T, 1)"),
    ("advantages", "padding written", "tl.where(counts, advantage + value, 0.0)", "advantage + value"),
    ("policy", "maximum for minimum", "acts = clipped < free", "acts = clipped > free"),
    ("policy", "sign of the KL gradient", "slope -= kl_coef", "slope += kl_coef"),
    (
        "policy",
        "KL the other way round",
        "d = held(ref - logprob, -20.0, 20.0)",
        "d = held(logprob - ref, -20.0, 20.0)",
    ),
    ("policy", "no clamp of the ratio's gradient", "acts | (tl.abs(log_ratio) > 20.0)", "acts"),
    ("policy", "weight left out of the gradient", "weight * slope, mask=t < T", "slope, mask=t < T"),
    ("policy", "padding counted", "tl.where(counts, ratio, 0.0)", "ratio"),
    ("policy", "first tile only", "range(0, T, BLOCK_T)", "range(0, tl.minimum(T, BLOCK_T), BLOCK_T)"),
    (
        "policy",
        "one bound for both sides",
        "tl.where(x > high, high, tl.where(x < low, low, x))",
        "tl.where(x > high, high, x)",
    ),
    ("online_softmax", "temperature missing", "return z * scale", "return z"),
    ("online_softmax", "temperature missing from the gradient", "(dz * scale)", "dz"),
    ("online_softmax", "sums not corrected", "s = a * s + tl.sum(p, 1)", "s = s + tl.sum(p, 1)"),
    (
        "online_softmax",
        "entropy's sum not moved",
        "e = a * (e + s * (m - higher)) + tl.sum(p * below, 1)",
        "e = a * e + tl.sum(p * below, 1)",
    ),
    ("online_softmax", "padding columns are logits of 0", "tl.where((v < V)[None, :], z, -1e30)", "z"),
    (
        "online_softmax",
        "off by one tile",
        "tl.minimum(split * SPLIT + SPLIT, V), BLOCK_V)",
        "tl.minimum(split * SPLIT + SPLIT, V) - BLOCK_V, BLOCK_V)",
    ),
    ("online_softmax", "pieces merged without correction", "s = a * s + b * s_part", "s = s + s_part"),
    ("online_softmax", "sign of the gradient", "1.0, 0.0) - p)", "1.0, 0.0) + p)"),
    ("online_softmax", "entropy gradient without the entropy", "p * (logp + entropy)", "p * logp"),
    ("online_softmax", "the slab's first column forgotten", "v = first_v + column", "v = column"),
    ("heads", "temperature missing from the gradient", "- tl.exp(z - log_sum)) * scale", "- tl.exp(z - log_sum))"),
    (
        "heads",
        "token of the tile, not of the batch",
        "token, coefficient = tl.load(tokens + n)",
        "token, coefficient = tl.load(tokens + row)",
    ),
    ("heads", "the tile's first row forgotten", "n, wide = first_row + row,", "n, wide = row,"),
    ("heads", "weight left out", "weight * slope)", "slope)"),
    (
        "heads",
        "second tile overwrites the first",
        "multiply_add(d_weight, dlogits.t(), counted)",
        "multiply(dlogits.t(), counted, out=d_weight)",
    ),
    ("heads", "padding left in the hidden states", "hidden[part].masked_fill(~mask[part, None], 0.0)", "hidden[part]"),
    ("heads", "upstream gradient ignored", "d_hidden.mul_(g)", "d_hidden"),
]


def broken(module, right, wrong, folder):
    """The module with one mistake, imported under another name."""
    source = (SOURCES / f"{module}.py").read_text()
    assert source.count(right) >= 1, f"{module}.py no longer holds {right!r}"
    path = folder / f"broken_{module}.py"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def notices(family, functions):
    for case in cases.cases(family, torch.float32):
        try:
            cases.check(case, getattr(functions, case.op))
        except (AssertionError, ValueError):  # ValueError: what came out was not finite
            return True
    return False


@pytest.mark.filterwarnings("ignore:All-NaN")  # of the interpreter
@pytest.mark.parametrize(("module", "mistake", "right", "wrong"), MUTANTS, ids=[f"{m[0]}: {m[1]}" for m in MUTANTS])
def test_a_broken_kernel_is_noticed(module, mistake, right, wrong, tmp_path, monkeypatch):
    mutant = broken(module, right, wrong, tmp_path)
    functions, names, family = USERS.get(module, (mutant, (), module))
    for name in names:
        monkeypatch.setattr(functions, name, getattr(mutant, name))
    assert notices(family, functions), f"{module}: {mistake} passes"
