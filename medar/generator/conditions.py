"""What a volume is asked to be: attributes by number and maps by voxel.

B batch, A attributes, M channels of a map, X Y Z voxels.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medar.generator.config import Attribute


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """Conditions of a batch."""

    attributes: Tensor
    """(B, A) float32, in the order of the model's attributes: the place of a category among its
    values, or a number as it is; NaN where it is not known, or not to be."""
    map: Tensor | None = None
    """(B, M, X, Y, Z) on the volume's grid, for models that take one; None where there is none."""

    def __len__(self) -> int:
        return len(self.attributes)

    def __getitem__(self, items: slice) -> "Condition":
        """Some items of the batch."""
        return Condition(
            attributes=self.attributes[items], map=None if self.map is None else self.map[items]
        )

    def to(self, device: torch.device | str) -> "Condition":
        """The same on a device."""
        return Condition(
            attributes=self.attributes.to(device),
            map=None if self.map is None else self.map.to(device),
        )

    def without_attributes(self) -> "Condition":
        """The same with nothing known of the attributes; the map stays."""
        return replace(self, attributes=torch.full_like(self.attributes, torch.nan))


class AttributeEmbedding(nn.Module):
    """Attributes, (B, A) with NaN where unknown, to (B, E): the sum of one embedding each.

    Args:
        attributes: A of them.
        width: E.
    """

    def __init__(self, attributes: tuple[Attribute, ...], width: int) -> None:
        super().__init__()
        self.attributes = attributes
        self.bias = nn.Parameter(torch.randn(width))
        self.nulls = nn.Parameter(torch.randn(len(attributes), width))
        self.tables = nn.ModuleList(
            nn.Embedding(len(one.values), width) if one.categorical else nn.Linear(1, width)
            for one in attributes
        )

    def forward(self, values: Tensor) -> Tensor:
        embedding = self.bias.expand(len(values), -1)
        for place, (one, table) in enumerate(zip(self.attributes, self.tables, strict=True)):
            value = values[:, place]
            known = value.isfinite()
            filled = torch.where(known, value, 0.0)
            if one.categorical:
                found = table(filled.long())
            else:
                found = table(((filled - one.mean) / one.deviation)[:, None])
            embedding = embedding + torch.where(known[:, None], found, self.nulls[place])
        return embedding
