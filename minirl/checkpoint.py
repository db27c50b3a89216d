"""The state of a training loop on disk, whole or not at all, and the way back to the exact bits.

    step_000010/
        tensors.safetensors    parameters, optimiser moments, random streams
        state.json             everything else, and the checksums
        shards/                what several ranks hold a share of each: see minirl.shards

A checkpoint is written under another name, synced and renamed, so that a folder called step_... is whole. Its files are
hashed, because safetensors does not notice a flipped bit; a damaged one is named and set aside, and the one before it is
used. Nothing is ever unpickled, and nothing that might still be of use is deleted.
"""

import hashlib
import json
import random
import shutil
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load, save

from minirl.disk import free_name, naming, remove, sync_folder, write_synced
from minirl.disk import write_aside as write_aside  # for those who look for them here
from minirl.disk import write_json as write_json
from minirl.ranks import ALONE, Ranks
from minirl.shards import as_in, check_shards, is_sharded, read_shards, write_shards


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.name[5:].isdigit())


def write_checkpoint(folder: Path, step: int, objects: dict, *, of: str = "", ranks: Ranks = ALONE) -> Path:
    """Write the state of the tracked objects as folder/step_NNNNNN, which exists whole or not at all.

    `of` says of which run it is; `restore` compares it. Of several `ranks` each calls it; the first writes, and each its
    share of what is sharded. DiskError: what was there before is there still.
    """
    tensors, values = {"rng.torch": torch.get_rng_state()}, {"rng": _python_rng()}
    for name, item in objects.items():
        _collect(name, item, tensors, values)
    shards = {name: tensors.pop(name) for name in list(tensors) if is_sharded(tensors[name])}
    aside, final = folder / f"aside_{step:06d}", folder / f"step_{step:06d}"
    if ranks.first:
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            remove(aside)
            (aside / "shards" if shards else aside).mkdir(parents=True)
    ranks.barrier()
    with naming(folder):
        sums = write_shards(aside / "shards", shards, ranks) if shards else {}
    if ranks.first:
        _write_rest(folder, step, aside, final, tensors, {"values": values, "of": of, "shards": sums})
    ranks.barrier()
    return final


def _write_rest(folder: Path, step: int, aside: Path, final: Path, tensors: dict, about: dict) -> None:
    # a copy of its own for each tensor: safetensors refuses memory that two names share, such as tied weights
    data = save({name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()})
    state = {"step": step, **about, "sha256": {"tensors.safetensors": hashlib.sha256(data).hexdigest()}}
    text = json.dumps(state, indent=1)
    text = json.dumps({"state": state, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1)
    with naming(folder):
        try:
            write_synced(aside / "tensors.safetensors", data)
            write_synced(aside / "state.json", text.encode())
            if final.exists():
                _set_aside(final)
            aside.rename(final)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)  # half a checkpoint takes room, on a disk that may have none
            raise
        sync_folder(folder)


def keep_last(folder: Path, count: int) -> None:
    """Remove all but the last `count` checkpoints, each out of the list first, so that a kill leaves no half of one."""
    with naming(folder):
        for path in checkpoints(folder)[:-count]:
            aside = path.with_name(f"aside_{path.name[5:]}")
            remove(aside)
            path.rename(aside)
            remove(aside)


def restore(folder: Path, objects: dict, *, of: str = "", ranks: Ranks = ALONE) -> int:
    """Load the newest whole checkpoint into the objects, in place; its step, or 0 if there is none.

    A damaged checkpoint is named in a warning and renamed to damaged_NNNNNN, and the one before it is used. ValueError if
    all are damaged, or if one does not fit the objects or is not `of` this run. DiskError if one may not be read.
    """
    with naming(folder):
        for aside in folder.glob("aside_*") if ranks.first else []:
            remove(aside)  # a save that was interrupted
        # the first rank looks, and the others take what it found
        path, found, damaged = _newest_whole(folder) if ranks.first else (None, None, [])
        newest = ranks.most(0 if path is None else int(path.name[5:]))
        if newest and not ranks.first:
            path = folder / f"step_{newest:06d}"
            found = _read_checkpoint(path)
        if found is None:
            if damaged:
                names = ", ".join(path.name for path in damaged)
                raise ValueError(
                    f"{folder}: every checkpoint is damaged ({names}). To begin again, choose another --out"
                )
            return 0
        state, tensors = found
        if of and state["of"] and state["of"] != of:
            raise ValueError(
                f"{path}: the checkpoint is of another run: it was made with other settings than config.json says"
            )
        tensors = _as_held(tensors, state["shards"], objects, path)
        for name, item in objects.items():
            _put_back(name, item, tensors, state["values"], path)
        torch.set_rng_state(tensors["rng.torch"])
        _set_python_rng(state["values"]["rng"])
        for each in damaged:
            _set_aside(each)
        return state["step"]


