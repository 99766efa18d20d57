"""Collective operations of a data-parallel run: sums, broadcasts, and draws shared by all ranks.

Items are dealt out as torch's DistributedSampler does: item i of the global batch is item
i // world_size of rank i % world_size. Random draws use the random state of rank 0. Several ranks
therefore do what one rank does with all of their batches. Without torch.distributed, one process is
the whole group and nothing is sent.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from medar.devices import send


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if _initialized() else 1


def rank() -> int:
    """This process's rank."""
    return dist.get_rank() if _initialized() else 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def broadcast(tensor: Tensor) -> Tensor:
    """Rank 0's values, in place."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def draw_uniform(items: int, device: torch.device) -> Tensor:
    """A uniform number in [0, 1) for each item of this rank: (items,) float32."""
    drawn = send(torch.rand(items * world_size()), device)
    return broadcast(drawn)[rank() :: world_size()]


def draw_vectors(vectors: Tensor, number: int, *, replacement: bool) -> Tensor:
    """Vectors drawn at random from the items of all ranks, the same on every rank.

    Args:
        vectors: (items, L, D) of this rank; every rank has the same number of items.
        number: of vectors to draw; without replacement, at most their total number.
        replacement: allow the same vector more than once; much faster where there are many.

    Returns:
        (number, D).
    """
    items, length, width = vectors.shape
    count = items * length * world_size()
    if replacement:
        indices = torch.randint(count, (number,))
    else:
        indices = torch.randperm(count)[:number]
    indices = broadcast(send(indices, vectors.device))
    item = indices // length
    is_local = item % world_size() == rank()
    local = vectors.reshape(-1, width)[item // world_size() * length + indices % length]
    return all_reduce_sum(torch.where(is_local[:, None], local, 0))


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()
