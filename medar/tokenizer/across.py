"""What the processes of a data-parallel run agree on: sums, draws and choices of vectors.

Items are dealt to processes in turn, as torch's DistributedSampler does: item i of the whole batch
is item i // world of process i % world. Draws come from the random state of process 0. So several
processes do what one does with their batches together. Without torch.distributed, one process is
the whole world and nothing is sent.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """This process among them."""
    return dist.get_rank() if _together() else 0


def total(tensor: Tensor) -> Tensor:
    """The sum over processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first(tensor: Tensor) -> Tensor:
    """Process 0's values, in place."""
    if world() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def draw_items(items: int, device: torch.device) -> Tensor:
    """A uniform number in [0, 1) for each of this process's items, (items,) float32."""
    drawn = torch.rand(items * world()).to(device, non_blocking=True)
    return from_first(drawn)[rank() :: world()]


def draw_vectors(vectors: Tensor, number: int, *, replacement: bool) -> Tensor:
    """Vectors of all processes' items, drawn at random, the same on each process.

    Args:
        vectors: (items, L, D) of this process; every process has as many.
        number: how many to draw; without replacement, at most as many as there are.
        replacement: the same vector may come twice; much quicker where there are many.

    Returns:
        (number, D).
    """
    items, length, width = vectors.shape
    count = items * length * world()
    if replacement:
        places = torch.randint(count, (number,))
    else:
        places = torch.randperm(count)[:number]
    places = from_first(places.to(vectors.device, non_blocking=True))
    item = places // length
    here = item % world() == rank()
    local = vectors.reshape(-1, width)[item // world() * length + places % length]
    return total(torch.where(here[:, None], local, 0))


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
