"""Do samples agree with the label map that they were conditioned on?

    held-out label map -> generator -> sample -> judge -> labels against the map: Dice

The judge is a segmentation network trained on real volumes only: nnU-Net's network at a small size
(`medar.segmentation`), trained with cross-entropy and Dice on the augmented train split, with the
weights of the best Dice on the val split. Its Dice on samples is reported beside three others: on
the real volumes of the same maps, on their reconstructions, which are as blurred as samples, and on
samples against the map of the previous case, which is what similar anatomy gives without any
conditioning.

B batch, C channels, X Y Z voxels, K labels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medar.data.augmentation import Augmentation
from medar.data.loading import PreparedDataset
from medar.data.manifest import Split
from medar.devices import device_of
from medar.errors import MedarError, check_positive
from medar.evaluation.generation.sampling import (
    check_conditions,
    conditions,
    notes_on,
    protocol_of,
    reconstructed,
    sample_volumes,
    spread_over,
)
from medar.generator.settings import SamplingSettings
from medar.losses import to_classes
from medar.progress import track
from medar.segmentation.backbones import BackboneSettings
from medar.segmentation.dice import DiceMeter
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.settings import DataSettings, SegmentationSettings
from medar.segmentation.training import train_segmenter
from medar.settings import to_dict
from medar.synthesis.synthesizer import Synthesizer, seeds_from
from medar.training import TrainingSettings

NAME = "conditions-v2"
"""Name and version of the protocol: raise the version whenever a value changes."""

BACKBONE = BackboneSettings(kind="dynunet", width=16, max_levels=4)
DATA = DataSettings(augmentation=Augmentation(), validation=16)
MINUTES = 5.0
"""Default training time of the judge."""

Dice = dict[str, float | None]
"""By label name: the mean over the cases that hold the label; None if no case does."""


@dataclass(frozen=True, kw_only=True)
class AgreementReport:
    """Result of `evaluate_conditions`. docs/reference/evaluation.md defines each value."""

    cases: int
    split: Split
    samples: Dice
    """Of samples, each against the map that it was conditioned on."""
    real: Dice
    """Of the real volumes of these maps."""
    reconstructed: Dice
    """Of their reconstructions by the tokenizer."""
    unrelated: Dice
    """Of samples against the map of the previous case."""
    notes: list[str]
    protocol: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON holds."""
        return to_dict(self)


def evaluate_conditions(
    synthesizer: Synthesizer,
    prepared: str | Path,
    judge: nn.Module,
    split: Split = "test",
    *,
    limit: int | None = None,
    sampling: SamplingSettings | None = None,
    seed: int = 0,
) -> AgreementReport:
    """Segment one sample per held-out label map, and compare it with the map.

    Args:
        synthesizer: a generator that takes label maps.
        prepared: a folder that `prepare` filled, of the generator's size and labels.
        judge: see `train_judge`; (B, C, X, Y, Z) to logits (B, K + 1, X, Y, Z).
        split: of the label maps.
        limit: maximum number of cases, evenly spaced over the split; default all.
        sampling: settings of the sampler; default the generator's own.
        seed: of the first sample; each further one has the next.

    Raises:
        MedarError: a generator without label maps, or cases that do not fit it or have none.
    """
    check_maps(synthesizer)
    check_positive(limit=limit)
    dataset = PreparedDataset(prepared, split=split)
    check_conditions(synthesizer, dataset)
    labelled = [k for k in range(len(dataset)) if dataset.prepared[k].label is not None]
    if not labelled:
        raise MedarError(f"{prepared}: no case of the split {split} has a label map")
    count = min(limit or len(labelled), len(labelled))
    indices = [labelled[k] for k in spread_over(len(labelled), count)]
    settings = sampling or synthesizer.sampling
    settings.check(synthesizer.model.schedule, synthesizer.model.config.refinement)
    meter = _AgreementMeter(judge, list(dataset.plan.labels.values()))
    pairs = list(zip(indices, seeds_from(seed, count), strict=True))
    for index, sample_seed in track(pairs, total=count, label="follow maps"):
        item = dataset[index]
        condition = conditions(synthesizer, dataset, [index])
        samples, _ = sample_volumes(synthesizer, condition, [sample_seed], settings)
        volumes = torch.stack(
            [samples[0], item["image"], reconstructed(synthesizer.tokenizer, item["image"])]
        )
        classes = to_classes(item["label"][None], list(dataset.plan.labels))
        meter.update(volumes, classes, item["annotated"][None])
    return AgreementReport(
        cases=count,
        split=split,
        **{kind: dice.result() for kind, dice in meter.dice.items()},
        notes=notes_on(count, dataset),
        protocol={
            **protocol_of(NAME, synthesizer, dataset, settings, seed),
            "dice": "of each label over the cases annotated for it and holding it, then averaged",
        },
    )


def check_maps(synthesizer: Synthesizer, name: str = "this generator") -> None:
    """Check that a generator takes label maps.

    Raises:
        MedarError: it does not.
    """
    if synthesizer.model.config.condition.map != "label":
        raise MedarError(
            f"{name}: was trained without label maps, so its samples cannot follow any; train one "
            "with condition.map=label"
        )


class _AgreementMeter:
    """Dice of the judge's segmentations, for each kind of volume."""

    def __init__(self, judge: nn.Module, names: list[str]) -> None:
        self.judge = judge.eval()
        kinds = ("samples", "real", "reconstructed", "unrelated")
        self.dice = {kind: DiceMeter(names) for kind in kinds}
        self._previous: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def update(self, volumes: Tensor, classes: Tensor, annotated: Tensor) -> None:
        """Add a case.

        Args:
            volumes: (3, C, X, Y, Z): a sample, the real volume, its reconstruction.
            classes: (1, 1, X, Y, Z), the map's.
            annotated: (1, K).
        """
        logits = self.judge(volumes.to(device_of(self.judge))).cpu()
        for row, kind in zip(logits, ("samples", "real", "reconstructed"), strict=True):
            self.dice[kind].update(row[None], classes, annotated)
        if self._previous is not None:
            self.dice["unrelated"].update(logits[:1], *self._previous)
        self._previous = classes, annotated


def train_judge(
    prepared: str | Path, out: str | Path, settings: TrainingSettings | None = None
) -> Segmenter:
    """Train a judge for the labels of a prepared data set, or load an existing one.

    Args:
        prepared: the data set, with labels, and cases in "train" and "val".
        out: the folder of the run; a finished run is loaded, an interrupted one resumed.
        settings: of the training; default `judge_settings()`.

    Returns:
        The network, (B, C, X, Y, Z) in [-1, 1] to logits (B, K + 1, X, Y, Z), in evaluation mode,
        on the device it was trained on.

    Raises:
        MedarError: data without labels or without one of the splits, or an error of `fit`.
        KeyboardInterrupt: after a checkpoint was saved, from which the same call resumes.
    """
    settings = settings or judge_settings()
    config = SegmentationSettings(backbone=BACKBONE, data=DATA, training=settings)
    train_segmenter(config, prepared, out)
    return Segmenter.from_pretrained(out, settings.device)


def judge_settings(minutes: float | None = None, **changes: Any) -> TrainingSettings:
    """Training settings of a judge; default length: `MINUTES`."""
    defaults = {"learning_rate": 1e-3, "ema_decay": 0.99, "evaluate_every": 200, "save_every": 200}
    minutes = MINUTES if minutes is None else minutes
    return TrainingSettings(minutes=minutes, **{**defaults, **changes})
