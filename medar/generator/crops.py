"""Random crops of the latent grid, for training on volumes whose tokens do not fit a GPU.

Grids with a side longer than a crop are cropped to a box; coarser ones, which hold few tokens, are
whole. All boxes of a volume lie at the same fraction of the way along each axis. Only the layers
that keep activations see crops: what a token sees of coarser scales comes from the whole volume,
positions are those in the volume, and sampling is whole.

    mean loss of a scale = E[sum over the crop of loss / P(the crop holds the token)] / tokens

An unbiased estimate, as no site is left to chance: without the weights, sites at the border of the
volume, which fewer crops hold, would count less.

L tokens over all scales, C tokens of a crop.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Shape3


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """The tokens of a crop, of all scales."""

    indices: Tensor
    """(C,) int64, their positions among all tokens, ascending."""
    weights: Tensor
    """(C,) one over the probability that a crop holds the token."""

    def to(self, device: torch.device) -> "Crop":
        """The same on a device."""
        return Crop(
            indices=self.indices.to(device, non_blocking=True),
            weights=self.weights.to(device, non_blocking=True),
        )

    def spread(self, values: Tensor, length: int) -> Tensor:
        """(B, C) values times their weights at their positions in (B, length), zeros elsewhere."""
        whole = values.new_zeros(len(values), length)
        return whole.index_copy(1, self.indices, values * self.weights)


def crop_grids(schedule: ScaleSchedule, side: int) -> tuple[Shape3, ...]:
    """The grid of a crop at each scale: at most `side` sites along each axis."""
    return tuple((min(x, side), min(y, side), min(z, side)) for x, y, z in schedule.grids)


def cropped_length(schedule: ScaleSchedule, side: int) -> int:
    """C, tokens of a crop over all scales."""
    return sum(prod(grid) for grid in crop_grids(schedule, side))


def draw_crop(schedule: ScaleSchedule, side: int, step: int, generator: torch.Generator) -> Crop:
    """Draw a crop.

    Args:
        schedule: the grids.
        side: most sites of the crop along an axis.
        step: crops start at multiples of so many sites, and at the last possible site.
        generator: on the CPU.
    """
    fractions = torch.rand(3, generator=generator).tolist()
    indices, weights = [], []
    for grid, start in zip(schedule.grids, schedule.offsets, strict=True):
        sites, held = zip(
            *(_along(n, side, step, f) for n, f in zip(grid, fractions, strict=True)), strict=True
        )
        x, y, z = sites
        index = (x[:, None, None] * grid[1] + y[:, None]) * grid[2] + z
        x, y, z = held
        indices.append(start + index.flatten())
        weights.append((x[:, None, None] * y[:, None] * z).flatten().reciprocal())
    return Crop(indices=torch.cat(indices), weights=torch.cat(weights))


def crop_starts(sites: int, side: int, step: int) -> list[int]:
    """The sites of an axis at which a crop may start, all equally likely."""
    last = max(sites - side, 0)
    return [*range(0, last, step), last]


def _along(sites: int, side: int, step: int, fraction: float) -> tuple[Tensor, Tensor]:
    """The sites of a crop along an axis, and the probability that a crop holds each."""
    starts, length = crop_starts(sites, side, step), min(sites, side)
    start = starts[int(fraction * len(starts))]
    held = torch.zeros(sites)
    for one in starts:
        held[one : one + length] += 1
    chosen = torch.arange(start, start + length)
    return chosen, held[chosen] / len(starts)
