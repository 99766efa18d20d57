"""`energy_score`: how well the distribution of draws agrees with real volumes.

For a real volume x and two draws y, y', E|x - y| - E|y - y'| / 2 is smallest if draws have the
distribution of real volumes (Gneiting and Raftery, Journal of the American Statistical Association
102, 2007); as a loss it trains a network to draw in one step (arXiv 2307.00835). Here |.| is the
Euclidean norm over the voxels of a window, for windows of several sizes, of the volume and of its
gradient: draws must agree in their texture, not only voxel by voxel.

B batch, C channels, X Y Z voxels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

WINDOWS = (1, 2, 4, 8)
"""Voxels of a window along each axis."""

TINY = 1e-8
"""Added to squared norms, so that the gradient of a norm of 0 is finite."""


def energy_score(
    volume: Tensor, first: Tensor, second: Tensor, offset: Sequence[int] = (0, 0, 0)
) -> Tensor:
    """The energy score of two draws, summed over windows, of values and of gradients; a scalar.

    Args:
        volume: (B, C, X, Y, Z), the real one.
        first: a draw, of the same shape.
        second: another draw.
        offset: voxels along each axis by which the windows are shifted, from 0 to 7. At random
            while training, as they do not overlap.
    """
    pairs = volume - first, volume - second, first - second
    total = volume.new_zeros(())
    for differences in (pairs, [_gradient(pair) for pair in pairs]):
        squares = [pair.square().sum(1, keepdim=True) for pair in differences]
        for window in WINDOWS:
            if window <= min(volume.shape[2:]) // 2:
                near, near2, apart = (_mean_norm(square, window, offset) for square in squares)
                total = total + (near + near2 - apart) / 2
    return total


def _gradient(volume: Tensor) -> Tensor:
    """Differences to the next voxel along each axis, 0 at the last: (B, 3 C, X, Y, Z)."""
    differences = []
    for axis in range(3):
        padding = [0, 0, 0, 0, 0, 0]
        padding[2 * (2 - axis) + 1] = 1
        differences.append(functional.pad(volume.diff(dim=axis + 2), padding))
    return torch.cat(differences, 1)


def _mean_norm(square: Tensor, window: int, offset: Sequence[int]) -> Tensor:
    """Root mean square over each window, averaged over windows."""
    if window > 1:
        x, y, z = (shift % window for shift in offset)
        square = functional.avg_pool3d(square[:, :, x:, y:, z:], window)
    return (square + TINY).sqrt().mean()
