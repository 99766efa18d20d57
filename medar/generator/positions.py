"""Positions of tokens: normalised 3D coordinates, rotary embedding and Fourier features of them.

A site's coordinates are the centre of its cell in the volume, from 0 to 1 along each axis, so that
sites of different scales at the same location have the same position. Attention sees differences
of positions (rotary embedding, arXiv 2104.09864, split over the three axes as in arXiv 2403.13298);
absolute positions, which anatomy needs, are added as Fourier features (arXiv 2006.10739).

L tokens over all scales, H heads, W width of a head.
"""

import math

import torch
from torch import Tensor, nn

from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Shape3


def coordinates(grid: Shape3) -> Tensor:
    """Centres of a grid's cells, (T, 3) in (0, 1), z fastest."""
    axes = [(torch.arange(sites) + 0.5) / sites for sites in grid]
    return torch.cartesian_prod(*axes).view(-1, 3)


def schedule_coordinates(schedule: ScaleSchedule) -> Tensor:
    """(L, 3): the coordinates of all scales, coarse to fine."""
    return torch.cat([coordinates(grid) for grid in schedule.grids])


def token_scales(schedule: ScaleSchedule) -> Tensor:
    """(L,): the scale of each token, from 0."""
    tokens = torch.tensor(schedule.tokens)
    return torch.arange(len(schedule)).repeat_interleave(tokens, output_size=schedule.length)


def frequencies(count: int, finest: int) -> Tensor:
    """`count` angular frequencies from half a turn over the volume to half a turn per site.

    Args:
        count: 1 or more.
        finest: sites along the longest side of the finest grid.
    """
    highest = math.pi * max(finest, 2)
    return torch.logspace(math.log10(math.pi), math.log10(highest), count)


class Rotary(nn.Module):
    """Rotates queries and keys by angles given by their coordinates.

    Each of the three axes has a third of the pairs of features; the one or two pairs left over are
    not rotated.

    Args:
        coordinates: (L, 3).
        width: W, even.
        finest: sites along the longest side of the finest grid.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, coordinates: Tensor, width: int, finest: int) -> None:
        super().__init__()
        pairs = width // 2
        own = pairs // 3
        turned = frequencies(own, finest) if own else torch.empty(0)
        angles = (coordinates[:, :, None] * turned).flatten(1)
        angles = torch.cat([angles, angles.new_zeros(len(angles), pairs - 3 * own)], dim=1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor, start: int = 0, indices: Tensor | None = None) -> Tensor:
        """Rotate (B, H, T, W) in the dtype of `x`.

        Args:
            x: tokens `start` to `start` + T, or those at `indices`.
            start: position of the first among all tokens.
            indices: (T,) positions among all tokens.
        """
        part = slice(start, start + x.shape[2]) if indices is None else indices
        cos, sin = self.cos[part].to(x.dtype), self.sin[part].to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class PositionFeatures(nn.Module):
    """Absolute positions: sines and cosines of the coordinates, through a linear layer.

    Args:
        coordinates: (L, 3).
        width: E.
        finest: sites along the longest side of the finest grid.
        count: frequencies per axis.
    """

    waves: Tensor

    def __init__(self, coordinates: Tensor, width: int, finest: int, count: int = 8) -> None:
        super().__init__()
        angles = (coordinates[:, :, None] * frequencies(count, finest)).flatten(1)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        self.register_buffer("waves", waves, persistent=False)
        self.project = nn.Linear(waves.shape[1], width)

    def forward(self, indices: Tensor | None = None) -> Tensor:
        """(L, E), or (C, E) of the tokens at C indices."""
        features: Tensor = self.project(self.waves if indices is None else self.waves[indices])
        return features
