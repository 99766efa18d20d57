"""Masked image modelling in 3D, after MAE (arXiv 2111.06377): the baseline of the other tasks.

    volume, a fraction of its blocks masked -> backbone -> 1x1x1 convolution -> the masked voxels

MAE's encoder drops masked patches. A convolution cannot, so a mask token replaces them as in SimMIM
(arXiv 2111.09886). Only masked voxels count in the loss. Blocks at the far ends of a volume may be
truncated.

B batch, C channels, X Y Z voxels, W features per voxel, x y z sites of a grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d, avg_pool3d

from medar.data.plan import Plan
from medar.devices import send
from medar.errors import MedarError
from medar.segmentation.backbones import Backbone
from medar.segmentation.pretext.base import Generators, Pretext, PretextLoss, View
from medar.segmentation.pretext.frozen import FrozenTokenizer
from medar.segmentation.pretext.settings import PretextSettings
from medar.volume import Shape3

MIN_DEVIATION = 1e-3
"""Smallest standard deviation that a block is divided by; intensities span 2."""

Sites = npt.NDArray[np.bool_]
"""(x, y, z): a selection of the sites of a grid."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedView(View):
    """The visible part, and the voxels to predict."""

    masked: Tensor
    """(B, 1, X, Y, Z) bool: the voxels that count."""
    target: Tensor
    """(B, C, X, Y, Z)."""
    constant: Tensor
    """(B, C, 1, 1, 1): the best constant prediction without looking at the image: the mean of the
    visible voxels, or of any normalised block."""


class MaskedPretext(Pretext):
    """Predict the voxels of masked blocks.

    Args:
        backbone: to be pretrained.
        plan: of the volumes.
        settings: uses `mask_ratio`, `mask_block_size`, `loss` and `normalise_targets`.
        tokenizer: not used.

    Raises:
        MedarError: a single block would cover the whole volume.
    """

    masks: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        plan: Plan,
        settings: PretextSettings,
        tokenizer: FrozenTokenizer | None = None,
    ) -> None:
        super().__init__(backbone, plan, settings, tokenizer)
        if prod(block_grid(plan.size, settings.mask_block_size)) == 1:
            raise MedarError(
                f"pretext.mask_block_size {list(settings.mask_block_size)} covers the whole volume "
                f"of {list(plan.size)} voxels; choose a smaller one"
            )
        self.head = nn.Conv3d(backbone.width, len(plan.channels) or 1, kernel_size=1)

    def view(self, volumes: Tensor, random: Generators) -> MaskedView:
        """Mask the same number of blocks in each item of (B, C, X, Y, Z)."""
        settings, shape = self.settings, volumes.shape[2:]
        grid = block_grid(shape, settings.mask_block_size)
        sites = [draw_sites(grid, settings.mask_ratio, one) for one in random]
        voxels = [site_voxels(one, settings.mask_block_size, shape) for one in sites]
        masked = send(torch.stack(voxels)[:, None], volumes.device)
        target, constant = volumes, mean_over(volumes, ~masked)
        if settings.normalise_targets:
            target = normalise_blocks(volumes, settings.mask_block_size)
            constant = torch.zeros_like(constant)
        return MaskedView(seen=volumes, masked=masked, target=target, constant=constant)

    def compute_loss(self, features: Tensor, view: MaskedView) -> PretextLoss:
        """Distance of the masked voxels; `constant_error` is that of a constant prediction."""
        predicted = self.head(features).float()
        losses = mean_over(self._distance(predicted - view.target), view.masked).mean((1, 2, 3, 4))
        constant = mean_over(self._distance(view.constant - view.target), view.masked)
        metrics = {
            "error": (losses.detach().sum(), len(losses)),
            "constant_error": (constant.mean((1, 2, 3, 4)).sum(), len(losses)),
        }
        return PretextLoss(losses=losses, metrics=metrics)

    def _distance(self, difference: Tensor) -> Tensor:
        return difference.abs() if self.settings.loss == "l1" else difference.square()


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """(B, C, 1, 1, 1): means of (B, C, X, Y, Z) over the voxels of a mask (B, 1, X, Y, Z)."""
    dims, weights = (2, 3, 4), mask.float()
    total = (values * weights).sum(dims, keepdim=True)
    return total / weights.sum(dims, keepdim=True).clamp(min=1)


def normalise_blocks(volumes: Tensor, block: Shape3) -> Tensor:
    """(B, C, X, Y, Z) with each block normalised to mean 0 and standard deviation 1."""
    x, y, z = map(min, block, volumes.shape[2:])
    block = x, y, z
    mean = _repeat(avg_pool3d(volumes, block, ceil_mode=True), block, volumes)
    centred = volumes - mean
    variance = _repeat(avg_pool3d(centred.square(), block, ceil_mode=True), block, volumes)
    return centred / variance.sqrt().clamp(min=MIN_DEVIATION)


def _repeat(blocks: Tensor, block: Shape3, volumes: Tensor) -> Tensor:
    """Values of blocks, repeated over their voxels."""
    for axis, side in enumerate(block, start=2):
        blocks = blocks.repeat_interleave(side, dim=axis)
    x, y, z = volumes.shape[2:]
    return blocks[..., :x, :y, :z]


def block_grid(shape: Sequence[int], block: Shape3) -> Shape3:
    """Number of blocks per axis of a volume of (X, Y, Z) voxels; the last ones may be truncated."""
    x, y, z = (-(-n // side) for n, side in zip(shape, block, strict=True))
    return x, y, z


def draw_sites(grid: Shape3, fraction: float, random: np.random.Generator) -> Sites:
    """Draw a fraction of a grid's sites: at least one, and not all if there are several."""
    number = prod(grid)
    count = max(1, min(round(fraction * number), number - 1))
    return (random.permutation(number) < count).reshape(grid)


def site_voxels(sites: Sites | Tensor, block: Shape3, shape: Sequence[int]) -> Tensor:
    """(X, Y, Z) bool: the voxels of a selection of sites, each a block of voxels.

    On the device of the sites.
    """
    voxels = torch.as_tensor(sites)
    for axis, (side, length) in enumerate(zip(block, shape, strict=True)):
        voxels = voxels.repeat_interleave(min(side, length), dim=axis)
    x, y, z = shape
    return voxels[:x, :y, :z]


def resample_sites(sites: Sites, grids: Sequence[Shape3]) -> list[Sites]:
    """Resample a selection of sites to other grids: sites that are selected to at least half."""
    fine = torch.from_numpy(sites).float()[None]
    return [(adaptive_avg_pool3d(fine, grid)[0] >= 0.5).numpy() for grid in grids]
