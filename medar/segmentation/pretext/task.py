"""`PretextTask`: what the training loop needs to pretrain a backbone, whatever the pretext.

    volumes, a generator an item -> Pretext -> the mean of the items' losses

What an item shows in a step depends on the seed, the step and the case, and on nothing else: a
resumed run, and several processes, see what one that was not disturbed sees.

B batch, C channels, X Y Z voxels.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medar.data.loading import Item, PreparedDataset, make_loader, set_epoch
from medar.data.plan import Plan
from medar.segmentation.pretext.base import Figure, Pretext
from medar.segmentation.pretext.settings import PretrainSettings
from medar.segmentation.segmenter import save_backbone
from medar.settings import to_dict
from medar.training.distributed import current_ranks, weighted_means
from medar.training.task import Task

EVALUATION_BATCH = 4
"""Volumes that an evaluation takes at once."""

TRAINING, VALIDATION = 1, 2
"""What draws end with. Those of the data, by seed, epoch and place, end with neither: where an
epoch is one step, a patch would otherwise decide the question that is asked of it."""


class PretextTask(Task[Item]):
    """Pretrain a backbone on prepared volumes; their labels are not looked at.

    Args:
        model: in training mode.
        plan: of the volumes, as the backbone was made for it.
        train: the volumes to learn from.
        validation: the volumes that decide which weights are the best.
        settings: all of them.
        tokenizer: digest of the tokenizer; "none" without one.

    Raises:
        MedarError: processes cannot share the batch.
    """

    metric = "loss"

    def __init__(
        self,
        model: Pretext,
        plan: Plan,
        train: PreparedDataset,
        validation: PreparedDataset,
        settings: PretrainSettings,
        tokenizer: str = "none",
    ) -> None:
        self.model: Pretext = model
        self.plan, self.train, self.validation = plan, train, validation
        self.settings, self.tokenizer = settings, tokenizer
        ranks = current_ranks()
        self._loader = make_loader(
            train,
            batch_size=ranks.per_rank_batch_size(settings.data.batch_size),
            workers=settings.data.workers,
            rank=ranks.rank,
            world=ranks.world_size,
        )

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """An epoch's batches from number `start` on."""
        set_epoch(self._loader, epoch)
        return islice(iter(self._loader), start, None)

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over items, and the figures of the pretext task."""
        random = self._generators(batch["index"].tolist(), step)
        judged = self.model(batch["image"], random)
        total = judged.losses.mean()
        named = {name: value / number for name, (value, number) in judged.figures.items()}
        return total, {"loss": total, **named}

    def evaluate(self) -> dict[str, float]:
        """`loss`, the mean over validation volumes, and figures; each volume is asked one question.

        It is the same one in each evaluation.
        """
        device = next(self.model.parameters()).device
        number = min(len(self.validation), self.settings.data.validation)
        parts: list[dict[str, tuple[float, float]]] = []
        for start in range(0, number, EVALUATION_BATCH):
            places = range(start, min(start + EVALUATION_BATCH, number))
            volumes = torch.stack([self.validation[place]["image"] for place in places])
            judged = self.model(volumes.to(device), self._generators(places))
            figures: dict[str, Figure] = {
                "loss": (judged.losses.sum(), len(places)),
                **judged.figures,
            }
            parts.append({name: (float(value), n) for name, (value, n) in figures.items()})
        return weighted_means(parts)

    def describe(self) -> dict[str, Any]:
        """Backbone, pretext and data: what a resumed run must agree with."""
        return {
            "backbone": to_dict(self.settings.backbone),
            "pretext": self._pretext(),
            "tokenizer": self.tokenizer,
            "data": {
                "batch_size": self.settings.data.batch_size,
                "augmentation": to_dict(self.settings.data)["augmentation"],
                "plan": self.train.plan.digest,
                "train": self.train.prepared.digest,
                "validation": self.validation.prepared.digest,
            },
        }

    def save_model(self, folder: Path) -> None:
        """The backbone's folder; the head is left out."""
        about = {
            "pretext": self._pretext(),
            "tokenizer": self.tokenizer,
            "data": self.train.prepared.digest,
        }
        save_backbone(folder, self.model.backbone, self.settings.backbone, self.plan, about)

    def _pretext(self) -> dict[str, Any]:
        """Its settings; a tokenizer is known by its digest, wherever it lies."""
        values = to_dict(self.settings.pretext)
        return {name: value for name, value in values.items() if name != "tokenizer"}

    def _generators(
        self, places: Sequence[int], step: int | None = None
    ) -> list[np.random.Generator]:
        """One a case, drawn by seed, step and case; without a step, those of validation."""
        seed = self.settings.training.seed
        step, kind = (0, VALIDATION) if step is None else (step, TRAINING)
        return [np.random.default_rng([seed, step, place, kind]) for place in places]
