"""Finite scalar quantisation (FSQ, arXiv 2309.15505): each dimension rounded to a few levels.

No codes to learn, none to die. Bound, shift and rounding are the paper's. One thing differs, as
what quantisation leaves over is quantised again at the next scale: a code comes back as the point
of the input space that lies in the middle of its cell, not as the rounded number itself.
"""

from itertools import combinations_with_replacement
from math import log, prod

import torch
from torch import Tensor

from medar.errors import MedarError
from medar.tokenizer.codebooks.base import CodebookSettings, ProjectedCodebook, Quantised

SLACK = 1e-3
"""How far the bound reaches beyond the outermost levels, relative to them (the paper's epsilon)."""


class FiniteScalarCodebook(ProjectedCodebook):
    """A grid of levels, its width being the number of dimensions that are rounded."""

    levels: Tensor
    basis: Tensor
    bound: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, settings: CodebookSettings) -> None:
        chosen = settings.levels or choose_levels(settings.size)
        if prod(chosen) > 1 << 30:
            raise MedarError(f"levels {list(chosen)}: their product is above {1 << 30}")
        super().__init__(prod(chosen), settings.width, len(chosen))
        levels = torch.tensor(chosen)
        bound = (levels - 1) * (1 + SLACK) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        basis = torch.cat([torch.ones(1, dtype=torch.int64), levels[:-1].cumprod(0)])
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("bound", bound, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("shift", (offset / bound).atanh(), persistent=False)

    def quantise(self, vectors: Tensor) -> Tensor:
        return self._index(self.project_in(vectors))

    def lookup(self, indices: Tensor) -> Tensor:
        return self.project_out(self._point(indices))

    def forward(self, vectors: Tensor) -> Quantised:
        inner = self.project_in(vectors.detach())
        indices = self._index(inner)
        point = inner + (self._point(indices) - inner).detach()
        return Quantised(
            vectors=self.project_out(point), indices=indices, loss=vectors.new_zeros(())
        )

    def _index(self, inner: Tensor) -> Tensor:
        """Rounded levels, read as a number of mixed radix."""
        bounded = (inner + self.shift).tanh() * self.bound - self.offset
        digits = bounded.round().long() + self.levels // 2
        return (digits * self.basis).sum(dim=-1)

    def _point(self, indices: Tensor) -> Tensor:
        """The middle of a code's cell; of the outermost cells only half lies within the bound."""
        digits = indices[..., None] // self.basis % self.levels
        edge = (self.levels - 1) / 2 - 0.25
        level = (digits - self.levels // 2 + self.offset).clamp(-edge, edge)
        return (level / self.bound).atanh() - self.shift


def choose_levels(size: int) -> tuple[int, ...]:
    """Levels from 5 to 8, as the paper advises, whose product comes closest to a size."""
    if size <= 8:
        return (size,)
    most = max(1, int(log(size, 5)) + 1)
    candidates = (
        levels
        for dimensions in range(1, most + 1)
        for levels in combinations_with_replacement(range(8, 4, -1), dimensions)
    )
    return min(candidates, key=lambda levels: abs(log(prod(levels) / size)))
