"""`evaluate_segmentation`: how near label maps come to the truth, on held-out cases.

Protocol `segmentation-v1`. Each case is read from its files, segmented, and compared with the truth
on the files' own grid; labels that nobody looked for in a case, and voxels that nobody looked at,
count nowhere. Anybody's finished label maps are judged by the same way.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medar.data.manifest import Manifest, Split
from medar.data.plan import Plan
from medar.errors import MedarError
from medar.evaluation.distances import FEW
from medar.evaluation.segmentation.cases import Judged, JudgedCase, Labels, labels_of, manifest_of
from medar.evaluation.segmentation.metrics import BINS, MIN_PROBABILITY, CaseScore, score_labels
from medar.evaluation.segmentation.predictors import Predictor, as_predictors
from medar.evaluation.segmentation.report import SegmentationReport, comparison, model_report
from medar.evaluation.segmentation.statistics import RESAMPLES, Bootstrap
from medar.evaluation.segmentation.worst import WorstCases
from medar.progress import track
from medar.segmentation.network import Segmenter
from medar.segmentation.prediction import DEFAULT, PredictionSettings
from medar.volume import ReadOptions, Volume

NAME = "segmentation-v1"
"""Name and version of the protocol: raise the version whenever a figure changes."""

PROTOCOL = {
    "grid": "the label file's own; what preparation loses counts against the model",
    "dice": "2 |A and B| / (|A| + |B|)",
    "hd95": "mm; larger of the two directed 95th percentiles between surface voxels' centres",
    "nsd": "share of both surfaces' voxels within the tolerance of the other surface",
    "absent": "from both: left out; from one: Dice and NSD 0, HD95 left out and counted",
    "unknown": "labels not annotated in a case and ignored voxels are left out",
    "mean": "over cases for each label, then over labels",
    "interval": f"95 %, percentiles of {RESAMPLES} bootstrap draws of subjects",
    "comparison": "bootstrap of the mean difference; Wilcoxon signed-rank over subjects, "
    "two-sided, not corrected for the number of tests; effect rank-biserial",
    "volume": "ml, prediction less truth; limits bias +- 1.96 deviations over cases",
    "calibration": f"prepared grid, cases annotated for every label; {BINS} bins of "
    f"voxels where all labels together have a chance of {MIN_PROBABILITY} or more",
}
"""How each figure is taken, for reports."""


def evaluate_segmentation(
    models: Segmenter | Predictor | Sequence[Segmenter | Predictor],
    data: str | Path | Manifest,
    split: Split = "test",
    *,
    tolerance: float | None = None,
    limit: int | None = None,
    seed: int = 0,
    settings: PredictionSettings = DEFAULT,
    worst: WorstCases | None = None,
) -> SegmentationReport:
    """Judge label maps by the annotated cases of a split.

    Args:
        models: a network in evaluation mode, or finished files (`FilesPredictor`), or several; the
            further ones are compared with the first.
        data: a data set, or a folder that `prepare` filled, which remembers the files and splits
            of the one it was made from.
        split: the cases.
        tolerance: of NSD, in mm; default the largest side of the cases' median voxel.
        limit: the most cases, spread evenly over the split; default all.
        seed: of the bootstrap draws.
        settings: how networks segment that are given without a predictor.
        worst: takes the first model's worst cases, for a picture.

    Raises:
        MedarError: models of different labels, or of others than the data set's; no annotated case;
            files that are absent or cannot be read; a tolerance that is not positive.
    """
    predictors = as_predictors(models, settings)
    manifest, stored = manifest_of(data)
    labels, reading = _common(predictors, manifest, stored)
    judged = Judged(manifest, split, labels, reading, limit)
    if tolerance is None:
        tolerance = judged.tolerance()
    if not 0 < tolerance < float("inf"):
        raise MedarError(f"tolerance {tolerance:g}: a positive number of mm is needed")
    scores = _scores(predictors, judged, tolerance, worst)
    bootstrap = Bootstrap([case.subject for case in judged.cases], seed)
    reports = [
        model_report(one.name, rows, labels.names, one.calibration(), bootstrap)
        for one, rows in zip(predictors, scores, strict=True)
    ]
    return SegmentationReport(
        cases=len(judged.cases),
        subjects=bootstrap.subjects,
        split=split,
        tolerance=tolerance,
        models=reports,
        comparisons=[comparison(reports[0], one, labels.names, bootstrap) for one in reports[1:]],
        notes=_notes(judged, bootstrap.subjects, split),
        protocol=_protocol(judged, predictors, split, tolerance, seed),
    )


def _scores(
    predictors: Sequence[Predictor], judged: Judged, tolerance: float, worst: WorstCases | None
) -> list[list[CaseScore]]:
    """Of each predictor, case by case."""
    for one in predictors:
        one.begin(judged)
    scores: list[list[CaseScore]] = [[] for _ in predictors]
    for case in track(judged.cases, total=len(judged.cases), label="evaluate"):
        read = judged.read(case)
        for place, predictor in enumerate(predictors):
            truth, made = counted(read, predictor.predict(read), judged.labels)
            found = score_case(read, truth, made, judged.labels, tolerance)
            scores[place] += found
            dice = [one.dice for one in found if one.dice is not None]
            if worst is not None and place == 0 and dice:
                worst.update(case.id, read.image, truth, made, float(np.mean(dice)))
    return scores


def counted(judged: JudgedCase, predicted: Volume, labels: Labels) -> tuple[Volume, Volume]:
    """Truth and label map of a case, 0 where they count nowhere.

    Args:
        judged: the case.
        predicted: its label map, on the grid of its image.
        labels: to judge.
    """
    looked_for = np.array(judged.annotated)
    known = True if labels.ignore is None else judged.truth.array != labels.ignore
    truth, made = (
        one.with_array(np.where(np.isin(one.array, looked_for) & known, one.array, 0))
        for one in (judged.truth, predicted)
    )
    return truth, made


def score_case(
    judged: JudgedCase, truth: Volume, made: Volume, labels: Labels, tolerance: float
) -> list[CaseScore]:
    """The scores of a label map, a row a label.

    Args:
        judged: the case.
        truth: as `counted` gives it.
        made: the label map, as `counted` gives it.
        labels: to judge.
        tolerance: of NSD, in mm.
    """
    found: dict[int, dict[str, Any]] = {one: {"state": "unknown"} for one in labels.names}
    found |= score_labels(
        truth.array[0],
        made.array[0],
        judged.annotated,
        truth.spacing,
        abs(float(np.linalg.det(truth.affine[:3, :3]))) / 1000,
        tolerance,
    )
    case = judged.case
    return [
        CaseScore(case=case.id, subject=case.subject, label=value, name=name, **found[value])
        for value, name in labels.names.items()
    ]


def _common(
    predictors: Sequence[Predictor], manifest: Manifest, stored: Plan | None
) -> tuple[Labels, ReadOptions]:
    """The labels that all models name alike, and how files are read.

    Both are the first network's; without one those of the prepared folder, or of the data set.

    Raises:
        MedarError: no model, or labels that differ.
    """
    if not predictors:
        raise MedarError("no model to evaluate; a network or a folder of label maps is needed")
    plans = {one.name: one.plan for one in predictors if one.plan is not None}
    if len({one.name for one in predictors}) < len(predictors):
        raise MedarError("two models have the same name; give each folder once")
    if not plans:
        reading = ReadOptions() if stored is None else stored.reading
        return labels_of(manifest, stored), reading
    (name, first), *others = plans.items()
    for other, plan in others:
        if plan.labels != first.labels:
            raise MedarError(
                f"{other}: labels {plan.labels}, {name} has {first.labels}; only models of the "
                "same labels can be compared"
            )
    ignore = manifest.ignore_label if first.ignore_label is None else first.ignore_label
    return Labels(names=dict(first.labels), ignore=ignore), first.reading


def _notes(judged: Judged, subjects: int, split: Split) -> list[str]:
    notes = []
    if subjects < FEW:
        notes.append(f"{subjects} subjects, fewer than {FEW}: all figures are rough")
    if judged.passed_over:
        notes.append(f"{judged.passed_over} cases of the split {split} are not annotated: left out")
    if split == "train":
        notes.append("the split train: figures of cases that a model was trained on")
    return notes


def _protocol(
    judged: Judged, predictors: Sequence[Predictor], split: Split, tolerance: float, seed: int
) -> dict[str, Any]:
    """How each figure was taken."""
    return {
        "name": NAME,
        "data": judged.digest,
        "split": split,
        "labels": {str(value): name for value, name in judged.labels.names.items()},
        "tolerance": tolerance,
        "seed": seed,
        "models": {one.name: one.about() for one in predictors},
        **PROTOCOL,
    }
