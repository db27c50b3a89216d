"""The state of a training loop on disk, whole or not at all, and the way back to the exact bits.

    step_000010/
        tensors.safetensors    parameters, optimiser moments, random streams
        state.json             everything else, and the checksums

A checkpoint is written under another name, synced and renamed, so that a folder called step_... is whole. Its files are
hashed, because safetensors does not notice a flipped bit; a damaged one is named and the one before it is used. Nothing is
ever unpickled.
"""

import hashlib
import json
import os
import random
import shutil
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load, save


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.name[5:].isdigit())


def write_checkpoint(folder: Path, step: int, objects: dict) -> Path:
    """Write the state of the tracked objects as folder/step_NNNNNN, which exists whole or not at all."""
    tensors, values = {"rng.torch": torch.get_rng_state()}, {"rng": _python_rng()}
    for name, item in objects.items():
        _collect(name, item, tensors, values)
    # a copy of its own for each tensor: safetensors refuses memory that two names share, such as tied weights
    data = save({name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()})
    state = {
        "step": step,
        "values": values,
        "sha256": {"tensors.safetensors": hashlib.sha256(data).hexdigest()},
    }
    text = json.dumps(state, indent=1)
    text = json.dumps({"state": state, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    aside, final = folder / f"aside_{step:06d}", folder / f"step_{step:06d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    _write_synced(aside / "tensors.safetensors", data)
    _write_synced(aside / "state.json", text.encode())
    aside.rename(final)
    _sync_folder(folder)
    return final


def restore(folder: Path, objects: dict) -> int:
    """Load the newest whole checkpoint into the objects, in place; its step, or 0 if there is none.

    A damaged checkpoint is named in a warning and removed, and the one before it is used. ValueError if all are damaged,
    or if one does not fit the objects.
    """
    found = checkpoints(folder)
    for aside in folder.glob("aside_*"):
        shutil.rmtree(aside)  # a save that was interrupted
    for path in reversed(found):
        try:
            state, tensors = _read_checkpoint(path)
        except (OSError, ValueError, KeyError) as error:
            warnings.warn(f"{path}: damaged checkpoint, going back to the one before it ({error})", stacklevel=2)
            continue
        for name, item in objects.items():
            _put_back(name, item, tensors, state["values"], path)
        torch.set_rng_state(tensors["rng.torch"])
        _set_python_rng(state["values"]["rng"])
        for damaged in found[found.index(path) + 1 :]:
            shutil.rmtree(damaged)
        return state["step"]
    if found:
        raise ValueError(f"{folder}: every checkpoint is damaged ({', '.join(path.name for path in found)})")
    return 0


def _read_checkpoint(path: Path) -> tuple[dict, dict]:
    wrapped = json.loads((path / "state.json").read_text())
    state = wrapped["state"]
    if hashlib.sha256(json.dumps(state, indent=1).encode()).hexdigest() != wrapped["sha256"]:
        raise ValueError("state.json does not match its checksum")
    if path.name != f"step_{state['step']:06d}":
        raise ValueError(f"state.json is of step {state['step']}")
    data = (path / "tensors.safetensors").read_bytes()
    if hashlib.sha256(data).hexdigest() != state["sha256"]["tensors.safetensors"]:
        raise ValueError("tensors.safetensors does not match its checksum")
    return state, load(data)


# What can be tracked. An optimiser's parameter groups are settings and come from the code; its moments are state.


def _learned(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's state but for frozen parameters: under LoRA the base, thousands of times the rest, is not written again."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: x for name, x in module.state_dict().items() if name not in frozen}


def _collect(name: str, item, tensors: dict, values: dict) -> None:
    if isinstance(item, torch.Generator):
        tensors[name] = item.get_state()
    elif isinstance(item, torch.optim.Optimizer):
        for index, moments in item.state_dict()["state"].items():
            for key, moment in moments.items():
                tensors[f"{name}.{index}.{key}"] = torch.as_tensor(moment)
    elif isinstance(item, torch.nn.Module):
        tensors.update({f"{name}.{key}": x for key, x in _learned(item).items()})
    else:
        values[name] = vars(item)


def _put_back(name: str, item, tensors: dict, values: dict, path: Path) -> None:
    mine = {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}
    if isinstance(item, torch.Generator):
        item.set_state(tensors[name])
    elif isinstance(item, torch.optim.Optimizer):
        moments: dict = {}
        for key, x in mine.items():
            index, moment = key.split(".")
            moments.setdefault(int(index), {})[moment] = x
        item.load_state_dict({"state": moments, "param_groups": item.state_dict()["param_groups"]})
    elif isinstance(item, torch.nn.Module):
        try:
            saved = _learned(item)  # what is frozen is in no checkpoint, and stays as it is
            item.load_state_dict({key: x for key, x in item.state_dict().items() if key not in saved} | mine)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: the checkpoint is of another model than `{name}`: {reason}") from None
    else:
        vars(item).update(values[name])


def _python_rng() -> dict:
    """The global streams of Python and, where it is in use, numpy, exactly, as JSON."""
    version, internal, gauss = random.getstate()
    state = {"python": [version, list(internal), gauss]}
    if "numpy" in sys.modules:
        kind, keys, position, has_gauss, cached = sys.modules["numpy"].random.get_state()
        state["numpy"] = [kind, keys.tolist(), position, has_gauss, cached]
    return state


def _set_python_rng(state: dict) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "numpy" in state:
        import numpy

        numpy.random.set_state(tuple(state["numpy"]))


# Files that are whole or absent.


def write_aside(path: Path, data: bytes) -> None:
    """Replace a file in one step: a reader, or the next start after a crash, sees the old one or the new one."""
    aside = path.with_name(path.name + ".aside")
    _write_synced(aside, data)
    os.replace(aside, path)
    _sync_folder(path.parent)


def write_json(path: Path, value) -> None:
    write_aside(path, (json.dumps(value, indent=1) + "\n").encode())


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows has no handle on a folder to sync
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
