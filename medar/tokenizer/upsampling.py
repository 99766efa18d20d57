"""Trilinear interpolation between the centres of cells, on a CPU or a GPU.

On CUDA, torch's own kernel has one thread per site, each in a loop over batch and channels, and
adds gradients with atomics. There it is replaced by one small matrix product per axis. On CPUs
torch's kernel stays: with thousands of features it takes about half the time of the products, and
tokens must not differ from those of earlier versions by a rounding error.

B batch, F features, x y z sites.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from medar.tokenizer.norms import without_autocast
from medar.volume import Shape3


def resize(x: Tensor, grid: Shape3) -> Tensor:
    """(B, x, y, z, F) on another grid, as `interpolate(mode="trilinear", align_corners=False)`."""
    if tuple(x.shape[1:4]) == grid:
        return x
    if x.device.type == "cpu":
        return interpolate(x.movedim(-1, 1), grid, mode="trilinear").movedim(1, -1)
    return resize_by_products(x, grid)


def resize_by_products(x: Tensor, grid: Shape3) -> Tensor:
    """`resize` as a matrix product along each axis, in the dtype of `x` whatever autocast says."""
    batch, *before, features = x.shape
    with without_autocast(x):
        # Along the last axis first, so that each product has all axes after its own as columns.
        for axis in (2, 1, 0):
            sites, target = before[axis], grid[axis]
            if sites != target:
                rows = x.reshape(batch, *before[:axis], sites, -1)
                x = axis_weights(sites, target, x) @ rows
            before[axis] = target
    return x.reshape(batch, *grid, features)


def axis_weights(sites: int, target: int, like: Tensor) -> Tensor:
    """(target, sites) weights of one axis, made on the device of `like`, in its dtype."""
    centres = torch.arange(target, device=like.device, dtype=torch.float32) + 0.5
    positions = (centres * (sites / target) - 0.5).clamp(0, sites - 1)
    distances = (positions[:, None] - torch.arange(sites, device=like.device)).abs()
    return (1 - distances).clamp(min=0).to(like.dtype)
