"""A convolution of 3x3x3 sites whose gradients can be relied on also on the smallest grids."""

import torch
from torch import Tensor, nn

from medar.tokenizer.norms import without_autocast

SMALL = 4
"""Sites along x below which a CPU trains in float32: at 2, the gradient of the weights of a bf16
convolution is read from memory that was never written (torch 2.13)."""


class Convolution(nn.Conv3d):
    """3x3x3, with zeros around the grid, which it keeps."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) to (B, C', X, Y, Z)."""
        if x.shape[2] < SMALL and x.device.type == "cpu" and torch.is_grad_enabled():
            with without_autocast(x):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)
