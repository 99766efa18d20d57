"""Codebooks without a table of codes: finite scalar and binary spherical quantisation.

FSQ (arXiv 2309.15505) rounds each dimension to a few levels. Bound, shift and rounding are the
paper's. One thing differs, because the residual is quantised again at the next scale: a code is
looked up as the point of the input space in the middle of its cell, not as the rounded value.

BSQ (arXiv 2406.07548) takes the signs of a unit vector: log2(V) bits make a code, a corner of the
cube inscribed in the unit sphere. An entropy loss asks that each vector be close to one code and
that all codes be used. Both entropies are computed bit by bit: exact for single vectors, the
paper's approximation for the entropy of the mean.
"""

from itertools import combinations_with_replacement
from math import log, prod

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from medar.errors import MedarError
from medar.tokenizer.codebooks.base import CodebookSettings, ProjectedCodebook, Quantised

SLACK = 1e-3
"""FSQ: how far the bound reaches beyond the outermost levels, relative to them (epsilon)."""
SHARPNESS = 100.0
"""BSQ: inverse temperature tau of the soft assignment."""


class FiniteScalarCodebook(ProjectedCodebook):
    """A grid of levels; its inner width is the number of rounded dimensions."""

    collapse_advice = "lower the learning rate"

    levels: Tensor
    basis: Tensor
    bound: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, settings: CodebookSettings) -> None:
        chosen = settings.fsq_levels or choose_levels(settings.size)
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
        """The rounded levels as a mixed-radix number."""
        bounded = (inner + self.shift).tanh() * self.bound - self.offset
        digits = bounded.round().long() + self.levels // 2
        return (digits * self.basis).sum(dim=-1)

    def _point(self, indices: Tensor) -> Tensor:
        """The middle of a code's cell; only half of an outermost cell lies within the bound."""
        digits = indices[..., None] // self.basis % self.levels
        edge = (self.levels - 1) / 2 - 0.25
        level = (digits - self.levels // 2 + self.offset).clamp(-edge, edge)
        return (level / self.bound).atanh() - self.shift


class BinarySphericalCodebook(ProjectedCodebook):
    """2^bits corners on the unit sphere; its inner width is the number of bits."""

    collapse_advice = "raise entropy_weight, which asks for all codes to be used"

    value: Tensor

    def __init__(self, settings: CodebookSettings) -> None:
        bits = settings.size.bit_length() - 1
        super().__init__(settings.size, settings.width, bits)
        self.entropy_weight = settings.entropy_weight
        self.side: float = bits**-0.5
        self.register_buffer("value", 2 ** torch.arange(bits), persistent=False)

    def quantise(self, vectors: Tensor) -> Tensor:
        return self._index(self.project_in(vectors))

    def lookup(self, indices: Tensor) -> Tensor:
        return self.project_out(self._corner(indices))

    def forward(self, vectors: Tensor) -> Quantised:
        sphere = normalize(self.project_in(vectors.detach()), dim=-1)
        indices = self._index(sphere)
        corner = sphere + (self._corner(indices) - sphere).detach()
        return Quantised(
            vectors=self.project_out(corner),
            indices=indices,
            loss=self.entropy_weight * self._entropy(self.project_in(vectors)),
        )

    def _index(self, inner: Tensor) -> Tensor:
        """The signs as bits of an integer, the first dimension being the lowest bit."""
        return ((inner > 0) * self.value).sum(dim=-1)

    def _corner(self, indices: Tensor) -> Tensor:
        bits = indices[..., None] // self.value % 2
        return (2.0 * bits - 1) * self.side

    def _entropy(self, inner: Tensor) -> Tensor:
        """Mean entropy of the soft codes minus the entropy of their mean, in nats."""
        # Of the two values +-1/sqrt(bits) of a bit, softmax(tau * value * u) is this sigmoid.
        logits = 2 * SHARPNESS * self.side * normalize(inner, dim=-1)
        odds = logits.sigmoid()
        own = binary_cross_entropy_with_logits(logits, odds)
        mean = odds.mean(dim=0).clamp(1e-6, 1 - 1e-6)  # the gradient at 0 is infinite
        together = torch.special.entr(torch.cat([mean, 1 - mean])).sum()
        loss: Tensor = self.inner * own - together
        return loss


def choose_levels(size: int) -> tuple[int, ...]:
    """Levels from 5 to 8, as the paper recommends, whose product is closest to a size."""
    if size <= 8:
        return (size,)
    most = max(1, int(log(size, 5)) + 1)
    candidates = (
        levels
        for dimensions in range(1, most + 1)
        for levels in combinations_with_replacement(range(8, 4, -1), dimensions)
    )
    return min(candidates, key=lambda levels: abs(log(prod(levels) / size)))
