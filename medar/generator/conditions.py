"""What a volume is asked to be: attributes by number and maps by voxel.

Attributes become one vector a volume, the sum of what each of them says: a row of a table for a
category, a linear map of Fourier features (arXiv 2006.10739) of the standardised value for a
number. Each attribute has a vector of its own for "not known", so that any of them can be left out;
training drops them now and then, which is what classifier-free guidance (arXiv 2207.12598) needs.

B batch, A attributes, N numbers among them, F features of a number, E width, M channels of a map,
X Y Z voxels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from medar.errors import MedarError
from medar.generator.settings import Attribute

OCTAVES = 4
"""Frequencies of a number's features: the lowest turns once in 16 deviations, each further one
twice as fast."""
FARTHEST = 4.0
"""Deviations from the mean at which a number is held."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """Conditions of a batch."""

    attributes: Tensor
    """(B, A) float32, in the order of the model's attributes: the place of a category among its
    values, or a number as it is; NaN where it is not known, or not to be."""
    map: Tensor | None = None
    """(B, M, X, Y, Z) on the volume's grid, or (1, M, X, Y, Z) for all items, for models that take
    a map; 0 in all channels where nothing is known; None for no map."""

    def __len__(self) -> int:
        return len(self.attributes)

    def __getitem__(self, items: slice) -> "Condition":
        """Some items of the batch."""
        shared = self.map is None or len(self.map) == 1
        map_ = self.map if shared or self.map is None else self.map[items]
        return Condition(attributes=self.attributes[items], map=map_)

    def expand(self, batch: int) -> "Condition":
        """A batch of one repeated, without copying it."""
        return replace(self, attributes=self.attributes.expand(batch, -1))

    def to(self, device: torch.device | str) -> "Condition":
        """The same on a device."""
        return Condition(
            attributes=self.attributes.to(device),
            map=None if self.map is None else self.map.to(device),
        )

    def without_attributes(self) -> "Condition":
        """The same with nothing known of the attributes; the map stays."""
        return replace(self, attributes=torch.full_like(self.attributes, torch.nan))

    def nothing(self) -> "Condition":
        """Nothing known at all: what guidance moves away from."""
        map_ = None if self.map is None else torch.zeros_like(self.map)
        return replace(self.without_attributes(), map=map_)


def drop(
    condition: Condition, share: float, generator: torch.Generator, *, maps: float = 0.0
) -> Condition:
    """Leave conditions out, item by item, as training for guidance needs it.

    An item loses everything, its map too, with probability `share`: what guidance moves away from.
    Besides, each part may be lost by itself, so that a user may name some and not others: an
    attribute, where a model has several, with probability `share`, the map with `maps`.

    Args:
        condition: of a training batch.
        share: from 0 to 1.
        generator: on the CPU, whatever the device of the condition.
        maps: probability that an item loses its map alone.
    """
    attributes, given = condition.attributes, condition.map
    batch, count = attributes.shape
    everything = torch.rand(batch, 1, generator=generator) < share
    lost = everything
    if count > 1:
        lost = lost | (torch.rand(batch, count, generator=generator) < share)
    lost = lost.to(attributes.device, non_blocking=True)
    attributes = attributes.masked_fill(lost, torch.nan)
    if given is not None:
        gone = everything | (torch.rand(batch, 1, generator=generator) < maps)
        gone = gone[..., None, None, None]
        given = given.masked_fill(gone.to(given.device, non_blocking=True), 0)
    return Condition(attributes=attributes, map=given)


class AttributeEmbedding(nn.Module):
    """(B, A), see `Condition.attributes`, to (B, E).

    Args:
        attributes: A of them; none is possible: all volumes then have one learnt vector.
        width: E.
    """

    def __init__(self, attributes: tuple[Attribute, ...], width: int) -> None:
        super().__init__()
        self.attributes = attributes
        categories = [(i, a) for i, a in enumerate(attributes) if a.categorical]
        numbers = [(i, a) for i, a in enumerate(attributes) if not a.categorical]
        self.categories = CategoryEmbedding([len(a.values) for _, a in categories], width)
        self.numbers = NumberEmbedding([a for _, a in numbers], width) if numbers else None
        self._categories = [i for i, _ in categories]
        self._numbers = [i for i, _ in numbers]

    def forward(self, attributes: Tensor) -> Tensor:
        """(B, A) to (B, E).

        Raises:
            MedarError: another number of attributes than the model has.
        """
        if attributes.shape[1:] != (len(self.attributes),):
            raise MedarError(
                f"attributes of shape {list(attributes.shape)}: (batch, {len(self.attributes)}) is "
                "needed, a column for each attribute of the model"
            )
        columns = attributes.float().unbind(1)
        embedded: Tensor = self.categories(_pick(columns, self._categories, attributes))
        if self.numbers is not None:
            embedded = embedded + self.numbers(_pick(columns, self._numbers, attributes))
        return embedded


class CategoryEmbedding(nn.Module):
    """The sum of a row for all volumes and one for each category.

    One table holds, one after the other: the row for all volumes; for each attribute its values,
    then "not known".

    Args:
        sizes: values of each category.
        width: E.
    """

    first: Tensor
    unknown: Tensor

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        starts = list(accumulate((size + 1 for size in sizes), initial=1))
        self.table = nn.Embedding(starts[-1], width)
        nn.init.normal_(self.table.weight, std=_deviation(width))
        self.register_buffer("first", torch.tensor([0, *starts[:-1]]), persistent=False)
        self.register_buffer("unknown", torch.tensor([0.0, *map(float, sizes)]), persistent=False)

    def forward(self, places: Tensor) -> Tensor:
        """(B, categories), NaN where not known, to (B, E)."""
        places = nn.functional.pad(places, (1, 0))
        places = torch.where(places.isnan(), self.unknown, places).long()
        embedded: Tensor = self.table(places + self.first)
        return embedded.sum(dim=1)


class NumberEmbedding(nn.Module):
    """The sum of a linear map of each number's Fourier features, or of its "not known".

    Args:
        numbers: N of them, 1 or more.
        width: E.
    """

    mean: Tensor
    deviation: Tensor
    turns: Tensor

    def __init__(self, numbers: Sequence[Attribute], width: int) -> None:
        super().__init__()
        turns = math.pi / 8 * 2.0 ** torch.arange(OCTAVES)
        mean, deviation = ([getattr(n, key) for n in numbers] for key in ("mean", "deviation"))
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation), persistent=False)
        self.register_buffer("turns", turns, persistent=False)
        features = 2 * OCTAVES + 1
        self.weight = nn.Parameter(torch.randn(len(numbers), features, width) * _deviation(width))

    def forward(self, numbers: Tensor) -> Tensor:
        """(B, N), NaN where not known, to (B, E)."""
        known = ~numbers.isnan()
        apart = (numbers.nan_to_num() - self.mean) / self.deviation
        angles = apart.clamp(-FARTHEST, FARTHEST)[..., None] * self.turns
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1) * known[..., None]
        features = torch.cat([waves, (~known)[..., None].to(waves.dtype)], dim=-1)
        return torch.einsum("bnf,nfe->be", features, self.weight)


def _pick(columns: Sequence[Tensor], places: Sequence[int], like: Tensor) -> Tensor:
    """Some columns, (B,) each, as (B, len(places)), none at all included."""
    if not places:
        return like.new_zeros(len(like), 0, dtype=torch.float32)
    return torch.stack([columns[place] for place in places], dim=1)


def _deviation(width: int) -> float:
    """Of initial weights, as VAR has it (arXiv 2404.02905)."""
    return math.sqrt(1 / (3 * width))
