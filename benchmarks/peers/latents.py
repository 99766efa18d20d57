"""Training data of MONAI's second stages: cases and augmented variants, encoded once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medar.data.augmentation import Augmentation
from medar.data.loading import PreparedDataset
from medar.data.manifest import Split
from medar.training import Task


@torch.no_grad()
def encode_cases(
    encode: Callable[[Tensor], Tensor], prepared: Path, split: Split, variants: int = 0,
    augmentation: Augmentation | None = None,
) -> Tensor:  # fmt: skip
    """(1 + variants, N, ...) of N cases: the unchanged case, then its augmented variants."""
    rows = []
    for variant in range(1 + variants):
        dataset = PreparedDataset(
            prepared, split=split, augmentation=augmentation if variant else None
        )
        dataset.set_epoch(variant)
        items = (dataset[index]["image"][None] for index in range(len(dataset)))
        rows.append(torch.cat([encode(item).cpu() for item in items]))
    return torch.stack(rows)


class SecondStage(Task[Tensor]):
    """Train a network on the codes of a first stage.

    Args:
        model: in training mode.
        train: (variants, N, ...); each epoch draws one variant of each case.
        validation: (N, ...).
        batch_size: cases per step.
        seed: of order and variants.
    """

    metric = "loss"

    def __init__(
        self, model: nn.Module, train: Tensor, validation: Tensor, batch_size: int, seed: int
    ) -> None:
        self.model: Any = model
        self.train, self.validation, self.seed = train, validation, seed
        self.batch_size = min(batch_size, train.shape[1])

    def batches(self, epoch: int, start: int) -> Iterator[Tensor]:
        """The batches of an epoch, from batch `start` on, without an incomplete last batch."""
        variants, cases = self.train.shape[:2]
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(cases, generator=random)
        drawn = torch.randint(variants, (cases,), generator=random)
        for batch in range(start, cases // self.batch_size):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield self.train[drawn[indices], indices]
