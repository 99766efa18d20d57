"""Which tokens are known beforehand: outside a box, or at the coarse scales.

Inpainting knows the sites outside a region, outpainting those inside one, super-resolution the
first scales. Training draws such masks, so that sampling meets nothing that it has not seen. A
token stands for its cell, the part of the volume that its site covers. On the latent grid it is
known where the whole cell is; on coarser ones where most of the sites below it are: were all of
them needed, the coarse scales, whose cells are large, would be sampled without a look at the
volume, and the fine ones could not mend what they said.

B batch, X Y Z voxels, L tokens over all scales, K scales.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d, adaptive_max_pool3d

from medar.errors import MedarError
from medar.generator.positions import coordinates, token_scales
from medar.tokenizer.schedule import ScaleSchedule

MISSING = 0.25
"""Share of the sites below it that may be missing where a coarse token counts as known."""
SMALLEST, LARGEST = 0.2, 0.8
"""Sides of the boxes that training draws, in parts of the volume's."""
OUTWARD = 0.25
"""Share of those boxes that are what is known, rather than what is not."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownTokens:
    """Tokens that are given instead of sampled, from a volume of which a part is known."""

    mask: Tensor
    """(B, L) bool: which tokens are given."""
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

    def __getitem__(self, items: slice) -> "KnownTokens":
        """Some items of the batch."""
        return KnownTokens(mask=self.mask[items], latent=self.latent[items])


def draw_known(
    schedule: ScaleSchedule,
    batch: int,
    share_boxes: float,
    share_scales: float,
    generator: torch.Generator,
) -> Tensor:
    """Masks for a training batch, (B, L) bool on the CPU: True where a token is known.

    Args:
        schedule: the grids.
        batch: B.
        share_boxes: share of the items of which all is known but a box, or a box alone.
        share_scales: share of the items whose first scales are known, 1 to K - 1 of them. Of all
            other items nothing is known.
        generator: on the CPU.

    Raises:
        MedarError: shares below 0, or above 1 together.
    """
    if min(share_boxes, share_scales) < 0 or share_boxes + share_scales > 1:
        raise MedarError(
            f"shares of known boxes {share_boxes} and scales {share_scales}: from 0, and together "
            "at most 1, are needed"
        )
    kind = torch.rand(batch, 1, generator=generator)
    boxes = _draw_boxes(schedule, batch, generator)
    scales = _draw_scales(schedule, batch, generator)
    known = boxes & (kind < share_boxes)
    return known | (scales & (kind >= share_boxes) & (kind < share_boxes + share_scales))


def known_scales(schedule: ScaleSchedule, count: int, batch: int = 1) -> Tensor:
    """(B, L) bool: the tokens of the first `count` scales.

    Raises:
        MedarError: fewer than none, or more than there are.
    """
    if not 0 <= count <= len(schedule):
        raise MedarError(
            f"{count} known scales: the schedule {schedule} allows 0 to {len(schedule)}"
        )
    return (token_scales(schedule) < count).repeat(batch, 1)


def known_outside(region: Tensor, schedule: ScaleSchedule) -> Tensor:
    """(B, L) bool: the tokens that a region leaves known.

    Args:
        region: (B, X, Y, Z) bool, True where the volume is to be filled. A site of the latent grid
            is missing if its cell holds one voxel of it.
        schedule: the grids.

    Raises:
        MedarError: a region smaller than the latent grid.
    """
    if region.ndim != 4 or any(
        n < m for n, m in zip(region.shape[1:], schedule.latent, strict=True)
    ):
        raise MedarError(
            f"region of shape {list(region.shape)}: (batch, x, y, z) with at least "
            f"{list(schedule.latent)} voxels is needed"
        )
    return _known_but(adaptive_max_pool3d(region[:, None].float(), schedule.latent), schedule)


def _draw_boxes(schedule: ScaleSchedule, batch: int, generator: torch.Generator) -> Tensor:
    """(B, L): tokens that lie outside a box - or, of an outward one, inside."""
    centre = torch.rand(batch, 1, 3, generator=generator)
    side = SMALLEST + (LARGEST - SMALLEST) * torch.rand(batch, 1, 3, generator=generator)
    low, high = centre - side / 2, centre + side / 2
    half = 0.5 / torch.tensor(schedule.latent)
    middle = coordinates(schedule.latent)
    lowest, highest = middle - half, middle + half
    touched = ((highest > low) & (lowest < high)).all(dim=2)
    beyond = ((lowest < low) | (highest > high)).any(dim=2)
    outward = torch.rand(batch, 1, generator=generator) < OUTWARD
    missing = torch.where(outward, beyond, touched).float()
    return _known_but(missing.view(batch, 1, *schedule.latent), schedule)


def _draw_scales(schedule: ScaleSchedule, batch: int, generator: torch.Generator) -> Tensor:
    """(B, L): the first scales, at least one and not all."""
    scales = len(schedule)
    if scales == 1:
        return torch.zeros(batch, schedule.length, dtype=torch.bool)
    return token_scales(schedule) < torch.randint(1, scales, (batch, 1), generator=generator)


def _known_but(missing: Tensor, schedule: ScaleSchedule) -> Tensor:
    """(B, L): what is known if sites of the latent grid, (B, 1, x, y, z) 0 or 1, are missing."""
    shares = [adaptive_avg_pool3d(missing, grid).flatten(1) for grid in schedule.grids]
    return torch.cat(shares, dim=1) <= MISSING
