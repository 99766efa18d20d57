"""`pretrain_backbone`: from prepared volumes and settings to a pretrained backbone.

    volumes, one generator per item -> Pretext -> mean of the items' losses

The view of an item depends only on the seed, the step and the case, so that a resumed run, or a run
with several processes, trains on the same views.

B batch, C channels, X Y Z voxels.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medar.data.loading import Item, PreparedDataset, loading_workers, make_loader, set_epoch
from medar.data.plan import Plan
from medar.data.resolve import plan_for_training
from medar.devices import device_of
from medar.segmentation.backbones import make_backbone
from medar.segmentation.pretext.base import Pretext, SumAndCount, make_pretext
from medar.segmentation.pretext.frozen import FrozenTokenizer
from medar.segmentation.pretext.settings import PretrainSettings
from medar.segmentation.segmenter import save_backbone
from medar.settings import SettingsSource, resolve_settings, to_dict
from medar.training import Outcome, fit
from medar.training.distributed import current_ranks, weighted_means
from medar.training.folder import Resume
from medar.training.precision import choose_precision
from medar.training.task import Task
from medar.training.tracker import Tracker

STATISTICS_VOLUMES = 64
"""Largest number of training volumes that statistics are measured on before the first step."""
EVALUATION_BATCH = 4
"""Volumes per batch in an evaluation."""
TRAINING, VALIDATION = 1, 2
"""Last entry of the seeds here. Seeds of patches, (seed, epoch, index), do not have it: otherwise,
in epochs of a single step, the view would depend on the position of the patch."""


class PretextTask(Task[Item]):
    """Pretrain a backbone on prepared volumes; their labels are not used.

    Args:
        model: in training mode.
        plan: of the volumes, with which the backbone was built.
        train: the training volumes.
        validation: the volumes that select the best weights.
        settings: of the pretraining.
        tokenizer: digest of the tokenizer; "none" without one.

    Raises:
        MedarError: the batch size is not divisible by the processes.
    """

    unit = "voxels"
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
            workers=loading_workers(settings.data.workers, settings.training.device),
            rank=ranks.rank,
            world=ranks.world_size,
        )

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """The batches of an epoch from number `start` on.

        The indices are plain numbers, which the views are drawn by: they stay with the host.
        """
        set_epoch(self._loader, epoch)
        for batch in islice(iter(self._loader), start, None):
            yield {**batch, "index": batch["index"].tolist()}

    def amount(self, batch: Item) -> int:
        """Voxels of a batch, each once, whatever the channels."""
        return int(batch["image"][:, 0].numel())

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over items, and the metrics of the pretext task."""
        result = self.model(batch["image"], self._generators(batch["index"], step))
        total = result.losses.mean()
        metrics = {name: value / number for name, (value, number) in result.metrics.items()}
        return total, {"loss": total, **metrics}

    def evaluate(self) -> dict[str, float]:
        """`loss`, the mean over validation volumes, and the metrics of the pretext task.

        Each volume has one view, the same in every evaluation.
        """
        device = device_of(self.model)
        number = min(len(self.validation), self.settings.data.validation)
        parts: list[dict[str, tuple[float, float]]] = []
        for start in range(0, number, EVALUATION_BATCH):
            indices = range(start, min(start + EVALUATION_BATCH, number))
            volumes = torch.stack([self.validation[index]["image"] for index in indices])
            result = self.model(volumes.to(device), self._generators(indices))
            metrics: dict[str, SumAndCount] = {
                "loss": (result.losses.sum(), len(indices)),
                **result.metrics,
            }
            parts.append({name: (float(value), n) for name, (value, n) in metrics.items()})
        return weighted_means(parts)

    def describe(self) -> dict[str, Any]:
        """Backbone, pretext and data, which must not change on resumption."""
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
        """Write the backbone's folder, without the head."""
        about = {
            "pretext": self._pretext(),
            "tokenizer": self.tokenizer,
            "data": self.train.prepared.digest,
        }
        save_backbone(folder, self.model.backbone, self.settings.backbone, self.plan, about)

    def _pretext(self) -> dict[str, Any]:
        """Its settings; the tokenizer is identified by its digest instead of its folder."""
        values = to_dict(self.settings.pretext)
        return {name: value for name, value in values.items() if name != "tokenizer"}

    def _generators(
        self, indices: Sequence[int], step: int | None = None
    ) -> list[np.random.Generator]:
        """One per case, seeded by seed, step and case; without a step, those of validation."""
        seed = self.settings.training.seed
        step, kind = (0, VALIDATION) if step is None else (step, TRAINING)
        return [np.random.default_rng([seed, step, index, kind]) for index in indices]


def pretrain_backbone(
    settings: PretrainSettings | SettingsSource,
    data: str | Path,
    out: str | Path,
    tracker: Tracker | None = None,
    *,
    resume: Resume = "auto",
) -> Outcome:
    """Pretrain a backbone without labels; `train_segmenter(..., pretrained=out)` starts from it.

    Args:
        settings: what to train and how: settings, a mapping, or the path of a YAML file.
        data: a prepared data set with cases in "train" and "val".
        out: the folder of the run, see `medar.training.folder`.
        tracker: receives settings and metrics.
        resume: see `medar.training.folder.Resume`.

    Raises:
        MedarError: a tokenizer is missing or does not fit the data, or what `fit` raises.
        KeyboardInterrupt: interrupted; the same call resumes from the checkpoint that was written.
    """
    settings = resolve_settings(PretrainSettings, settings)
    return fit(make_task(settings, data), settings.training, out, tracker, resume=resume)


def make_task(settings: PretrainSettings, data: str | Path) -> PretextTask:
    """The task of `pretrain_backbone`; its initial weights depend on the settings' seed.

    Raises:
        MedarError: see `pretrain_backbone`.
    """
    seed, chosen = settings.training.seed, settings.pretext
    train = PreparedDataset(
        data, split="train", augmentation=settings.data.augmentation, seed=seed, labels=False
    )
    validation = PreparedDataset(data, split="val", labels=False)
    plan = plan_for_training(train.plan, settings.plan, data)
    tokenizer = None
    if chosen.tokenizer is not None and chosen.needs_tokenizer:
        tokenizer = FrozenTokenizer.load(chosen.tokenizer, plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pretext = make_pretext(chosen, make_backbone(settings.backbone, plan), plan, tokenizer)
    indices = range(0, len(train), -(-len(train) // STATISTICS_VOLUMES))
    device = choose_precision(settings.training, current_ranks().local_rank).device
    pretext.fit_statistics(train[index]["image"].to(device) for index in indices)
    digest = tokenizer.digest if tokenizer else "none"
    return PretextTask(pretext, plan, train, validation, settings, digest)
