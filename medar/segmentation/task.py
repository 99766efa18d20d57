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
from torch import Tensor

from medar.data.loading import Item, PreparedDataset, make_loader, set_epoch
from medar.segmentation.data import AnnotatedDataset, annotated_places
from medar.segmentation.folder import save_segmenter
from medar.segmentation.network import Segmenter
from medar.segmentation.overlap import DiceMeter
from medar.segmentation.prediction import PredictionSettings, classes_of
from medar.segmentation.settings import SegmentationSettings
from medar.settings import to_dict
from medar.tokenizer.losses import label_losses, to_classes
from medar.training.distributed import ranks
from medar.training.task import ParameterGroup, Task

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

    Raises:
        MedarError: processes cannot share the batch, or there is no case to validate with.
    """

    metric = "dice"
    larger_is_better = True

    def __init__(
        self,
        model: Segmenter,
        train: AnnotatedDataset,
        validation: PreparedDataset,
        settings: SegmentationSettings,
        origin: str = "none",
    ) -> None:
        self.model: Segmenter = model
        self.train, self.validation, self.settings = train, validation, settings
        self.origin = origin
        self.labels = train.plan.labels
        self._looked_at = annotated_places(validation, settings.data.validation)
        place = ranks()
        self._loader = make_loader(
            train,
            batch_size=place.share(settings.data.batch_size),
            workers=settings.data.workers,
            rank=place.rank,
            world=place.world,
        )

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """An epoch's batches from number `start` on."""
        set_epoch(self._loader, epoch)
        return islice(iter(self._loader), start, None)

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted cross-entropy and 1 - Dice, over what each case was annotated for."""
        classes = to_classes(batch["label"], list(self.labels))
        entropy, dice = label_losses(self.model(batch["image"]), classes, batch["annotated"])
        weights = self.settings.loss
        total = weights.cross_entropy * entropy + weights.dice * dice
        return total, {"loss": total, "cross_entropy": entropy, "dice": dice}

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
        stages = [*self.model.backbone.depths(), list(self.model.head.parameters())]
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
        return {"model": [group for group in groups if group["params"]]}

    def describe(self) -> dict[str, Any]:
        """The network, the data and what was taken over."""
        data = to_dict(self.settings.data)
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
