"""Sharded training under torchrun (FSDP2, `fully_shard`; arXiv 2304.11277): for large models.

Each process holds a part of every weight, of its gradient, of its average and of its optimiser
states, and gathers the weights of one module at a time to compute with them. Checkpoints and models
are those of one process: rank 0 gathers them on its CPU.
"""

import contextlib
from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medar.errors import MedarError
from medar.training.task import Task


class Sharding:
    """The model of a task, divided among processes.

    Weights are divided before they are moved to the device, which never holds all of them.

    Args:
        task: its model is on the CPU; what is not trained is not divided.
        device: of the parts.

    Raises:
        MedarError: the task does not say how its model is divided.
    """

    def __init__(self, task: Task[Any], device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        parts, self.model = task.shards(), task.model
        if not parts:
            raise MedarError(
                "training.shard: this model cannot be divided among processes, only generators "
                "can; leave it out"
            )
        for tensor in chain(self.model.parameters(), self.model.buffers()):
            dist.broadcast(tensor.detach(), 0)
        self._copy = deepcopy(self.model) if dist.get_rank() == 0 else None
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        frozen = {one for one in self.model.parameters() if not one.requires_grad}
        for module in (*parts, self.model):
            # Not reshared, the averaged weights could not be exchanged after an evaluation.
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=frozen)

    def synchronise(self, enabled: bool) -> None:
        """Whether the next backward pass averages gradients, or only accumulates them."""
        model: Any = self.model
        model.set_requires_gradient_sync(enabled)

    def gather(self, values: Any) -> Any:
        """A copy of nested dictionaries and lists with whole tensors, on the CPU of rank 0.

        All processes call it; in the others whole tensors are None.
        """
        if isinstance(values, dict):
            return {name: self.gather(value) for name, value in values.items()}
        if isinstance(values, list):
            return [self.gather(value) for value in values]
        if not hasattr(values, "full_tensor"):
            return values
        whole = values.detach().full_tensor()
        return whole.cpu() if self._copy is not None else None

    def divide(self, whole: Tensor, like: Tensor) -> Tensor:
        """The part of a tensor that this process holds, if `like` is divided and of its shape."""
        if not hasattr(like, "full_tensor") or whole.shape != like.shape:
            return whole
        from torch.distributed.tensor import distribute_tensor

        part: Any = like
        # Every process has the whole tensor: nothing is sent.
        return distribute_tensor(
            whole.to(part.device), part.device_mesh, part.placements, src_data_rank=None
        )

    def divide_states(self, state: dict[str, Any], parameters: list[Tensor]) -> dict[str, Any]:
        """An optimiser's `state_dict` whose tensors are divided as its parameters are."""
        states = {
            index: {name: self.divide(value, parameters[index]) for name, value in own.items()}
            for index, own in state["state"].items()
        }
        return {**state, "state": states}

    @contextlib.contextmanager
    def whole_model(self, task: Task[Any]) -> Iterator[None]:
        """The task of rank 0 has the whole model, on the CPU, inside the block; all call it."""
        weights = self.gather(self.model.state_dict())
        if self._copy is not None:
            self._copy.load_state_dict(weights)
            task.model = self._copy
        try:
            yield
        finally:
            task.model = self.model


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is divided: then every process must call it as often as the others."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
