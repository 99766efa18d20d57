"""Convolutions whose gradients can be relied on also on the smallest grids.

On a CPU, the gradient of the weights of a bf16 convolution is read from memory that was never
written if the kernel reaches beyond the site along x and the grid has two sites there (torch 2.13).
Nothing fails; the network trains on random numbers.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from medar.tokenizer.norms import without_autocast

SMALL = 4
"""Sites along x below which a CPU trains in float32."""

Network = TypeVar("Network", bound=nn.Module)


class ReliableConv3d(nn.Conv3d):
    """torch's, but in float32 where its gradients in bf16 are wrong."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) to (B, C', X', Y', Z')."""
        small = self.kernel_size[0] > 1 and x.shape[2] < SMALL
        if small and x.device.type == "cpu" and torch.is_grad_enabled():
            with without_autocast(x):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


class Convolution(ReliableConv3d):
    """3x3x3, with zeros around the grid, which it keeps."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, kernel_size=3, padding=1)


def with_reliable_convolutions(network: Network) -> Network:
    """A network whose torch convolutions are changed to `ReliableConv3d`; its weights stay."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = ReliableConv3d
    return network
