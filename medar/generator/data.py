"""Training data: tokens with their conditions, and how often each code occurs in them.

A attributes, B batch, K scales, L tokens over all scales, M channels of a map, V codes, X Y Z
voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medar.data.loading import Item, SeededDataset
from medar.generator.attributes import case_values
from medar.generator.conditions import Condition
from medar.generator.maps import SOURCE_CHANNELS, label_classes, one_hot, source_channels
from medar.generator.positions import token_scales
from medar.generator.settings import Attribute, ConditionConfig
from medar.tokenizer.tokens import TokenDataset

MAX_COUNTED = 512
"""Largest number of cases whose codes are counted, evenly spread over the data set."""

PRIOR = 0.2
"""Occurrences added for each code, so that one that did not occur is not impossible. With 1, the
coarsest scale of hippocampus tokens looks less certain than it is by 0.19 nats."""


class GeneratorDataset(SeededDataset):
    """Tokens, attributes and, if the tokens have them, label maps or source volumes.

    An item is a dictionary: `tokens` (L,) int64; `attributes` (A,) float32 (see
    `Condition.attributes`); `augmented` () bool; with maps, `map` (X, Y, Z) int16, classes as in
    `label_classes`, or float32, a source volume. Its variant is drawn by `TokenDataset`.

    Args:
        tokens: with `maps=True` for a model that takes maps.
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
        """M: labels and background, or those of a source; 0 without maps."""
        if self.tokens.maps and self.tokens.about.source is not None:
            return SOURCE_CHANNELS
        return 1 + len(self.labels) if self.tokens.maps else 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that seeds the choice of variants."""
        super().set_epoch(epoch)
        self.tokens.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Item:
        case = self.tokens[index]
        item = {
            "tokens": case["indices"],
            "attributes": self._attributes[index],
            "augmented": torch.tensor(case["variant"] > 0),
        }
        if "map" in case:
            is_source = self.tokens.about.source is not None
            item["map"] = (
                case["map"].float() if is_source else label_classes(case["map"], self.labels)
            )
        return item


def condition_of(batch: Item, config: ConditionConfig) -> Condition:
    """The conditions of a batch of items, on its device.

    Args:
        batch: items of a `GeneratorDataset`, stacked.
        config: of the generator.
    """
    map_ = None
    if "map" in batch:
        map_ = (
            source_channels(batch["map"])
            if config.map == "source"
            else one_hot(batch["map"], config.map_channels)
        )
    return Condition(attributes=batch["attributes"], map=map_, augmented=batch["augmented"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Marginals:
    """Frequencies of codes by scale, none of them zero: the least that a generator must beat."""

    frequencies: Tensor
    """(K, V); each row sums to 1."""
    scales: Tensor
    """(L,): the scale of each token."""

    @classmethod
    def of(cls, tokens: TokenDataset) -> "Marginals":
        """The frequencies in the tokens of training cases, all variants included."""
        schedule, codebook_size = tokens.schedule, tokens.codebook_size
        counts = torch.full((len(schedule), codebook_size), PRIOR)
        counted = np.linspace(0, len(tokens) - 1, min(len(tokens), MAX_COUNTED)).round()
        for index in counted.astype(int).tolist():
            for row, indices in zip(counts, tokens.pyramid(index).indices, strict=True):
                row += torch.bincount(indices.flatten(), minlength=codebook_size)
        return cls(frequencies=counts / counts.sum(1, keepdim=True), scales=token_scales(schedule))

    def entropy(self, tokens: Tensor) -> Tensor:
        """Cross-entropy of tokens in nats, (B, L) to (B, L)."""
        return -self.frequencies[self.scales, tokens].log()
