"""`ScaleSchedule`: the grids of a token pyramid, from the coarsest to the latent grid itself.

Next-scale prediction (VAR, arXiv 2404.02905) orders the tokens of an image by scale. Here the grids
are 3D and need not be cubes. B batch, L tokens over all scales, T tokens of one scale.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from medar.errors import MedarError
from medar.settings import STRICT, from_dict, to_dict
from medar.volume import Shape3


@dataclass(frozen=True, kw_only=True)
class ScaleSchedule:
    """Grids from coarse to fine.

    Raises:
        MedarError: no grid, a side below 1, a side that shrinks, or a grid that comes twice.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    grids: tuple[Shape3, ...]
    """Sites along x, y, z of each scale; the last one is the latent grid."""

    def __post_init__(self) -> None:
        if not self.grids:
            raise MedarError("grids (): at least one scale is needed, the latent grid")
        for grid in self.grids:
            if len(grid) != 3 or min(grid) < 1:
                raise MedarError(f"grid {list(grid)}: three whole numbers from 1 are needed")
        for coarse, fine in pairwise(self.grids):
            if coarse == fine:
                raise MedarError(f"grid {_cross(fine)} comes twice; leave one of them out")
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
        """Where each scale begins among the tokens of all scales."""
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
        """Cut (B, L, ...) into one (B, T, ...) a scale.

        A tensor that ends with a coarser scale is cut into the scales that it holds.

        Raises:
            MedarError: the length is not that of whole scales.
        """
        ends = list(accumulate(self.tokens))
        if flat.ndim < 2 or flat.shape[1] not in ends:
            raise MedarError(
                f"tokens of shape {list(flat.shape)}: the schedule {self} needs (batch, tokens) "
                f"with {_either(ends)} tokens"
            )
        scales = ends.index(flat.shape[1]) + 1
        return torch.split(flat, list(self.tokens[:scales]), dim=1)

    def check_latent(self, latent: Iterable[int]) -> None:
        """Refuse a latent grid that the schedule does not end with.

        Raises:
            MedarError: it ends with another one.
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
            scales: number of grids; one is the latent grid alone.

        Raises:
            MedarError: fewer than one scale, or more than the latent grid has distinct grids for.
        """
        possible = max(latent)
        if not 1 <= scales <= possible:
            raise MedarError(
                f"scales {scales}: a latent grid of {_cross(latent)} allows 1 to {possible}"
            )
        if scales == 1:
            return cls(grids=(latent,))
        x, y, z = ([1 + (side - 1) * k // (scales - 1) for k in range(scales)] for side in latent)
        return cls(grids=tuple(zip(x, y, z, strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """The schedule as values that JSON and YAML hold."""
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
