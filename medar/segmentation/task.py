"""`SegmentationTask`: training of a segmentation network, with optional deep supervision.

    volume -> Segmenter -> logits   against cross-entropy and Dice, over the annotated labels

B batch, C channels, X Y Z voxels, K labels (without the background).
"""

from collections.abc import Iterator
from itertools import islice
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from medar.data.loading import (
    UNKNOWN,
    Item,
    PreparedDataset,
    loading_workers,
    make_loader,
    set_epoch,
)
from medar.errors import MedarError
from medar.losses import label_losses, to_classes
from medar.segmentation.data import AnnotatedDataset, MixedDataset, annotated_indices
from medar.segmentation.dice import DiceMeter
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.settings import SegmentationSettings
from medar.segmentation.sliding_window import PredictionSettings, predict_classes
from medar.settings import to_dict
from medar.training.distributed import current_ranks
from medar.training.task import ParameterGroup, Task, weight_decay_groups

VALIDATION = PredictionSettings(mirrors=())
"""How validation cases are segmented."""


class Level(NamedTuple):
    """Logits and targets of one level of the decoder."""

    weight: float
    logits: Tensor
    """(B, K + 1, X, Y, Z), background first."""
    classes: Tensor
    """(B, 1, X, Y, Z), 0 the background, -1 unknown."""


class DeepSupervision(nn.Module):
    """Heads for the coarser levels of a network's decoder, as in nnU-Net (arXiv 1809.10486).

    Each level has half the weight of the next finer one; the weights sum to 1. The heads are only
    used in training and are not part of the model.

    Args:
        model: the network.
        levels: number of levels besides the finest.

    Raises:
        MedarError: the decoder has fewer levels.
    """

    def __init__(self, model: Segmenter, levels: int) -> None:
        super().__init__()
        backbone = model.backbone
        most = len(backbone.channels) - 2
        if levels > most:
            raise MedarError(
                f"loss.deep_supervision_levels must be at most {most}, the coarser levels of the "
                f"decoder of this {model.settings.kind}; got {levels}"
            )
        self.steps = backbone.steps[: levels + 1]
        self.heads = nn.ModuleList(
            nn.Conv3d(width, len(model.plan.labels) + 1, kernel_size=1)
            for width in backbone.channels[1 : levels + 1]
        )
        weights = [0.5**level for level in range(levels + 1)]
        self.weights = [weight / sum(weights) for weight in weights]

    def forward(self, model: Segmenter, volumes: Tensor, classes: Tensor) -> list[Level]:
        """Volumes (B, C, X, Y, Z) and classes (B, 1, X, Y, Z) to levels, finest first.

        Where the backbone pads volumes, the classes are padded with unknown. A site of a coarser
        level has the class of the voxel at its centre.
        """
        backbone = model.backbone
        levels = backbone.decode_levels(backbone.features(backbone.padded(volumes)))
        sides = zip(reversed(classes.shape[2:]), reversed(backbone.multiple), strict=True)
        padded = pad(classes, [end for n, m in sides for end in (0, -n % m)], value=UNKNOWN)
        return [
            Level(weight, head(level), padded[:, :, x // 2 :: x, y // 2 :: y, z // 2 :: z])
            for weight, head, level, (x, y, z) in zip(
                self.weights,
                (model.head, *self.heads),
                levels[: len(self.steps)],
                self.steps,
                strict=True,
            )
        ]


class SegmentationTask(Task[Item]):
    """Train a segmentation network on annotated cases.

    Args:
        model: in training mode, with pretrained weights if any.
        train: the training cases.
        validation: the cases that select the best weights.
        settings: uses losses, data and transfer.
        origin: hash of the pretrained weights, which must not change on resumption; "none" without.
        deep: heads of the coarser levels, for deep supervision.

    Raises:
        MedarError: the batch size is not divisible by the processes, or there is no validation
            case.
    """

    unit = "voxels"
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
        self._validation_indices = annotated_indices(validation, settings.data.validation)
        ranks = current_ranks()
        self._loader = make_loader(
            train,
            batch_size=ranks.per_rank_batch_size(settings.data.batch_size),
            workers=loading_workers(settings.data.workers, settings.training.device),
            rank=ranks.rank,
            world=ranks.world_size,
        )

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """The batches of an epoch from number `start` on."""
        set_epoch(self._loader, epoch)
        return islice(iter(self._loader), start, None)

    def amount(self, batch: Item) -> int:
        """Voxels of a batch, each once, whatever the channels."""
        return int(batch["image"][:, 0].numel())

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted cross-entropy and 1 - Dice over the labels that each case was annotated for.

        With deep supervision the loss sums over all levels; its two logged parts are the finest
        level's.
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

    def compile(self, **options: Any) -> None:
        """Compile the network, together with the heads of deep supervision if there are any."""
        (self.model if self.deep is None else self.deep).compile(**options)

    def evaluate(self) -> dict[str, float]:
        """`dice`, the mean over labels, and `dice_NAME` of each label.

        A label's Dice is the mean over the cases that were annotated for it and contain it; a label
        without such a case is left out, and `dice` is NaN if all are.
        """
        meter, values = DiceMeter(list(self.labels.values())), list(self.labels)
        for index in self._validation_indices:
            case = self.validation.prepared[index]
            image = torch.from_numpy(self.validation.prepared.image(case))
            reference = to_classes(self.validation.label(case)[None], values)
            annotated = torch.tensor([[value in case.annotated for value in values]])
            predicted = predict_classes(self.model, image, VALIDATION)
            meter.compare(predicted[None], reference, annotated)
        scores = {name: value for name, value in meter.result().items() if value is not None}
        mean = sum(scores.values()) / len(scores) if scores else nan
        return {"dice": mean, **{f"dice_{name}": value for name, value in scores.items()}}

    def parameter_groups(self) -> dict[str, list[ParameterGroup]]:
        """Groups per stage, each with its factor of the learning rate; frozen weights left out."""
        stages = [*self.model.backbone.stage_parameters(), list(self.model.head.parameters())]
        groups: list[ParameterGroup] = []
        for above, stage in enumerate(reversed(stages)):
            trained = [p for p in stage if p.requires_grad]
            factor = self.settings.transfer.layer_decay**above
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
        """Network, data and pretrained weights, which must not change on resumption."""
        data = to_dict(self.settings.data)
        if self.settings.data.synthetic is not None:
            data["synthetic"] = self.settings.data.synthetic.fraction
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
        """Write the network's folder."""
        self.model.save_pretrained(folder)
