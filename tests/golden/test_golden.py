"""data/golden: minirl agrees with the vectors, the generator makes them again, and no promised function is without one."""

import hashlib
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from batches import GARBAGE, equal

from minirl import masking
from minirl.types import STATS

FOLDER = Path(__file__).resolve().parents[2] / "data" / "golden"
TOLERANCE = 1e-10  # of values and gradients in float64; measured: 4e-16


def no_constants(name: str):
    raise ValueError(f"{name} is not JSON")


GOLDEN = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"), parse_constant=no_constants)["functions"]
VECTORS = [
    pytest.param(name, vector, id=f"{name}: {vector['name']}")
    for name, entry in GOLDEN.items()
    for vector in entry["vectors"]
]
FACTORIES = {"masking.fixed_length_mean", "masking.masked_sum_over"}
ROOMS = ["masking", "logprobs", "kl", "advantages", "rewards", "losses.policy", "losses.preference"]
INNER = {"masking.blank", "kl.clamp_log_ratio", "logprobs.predicting"}  # public between the rooms, promised to nobody


def as_tensor(x):
    """Lists of numbers as tensors, float64 unless they are truths or whole numbers; everything else as it is."""
    if not isinstance(x, list):
        return x
    flat = x
    while isinstance(flat[0], list):
        flat = [v for row in flat for v in row]
    if all(isinstance(v, str) for v in flat) and "-inf" not in flat:
        return x
    if isinstance(flat[0], bool | int):
        return torch.tensor(x)

    def number(v):
        return [number(entry) for entry in v] if isinstance(v, list) else float(v)

    return torch.tensor(number(x), dtype=torch.float64)


def as_knob(name: str, x):
    if name == "reduce":
        if isinstance(x, str):
            return getattr(masking, x)
        ((factory, constant),) = x.items()
        return getattr(masking, factory)(constant)
    return set(x) if name == "words" else as_tensor(x)


def target(name: str):
    room, _, function = name.rpartition(".")
    return getattr(importlib.import_module(f"minirl.{room}"), function)


def call(name: str, inputs: dict, knobs: dict):
    """What minirl returns, without the statistics that losses add."""
    knobs = {k: as_knob(k, v) for k, v in knobs.items()}
    if name == "kl.AdaptiveKL":
        controller = target(name)(knobs.pop("kl_coef"), **knobs)
        return torch.tensor(
            [controller.update(kl, n) for kl, n in zip(inputs["kl"].tolist(), inputs["n_steps"].tolist(), strict=True)],
            dtype=torch.float64,
        )
    output = target(name)(**knobs)(**inputs) if name in FACTORIES else target(name)(**inputs, **knobs)
    has_stats = isinstance(output, tuple) and isinstance(output[1], dict)
    if has_stats:
        assert output[1].keys() <= STATS.keys()
    return output[0] if has_stats else output


def compare(name: str, vector: dict, inputs: dict) -> None:
    inputs = {k: x.clone().requires_grad_() if k in vector.get("gradients", {}) else x for k, x in inputs.items()}
    output = call(name, inputs, vector["knobs"])
    if isinstance(vector["output"], dict):
        for actual, expected in zip(output, vector["output"].values(), strict=True):
            equal(actual, torch.tensor(expected, dtype=torch.float64), TOLERANCE)
    else:
        equal(output, torch.tensor(vector["output"], dtype=torch.float64), TOLERANCE)
    if "gradients" in vector:
        scalar = (as_tensor(vector["weights"]) * output).sum() if "weights" in vector else output
        scalar.backward()
        for k, expected in vector["gradients"].items():
            equal(inputs[k].grad, as_tensor(expected), TOLERANCE)


@pytest.mark.parametrize("name, vector", VECTORS)
def test_minirl_agrees(name, vector):
    compare(name, vector, {k: as_tensor(x) for k, x in vector["inputs"].items()})


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("name, vector", [p for p in VECTORS if "mask" in p.values[1]["inputs"]])
def test_what_stands_in_the_padding_does_not_matter(name, vector, garbage):
    inputs = {k: as_tensor(x) for k, x in vector["inputs"].items()}
    mask = inputs["mask"]
    per_token = {k: x for k, x in inputs.items() if x is not None and x.shape == mask.shape and k != "mask"}
    compare(name, vector, inputs | {k: x.masked_fill(~mask, garbage) for k, x in per_token.items()})


def test_the_generator_writes_the_same_bytes_again_and_needs_only_python(tmp_path):
    path = tmp_path / "golden.json"
    subprocess.run([sys.executable, "-S", str(FOLDER / "make_golden.py"), str(path)], check=True)  # -S: no packages
    again, stored = (hashlib.sha256(p.read_bytes()).hexdigest() for p in (path, FOLDER / "golden.json"))
    assert again == stored
    assert path.stat().st_size < 200_000


def promised() -> set[str]:
    """Every public function of the rooms below the models, and the one object among them."""
    names = {"kl.AdaptiveKL"}
    for room in ROOMS:
        module = importlib.import_module(f"minirl.{room}")
        for name, member in inspect.getmembers(module, inspect.isfunction):
            if member.__module__ == module.__name__ and not name.startswith("_"):
                names.add(f"{room}.{name}")
    return names - INNER


def is_ragged(mask: list[list[bool]]) -> bool:
    """Rows of different lengths, one of them with a gap between two counted tokens."""
    gap = any("10" in "".join(str(int(c)) for c in row).strip("0") for row in mask)
    return gap and len({sum(row) for row in mask}) > 1


@pytest.mark.parametrize("name", sorted(promised()))
def test_every_promised_function_has_a_vector_with_a_ragged_mask_and_knobs_of_its_own(name):
    parameters = inspect.signature(target(name)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    assert GOLDEN[name]["convention"]
    best = [
        vector
        for vector in GOLDEN[name]["vectors"]
        if all(as_knob(k, vector["knobs"][k]) is not default for k, default in defaults.items() if callable(default))
        and all(vector["knobs"][k] != default for k, default in defaults.items() if not callable(default))
        and ("mask" not in vector["inputs"] or is_ragged(vector["inputs"]["mask"]))
    ]
    assert best, f"no vector of {name} has a ragged mask and every knob away from its default"


def test_every_loss_has_a_gradient():
    for name, entry in GOLDEN.items():
        if name.startswith("losses."):
            assert all("gradients" in vector for vector in entry["vectors"]), name


def test_the_vectors_name_what_exists():
    rooms_above = {"exact.kl", "exact.objective", "exact.optimum"}
    assert GOLDEN.keys() == promised() | rooms_above
