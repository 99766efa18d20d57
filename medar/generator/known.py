"""Which tokens are known beforehand: outside a box, or at the coarse scales.

Inpainting knows the sites outside a region, outpainting those inside one, super-resolution the
first scales. Training draws such masks, so that sampling meets nothing that it has not seen. A
token stands for its cell, the part of the volume that its site covers: it is known only where the
whole cell is.

B batch, X Y Z voxels, L tokens over all scales, K scales.
"""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool3d, max_pool3d

from medar.errors import MedarError
from medar.generator.positions import coordinates
from medar.tokenizer.schedule import ScaleSchedule

SMALLEST, LARGEST = 0.2, 0.8
"""Sides of the boxes that training draws, in parts of the volume's."""
OUTWARD = 0.25
"""Share of those boxes that are what is known, rather than what is not."""


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
    return (_level(schedule) < count).repeat(batch, 1)


def known_outside(region: Tensor, schedule: ScaleSchedule, margin: int = 1) -> Tensor:
    """(B, L) bool: the tokens that a region does not touch.

    Args:
        region: (B, X, Y, Z) bool, True where the volume is to be filled. A site of the latent grid
            counts as part of it if its cell holds one voxel of it.
        schedule: the grids.
        margin: sites of the latent grid by which the region is widened on all sides: latents near
            its edge were encoded from voxels within it.

    Raises:
        MedarError: a margin below 0, or a region smaller than the latent grid.
    """
    if margin < 0:
        raise MedarError(f"margin {margin}: a whole number of sites from 0 is needed")
    if region.ndim != 4 or any(
        n < m for n, m in zip(region.shape[1:], schedule.latent, strict=True)
    ):
        raise MedarError(
            f"region of shape {list(region.shape)}: (batch, x, y, z) with at least "
            f"{list(schedule.latent)} voxels is needed"
        )
    touched = adaptive_max_pool3d(region[:, None].float(), schedule.latent)
    touched = max_pool3d(touched, 2 * margin + 1, stride=1, padding=margin)
    grids = [adaptive_max_pool3d(touched, grid).flatten(1) for grid in schedule.grids]
    return torch.cat(grids, dim=1) == 0


def _draw_boxes(schedule: ScaleSchedule, batch: int, generator: torch.Generator) -> Tensor:
    """(B, L): cells that lie outside a box - or, of an outward one, inside."""
    centre = torch.rand(batch, 1, 3, generator=generator)
    side = SMALLEST + (LARGEST - SMALLEST) * torch.rand(batch, 1, 3, generator=generator)
    low, high = centre - side / 2, centre + side / 2
    lowest, highest = _cells(schedule)
    outside = ((highest <= low) | (lowest >= high)).any(dim=2)
    inside = ((lowest >= low) & (highest <= high)).all(dim=2)
    outward = torch.rand(batch, 1, generator=generator) < OUTWARD
    return torch.where(outward, inside, outside)


def _draw_scales(schedule: ScaleSchedule, batch: int, generator: torch.Generator) -> Tensor:
    """(B, L): the first scales, at least one and not all."""
    scales = len(schedule)
    if scales == 1:
        return torch.zeros(batch, schedule.length, dtype=torch.bool)
    return _level(schedule) < torch.randint(1, scales, (batch, 1), generator=generator)


def _cells(schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
    """Lower and upper corners of all tokens' cells, (L, 3) each, the volume being 0 to 1."""
    middles = [coordinates(grid) for grid in schedule.grids]
    halves = [0.5 / torch.tensor(grid).expand(len(m), 3) for grid, m in zip(
        schedule.grids, middles, strict=True
    )]  # fmt: skip
    middle, half = torch.cat(middles), torch.cat(halves)
    return middle - half, middle + half


def _level(schedule: ScaleSchedule) -> Tensor:
    """(L,): the scale of each token."""
    return torch.arange(len(schedule)).repeat_interleave(torch.tensor(schedule.tokens))
