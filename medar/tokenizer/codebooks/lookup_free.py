"""Codebooks without a table of codes: finite scalar and binary spherical quantisation.

FSQ (arXiv 2309.15505) rounds each dimension to a few levels. Bound, shift and rounding are the
paper's. One thing differs, because the residual is quantised again at the next scale: a code is
looked up as the point of the input space in the middle of its cell, not as the rounded value.
Vectors wider than the number of dimensions are projected; all scales share the projection, so that
no scale codes what it leaves out.

BSQ (arXiv 2406.07548) takes the signs of a unit vector: log2(V) bits make a code, a corner of the
cube inscribed in the unit sphere. An entropy loss asks that each vector be close to one code and
that all codes be used. Both entropies are computed bit by bit: exact for single vectors, the
paper's approximation for the entropy of the mean. Two things differ, because the residual is
quantised again at the next scale. A code has one bit per feature, without the paper's projection,
which all scales would share: what it leaves out, no scale could code. And a feature of a code is
+-sqrt(2 / pi), the mean magnitude of a normal variable, rather than +-1 / sqrt(D): vectors come
divided by their typical magnitude, and unit vectors would be too short.
"""

from itertools import combinations_with_replacement
from math import log, pi, prod, sqrt

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from medar.errors import MedarError
from medar.tokenizer.codebooks.base import Codebook, CodebookSettings, Quantised

SLACK = 1e-3
"""FSQ: how far the bound reaches beyond the outermost levels, relative to them (epsilon)."""
MAGNITUDE = sqrt(2 / pi)
"""BSQ: magnitude of each feature of a code."""
SHARPNESS = 100.0
"""BSQ: inverse temperature tau of the soft assignment."""


class FiniteScalarCodebook(Codebook):
    """A grid of levels, one dimension per entry of `fsq_levels`."""

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
        super().__init__(prod(chosen), settings.width)
        self.into, self.out_of = projections(settings.width, len(chosen))
        levels = torch.tensor(chosen)
        bound = (levels - 1) * (1 + SLACK) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        basis = torch.cat([torch.ones(1, dtype=torch.int64), levels[:-1].cumprod(0)])
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("bound", bound, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("shift", (offset / bound).atanh(), persistent=False)

    @property
    def radices(self) -> tuple[int, ...]:
        return tuple(self.levels.tolist())

    def quantise(self, vectors: Tensor) -> Tensor:
        return self._index(self.into(vectors))

    def lookup(self, indices: Tensor) -> Tensor:
        vectors: Tensor = self.out_of(self._point(indices))
        return vectors

    def forward(self, vectors: Tensor) -> Quantised:
        inner = self.into(vectors.detach())
        indices = self._index(inner)
        point = inner + (self._point(indices) - inner).detach()
        return Quantised(vectors=self.out_of(point), indices=indices, loss=vectors.new_zeros(()))

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


class BinarySphericalCodebook(Codebook):
    """The signs of D features: V = 2^D corners of a cube."""

    collapse_advice = "raise entropy_weight, which asks for all codes to be used"

    value: Tensor

    def __init__(self, settings: CodebookSettings) -> None:
        super().__init__(settings.size, settings.width)
        self.entropy_weight = settings.entropy_weight
        self.register_buffer("value", 2 ** torch.arange(self.width), persistent=False)

    @property
    def radices(self) -> tuple[int, ...]:
        return (2,) * self.width

    def quantise(self, vectors: Tensor) -> Tensor:
        """The signs as bits of an integer, the first feature being the lowest bit."""
        return ((vectors > 0) * self.value).sum(dim=-1)

    def lookup(self, indices: Tensor) -> Tensor:
        bits = indices[..., None] // self.value % 2
        return (2.0 * bits - 1) * MAGNITUDE

    def forward(self, vectors: Tensor) -> Quantised:
        indices = self.quantise(vectors.detach())
        loss = self.entropy_weight * self._entropy(vectors)
        return Quantised(vectors=self.lookup(indices), indices=indices, loss=loss)

    def _entropy(self, vectors: Tensor) -> Tensor:
        """Mean entropy of the soft codes minus the entropy of their mean, in nats."""
        # Of the two values +-1/sqrt(D) of a bit, softmax(tau * value * u) is this sigmoid.
        logits = 2 * SHARPNESS * self.width**-0.5 * normalize(vectors, dim=-1)
        odds = logits.sigmoid()
        own = binary_cross_entropy_with_logits(logits, odds)
        mean = odds.mean(dim=0).clamp(1e-6, 1 - 1e-6)  # the gradient at 0 is infinite
        together = torch.special.entr(torch.cat([mean, 1 - mean])).sum()
        loss: Tensor = self.width * own - together
        return loss


def projections(width: int, dimensions: int) -> tuple[nn.Module, nn.Module]:
    """Linear maps from D features to fewer or more dimensions and back; identities if as many.

    They are initialised orthogonal and inverse to each other, as far as the two widths allow, so
    that a code lies near the vectors that it stands for.
    """
    if dimensions == width:
        return nn.Identity(), nn.Identity()
    into, out_of = nn.Linear(width, dimensions), nn.Linear(dimensions, width)
    nn.init.orthogonal_(into.weight)
    with torch.no_grad():
        out_of.weight.copy_(into.weight.T)
    nn.init.zeros_(into.bias)
    nn.init.zeros_(out_of.bias)
    return into, out_of


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
