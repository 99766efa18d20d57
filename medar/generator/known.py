"""Known tokens: those outside a region, or of the coarse scales.

Inpainting knows the tokens outside a region, outpainting those inside it, super-resolution the
coarse scales. Training draws such masks, so that sampling meets nothing new. A token stands for its
cell, the part of the volume that its site covers. On the latent grid a token is known if its whole
cell is; on coarser grids, if most of the sites below it are. If all of them had to be, the coarse
scales, whose cells are large, would be sampled without regard to the volume, and the fine ones
could not correct them.

B batch, D code width, L tokens over all scales, K scales, X Y Z voxels, x y z latent sites.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d, adaptive_max_pool3d

from medar.errors import MedarError
from medar.generator.positions import coordinates, token_scales
from medar.tokenizer.schedule import ScaleSchedule

MISSING = 0.25
"""Fraction of the sites below a coarse token that may be unknown if it counts as known."""
SMALLEST, LARGEST = 0.2, 0.8
"""Sides of the boxes drawn in training, as fractions of the volume's."""
INSIDE = 0.25
"""Fraction of the boxes whose inside is known instead of their outside."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownTokens:
    """Tokens that are fixed instead of sampled, from a partially known volume."""

    mask: Tensor
    """(B, L) bool: which tokens are fixed."""
    latent: Tensor
    """(B, D, x, y, z): the encoded volume, right wherever `mask` is set."""

    def to(self, device: torch.device | str) -> "KnownTokens":
        """The same on a device."""
        return KnownTokens(mask=self.mask.to(device), latent=self.latent.to(device))

    def expand(self, batch: int) -> "KnownTokens":
        """A batch of one repeated, without copying it."""
        return KnownTokens(
            mask=self.mask.expand(batch, -1), latent=self.latent.expand(batch, -1, -1, -1, -1)
        )

    def joined(self, other: "KnownTokens") -> "KnownTokens":
        """One batch of these items and then those of another."""
        return KnownTokens(
            mask=torch.cat([self.mask, other.mask]), latent=torch.cat([self.latent, other.latent])
        )

    def __getitem__(self, items: slice) -> "KnownTokens":
        """Some items of the batch."""
        return KnownTokens(mask=self.mask[items], latent=self.latent[items])


def draw_known(
    schedule: ScaleSchedule,
    batch: int,
    box_fraction: float,
    scale_fraction: float,
    generator: torch.Generator,
) -> Tensor:
    """Draw which tokens of a training batch are known, (B, L) bool on the CPU.

    Args:
        schedule: the grids.
        batch: B.
        box_fraction: fraction of the items in which the outside or inside of a box is known.
        scale_fraction: fraction of the items in which the first 1 to K - 1 scales are known. In
            the remaining items, no token is known.
        generator: on the CPU.

    Raises:
        MedarError: a fraction below 0, or a sum above 1.
    """
    if min(box_fraction, scale_fraction) < 0 or box_fraction + scale_fraction > 1:
        raise MedarError(
            f"fractions of known boxes {box_fraction} and scales {scale_fraction} must be at least "
            "0 and sum to at most 1"
        )
    kind = torch.rand(batch, 1, generator=generator)
    boxes = _draw_boxes(schedule, batch, generator)
    scales = _draw_scales(schedule, batch, generator)
    known = boxes & (kind < box_fraction)
    return known | (scales & (kind >= box_fraction) & (kind < box_fraction + scale_fraction))


def known_scales(schedule: ScaleSchedule, count: int, batch: int = 1) -> Tensor:
    """(B, L) bool: the tokens of the first `count` scales.

    Raises:
        MedarError: `count` is below 0 or above K.
    """
    if not 0 <= count <= len(schedule):
        raise MedarError(
            f"known scales must be from 0 to {len(schedule)} for the schedule {schedule}, got "
            f"{count}"
        )
    return (token_scales(schedule) < count).repeat(batch, 1)


def known_outside(region: Tensor, schedule: ScaleSchedule) -> Tensor:
    """(B, L) bool: the tokens that are known outside a region.

    Args:
        region: (B, X, Y, Z) bool, True where the volume is filled. A site of the latent grid is
            unknown if its cell holds a voxel of the region.
        schedule: the grids.

    Raises:
        MedarError: a region smaller than the latent grid.
    """
    if region.ndim != 4 or any(
        n < m for n, m in zip(region.shape[1:], schedule.latent, strict=True)
    ):
        raise MedarError(
            f"region of shape {list(region.shape)} must be (batch, x, y, z) with at least "
            f"{list(schedule.latent)} voxels"
        )
    return _known_but(adaptive_max_pool3d(region[:, None].float(), schedule.latent), schedule)


def _draw_boxes(schedule: ScaleSchedule, batch: int, generator: torch.Generator) -> Tensor:
    """(B, L): tokens outside a box, or inside it."""
    centre = torch.rand(batch, 1, 3, generator=generator)
    side = SMALLEST + (LARGEST - SMALLEST) * torch.rand(batch, 1, 3, generator=generator)
    low, high = centre - side / 2, centre + side / 2
    half = 0.5 / torch.tensor(schedule.latent)
    middle = coordinates(schedule.latent)
    lowest, highest = middle - half, middle + half
    touched = ((highest > low) & (lowest < high)).all(dim=2)
    beyond = ((lowest < low) | (highest > high)).any(dim=2)
    inside = torch.rand(batch, 1, generator=generator) < INSIDE
    missing = torch.where(inside, beyond, touched).float()
    return _known_but(missing.view(batch, 1, *schedule.latent), schedule)


def _draw_scales(schedule: ScaleSchedule, batch: int, generator: torch.Generator) -> Tensor:
    """(B, L): the first scales, at least one and not all."""
    scales = len(schedule)
    if scales == 1:
        return torch.zeros(batch, schedule.length, dtype=torch.bool)
    return token_scales(schedule) < torch.randint(1, scales, (batch, 1), generator=generator)


def _known_but(missing: Tensor, schedule: ScaleSchedule) -> Tensor:
    """(B, L): the known tokens if sites of the latent grid, (B, 1, x, y, z) 0 or 1, are unknown."""
    fractions = [adaptive_avg_pool3d(missing, grid).flatten(1) for grid in schedule.grids]
    return torch.cat(fractions, dim=1) <= MISSING