def newest_step(folder: Path) -> int:
    """Where `restore` would stand: the step of the newest whole checkpoint, 0 if there is none."""
    with naming(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # restore says it
        path, found, _ = _newest_whole(folder)
        return 0 if found is None else int(path.name[5:])


def _newest_whole(folder: Path) -> tuple[Path | None, tuple[dict, dict] | None, list[Path]]:
    """Its folder, what it holds, and the damaged ones that are newer."""
    damaged = []
    for path in reversed(checkpoints(folder)):
        try:
            found = _read_checkpoint(path)
            if found[0]["shards"]:
                check_shards(path / "shards", found[0]["shards"])
            return path, found, damaged
        except PermissionError:
            raise  # it may be whole
        except (OSError, ValueError) as error:
            warnings.warn(f"{path}: damaged checkpoint, going back to the one before it ({error})", stacklevel=3)
            damaged.append(path)
    return None, None, damaged


def _set_aside(path: Path) -> None:
    """step_000020 becomes damaged_000020: out of the list, and not lost."""
    path.rename(free_name(path.with_name(f"damaged_{path.name[5:]}")))


def _read_checkpoint(path: Path) -> tuple[dict, dict]:
    try:
        wrapped = json.loads((path / "state.json").read_text(encoding="utf-8"))
        state = wrapped["state"]
        if hashlib.sha256(json.dumps(state, indent=1).encode()).hexdigest() != wrapped["sha256"]:
            raise ValueError("state.json does not match its checksum")
        if path.name != f"step_{state['step']:06d}":
            raise ValueError(f"state.json is of step {state['step']}")
        data = (path / "tensors.safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != state["sha256"]["tensors.safetensors"]:
            raise ValueError("tensors.safetensors does not match its checksum")
        return {"of": "", "shards": {}} | state, load(data)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"state.json is not a checkpoint's ({type(error).__name__}: {error})") from None


def _as_held(tensors: dict, shards: dict, objects: dict, path: Path) -> dict:
    """All tensors of a checkpoint, each whole or this rank's share of it, as the objects hold them: a run goes on with
    another number of ranks, and another way to share, than wrote it."""
    held = {}
    for name, item in objects.items():
        if isinstance(item, torch.optim.Optimizer):
            parameters = [p for group in item.param_groups for p in group["params"]]
            held |= {f"{name}.{i}": p for i, p in enumerate(parameters)}  # a moment is laid out like its parameter
        elif isinstance(item, torch.nn.Module):
            held |= {f"{name}.{key}": x for key, x in item.state_dict().items()}

    def like(name: str) -> torch.Tensor | None:
        return held.get(name, held.get(name.rpartition(".")[0]))

    def wanted(name: str) -> torch.Tensor:
        if like(name) is None:
            raise ValueError(f"{path}: the checkpoint is of another model: nothing here is called {name}")
        return like(name)

    if any(is_sharded(x) for x in held.values()):
        tensors = {
            name: as_in(x, like(name)) if x.dim() and like(name) is not None else x for name, x in tensors.items()
        }
    if shards:
        try:
            tensors = tensors | read_shards(path / "shards", wanted)
        except ValueError as error:
            raise ValueError(f"{path}: the checkpoint is of another model: {error}") from None
    return tensors


# What can be tracked. An optimiser's parameter groups are settings and come from the code; its moments are state.


def _learned(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's state but for frozen parameters: under LoRA the base, thousands of times the rest, is not written again."""
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: x for name, x in module.state_dict().items() if name not in frozen}


def _collect(name: str, item, tensors: dict, values: dict) -> None:
    if isinstance(item, torch.Generator):
        tensors[name] = item.get_state()
    elif isinstance(item, torch.optim.Optimizer):
        values[name] = type(item).__name__
        for index, moments in item.state_dict()["state"].items():
            for key, moment in moments.items():
                tensors[f"{name}.{index}.{key}"] = torch.as_tensor(moment)
    elif isinstance(item, torch.nn.Module):
        tensors.update({f"{name}.{key}": x for key, x in _learned(item).items()})
    else:
        values[name] = vars(item)


def _put_back(name: str, item, tensors: dict, values: dict, path: Path) -> None:
    """ValueError if what the checkpoint holds under this name does not fit the item."""
    mine = {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}
    what = "model" if isinstance(item, torch.nn.Module) else "state"
    try:
        if isinstance(item, torch.Generator):
            item.set_state(tensors[name])
        elif isinstance(item, torch.optim.Optimizer):
            what = "optimiser"
            _put_back_moments(item, mine, values[name])
        elif isinstance(item, torch.nn.Module):
            saved = _learned(item)  # what is frozen is in no checkpoint, and stays as it is
            item.load_state_dict({key: x for key, x in item.state_dict().items() if key not in saved} | mine)
        else:
            if vars(item).keys() != values[name].keys():
                raise ValueError(f"it has {', '.join(values[name])}, wanted {', '.join(vars(item))}")
            vars(item).update(values[name])
    except KeyError as error:
        raise ValueError(f"{path}: the checkpoint is of another loop, it holds no {error}") from None
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: the checkpoint is of another {what} than `{name}`: {reason}") from None


def _put_back_moments(optimizer: torch.optim.Optimizer, mine: dict, kind: str) -> None:
    """PyTorch would take moments of any shape, and fail, or worse not fail, at the next step."""
    if kind != type(optimizer).__name__:
        raise ValueError(f"made by {kind}, wanted {type(optimizer).__name__}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict = {}
    for key, x in mine.items():
        index, moment = key.split(".")
        if int(index) >= len(parameters) or (x.dim() > 0 and x.shape != parameters[int(index)].shape):
            raise ValueError(f"{moment} {tuple(x.shape)} of parameter {index} does not fit")
        moments.setdefault(int(index), {})[moment] = x
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


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
