"""`SegmentationTask`: what the training loop needs to train a segmentation network.

    volume -> Segmenter -> logits   against cross-entropy and Dice, over what was annotated

B batch, C channels, X Y Z voxels, K labels (the background not counted).
"""

from collections.abc import Iterator
from itertools import islice
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medar.data.loading import Item, PreparedDataset, make_loader, set_epoch
from medar.losses import label_losses, to_classes
from medar.segmentation.data import AnnotatedDataset, annotated_places
from medar.segmentation.folder import save_segmenter
from medar.segmentation.network import Segmenter
from medar.segmentation.overlap import DiceMeter
from medar.segmentation.prediction import PredictionSettings, classes_of
from medar.segmentation.settings import SegmentationSettings
from medar.segmentation.supervision import DeepSupervision, Level
from medar.segmentation.synthetic import MixedDataset
from medar.settings import to_dict
from medar.training.distributed import current_ranks
from medar.training.task import ParameterGroup, Task, weight_decay_groups

QUICK = PredictionSettings(mirrors=())
"""How validation cases are segmented."""


class SegmentationTask(Task[Item]):
    """Train a segmentation network on annotated cases.

    Args:
        model: in training mode, with its pretrained weights if it has any.
        train: the cases to learn from.
        validation: the cases that decide which weights are the best.
        settings: losses, data and transfer are used.
        origin: where the pretrained weights came from, for comparison when a run goes on.
        deep: heads of the coarser levels, if these are supervised.

    Raises:
        MedarError: processes cannot share the batch, or there is no case to validate with.
    """

    metric = "dice"
    larger_is_better = True

    def __init__(
        self,
        model: Segmenter,
        train: AnnotatedDataset | MixedDataset,
        validation: PreparedDataset,
        settings: SegmentationSettings,
        origin: str = "none",
        deep: DeepSupervision | None = None,
    ) -> None:
        self.model: Segmenter = model
        self.train, self.validation, self.settings = train, validation, settings
        self.origin, self.deep = origin, deep
        self.labels = train.plan.labels
        self._looked_at = annotated_places(validation, settings.data.validation)
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
        """Weighted cross-entropy and 1 - Dice, over what each case was annotated for.

        With deep supervision the loss is that of all levels, its two parts are the finest's.
        """
        image, classes = batch["image"], to_classes(batch["label"], list(self.labels))
        if self.deep is None:
            levels = [Level(1.0, self.model(image), classes)]
        else:
            levels = self.deep(self.model, image, classes)
        weights = self.settings.loss
        parts = [label_losses(one.logits, one.classes, batch["annotated"]) for one in levels]
        total = torch.stack(
            [
                level.weight * (weights.cross_entropy * entropy + weights.dice * dice)
                for level, (entropy, dice) in zip(levels, parts, strict=True)
            ]
        ).sum()
        entropy, dice = parts[0]
        return total, {"loss": total, "cross_entropy": entropy, "dice": dice}

    def companions(self) -> dict[str, nn.Module]:
        """Heads of the coarser levels, which are not saved with the model."""
        return {} if self.deep is None else {"deep_supervision": self.deep}

    def evaluate(self) -> dict[str, float]:
        """`dice`, the mean over labels, and that of each label; NaN where no case holds any.

        Each label's is the mean over the cases that were annotated for it and hold it.
        """
        meter, values = DiceMeter(list(self.labels.values())), list(self.labels)
        for place in self._looked_at:
            case = self.validation.prepared[place]
            image = torch.from_numpy(self.validation.prepared.image(case))
            truth = to_classes(self.validation.label(case)[None], values)
            annotated = torch.tensor([[value in case.annotated for value in values]])
            meter.compare(classes_of(self.model, image, QUICK)[None], truth, annotated)
        found = {name: value for name, value in meter.result().items() if value is not None}
        mean = sum(found.values()) / len(found) if found else nan
        return {"dice": mean, **{f"dice_{name}": value for name, value in found.items()}}

    def parameter_groups(self) -> dict[str, list[ParameterGroup]]:
        """Stage by stage, each with its share of the learning rate; without what is frozen."""
        stages = [*self.model.backbone.stage_parameters(), list(self.model.head.parameters())]
        decay = self.settings.transfer.decay
        groups: list[ParameterGroup] = []
        for above, stage in enumerate(reversed(stages)):
            trained = [p for p in stage if p.requires_grad]
            factor = decay**above
            groups += [
                {"params": [p for p in trained if p.ndim > 1], "factor": factor},
                {
                    "params": [p for p in trained if p.ndim <= 1],
                    "factor": factor,
                    "weight_decay": 0.0,
                },
            ]
        return {
            "model": [group for group in groups if group["params"]],
            **{name: weight_decay_groups(heads) for name, heads in self.companions().items()},
        }

    def describe(self) -> dict[str, Any]:
        """The network, the data and what was taken over."""
        data = to_dict(self.settings.data)
        if self.settings.data.synthetic is not None:
            data["synthetic"] = self.settings.data.synthetic.share
        free = ("workers", "validation")
        return {
            "backbone": to_dict(self.settings.backbone),
            "loss": to_dict(self.settings.loss),
            "transfer": to_dict(self.settings.transfer),
            "pretrained": self.origin,
            "data": {
                **{name: value for name, value in data.items() if name not in free},
                "subjects": len(self.train.subjects),
                "plan": self.train.plan.digest,
                "train": self.train.digest,
                "validation": self.validation.prepared.digest,
            },
        }

    def save_model(self, folder: Path) -> None:
        """The network's folder."""
        save_segmenter(folder, self.model)
