"""The processes of one run (started by torchrun): this process's rank, and communication between processes.

Every process holds the whole state of the run and sees a shard of each batch; after each step the states are
identical to the last bit. With a single process nothing here has any effect.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mcd_cli.errors import RunFailed, UserError, reason_of

T = TypeVar("T")
PATIENCE = timedelta(minutes=10)  # how long a process waits: rank 0 may be decoding a data set


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    rank: number of this process, of which 0 writes the files; world: number of processes; local_rank, local_world:
    the same, counted on this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @classmethod
    def join(cls, device: str) -> Processes:
        """Join the process group that torchrun's environment describes; without torchrun, a single process.

        Raises UserError if the environment or the device does not allow the group.
        """
        try:
            world, local_rank = (
                int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
            )
            local_world = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
            if not (dist.is_available() and dist.is_initialized()):
                if world == 1:
                    return cls()
                _begin(device, local_rank)
        except ValueError as error:
            raise UserError(
                f"cannot join the process group ({reason_of(error)}); start the processes with torchrun"
            ) from None
        return cls(dist.get_rank(), dist.get_world_size(), local_rank, local_world)

    def leave(self) -> None:
        """Leave the process group at the end of a successful run."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the output."""
        return self.rank == 0

    def shard(self, batch: Tensor) -> Tensor:
        """This process's shard of a global batch [n, …]."""
        return batch.tensor_split(self.world)[self.rank] if self.world > 1 else batch

    def gather(self, shard: Tensor, n: int) -> Tensor:
        """The global batch [n, …] assembled from all shards, identical in every process; differentiable."""
        if self.world == 1:
            return shard
        start = sum(len(part) for part in torch.arange(n).tensor_split(self.world)[: self.rank])
        padding = [0, 0] * (shard.ndim - 1) + [start, n - start - len(shard)]
        return self.all_reduce(torch.nn.functional.pad(shard, padding))

    def all_reduce(self, value: Tensor) -> Tensor:
        """The sum over processes, identical in every process; differentiable in reverse and forward mode."""
        return _AllReduce.apply(value) if self.world > 1 else value  # type: ignore[no-any-return, no-untyped-call]

    def all_reduce_(self, sums: Sequence[Tensor], means: Sequence[Tensor] = ()) -> None:
        """Replace `sums` by their sums and `means` by their means over processes, in place and in one message."""
        if self.world == 1:
            return
        tensors = [*sums, *means]
        flat = torch.cat([t.detach().reshape(-1).to(torch.promote_types(t.dtype, torch.float32)) for t in tensors])
        with _peers():
            dist.all_reduce(flat)
        with torch.no_grad():
            for tensor, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(piece.view(tensor.shape))
            for tensor in means:
                tensor /= self.world

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process; identical in every process, and without a device synchronisation."""
        if self.world == 1:
            return flag
        votes = torch.tensor(int(flag))
        with _peers():
            dist.all_reduce(votes, dist.ReduceOp.MAX)
        return bool(votes)

    def broadcast(self, value: T) -> T:
        """Process 0's value, in every process."""
        if self.world == 1:
            return value
        values: list[Any] = [value]
        with _peers():
            dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]  # type: ignore[no-any-return]


SINGLE_PROCESS = Processes()


class _AllReduce(torch.autograd.Function):
    """Σ over processes. The loss is the sum of all processes' losses, so the transpose is the same operation."""

    @staticmethod
    def forward(value: Tensor) -> Tensor:
        summed = value.clone(memory_format=torch.contiguous_format)
        with _peers():
            dist.all_reduce(summed)
        return summed

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _AllReduce.forward(gradients[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return _AllReduce.forward(tangents[0])


def check_shards(size: int, what: str, processes: Processes) -> None:
    """Raises UserError if a process would get fewer than the two images per batch that BatchNorm needs."""
    if processes.world > 1 and size < 2 * processes.world:
        raise UserError(f"{what} of {size} images is too small for {processes.world} processes; use fewer processes")


def _begin(device: str, local_rank: int) -> None:
    if not dist.is_available():
        raise UserError("this torch was built without torch.distributed; run a single process, without torchrun")
    if device == "mps":
        raise UserError("--device mps supports a single process; run without torchrun, or use --device cpu")
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UserError(f"more processes than GPUs ({torch.cuda.device_count()}); lower --nproc-per-node")
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    with _peers():
        if attempt == "0":
            dist.init_process_group(backend, timeout=PATIENCE)
            return
        # torchrun keeps its store over a restart, with the addresses of the processes that are gone
        store, rank, world = next(dist.rendezvous("env://", timeout=PATIENCE))  # type: ignore[attr-defined]
        store = dist.PrefixStore(f"attempt-{attempt}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)


@contextmanager
def _peers() -> Iterator[None]:
    """When one process ends, its connections break: the other processes then stop with RunFailed and say so."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # dist.DistError and gloo's own
        raise RunFailed(
            f"another process of this run has failed; see its message for the cause ({reason_of(error)})"
        ) from None
