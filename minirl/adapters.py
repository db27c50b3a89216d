"""LoRA adapters on disk in PEFT's format, so that PEFT loads what was trained here, and we what it did.

    adapter_config.json  adapter_model.safetensors

PEFT names a correction by the layer it sits on in transformers' model: base_model.model.model.layers.3.self_attn.q_proj,
with lora_A.weight (rank, in) and lora_B.weight (out, rank). GPT-2 has one matrix for query, key and value there, and so one
correction where we have three. Three of rank r are one of rank 3r, exactly: the A's one above the other, the B's in blocks.
"""

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minirl.files import check_path, read_json
from minirl.layouts import family_of, tensor_names
from minirl.lora import LoRALinear, adapted
from minirl.model import Transformer
from minirl.types import Tensor, all_finite, check_knob

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
NOT_OURS = {  # entries of adapter_config.json that would change the numbers, and what they must say
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
}


def save_adapter(model: Transformer, folder: str | Path, *, base_model: str = "") -> Path:
    """Write the corrections of a model with LoRA. `base_model`: where PEFT finds the weights they belong to."""
    layers = dict(adapted(model))
    if not layers:
        raise ValueError("model: has no LoRA to save; add_lora puts it there")
    tensors, ranks, alphas = {}, {}, {}
    for theirs, ours in _layers_of(model).items():
        found = [layers.get(name) for name in ours]
        if not any(found):
            continue
        a, b = _joined(found, [model.get_submodule(name).out_features for name in ours])
        tensors[f"{PREFIX}{theirs}.lora_A.weight"], tensors[f"{PREFIX}{theirs}.lora_B.weight"] = a, b
        first = next(layer for layer in found if layer is not None)
        # what both add is alpha / rank; a rank that is k times as large needs k times the alpha
        ranks[theirs], alphas[theirs] = len(a), first.alpha * len(a) / first.rank
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    alpha = next(alphas[name] for name in ranks if ranks[name] == rank)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": family_of(model.config) == "gpt2",
        "target_modules": _shortest(ranks, model),
        "rank_pattern": {re.escape(name): r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(name): x for name, x in alphas.items() if x != alpha},
        "inference_mode": True,
    }
    folder = check_path("folder", folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: x.detach().cpu().contiguous() for name, x in tensors.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")
    return folder


def load_adapter(model: Transformer, folder: str | Path) -> Transformer:
    """Put the corrections of a folder beside the layers they belong to, and freeze everything else. Changes `model`.

    ValueError, naming the entry or the tensor, for anything that is not LoRA as we have it, or that fits another model; the
    model is then as it was.
    """
    folder = check_path("folder", folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(f"folder: no {name} in {folder}")
    if any(True for _ in adapted(model)):
        raise ValueError("model: has LoRA already; fold it in with `merged`, or start from the base")
    config = read_json(folder / CONFIG)
    for name, allowed in NOT_OURS.items():
        if config.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{folder / CONFIG}: {name} {config[name]!r} is not supported, wanted {allowed[0]!r}")
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS}: {error}") from None
    layers = _layers_of(model)
    made = {}
    for theirs, (a, b) in _pairs(tensors, folder / WEIGHTS).items():
        if theirs not in layers:
            raise ValueError(f"{folder / WEIGHTS}: no layer {theirs} in this model")
        try:
            alpha = _of_pattern(config.get("alpha_pattern"), theirs, config.get("lora_alpha", 8))
            check_knob("lora_alpha", alpha, 0, open_low=True)
        except (ValueError, re.error, AttributeError, TypeError) as error:
            raise ValueError(f"{folder / CONFIG}: {error}") from None
        if not (a.is_floating_point() and b.is_floating_point() and all_finite(a) and all_finite(b)):
            raise ValueError(
                f"{folder / WEIGHTS}: {theirs}: wanted finite floating point numbers, got {a.dtype}, {b.dtype}"
            )
        if not 1 <= len(a) <= min(a.shape[1], len(b)):
            raise ValueError(
                f"{folder / WEIGHTS}: {theirs}: wanted a rank of 1 to {min(a.shape[1], len(b))}, got {len(a)}"
            )
        bases = [model.get_submodule(name) for name in layers[theirs]]
        outs = [base.out_features for base in bases]
        if b.shape != (sum(outs), len(a)) or a.shape[1] != bases[0].in_features:
            raise ValueError(
                f"{folder / WEIGHTS}: {theirs}: wanted lora_A (rank, {bases[0].in_features}) and lora_B ({sum(outs)}, rank), "
                f"got {tuple(a.shape)} and {tuple(b.shape)}"
            )
        for name, base, part in zip(layers[theirs], bases, b.split(outs), strict=True):
            layer = LoRALinear(base, rank=len(a), alpha=float(alpha))
            with torch.no_grad():
                layer.lora_a.copy_(a)
                layer.lora_b.copy_(part)
            made[name] = layer
    model.requires_grad_(False)
    for name, layer in made.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
        layer.lora_a.requires_grad_(True)
        layer.lora_b.requires_grad_(True)
    return model


def _layers_of(model: Transformer) -> dict[str, list[str]]:
    """transformers' name of each linear layer of the blocks, and ours: one, or GPT-2's three in one."""
    names = {}
    for theirs, ours in tensor_names(model.config).items():
        if theirs.endswith(".weight") and ours[0].startswith("blocks.") and "norm" not in ours[0]:
            names[theirs.removesuffix(".weight")] = [name.removesuffix(".weight") for name in ours]
    return names


def _shortest(names: dict, model: Transformer) -> list[str]:
    """The last words of these layers' names, where they mean these layers and no others; else the whole names."""
    words = {name.rpartition(".")[2] for name in names}
    meant = {name for name in _layers_of(model) if name.rpartition(".")[2] in words}
    return sorted(words if meant == set(names) else names)


def _joined(layers: list[LoRALinear | None], outs: list[int]) -> tuple[Tensor, Tensor]:
    """One A (sum of ranks, in) and one B (sum of outs, sum of ranks) for layers that read the same input."""
    present = [layer for layer in layers if layer is not None]
    a = torch.cat([layer.lora_a for layer in present])
    b = a.new_zeros(sum(outs), len(a))
    row = column = 0
    for layer, out in zip(layers, outs, strict=True):
        if layer is not None:
            b[row : row + out, column : column + layer.rank] = layer.lora_b.detach()
            column += layer.rank
        row += out
    return a, b


def _pairs(tensors: dict[str, Tensor], path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", name)
        if match is None or x.dim() != 2:
            raise ValueError(f"{path}: {name} {tuple(x.shape)} is no correction of a linear layer")
        found.setdefault(match[1], {})[match[2]] = x
    for name, sides in found.items():
        if len(sides) != 2:
            raise ValueError(f"{path}: {name} has only lora_{next(iter(sides))}")
    return {name: (sides["A"], sides["B"]) for name, sides in found.items()}


def _of_pattern(pattern: dict | None, name: str, otherwise):
    """PEFT's way to say a number for some layers: the first pattern that the end of the layer's name matches."""
    for key, value in (pattern or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{key})", name):
            return value
    return otherwise
