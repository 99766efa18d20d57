"""The judge: a segmentation network trained on real volumes, to look at generated ones.

It is nnU-Net's network at a small size (`medar.segmentation`), trained with cross-entropy and Dice
on the augmented train split. Its weights are the best by Dice on the val split. How good it is
shows beside each of its verdicts: its Dice on real volumes.
"""

from pathlib import Path
from typing import Any

from medar.data.augmentation import Augmentation
from medar.segmentation.backbones import BackboneSettings
from medar.segmentation.folder import load_segmenter
from medar.segmentation.network import Segmenter
from medar.segmentation.settings import DataSettings, SegmentationSettings
from medar.segmentation.training import train_segmenter
from medar.training import TrainingSettings

BACKBONE = BackboneSettings(kind="dynunet", width=16, levels=4)
DATA = DataSettings(augmentation=Augmentation(), validation=16)
MINUTES = 5.0


def train_judge(
    prepared: str | Path, out: str | Path, settings: TrainingSettings | None = None
) -> Segmenter:
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
    chosen = SegmentationSettings(backbone=BACKBONE, data=DATA, training=settings)
    train_segmenter(chosen, prepared, out)
    return load_segmenter(out, settings.device)


def judge_settings(minutes: float | None = None, **changes: Any) -> TrainingSettings:
    """How a judge is trained: for `MINUTES`, unless others are given."""
    own = {"learning_rate": 1e-3, "ema_decay": 0.99, "evaluate_every": 200, "save_every": 200}
    minutes = MINUTES if minutes is None else minutes
    return TrainingSettings(minutes=minutes, **{**own, **changes})
