"""What a volume is asked to be: attributes by number and maps by voxel.

B batch, A attributes, M channels of a map, X Y Z voxels.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """Conditions of a batch."""

    attributes: Tensor
    """(B, A) float32, in the order of the model's attributes: the place of a category among its
    values, or a number as it is; NaN where it is not known, or not to be."""
    map: Tensor | None = None
    """(B, M, X, Y, Z) on the volume's grid, for models that take one; zeros in all channels where
    nothing is known, None where that is so everywhere."""

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

    def nothing(self) -> "Condition":
        """Nothing known at all: what guidance moves away from."""
        map_ = None if self.map is None else torch.zeros_like(self.map)
        return replace(self.without_attributes(), map=map_)
