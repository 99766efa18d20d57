"""The judge: a segmentation network trained on real volumes, to look at generated ones.

It is nnU-Net's network (MONAI's DynUNet) at a small size, trained with cross-entropy and Dice on
the augmented train split, by the loop that trains everything else. Its weights are the best by Dice
on the val split. How good it is shows beside each of its verdicts: its Dice on real volumes.

B batch, C channels, X Y Z voxels, K labels (the background not counted).
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model as load_weights
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medar.data.augmentation import Augmentation
from medar.data.loading import Item, PreparedDataset, make_loader, set_epoch
from medar.data.plan import Plan
from medar.errors import MedarError, one_line
from medar.evaluation.realism import spread
from medar.segmentation.overlap import DiceMeter
from medar.tokenizer.losses import label_losses, to_classes
from medar.training import Task, TrainingSettings, fit
from medar.training.distributed import ranks
from medar.training.task import to_device

WIDTHS = (16, 32, 64, 128)
"""Features of each level."""
THINNEST = 8
"""Voxels from which on a side is halved."""
BATCH = 2
VALIDATION = 16
"""Most cases that an evaluation looks at."""
MINUTES = 5.0


def train_judge(
    prepared: str | Path, out: str | Path, settings: TrainingSettings | None = None
) -> nn.Module:
    """A judge of a prepared data set's labels: trained into a folder, or the one that is there.

    Args:
        prepared: the data set, with labels, and cases in "train" and "val".
        out: the folder of the run; a finished one is read, an interrupted one gone on with.
        settings: how it is trained; default `judge_settings()`.

    Returns:
        The network, (B, C, X, Y, Z) in [-1, 1] to logits (B, K + 1, X, Y, Z), in evaluation mode,
        where it was trained.

    Raises:
        MedarError: data without labels or without one of the splits, or what `fit` raises.
        KeyboardInterrupt: a checkpoint was left that the same call goes on from.
    """
    settings = settings or judge_settings()
    task = JudgeTask(prepared, settings.seed)
    fit(task, settings, out)
    weights = Path(out) / "model" / "model.safetensors"
    try:
        load_weights(task.model, str(weights))
    except Exception as error:
        raise MedarError(
            f"{weights}: not the judge's weights ({one_line(error)}); train it anew, into another "
            "folder"
        ) from error
    return task.model.eval()


def judge_settings(minutes: float | None = None, **changes: Any) -> TrainingSettings:
    """How a judge is trained: for `MINUTES`, unless others are given."""
    own = {"learning_rate": 1e-3, "ema": 0.99, "evaluate_every": 200, "save_every": 200}
    minutes = MINUTES if minutes is None else minutes
    return TrainingSettings(minutes=minutes, **{**own, **changes})


class JudgeTask(Task[Item]):
    """Train a segmentation network on prepared volumes.

    Args:
        prepared: the data set, with labels.
        seed: of weights, order and augmentation.

    Raises:
        MedarError: no labels, or no case in "train" or "val".
    """

    metric = "dice"
    larger_is_better = True

    def __init__(self, prepared: str | Path, seed: int) -> None:
        self.train = PreparedDataset(
            prepared, split="train", augmentation=Augmentation(), seed=seed
        )
        self.validation = PreparedDataset(prepared, split="val")
        self.labels = self.train.plan.labels
        if not self.labels:
            raise MedarError(f"{prepared}: its plan names no labels; a judge needs labelled cases")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = network_for(self.train.plan)
        place = ranks()
        self._loader = make_loader(
            self.train, batch_size=place.share(BATCH), rank=place.rank, world=place.world
        )

    def batches(self, epoch: int, start: int) -> Iterator[Item]:
        """An epoch's batches from number `start` on."""
        set_epoch(self._loader, epoch)
        return islice(iter(self._loader), start, None)

    def loss(self, batch: Item, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy and 1 - Dice, over what each case was annotated for."""
        classes = to_classes(batch["label"], list(self.labels))
        entropy, dice = label_losses(self.model(batch["image"]), classes, batch["annotated"])
        total = entropy + dice
        return total, {"loss": total, "cross_entropy": entropy, "dice": dice}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Dice, the mean over the labels that validation cases hold; NaN if they hold none."""
        device = next(self.model.parameters()).device
        meter = DiceMeter(list(self.labels.values()))
        for batch in DataLoader(spread(self.validation, VALIDATION), batch_size=BATCH):
            there = to_device(batch, device)
            classes = to_classes(there["label"], list(self.labels))
            meter.update(self.model(there["image"]), classes, there["annotated"])
        found = [value for value in meter.result().values() if value is not None]
        return {"dice": float(np.mean(found)) if found else float("nan")}

    def describe(self) -> dict[str, Any]:
        """Network and data: what a resumed run must agree with."""
        return {
            "kind": "judge",
            "widths": list(WIDTHS),
            "batch_size": BATCH,
            "plan": self.train.plan.digest,
            "cases": self.train.prepared.digest,
        }


def network_for(plan: Plan) -> nn.Module:
    """An untrained network for volumes of a plan: four levels, thin sides halved less often."""
    from monai.networks.nets.dynunet import DynUNet

    strides, sides = [[1, 1, 1]], list(plan.size)
    for _ in WIDTHS[1:]:
        strides.append([2 if n >= THINNEST and n % 2 == 0 else 1 for n in sides])
        sides = [n // s for n, s in zip(sides, strides[-1], strict=True)]
    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=len(plan.channels) or 1,
        out_channels=len(plan.labels) + 1,
        kernel_size=[[3, 3, 3]] * len(strides),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=WIDTHS,
    )
    return network
