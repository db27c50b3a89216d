"""The state of a model that is shared between ranks, on disk: every rank writes its own share, and any number of ranks, one
too, reads it back.

    step_000010/shards/shard-00001-model-00001-of-00001.safetensors     the share of rank 0, weights and moments
    step_000010/shards/shard-00002-model-00001-of-00001.safetensors     ...

Written by torch.distributed.checkpoint through its storage in safetensors. Its own default is a pickle, which is never
written or read here.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from minirl.ranks import Ranks
from minirl.types import Tensor


def is_sharded(x: Tensor) -> bool:
    """Whether this is a rank's view of a tensor (a DTensor) and not the whole."""
    return hasattr(x, "full_tensor")


def write_shards(folder: Path, tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, str]:
    """Every rank writes its share of the tensors into the folder, which exists. {file name: sha256}, the same on every rank."""
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    with _quiet():
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    ranks.barrier()
    names = sorted(path.name for path in folder.iterdir())
    mine = [_sum_of(folder / name) for name in names[ranks.rank :: ranks.size]]
    found = ranks.every(torch.tensor([list(digest) for digest in mine], dtype=torch.uint8).view(-1, 32))
    return {name: bytes(found[i % ranks.size][i // ranks.size].tolist()).hex() for i, name in enumerate(names)}


def check_shards(folder: Path, sums: dict[str, str]) -> None:
    """ValueError, naming the file, if one is missing, was added, or is not what was written."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names != sums.keys():
        raise ValueError(f"{folder.name} holds {sorted(names)}, wanted {sorted(sums)}")
    for name, digest in sums.items():
        if _sum_of(folder / name).hex() != digest:
            raise ValueError(f"{folder.name}/{name} does not match its checksum")


def read_shards(folder: Path, like: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """The tensors of these files by name: whole, or a rank's share where `like(name)` is one, whoever wrote them.

    ValueError if one has another shape than `like(name)`.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    reader = HuggingFaceStorageReader(str(folder))
    with _quiet():
        found = {}
        for name, about in sorted(reader.read_metadata().state_dict_metadata.items()):
            x = like(name)
            if about.size != x.shape:
                raise ValueError(f"{name} has the shape {tuple(about.size)}, wanted {tuple(x.shape)}")
            found[name] = torch.empty_like(x, requires_grad=False)
        load(found, storage_reader=reader, no_dist=not torch.distributed.is_initialized())
    return found


def as_in(x: Tensor, like: Tensor) -> Tensor:
    """A tensor that was read whole, as this rank's share where `like` is one."""
    if not is_sharded(like) or is_sharded(x):
        return x
    from torch.distributed.tensor import distribute_tensor

    # src_data_rank=None: every rank has read the whole tensor and takes its share, nothing is sent
    return distribute_tensor(x.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state of a model with every tensor whole, on every rank. Every rank has to call it."""
    return {name: x.full_tensor() if is_sharded(x) else x for name, x in model.state_dict().items()}


def _sum_of(path: Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the storage tells its own developers."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(before)
