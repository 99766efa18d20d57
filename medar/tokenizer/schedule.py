"""`ScaleSchedule`: the grids of a token pyramid, from the coarsest to the latent grid itself.

Next-scale prediction (VAR, arXiv 2404.02905) orders the tokens of an image by scale. Here the grids
are 3D and need not be cubes. B batch, L tokens over all scales, T tokens of one scale.
"""

from collections.abc import Iterable
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from medar.errors import MedarError
from medar.settings import PositiveInt, from_dict, settings, to_dict
from medar.volume import Shape3

Grid3 = tuple[PositiveInt, PositiveInt, PositiveInt]


@settings
class ScaleSchedule:
    """Grids from coarse to fine.

    A grid may be repeated: its scales quantise one residual after the other (residual quantisation,
    arXiv 2203.01941).

    Raises:
        MedarError: no grid, a side below 1, or a side that shrinks.
    """

    grids: tuple[Grid3, ...]
    """Sites along x, y, z of each scale; the last is the latent grid."""

    def __post_init__(self) -> None:
        if not self.grids:
            raise MedarError("grids must contain at least one grid, the latent grid")
        for coarse, fine in pairwise(self.grids):
            if any(a > b for a, b in zip(coarse, fine, strict=True)):
                raise MedarError(
                    f"grid {_cross(fine)} after {_cross(coarse)}: no side may shrink; order the "
                    "grids from coarse to fine"
                )

    @property
    def latent(self) -> Shape3:
        """The finest grid."""
        return self.grids[-1]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each scale, T."""
        return tuple(prod(grid) for grid in self.grids)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Position of each scale's first token among the tokens of all scales."""
        return tuple(accumulate(self.tokens[:-1], initial=0))

    @property
    def length(self) -> int:
        """Tokens over all scales, L."""
        return sum(self.tokens)

    def __len__(self) -> int:
        return len(self.grids)

    def __str__(self) -> str:
        return f"{' > '.join(map(_cross, self.grids))} ({self.length} tokens)"

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Split (B, L, ...) into one (B, T, ...) per scale.

        A tensor that ends with a coarser scale is split into the scales that it has.

        Raises:
            MedarError: the tensor does not end with a scale.
        """
        ends = list(accumulate(self.tokens))
        if flat.ndim < 2 or flat.shape[1] not in ends:
            raise MedarError(
                f"tokens of shape {list(flat.shape)} do not fit the schedule {self}: expected "
                f"(batch, tokens) with {_either(ends)} tokens"
            )
        scales = ends.index(flat.shape[1]) + 1
        return torch.split(flat, list(self.tokens[:scales]), dim=1)

    def check_latent(self, latent: Iterable[int]) -> None:
        """Check that the schedule ends with this latent grid.

        Raises:
            MedarError: it ends with another.
        """
        if tuple(latent) != self.latent:
            raise MedarError(
                f"latent grid {_cross(latent)}: the schedule ends with {_cross(self.latent)}; the "
                "last grid must be the latent one"
            )

    @classmethod
    def from_latent(cls, latent: Shape3, scales: int) -> "ScaleSchedule":
        """Grids whose sides grow linearly from 1 to the latent grid's, rounded down.

        Args:
            latent: sites of the finest grid.
            scales: number of grids; 1 gives the latent grid alone.

        Raises:
            MedarError: not from 1 to the longest side of the latent grid.
        """
        possible = max(latent)
        if not 1 <= scales <= possible:
            raise MedarError(
                f"scales must be from 1 to {possible} for a latent grid of {_cross(latent)}, got "
                f"{scales}"
            )
        if scales == 1:
            return cls(grids=(latent,))
        x, y, z = ([1 + (side - 1) * k // (scales - 1) for k in range(scales)] for side in latent)
        return cls(grids=tuple(zip(x, y, z, strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """The schedule as values for JSON and YAML."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: Any, where: str = "schedule") -> "ScaleSchedule":
        """The inverse of `to_dict`; `where` names the file in messages.

        Raises:
            MedarError: naming the key and what is wrong with it.
        """
        return from_dict(cls, values, where)


def _cross(grid: Iterable[int]) -> str:
    return "x".join(map(str, grid))


def _either(numbers: list[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last
