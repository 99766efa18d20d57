"""Averaged weights: an exponential moving average of a model's parameters.

The decay starts low, min(decay, (1 + n) / (10 + n)) at update n, so that a short run's average
forgets the weights that it began with. Buffers are not averaged: they go with the weights as they
are.
"""

import contextlib
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn


class Average:
    """The moving average of the parameters of `model`, as they are now.

    Args:
        model: whose parameters are averaged; those that are not trained are left out.
        decay: share of the average that stays at each update, from 0 to below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._averages = {n: p.detach().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(
            list(self._averages.values()), list(self._parameters.values()), 1 - decay
        )

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside the block, and its own again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            average = self._averages[name]
            own = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(own)

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint holds."""
        return {"updates": self.updates, "averages": self._averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from `state_dict`."""
        self.updates = cast(int, state["updates"])
        for name, value in cast(dict[str, Tensor], state["averages"]).items():
            self._averages[name].copy_(value)
