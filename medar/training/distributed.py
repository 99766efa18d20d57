"""Data-parallel training under torchrun (DistributedDataParallel, arXiv 2006.15704).

Each process holds the whole model, unless it is sharded (`medar.training.sharding`), and a part of
each batch. Processes share one file system.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medar.errors import MedarError
from medar.training.task import Task


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, as torchrun numbers them."""

    rank: int = 0
    """Index of this process; only rank 0 writes files."""
    world_size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Index of this process on its machine, which is also its CUDA device."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def per_rank_batch_size(self, batch_size: int) -> int:
        """The batch size of each process.

        Raises:
            MedarError: the global batch cannot be divided evenly.
        """
        if batch_size % self.world_size:
            raise MedarError(
                f"batch_size {batch_size} must be a multiple of the number of processes, "
                f"{self.world_size}"
            )
        return batch_size // self.world_size


def current_ranks() -> Ranks:
    """The ranks that torchrun sets in the environment; a single process without them."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    return Ranks(*(int(os.environ.get(n, d)) for n, d in zip(names, (0, 1, 0), strict=True)))


@contextlib.contextmanager
def process_group(
    ranks: Ranks, device: torch.device, timeout: timedelta | None = None
) -> Iterator[None]:
    """Initialise torch.distributed inside the block: gloo on CPUs, NCCL for CUDA tensors.

    Args:
        ranks: this process.
        device: of its tensors.
        timeout: of collective operations; torch's default is 30 minutes, 10 with NCCL.
    """
    if ranks.world_size == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, timeout=timeout)
    else:
        dist.init_process_group("gloo", timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Forward(nn.Module):
    """A task's loss as a module, for DistributedDataParallel.

    Everything that the loss calls, on any network, is then part of one forward pass.
    """

    def __init__(self, task: Task[Any]) -> None:
        super().__init__()
        self.networks = nn.ModuleList([task.model, *task.companions().values()])
        self._loss = task.loss

    def forward(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and detached metrics."""
        loss, metrics = self._loss(batch, step)
        metrics = {"loss": loss, **metrics}
        return loss, {name: value.detach() for name, value in metrics.items()}


def data_parallel(task: Task[Any], ranks: Ranks, device: torch.device) -> nn.Module:
    """The task's forward pass; gradients are averaged over processes."""
    forward = Forward(task)
    if ranks.world_size == 1:
        return forward
    # Buffers are equal in all processes at the start, and learn from sums over processes.
    return DistributedDataParallel(
        forward,
        device_ids=[device.index] if device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=task.unused_parameters,
    )


def release(forward: nn.Module) -> None:
    """Free what the forward pass keeps of its process group, which must still be initialised.

    A reducer that holds the last reference to a group of gloo waits for its threads, which may be
    waiting for the GIL that the reducer's destructor does not release: the process never ends
    (torch 2.13).
    """
    if isinstance(forward, DistributedDataParallel):
        del forward.logger, forward.reducer


def gradient_sync(forward: nn.Module, enabled: bool) -> contextlib.AbstractContextManager[object]:
    """Average gradients over processes inside the block, or only accumulate them locally."""
    if not enabled and isinstance(forward, DistributedDataParallel):
        return forward.no_sync()
    return contextlib.nullcontext()


def all_gather_object(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def all_reduce_max(*values: float) -> list[float]:
    """The maximum of each value over processes."""
    if not dist.is_initialized():
        return list(values)
    together = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return [float(value) for value in together]


def all_ranks(flag: Tensor) -> Tensor:
    """Whether a flag, a bool on the device, is set in all processes; without synchronisation."""
    if not dist.is_initialized():
        return flag
    together = flag.int()
    dist.all_reduce(together, dist.ReduceOp.MIN)
    return together.bool()


def mean_over_ranks(metrics: dict[str, float]) -> dict[str, float]:
    """The mean of each metric over the processes that have it."""
    return weighted_means(
        [{n: (v, 1.0) for n, v in one.items()} for one in all_gather_object(metrics)]
    )


def weighted_means(parts: list[dict[str, tuple[float, float]]]) -> dict[str, float]:
    """Means by name of (sum, count) pairs; names with a count of 0 are left out."""
    names = dict.fromkeys(name for part in parts for name in part)
    sums = {n: [part.get(n, (0.0, 0.0)) for part in parts] for n in names}
    totals = {n: (sum(s for s, _ in pairs), sum(k for _, k in pairs)) for n, pairs in sums.items()}
    return {name: total / number for name, (total, number) in totals.items() if number}
