"""Sites of grids: which are hidden, which voxels they stand for, and their features.

B batch, W features a voxel, X Y Z voxels, x y z sites of a grid, T = x * y * z in the order of
tokens, z fastest, P parts of a site.
"""

from collections.abc import Sequence
from functools import cache
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from medar.volume import Shape3

PARTS = 2
"""Parts that a site is cut into along each axis: their features side by side say where in it
something lies."""

Sites = npt.NDArray[np.bool_]
"""(x, y, z): some sites of a grid."""


def blocks_of(shape: Sequence[int], block: Shape3) -> Shape3:
    """Blocks that a volume of (X, Y, Z) voxels is cut into; those at the far ends may be cut."""
    x, y, z = (-(-n // side) for n, side in zip(shape, block, strict=True))
    return x, y, z


def draw_sites(grid: Shape3, share: float, random: np.random.Generator) -> Sites:
    """A share of a grid's sites, always as many of them; at least one, and not all if it can be."""
    number = prod(grid)
    count = max(1, min(round(share * number), number - 1))
    return (random.permutation(number) < count).reshape(grid)


def voxels_of(sites: Sites, block: Shape3, shape: Sequence[int]) -> Tensor:
    """(X, Y, Z) bool: the voxels of some sites, each a block."""
    found = torch.from_numpy(sites)
    for axis, (side, length) in enumerate(zip(block, shape, strict=True)):
        found = found.repeat_interleave(min(side, length), dim=axis)
    x, y, z = shape
    return found[:x, :y, :z]


def on_grids(sites: Sites, grids: Sequence[Shape3]) -> list[Sites]:
    """Some sites of a fine grid on others: those of which they cover half or more."""
    fine = torch.from_numpy(sites).float()[None]
    return [(adaptive_avg_pool3d(fine, grid)[0] >= 0.5).numpy() for grid in grids]


def parts_of(features: Tensor, latent: Shape3) -> Tensor:
    """(B, W, X, Y, Z) averaged over the parts of the sites of the finest grid."""
    x, y, z = (PARTS * side for side in latent)
    return adaptive_avg_pool3d(features, (x, y, z))


def site_features(parts: Tensor, grid: Shape3) -> Tensor:
    """What `parts_of` gave, on a grid: (B, T, P * W)."""
    for axis, sites in enumerate(grid, start=2):
        if parts.shape[axis] != PARTS * sites:
            shares = _shares(parts.shape[axis] // PARTS, sites, parts.device).to(parts.dtype)
            parts = torch.tensordot(parts, shares, dims=([axis], [1])).movedim(-1, axis)
    return rearrange(
        parts, "b w (x i) (y j) (z l) -> b (x y z) (i j l w)", i=PARTS, j=PARTS, l=PARTS
    )


@cache
def _shares(finest: int, sites: int, device: torch.device) -> Tensor:
    """What a grid's parts take of the finest grid's along an axis: (parts, finest parts).

    A site stands for the latent's sites that the quantiser averages for it: of neighbours they
    overlap where the grid does not divide the latent.
    """
    shares = torch.zeros(PARTS * sites, PARTS * finest)
    for site in range(sites):
        first, last = site * finest // sites, -(-(site + 1) * finest // sites)
        wide = last - first
        for part in range(PARTS):
            begin = PARTS * first + part * wide
            shares[PARTS * site + part, begin : begin + wide] = 1 / wide
    return shares.to(device)
