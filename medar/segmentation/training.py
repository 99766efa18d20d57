"""From prepared, labelled cases and a YAML to a trained segmentation network."""

from pathlib import Path

import torch

from medar.data.loading import PreparedDataset
from medar.data.prepared import Prepared
from medar.data.resolve import plan_for_training
from medar.errors import MedarError
from medar.segmentation.data import AnnotatedDataset, fold_splits
from medar.segmentation.folder import load_pretrained
from medar.segmentation.network import Segmenter
from medar.segmentation.prior import begin_with, label_shares
from medar.segmentation.ranges import ranges_of
from medar.segmentation.settings import SegmentationSettings
from medar.segmentation.supervision import DeepSupervision
from medar.segmentation.synthetic import MixedDataset, with_pairs
from medar.segmentation.task import SegmentationTask
from medar.settings import SettingsSource, resolve_settings
from medar.training import Outcome, fit
from medar.training.folder import Resume
from medar.training.tracker import Tracker

PAIRS = "synthetic"
"""The folder of a run that synthetic cases are prepared in, unless they are prepared."""


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
    """Train a segmentation network; `out/model` is `load_segmenter`'s.

    Args:
        settings: what to train and how, as an object, a mapping or the path of a YAML file;
            `data.labels` is the fraction of the labels.
        data: a folder that `prepare` filled, with labelled cases in "train" and "val".
        out: the folder of the run, see `medar.training.folder`.
        tracker: what else is told of settings and metrics.
        pretrained: a folder to start from, see `load_pretrained`; default none.
        resume: see `medar.training.folder.Resume`.
        workers: processes that prepare synthetic cases; default one a processor.

    Raises:
        MedarError: no labels, a backbone that cannot be started from, synthetic cases that cannot
            be used, or what `fit` raises.
        KeyboardInterrupt: a checkpoint was left that the same call goes on from.
    """
    settings = resolve_settings(SegmentationSettings, settings)
    task = make_task(settings, data, pretrained, pairs=Path(out) / PAIRS, workers=workers)
    return fit(task, settings.training, out, tracker, resume=resume)


def make_task(
    settings: SegmentationSettings,
    data: str | Path,
    pretrained: str | Path | None = None,
    *,
    pairs: str | Path = PAIRS,
    workers: int | None = None,
) -> SegmentationTask:
    """The task of `train_segmenter`; weights that are not pretrained are drawn from the seed.

    Args:
        settings: see `train_segmenter`.
        data: see `train_segmenter`.
        pretrained: see `train_segmenter`.
        pairs: where synthetic cases are prepared, where the settings ask for such.
        workers: see `train_segmenter`.

    Raises:
        MedarError: see `train_segmenter`.
    """
    seed, transfer = settings.training.seed, settings.transfer
    splits = fold_splits(data, settings.data)
    train = AnnotatedDataset(data, settings.data, seed, splits)
    validation = PreparedDataset(data, split="val", splits=splits)
    plan = plan_for_training(train.plan, settings.plan, data)
    augmentation = settings.data.augmentation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Segmenter(settings.backbone, plan, augmentation.flips if augmentation else ())
        coarser = settings.loss.deep_supervision
        deep = DeepSupervision(model, coarser) if coarser else None
    if transfer.frozen and pretrained is None:
        raise MedarError(
            "transfer.frozen true: nothing was taken over that could stay as it is; name a "
            "pretrained folder, or set false"
        )
    origin = "none"
    if pretrained is not None:
        origin = load_pretrained(model, pretrained, transfer.part)
    if transfer.frozen:
        backbone = model.backbone
        taken = (
            backbone.encoder_parameters() if transfer.part == "encoder" else backbone.parameters()
        )
        for parameter in taken:
            parameter.requires_grad_(False)
    cases: AnnotatedDataset | MixedDataset = train
    if settings.data.synthetic is not None:
        cases = with_pairs(train, settings.data, pairs, workers=workers)
    prepared, places = _seen(cases)
    model.ranges = ranges_of(prepared, places)
    shares = label_shares(prepared, places, plan)
    for head in (model.head, *(deep.heads if deep else ())):
        begin_with(head, shares)
    return SegmentationTask(model, cases, validation, settings, origin, deep)


def _seen(cases: AnnotatedDataset | MixedDataset) -> tuple[Prepared, list[int]]:
    """The real cases' data set and places; the synthetic ones' where these are all there is."""
    if isinstance(cases, AnnotatedDataset):
        return cases.base.prepared, cases.places
    if cases.share < 1:
        return _seen(cases.real)
    return cases.pairs.prepared, list(range(len(cases.pairs)))
