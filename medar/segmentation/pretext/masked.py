"""Masked image modelling in 3D, after MAE (arXiv 2111.06377): the control of the other tasks.

    volume, a share of its blocks hidden -> backbone -> 1x1x1 convolution -> the hidden voxels

MAE's encoder leaves hidden patches out; a convolution cannot, so that a learnt value stands in
their place, as in SimMIM (arXiv 2111.09886). The loss counts hidden voxels alone. Blocks at the
far ends of a volume may be cut.

B batch, C channels, X Y Z voxels, W features a voxel.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d

from medar.segmentation.backbones import Backbone
from medar.segmentation.pretext.base import Generators, Judged, Pretext, View
from medar.segmentation.pretext.settings import PretextSettings
from medar.segmentation.pretext.sites import blocks_of, draw_sites, voxels_of
from medar.volume import Shape3

FLAT = 1e-3
"""Least standard deviation that a block is divided by, where the whole range is 2."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedView(View):
    """What is seen, and the voxels to predict."""

    hidden: Tensor
    """(B, 1, X, Y, Z) bool: the voxels that count."""
    target: Tensor
    """(B, C, X, Y, Z)."""
    guess: Tensor
    """(B, C, 1, 1, 1): the best single value that can be said of the target without looking for
    more: the mean of what is seen, or of any normalised block."""


class MaskedPretext(Pretext):
    """From the blocks that are left to the voxels of those that are hidden.

    Args:
        backbone: what is to be pretrained.
        channels: C.
        settings: `hidden`, `block`, `distance` and `normalised` are used.
    """

    hides: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, channels: int, settings: PretextSettings) -> None:
        super().__init__(backbone, channels)
        self.settings = settings
        self.head = nn.Conv3d(backbone.width, channels, kernel_size=1)

    def view(self, volumes: Tensor, random: Generators) -> MaskedView:
        """(B, C, X, Y, Z) with blocks hidden, as many in each item."""
        settings, shape = self.settings, volumes.shape[2:]
        grid = blocks_of(shape, settings.block)
        sites = [draw_sites(grid, settings.hidden, one) for one in random]
        voxels = [voxels_of(one, settings.block, shape) for one in sites]
        hidden = torch.stack(voxels)[:, None].to(volumes.device)
        target, guess = volumes, mean_of(volumes, ~hidden)
        if settings.normalised:
            target, guess = normalised(volumes, settings.block), torch.zeros_like(guess)
        return MaskedView(seen=volumes, hidden=hidden, target=target, guess=guess)

    def judge(self, features: Tensor, view: MaskedView) -> Judged:
        """Distance of the hidden voxels; `filling` is that of a single value in all of them."""
        made = self.head(features).float()
        losses = mean_of(self._distance(made - view.target), view.hidden).mean((1, 2, 3, 4))
        filling = mean_of(self._distance(view.guess - view.target), view.hidden)
        figures = {
            "error": (losses.detach().sum(), len(losses)),
            "filling": (filling.mean((1, 2, 3, 4)).sum(), len(losses)),
        }
        return Judged(losses=losses, figures=figures)

    def _distance(self, difference: Tensor) -> Tensor:
        return difference.abs() if self.settings.distance == "l1" else difference.square()


def mean_of(values: Tensor, where: Tensor) -> Tensor:
    """(B, C, 1, 1, 1): means of (B, C, X, Y, Z) over the voxels of (B, 1, X, Y, Z)."""
    dims, counted = (2, 3, 4), where.float()
    total = (values * counted).sum(dims, keepdim=True)
    return total / counted.sum(dims, keepdim=True).clamp(min=1)


def normalised(volumes: Tensor, block: Shape3) -> Tensor:
    """(B, C, X, Y, Z), each block less its mean and over its standard deviation."""
    x, y, z = map(min, block, volumes.shape[2:])
    block = x, y, z
    mean = _spread(avg_pool3d(volumes, block, ceil_mode=True), block, volumes)
    rest = volumes - mean
    variance = _spread(avg_pool3d(rest.square(), block, ceil_mode=True), block, volumes)
    return rest / variance.sqrt().clamp(min=FLAT)


def _spread(blocks: Tensor, block: Shape3, volumes: Tensor) -> Tensor:
    """Values of blocks in each of their voxels."""
    for axis, side in enumerate(block, start=2):
        blocks = blocks.repeat_interleave(side, dim=axis)
    x, y, z = volumes.shape[2:]
    return blocks[..., :x, :y, :z]
