"""Conditions: attributes per volume, and maps per voxel.

Attributes become one vector per volume, the sum of one vector per attribute: a row of a table for a
category, a linear map of Fourier features (arXiv 2006.10739) of the standardised value for a
number. Each attribute has a vector for "unknown", so that any of them can be left out; training
drops them at random, which classifier-free guidance (arXiv 2207.12598) needs.

B batch, A attributes, N numbers among them, F features of a number, E width, M channels of a map, X
Y Z voxels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from medar.devices import send
from medar.errors import MedarError
from medar.generator.settings import Attribute

OCTAVES = 4
"""Frequencies of a number's features: the lowest has a period of 16 standard deviations, each
further one half the period of the one before."""
FARTHEST = 4.0
"""Standard deviations from the mean at which a number is clamped."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """The conditions of a batch."""

    attributes: Tensor
    """(B, A) float32, in the order of the model's attributes: the index of a category among its
    values, or a number as it is; NaN if unknown or unspecified."""
    map: Tensor | None = None
    """(B, M, X, Y, Z) on the volume's grid, or (1, M, X, Y, Z) for all items, for models that take
    a map, of labels or of a source volume; 0 in all channels of unknown voxels; None for no map."""
    augmented: Tensor | None = None
    """(B,) bool, of training items: whether a volume was augmented; None if none was."""

    def __len__(self) -> int:
        return len(self.attributes)

    def __getitem__(self, items: slice) -> "Condition":
        """Some items of the batch."""
        shared = self.map is None or len(self.map) == 1
        map_ = self.map if shared or self.map is None else self.map[items]
        augmented = None if self.augmented is None else self.augmented[items]
        return Condition(attributes=self.attributes[items], map=map_, augmented=augmented)

    def expand(self, batch: int) -> "Condition":
        """A batch of one repeated, without copying it."""
        return replace(self, attributes=self.attributes.expand(batch, -1))

    def to(self, device: torch.device | str) -> "Condition":
        """The same on a device."""
        return Condition(
            attributes=self.attributes.to(device),
            map=None if self.map is None else self.map.to(device),
            augmented=None if self.augmented is None else self.augmented.to(device),
        )

    def without_attributes(self) -> "Condition":
        """The same map, all attributes unknown."""
        return replace(self, attributes=torch.full_like(self.attributes, torch.nan))

    def nothing(self) -> "Condition":
        """Everything unknown: what guidance moves away from."""
        map_ = None if self.map is None else torch.zeros_like(self.map)
        return replace(self.without_attributes(), map=map_)


def drop(
    condition: Condition, probability: float, generator: torch.Generator, *, maps: float = 0.0
) -> Condition:
    """Drop conditions of a training batch at random, as guidance needs it.

    An item loses everything, its map too, with probability `probability`: what guidance moves away
    from. In addition, parts are dropped alone, so that users can give some and not others: each of
    several attributes with probability `probability`, the map with `maps`.

    Args:
        condition: of a training batch.
        probability: from 0 to 1.
        generator: on the CPU, whatever the device of the condition.
        maps: probability that an item loses only its map.
    """
    attributes, map_ = condition.attributes, condition.map
    batch, count = attributes.shape
    everything = torch.rand(batch, 1, generator=generator) < probability
    dropped = everything
    if count > 1:
        dropped = dropped | (torch.rand(batch, count, generator=generator) < probability)
    attributes = attributes.masked_fill(send(dropped, attributes.device), torch.nan)
    if map_ is not None:
        dropped = everything | (torch.rand(batch, 1, generator=generator) < maps)
        map_ = map_.masked_fill(send(dropped[..., None, None, None], map_.device), 0)
    return replace(condition, attributes=attributes, map=map_)


class AttributeEmbedding(nn.Module):
    """(B, A), see `Condition.attributes`, to (B, E).

    Args:
        attributes: A of them; with none, all volumes share one learnt vector.
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
            MedarError: the number of attributes is not the model's.
        """
        if attributes.shape[1:] != (len(self.attributes),):
            raise MedarError(
                f"attributes of shape {list(attributes.shape)} must be (batch, "
                f"{len(self.attributes)}), one column per attribute of the model"
            )
        columns = attributes.float().unbind(1)
        embedded: Tensor = self.categories(_pick(columns, self._categories, attributes))
        if self.numbers is not None:
            embedded = embedded + self.numbers(_pick(columns, self._numbers, attributes))
        return embedded


class CategoryEmbedding(nn.Module):
    """The sum of a row for all volumes and one row per category.

    One table holds the row for all volumes, then for each attribute its values and "unknown".

    Args:
        sizes: number of values of each category.
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

    def forward(self, indices: Tensor) -> Tensor:
        """(B, categories), NaN if unknown, to (B, E)."""
        indices = nn.functional.pad(indices, (1, 0))
        indices = torch.where(indices.isnan(), self.unknown, indices).long()
        embedded: Tensor = self.table(indices + self.first)
        return embedded.sum(dim=1)


class NumberEmbedding(nn.Module):
    """The sum of a linear map of each number's Fourier features, or of its "unknown".

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
        """(B, N), NaN if unknown, to (B, E)."""
        known = ~numbers.isnan()
        standardised = (numbers.nan_to_num() - self.mean) / self.deviation
        angles = standardised.clamp(-FARTHEST, FARTHEST)[..., None] * self.turns
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1) * known[..., None]
        features = torch.cat([waves, (~known)[..., None].to(waves.dtype)], dim=-1)
        return torch.einsum("bnf,nfe->be", features, self.weight)


def _pick(columns: Sequence[Tensor], indices: Sequence[int], like: Tensor) -> Tensor:
    """Some columns, (B,) each, as (B, len(indices)); possibly none."""
    if not indices:
        return like.new_zeros(len(like), 0, dtype=torch.float32)
    return torch.stack([columns[index] for index in indices], dim=1)


def _deviation(width: int) -> float:
    """Standard deviation of initial weights, as in VAR (arXiv 2404.02905)."""
    return math.sqrt(1 / (3 * width))
