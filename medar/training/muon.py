"""Muon: an optimiser that orthogonalises the momentum of each weight matrix.

A step of a matrix moves all its singular directions by the same length, those with small gradients
too, which trains networks in fewer steps than AdamW does (Jordan and others, Muon: an optimizer for
hidden layers in neural networks, 2024; arXiv 2502.16982). Kernels of convolutions are matrices with
one row per output feature. Steps are scaled to the length that AdamW's have, so that one learning
rate serves both.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from medar.devices import without_tf32
from medar.training.task import ParameterGroup

ADAMW_LENGTH = 0.2
"""Root mean square of AdamW's steps, in multiples of the learning rate (arXiv 2502.16982)."""

COEFFICIENTS, ITERATIONS = (3.4445, -4.775, 2.0315), 5
"""Of the Newton-Schulz iteration: singular values from 0.003 to 1 go to within 0.68 and 1.21."""


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum with decoupled weight decay.

    As torch's fused optimisers do, a step is skipped where the attribute `found_inf`, a tensor on
    the device, is 1.

    Args:
        groups: parameter groups; their parameters have at least two dimensions.
        lr: learning rate.
        weight_decay: decoupled, as AdamW's.
        momentum: decay rate of the averaged gradient, which is used with Nesterov's correction.
    """

    found_inf: Tensor | float = 0.0

    def __init__(
        self,
        groups: Iterable[ParameterGroup],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient; `closure` must be None."""
        if closure is not None:
            raise TypeError("Muon takes no closure")
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shape = len(parameter), parameter.numel() // len(parameter)
                    by_shape.setdefault(shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters that are matrices of one shape."""
        rate, momentum = group["lr"], group["momentum"]
        done = 1.0 - self.found_inf
        directions = []
        for parameter in parameters:
            assert parameter.grad is not None
            gradient = parameter.grad.nan_to_num(0.0, 0.0, 0.0)
            state = self.state[parameter]
            if not state:
                state["average"] = torch.zeros_like(parameter)
            average = state["average"]
            average.add_((gradient - average) * ((1 - momentum) * done))
            direction = torch.lerp(gradient, average, momentum)
            directions.append(direction.reshape(len(parameter), -1))
        with without_tf32():
            steps = orthogonalised(torch.stack(directions))
        length = rate * ADAMW_LENGTH * max(steps.shape[1:]) ** 0.5
        for parameter, step in zip(parameters, steps, strict=True):
            change = parameter * (-rate * group["weight_decay"])
            change = change - length * step.reshape(parameter.shape)
            parameter.add_(change * done)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices (N, rows, columns) with the same singular vectors and singular values near 1.

    The singular value decomposition U S V^T becomes about U V^T, by a Newton-Schulz iteration
    x <- (a + b x x^T + c (x x^T)^2) x. Each factor is a polynomial of the first x x^T, so that the
    iteration needs only this small square matrix, and the product with x comes once, at the end:
    kernels of convolutions are far wider than high. It needs all of float32: singular values are
    squared.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    gram = x @ x.mT
    product = identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        factor = a * identity + b * gram + c * gram @ gram
        product, gram = factor @ product, factor @ gram @ factor
    result: Tensor = product @ x
    return result if wide else result.mT


def hidden_matrices(network: nn.Module) -> set[Tensor]:
    """The weights of a network that Muon trains: of linear layers and convolutions.

    Embeddings and other tables, whose rows are updated by themselves, convolutions within groups
    of channels, and layers called `head`, which end a network, are left to AdamW.
    """
    found: set[Tensor] = set()
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            grouped = getattr(module, "groups", 1) > 1
            if not grouped and name.split(".")[-1] != "head":
                found.add(module.weight)
    return found
