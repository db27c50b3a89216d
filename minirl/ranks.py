"""Several processes as one: the step of one machine, shared between many, with the numbers of one.

    torchrun --nproc-per-node 8 -m minirl train grpo --out runs/g --shard fsdp

A minibatch in micro-batches adds up to the gradient of the whole, exactly (see `minirl.train.memory`). Ranks are the same
thing on several machines. All of them draw the same prompts and the same noise; each writes its own rows, and the rows are
then gathered, so that every rank holds the whole scored rollout: tokens are small. Group statistics, whitening, token
counts, KL and the choice of groups are computed from these whole tables, by the same lines as on one machine, and are the
same on every rank. Then each rank takes its share of a minibatch as micro-batches, and gradients are added up (not
averaged: they are shares of one mean).

What holds the model: `ddp` keeps a copy on every rank (DistributedDataParallel); `fsdp` keeps a share of every tensor, and
brings a layer together when it is computed (FSDP2's fully_shard; Zhao et al. 2023, after ZeRO, Rajbhandari et al. 2020).
"""

import inspect
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from minirl.types import STATS, Stats, Tensor

SHARDS = ("ddp", "fsdp")


class Ranks:
    """This process's place among `size` of them. `ALONE` is the place of a process that is by itself: everything here then
    gives back what it was given."""

    def __init__(self, rank: int = 0, size: int = 1, *, shard: str = "ddp", device: str = "cpu"):
        self.rank, self.size, self.shard, self.device = rank, size, shard, device
        self.trained: nn.Module | None = None
        self.ddp: nn.Module | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks for all."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """This rank's share of n things in a row; shares differ by one at most. With fewer things than ranks, the last thing
        is the share of several: take `every(x)[:n]` of what they make of it."""
        if n < self.size:
            return slice(min(self.rank, n - 1), min(self.rank, n - 1) + 1)
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    # Collectives. Every rank has to call them, in the same order.

    def every(self, x: Tensor) -> list[Tensor]:
        """Each rank's x, in the order of ranks. Shapes may differ, not the number of dimensions."""
        if self.size == 1:
            return [x]
        mine = x.detach().to(self.device)
        mine = mine.to(torch.uint8) if x.dtype == torch.bool else mine.contiguous()
        shape = torch.tensor(x.shape, device=self.device)
        shapes = [torch.empty_like(shape) for _ in range(self.size)]
        dist.all_gather(shapes, shape)
        most = torch.stack(shapes).amax(0).tolist()
        padded = mine.new_zeros(most)
        padded[tuple(slice(n) for n in x.shape)] = mine
        others = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(others, padded)
        cut = [o[tuple(slice(n) for n in s.tolist())] for o, s in zip(others, shapes, strict=True)]
        return [o.to(device=x.device, dtype=x.dtype) for o in cut]

    def add(self, x: Tensor) -> Tensor:
        """The sum of every rank's x."""
        if self.size == 1:
            return x
        total = x.detach().to(self.device, copy=True).contiguous()
        dist.all_reduce(total)
        return total.to(x.device)

    def total(self, stats: Stats) -> Stats:
        """Statistics that are shares of the whole's, added up by name. A rank without a row of its own has none to add."""
        if self.size == 1:
            return stats
        names = list(STATS)
        table = torch.zeros(2, len(names), dtype=torch.float64)
        for name, value in stats.items():
            table[0, names.index(name)], table[1, names.index(name)] = float(value), 1
        sums, found = self.add(table)
        return {name: sums[i] for i, name in enumerate(names) if found[i] > 0}

    def any(self, flag: bool) -> bool:
        return flag if self.size == 1 else bool(self.add(torch.tensor([float(flag)])) > 0)

    def most(self, n: int) -> int:
        """The largest of every rank's n."""
        return int(torch.stack(self.every(torch.tensor(n))).max())

    def barrier(self) -> None:
        if self.size > 1:
            self.add(torch.zeros(1))  # and not dist.barrier, which on NCCL guesses a device

    # The model.

    def spread(self, trained: nn.Module, *frozen: nn.Module) -> None:
        """Get the model that is trained, and those that are only read, ready for all ranks. Before the optimiser is made."""
        if self.size == 1 and self.shard != "fsdp":
            return
        self.trained = trained
        if self.shard == "fsdp":
            for model in (trained, *frozen):
                _shard(model)
        else:
            self.ddp = _data_parallel(trained)

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model is whole on this rank. Sampling needs it: ranks end their responses at different steps, and
        could not bring a layer together for each token at the same time."""
        units = [unit for unit in model.modules() if hasattr(unit, "unshard")]
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in units:
                unit.set_reshard_after_forward(unit is not model, recurse=False)
                unit.reshard()

    def in_step(self, parts: list) -> Iterator:
        """The parts, one after the other, with this rank's backward passes in step with those of the others.

        DistributedDataParallel adds gradients up in the backward pass that follows its own forward pass. Ours is empty, and
        comes before the last part: the parts before it add up here, as under `no_sync`. FSDP brings layers together in
        every pass, so all ranks have to make equally many: one that has fewer parts makes empty ones.
        """
        if self.trained is None:
            yield from parts
            return
        empty = max(self.most(len(parts)) - len(parts), 0) if self.shard == "fsdp" else int(not parts)
        for i, part in enumerate(parts):
            if self.ddp is not None and i == len(parts) - 1:
                self.ddp()
            yield part
        for _ in range(empty):
            if self.ddp is not None:
                self.ddp()
            _empty_pass(self.trained)
        if self.shard == "fsdp":
            for p in self.trained.parameters():
                if p.grad is not None:
                    p.grad.mul_(self.size)  # FSDP divides the sum by the number of ranks

    def leave(self) -> None:
        """The end of a run that went well."""
        self.trained = self.ddp = None
        if dist.is_initialized():
            self.barrier()
            dist.destroy_process_group()


ALONE = Ranks()


def join(shard: str = "ddp", device: str = "cpu") -> Ranks:
    """The place torchrun gave this process, with its device, or ALONE where there is no torchrun.

    ValueError for an unknown shard, for fsdp without torchrun or with a PyTorch that is too old, for more ranks than GPUs.
    """
    if shard not in SHARDS:
        raise ValueError(f"--shard: wanted {' or '.join(SHARDS)}, got {shard!r}")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        if shard == "fsdp":
            raise ValueError("--shard fsdp: wants several processes: torchrun --nproc-per-node N -m minirl train ...")
        return ALONE
    if shard == "fsdp" and not _stores_shares():
        raise ValueError(
            f"--shard fsdp: PyTorch {torch.__version__} cannot store a rank's share as safetensors, 2.9 and newer can. "
            f"--shard ddp works here"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"--device: rank {local} of this machine has no GPU, there are {torch.cuda.device_count()}"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    elif device != "cpu":
        raise ValueError(f"--device: several processes run on cpu or cuda, got {device!r}")
    # a rank that dies is noticed by torchrun, at once; who waits for the first rank's rule or its last save waits
    patience = timedelta(hours=12)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=patience)
    return Ranks(dist.get_rank(), dist.get_world_size(), shard=shard, device=device)


def alone_again(error: RuntimeError) -> bool:
    """Whether the error says that another rank is gone, which is then told. torchrun names that one, when this one has ended."""
    said = " ".join(str(error).split())
    if not any(word in said for word in ("closed by peer", "reset by peer", "Broken pipe", "NCCL", "gloo")):
        return False
    who = f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} ({socket.gethostname()}, pid {os.getpid()})"
    print(
        f"minirl: {who} lost another rank and ends ({said[:120]}). torchrun's report names the one that failed first; "
        f"the same command with --resume goes on from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    time.sleep(3)  # so that the other one is the first that torchrun sees end
    return True


def _stores_shares() -> bool:
    try:
        from torch.distributed.checkpoint import HuggingFaceStorageWriter
    except ImportError:
        return False
    return "save_distributed" in inspect.signature(HuggingFaceStorageWriter).parameters


def _data_parallel(model: nn.Module) -> nn.Module:
    class Ready(nn.Module):
        """Holds the parameters. Its forward pass computes nothing: the loops call the model themselves, in several ways."""

        def __init__(self):
            super().__init__()
            self.learned = nn.ParameterList(p for p in model.parameters() if p.requires_grad)

        def forward(self):
            return None

    def add_up(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        work = dist.all_reduce(bucket.buffer(), async_op=True)  # the sum: the default hook would divide by the ranks
        return work.get_future().then(lambda future: future.value()[0])

    ddp = nn.parallel.DistributedDataParallel(Ready())
    ddp.register_comm_hook(None, add_up)
    return ddp


def _shard(model: nn.Module) -> None:
    """fully_shard over every block and over what is left. The loops call `hidden` as well as `forward`."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # PolicyWithValue returns a view, which FSDP warns about: nothing here writes into it
    warnings.filterwarnings("ignore", message=".*returned a view tensor", category=UserWarning)
    blocks = [block for blocks in model.modules() if isinstance(blocks, nn.ModuleList) for block in blocks]
    for unit in (*blocks, model):
        fully_shard(unit)
    for method in ("hidden", "hidden_and_values"):
        if hasattr(model, method):
            register_fsdp_forward_method(model, method)
    with torch.no_grad():
        _one_token(model)  # the first pass tells the blocks who their root is; sampling would go past it
    model.reshard()


def _empty_pass(model: nn.Module) -> None:
    """Forward and backward over one token, as the loops make them, with a gradient of 0 for every parameter."""
    (0.0 * _one_token(model)).backward()


def _one_token(model: nn.Module) -> Tensor:
    token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    if not hasattr(model, "hidden_and_values"):
        return model.head(model.hidden(token)).sum()
    hidden, values = model.hidden_and_values(token)
    return model.policy.head(hidden).sum() + values.sum()


def exit_now(code: int) -> None:
    """End the process with this code, without the interpreter's own ending.

    A thread of gloo or of autograd that lets go of a tensor while the interpreter ends asks for its lock, does not get it,
    and is unwound through C++ that may not throw: "terminate called without an active exception", exit code -6, in a run
    that went well. Destroying the process group joins gloo's threads only if nobody else holds it, and a sharded model and
    DistributedDataParallel do. Everything is on disk by now, so nothing is lost by leaving at once.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
