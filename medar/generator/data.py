"""`GeneratorDataset`: tokens with their conditions, item by item, as training takes them.

A attributes, L tokens over all scales, X Y Z voxels, B batch, M channels of a map.
"""

from collections.abc import Sequence

import torch

from medar.data.loading import Item, SeededDataset
from medar.generator.attributes import case_values
from medar.generator.conditions import Condition
from medar.generator.maps import label_classes, one_hot
from medar.generator.settings import Attribute
from medar.tokenizer.tokens import TokenDataset


class GeneratorDataset(SeededDataset):
    """Tokens, attributes and, where the tokens have them, label maps.

    An item is a dictionary: `tokens` (L,) int64; `attributes` (A,) float32 (see
    `Condition.attributes`); with maps, `map` (X, Y, Z) int16, classes as `label_classes` gives
    them. Which variant it holds is drawn as `TokenDataset` says.

    Args:
        tokens: with `maps=True` for a model that takes label maps.
        attributes: the model's.
    """

    def __init__(self, tokens: TokenDataset, attributes: Sequence[Attribute] = ()) -> None:
        super().__init__(tokens.seed)
        self.tokens = tokens
        self.labels = tuple(tokens.about.maps or ())
        values = [case_values(attributes, case) for case in tokens.cases]
        self._attributes = torch.tensor(values, dtype=torch.float32).view(
            len(tokens), len(attributes)
        )

    @property
    def map_channels(self) -> int:
        """M, labels and background; 0 without maps."""
        return 1 + len(self.labels) if self.tokens.maps else 0

    def set_epoch(self, epoch: int) -> None:
        """Draw other variants from now on."""
        super().set_epoch(epoch)
        self.tokens.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Item:
        found = self.tokens[index]
        item = {"tokens": found["indices"], "attributes": self._attributes[index]}
        if "map" in found:
            item["map"] = label_classes(found["map"], self.labels)
        return item


def condition_of(batch: Item, channels: int = 0) -> Condition:
    """The conditions of a batch of items, on its device.

    Args:
        batch: items of a `GeneratorDataset`, stacked.
        channels: M, labels and background.
    """
    given = one_hot(batch["map"], channels) if "map" in batch else None
    return Condition(attributes=batch["attributes"], map=given)
