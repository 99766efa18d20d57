"""`train_segmenter`: from prepared, labelled cases and settings to a segmentation network.

Before training, the head's bias is set to the logarithm of each class's fraction of the training
voxels (after arXiv 1708.02002). With a random head, the first steps would mainly learn that most
voxels are background, and small labels would be lost meanwhile.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medar.data.loading import UNKNOWN, PreparedDataset
from medar.data.plan import Plan
from medar.data.prepared import Prepared
from medar.data.resolve import plan_for_training
from medar.errors import MedarError
from medar.segmentation.data import (
    SAMPLED_CASES,
    SAMPLED_VOXELS,
    AnnotatedDataset,
    MixedDataset,
    add_synthetic,
    fold_splits,
    spread,
)
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.settings import SegmentationSettings
from medar.segmentation.task import DeepSupervision, SegmentationTask
from medar.segmentation.training_range import TrainingRange
from medar.settings import SettingsSource, resolve_settings
from medar.training import Outcome, fit
from medar.training.folder import Resume
from medar.training.tracker import Tracker

SYNTHETIC_FOLDER = "synthetic"
"""Folder within a run in which synthetic cases are prepared."""
MIN_FRACTION = 0.001
"""Smallest initial fraction of a label, so that rare labels can be learned."""
MAX_TOTAL_FRACTION = 0.5
"""Largest initial fraction of all labels together."""


def train_segmenter(
    settings: SegmentationSettings | SettingsSource,
    data: str | Path,
    out: str | Path,
    tracker: Tracker | None = None,
    *,
    pretrained: str | Path | None = None,
    resume: Resume = "auto",
    workers: int | None = None,
) -> Outcome:
    """Train a segmentation network; `Segmenter.from_pretrained(out)` loads it.

    Args:
        settings: what to train and how: settings, a mapping, or the path of a YAML file.
        data: a prepared data set with labelled cases in "train" and "val".
        out: the folder of the run, see `medar.training.folder`.
        tracker: receives settings and metrics.
        pretrained: a model folder to start from, see `Segmenter.load_backbone`.
        resume: see `medar.training.folder.Resume`.
        workers: processes that prepare synthetic cases; default one per CPU core.

    Raises:
        MedarError: no labels, an incompatible pretrained backbone, unusable synthetic cases, or
            what `fit` raises.
        KeyboardInterrupt: interrupted; the same call resumes from the checkpoint that was written.
    """
    settings = resolve_settings(SegmentationSettings, settings)
    folder = Path(out) / SYNTHETIC_FOLDER
    task = make_task(settings, data, pretrained, synthetic_folder=folder, workers=workers)
    return fit(task, settings.training, out, tracker, resume=resume)


def make_task(
    settings: SegmentationSettings,
    data: str | Path,
    pretrained: str | Path | None = None,
    *,
    synthetic_folder: str | Path = SYNTHETIC_FOLDER,
    workers: int | None = None,
) -> SegmentationTask:
    """The task of `train_segmenter`; weights that are not pretrained depend on the seed.

    Args:
        settings: see `train_segmenter`.
        data: see `train_segmenter`.
        pretrained: see `train_segmenter`.
        synthetic_folder: where synthetic cases are prepared, if the settings name any.
        workers: see `train_segmenter`.

    Raises:
        MedarError: see `train_segmenter`.
    """
    seed, transfer = settings.training.seed, settings.transfer
    if transfer.frozen and pretrained is None:
        raise MedarError(
            "transfer.frozen is true, but there are no weights to freeze; give a pretrained folder "
            "(--pretrained), or set it to false"
        )
    splits = fold_splits(data, settings.data)
    train = AnnotatedDataset(data, settings.data, seed, splits)
    validation = PreparedDataset(data, split="val", splits=splits)
    plan = plan_for_training(train.plan, settings.plan, data)
    augmentation = settings.data.augmentation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Segmenter(settings.backbone, plan, augmentation.flips if augmentation else ())
        levels = settings.loss.deep_supervision_levels
        deep = DeepSupervision(model, levels) if levels else None
    origin = "none"
    if pretrained is not None:
        origin = model.load_backbone(pretrained, transfer.part)
    if transfer.frozen:
        backbone = model.backbone
        encoder_only = transfer.part == "encoder"
        for parameter in backbone.encoder_parameters() if encoder_only else backbone.parameters():
            parameter.requires_grad_(False)
    cases: AnnotatedDataset | MixedDataset = train
    if settings.data.synthetic is not None:
        cases = add_synthetic(train, settings.data, synthetic_folder, workers=workers)
    prepared, indices = _measured_cases(cases)
    model.training_range = TrainingRange.measure(prepared, indices)
    fractions = label_fractions(prepared, indices, plan)
    for head in (model.head, *(deep.heads if deep else ())):
        init_head_bias(head, fractions)
    return SegmentationTask(model, cases, validation, settings, origin, deep)


def label_fractions(prepared: Prepared, indices: Sequence[int], plan: Plan) -> list[float]:
    """Each label's mean fraction of the voxels of the cases that were annotated for it.

    Args:
        prepared: the data set.
        indices: the annotated training cases; at most `SAMPLED_CASES` of them are read.
        plan: its labels, in the order of the result.

    Returns:
        At least `MIN_FRACTION` each, together at most `MAX_TOTAL_FRACTION`.
    """
    measured: dict[int, list[float]] = {value: [] for value in plan.labels}
    for index in spread(indices, SAMPLED_CASES):
        case = prepared[index]
        voxels = np.asarray(prepared.label(case)).reshape(-1)
        # An odd stride: with an even one, which rows of voxels often are, columns would be skipped.
        voxels = voxels[:: max(1, voxels.size // SAMPLED_VOXELS) | 1]
        voxels = voxels[voxels != UNKNOWN]
        for value in measured:
            if voxels.size and value in case.annotated:
                measured[value].append(float(np.mean(voxels == value)))
    fractions = [
        max(MIN_FRACTION, float(np.mean(each))) if each else MIN_FRACTION
        for each in measured.values()
    ]
    return [fraction * min(1.0, MAX_TOTAL_FRACTION / sum(fractions)) for fraction in fractions]


@torch.no_grad()
def init_head_bias(head: nn.Module, fractions: Sequence[float]) -> None:
    """Set the bias of a head so that its initial probabilities are the given fractions.

    Args:
        head: a convolution to logits, background first.
        fractions: of the labels, together below 1.
    """
    assert isinstance(head, nn.Conv3d)
    assert head.bias is not None
    probabilities = [1 - sum(fractions), *fractions]
    head.bias.copy_(torch.tensor([math.log(p) for p in probabilities]))


def _measured_cases(cases: AnnotatedDataset | MixedDataset) -> tuple[Prepared, list[int]]:
    """Data set and indices of the real cases, or of the synthetic ones if they are all there is."""
    if isinstance(cases, AnnotatedDataset):
        return cases.base.prepared, cases.indices
    if cases.fraction < 1:
        return _measured_cases(cases.real)
    return cases.synthetic.prepared, list(range(len(cases.synthetic)))
