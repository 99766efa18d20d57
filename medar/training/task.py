"""What a task gives to the loop: a model, batches, a loss, an evaluation.

The loop knows one backward pass a batch and one optimiser step a few batches. An adversarial task
fits that as it is: it names its discriminator among `companions`, and its loss is the sum of the
generator's loss, taken through `frozen_call(discriminator, made)`, and the discriminator's loss on
`made.detach()`. Each part then reaches only its own parameters, which have an optimiser of their
own, and both players move at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

B = TypeVar("B")

ParameterGroup = dict[str, Any]
"""A group as torch's AdamW takes it: `params`, and if need be `weight_decay`, `betas`; `factor`
multiplies the learning rate."""


class Task(ABC, Generic[B]):
    """Something to train; `B` is the type of its batches.

    Under torchrun every process has its own task, which gets its rank from
    `medar.training.distributed.current_ranks()`.
    """

    model: nn.Module
    """What is trained, averaged, evaluated and saved, in the mode that it is to be trained in. The
    loop moves it to the device."""
    metric: str
    """The name, among the results of `evaluate`, that decides which weights are the best."""
    larger_is_better: bool = False
    progress: float = 0.0
    """Fraction of the run that is over, by steps or minutes; the loop sets it before each step."""

    @abstractmethod
    def batches(self, epoch: int, start: int) -> Iterable[B]:
        """The batches of this process in an epoch, from number `start` on.

        They depend on the epoch and the process alone, never on torch's global random state, and
        every process has as many.
        """

    @abstractmethod
    def loss(self, batch: B, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, a scalar, and scalars to log. Called under autocast."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Metrics of the model, which is in evaluation mode with its averaged weights.

        The loop takes the mean over processes: each looks at all the data, or at an equal share.
        """

    def companions(self) -> dict[str, nn.Module]:
        """Networks trained beside the model and not saved with it, such as a discriminator."""
        return {}

    def parameter_groups(self) -> dict[str, list[ParameterGroup]]:
        """Parameter groups by optimiser: one optimiser for the model, one a companion."""
        players = {"model": self.model, **self.companions()}
        return {name: decayed_apart(module) for name, module in players.items()}

    def after_step(self, step: int) -> None:
        """Called after each optimiser step, `step` of them being done."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, other than the networks', that a resumed run needs.

        Process 0's are kept, and every process gets them back.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        return

    def describe(self) -> dict[str, Any]:
        """Plain values that say what is trained on what; a run goes on only with the same ones."""
        return {}

    def save_model(self, folder: Path) -> None:
        """Write the model, which has its averaged weights, into an empty folder."""
        from safetensors.torch import save_model

        save_model(self.model, str(folder / "model.safetensors"))


def decayed_apart(module: nn.Module) -> list[ParameterGroup]:
    """Two parameter groups: matrices and kernels, and what has no weight decay.

    Biases, gains of norms and scalars have at most one dimension; an embedding counts as a matrix.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups: list[ParameterGroup] = [
        {"params": [p for p in trained if p.ndim > 1]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def frozen_call(module: nn.Module, *inputs: Any) -> Any:
    """`module(*inputs)` with gradients to the inputs and none to the module's parameters."""
    fixed = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return torch.func.functional_call(module, fixed, inputs)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device, through dictionaries, lists and tuples."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
