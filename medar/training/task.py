"""What a task provides to the loop: a model, batches, a loss, an evaluation.

The loop does one backward pass per batch and one optimiser step per `accumulation_steps` batches.
Adversarial training fits in: the task returns its discriminator from `companions`, and its loss is
the sum of the generator's loss, computed through `frozen_call(discriminator, fake)`, and the
discriminator's loss on `fake.detach()`. Each term then has gradients for its own network only, and
each network has optimisers of its own.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

B = TypeVar("B")

ParameterGroup = dict[str, Any]
"""Parameters as torch's AdamW takes them: `params`, optionally `weight_decay` and `betas`, and
optionally `factor`, which multiplies the learning rate."""


class Task(ABC, Generic[B]):
    """Something to train; `B` is the type of its batches.

    Under torchrun every process has its own task; `current_ranks()` gives its rank.
    """

    model: nn.Module
    """The model to train, average, evaluate and save, in training mode. The loop moves it to the
    device."""
    metric: str
    """The result of `evaluate` that determines the best weights."""
    larger_is_better: bool = False
    unused_parameters: bool = False
    """Whether a loss may leave out some of the parameters in some steps, such as those of a resting
    discriminator. With several processes, each step then searches for them."""
    unit: str = ""
    """What `amount` counts, such as "voxels"; the log shows how many are processed per second."""
    progress: float = 0.0
    """Fraction of the run that is over, by steps or minutes; the loop sets it before each step."""

    @abstractmethod
    def batches(self, epoch: int, start: int) -> Iterable[B]:
        """The batches of this process in an epoch, from index `start` on.

        They depend on the epoch and the rank only, never on torch's global random state. All
        processes have the same number.
        """

    def amount(self, batch: B) -> int:
        """How many `unit` a batch of this process holds, from its shapes alone."""
        return 0

    @abstractmethod
    def loss(self, batch: B, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss to minimise, and scalars to log. Called under autocast."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Metrics of the model, which is in evaluation mode and has its averaged weights.

        The loop averages over processes: each evaluates all the data, or an equal part of it.
        """

    def companions(self) -> dict[str, nn.Module]:
        """Networks trained with the model but not saved with it, such as a discriminator."""
        return {}

    def shards(self) -> list[nn.Module]:
        """Modules of the model whose weights are gathered one after the other, if it is sharded.

        Empty: it cannot be sharded. Otherwise it is only used by calling it, and in an evaluation
        every process calls it as often as the others.
        """
        return []

    def parameter_groups(self) -> dict[str, list[ParameterGroup]]:
        """Parameter groups by network; each network has optimisers of its own."""
        networks = {"model": self.model, **self.companions()}
        return {name: weight_decay_groups(module) for name, module in networks.items()}

    def compile(self, **options: Any) -> None:
        """Compile what pays, for `training.compile`; `options` are torch.compile's.

        By default the forward pass of the model. Evaluations are not compiled.
        """
        self.model.compile(**options)

    def after_step(self, step: int) -> None:
        """Called after each optimiser step; `step` counts the steps done."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors that a resumed run needs besides the networks.

        Those of rank 0 are saved, and restored in every process.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        return

    def describe(self) -> dict[str, Any]:
        """Plain values that identify model and data; a run resumes only with the same values."""
        return {}

    def save_model(self, folder: Path) -> None:
        """Write the model, which has its averaged weights, into an empty folder."""
        from safetensors.torch import save_model

        save_model(self.model, str(folder / "model.safetensors"))


def weight_decay_groups(module: nn.Module) -> list[ParameterGroup]:
    """Parameter groups with weight decay (matrices, kernels) and without it.

    Biases, gains of norms and scalars, which have at most one dimension, have no weight decay.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups: list[ParameterGroup] = [
        {"params": [p for p in trained if p.ndim > 1]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def frozen_call(module: nn.Module, *inputs: Any) -> Any:
    """`module(*inputs)` with gradients for the inputs but not for the module's parameters."""
    fixed = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return torch.func.functional_call(module, fixed, inputs)


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch to a device, also inside dictionaries, lists and tuples."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
