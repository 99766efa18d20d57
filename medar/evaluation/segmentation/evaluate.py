"""`evaluate_segmentation`: label maps compared with the truth, on held-out cases.

Protocol `segmentation-v1`. Each case is read from its files, segmented, and compared with the truth
on the grid of the files. Labels that a case was not annotated for, and ignored voxels, are left
out. Finished label maps from any source are evaluated in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medar.data.manifest import Case, Manifest, Split
from medar.data.plan import Plan
from medar.data.reading import merged_reading
from medar.errors import MedarError
from medar.evaluation.distances import FEW
from medar.evaluation.segmentation.cases import (
    EvaluationCase,
    EvaluationCases,
    Labels,
    labels_of,
    manifest_of,
)
from medar.evaluation.segmentation.metrics import (
    BINS,
    MIN_PROBABILITY,
    CalibrationMeter,
    CaseScore,
    score_labels,
)
from medar.evaluation.segmentation.predictors import Predictor, as_predictors
from medar.evaluation.segmentation.report import SegmentationReport, comparison, model_report
from medar.evaluation.segmentation.statistics import RESAMPLES, Bootstrap
from medar.evaluation.segmentation.worst import WorstCase, WorstCases, worst_case
from medar.parallel import run_parallel
from medar.progress import track
from medar.segmentation.segmenter import Segmenter
from medar.segmentation.sliding_window import DEFAULT, PredictionSettings
from medar.volume import ReadOptions, Volume
from medar.words import format_count

NAME = "segmentation-v1"
"""Name and version of the protocol: raise the version whenever a value changes."""

PROTOCOL = {
    "grid": "that of the label file; what preparation loses counts against the model",
    "dice": "2 |A and B| / (|A| + |B|)",
    "hd95": "mm; larger of the two directed 95th percentiles between surface voxels' centres",
    "nsd": "fraction of both surfaces' voxels within the tolerance of the other surface",
    "absent": "from both: left out; from one: Dice and NSD 0, HD95 left out and counted",
    "unknown": "labels not annotated in a case and ignored voxels are left out",
    "mean": "over cases for each label, then over labels",
    "interval": f"95 %, percentiles of {RESAMPLES} bootstrap draws of subjects",
    "comparison": "bootstrap of the mean difference; Wilcoxon signed-rank over subjects, "
    "two-sided, not corrected for the number of tests; effect rank-biserial",
    "volume": "ml, prediction less truth; limits bias +- 1.96 deviations over cases",
    "calibration": f"prepared grid, cases annotated for every label; {BINS} bins of "
    f"voxels where all labels together have a probability of at least {MIN_PROBABILITY}",
}
"""How each value is computed, for reports."""


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
    options: ReadOptions | None = None,
) -> SegmentationReport:
    """Compare label maps with the truth, on the annotated cases of a split.

    Args:
        models: a network in evaluation mode, or finished files (`FilesPredictor`), or several;
            further ones are compared with the first.
        data: a data set, or a folder that `prepare` filled, which stores the files and splits of
            its data set.
        split: the cases.
        tolerance: of NSD, in mm; default the largest side of the cases' median voxel.
        limit: maximum number of cases, evenly spaced over the split; default all.
        seed: of the bootstrap draws.
        settings: of the prediction, for networks without a predictor.
        worst: collects the first model's worst cases, for a picture.
        options: how to read files, where it differs from the models' or the prepared folder's.

    Raises:
        MedarError: models with different labels, or with others than the data set's; no annotated
            case; missing or unreadable files; a tolerance that is not positive.
    """
    predictors = as_predictors(models, settings)
    manifest, stored = manifest_of(data)
    labels, reading = _common(predictors, manifest, stored)
    cases = EvaluationCases(manifest, split, labels, merged_reading(reading, options), limit)
    if tolerance is None:
        tolerance = cases.tolerance()
    if not 0 < tolerance < float("inf"):
        raise MedarError(f"tolerance must be greater than 0 mm, got {tolerance:g}")
    scores, meters = _scores(predictors, cases, tolerance, worst)
    bootstrap = Bootstrap([case.subject for case in cases.cases], seed)
    reports = [
        model_report(one.name, rows, labels.names, meter.result() if meter else None, bootstrap)
        for one, rows, meter in zip(predictors, scores, meters, strict=True)
    ]
    return SegmentationReport(
        cases=len(cases.cases),
        subjects=bootstrap.subjects,
        split=split,
        tolerance=tolerance,
        models=reports,
        comparisons=[comparison(reports[0], one, labels.names, bootstrap) for one in reports[1:]],
        notes=_notes(cases, bootstrap.subjects, split),
        protocol=_protocol(cases, predictors, split, tolerance, seed),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scored:
    """What is measured on one case."""

    rows: list[list[CaseScore]]
    """Of each predictor, by label."""
    meters: list[CalibrationMeter | None]
    """Of each predictor."""
    worst: WorstCase | None
    """Of the first predictor, if it is to be drawn and has a Dice."""


def _scores(
    predictors: Sequence[Predictor],
    cases: EvaluationCases,
    tolerance: float,
    worst: WorstCases | None,
) -> tuple[list[list[CaseScore]], list[CalibrationMeter | None]]:
    """The scores of each predictor, case by case, and its calibration."""
    for predictor in predictors:
        predictor.start(cases)
    score = partial(
        _score, predictors=predictors, cases=cases, tolerance=tolerance, drawn=worst is not None
    )
    outcomes = run_parallel(score, cases.cases, workers=1)
    scored = {}
    for outcome in track(outcomes, total=len(cases.cases), label="evaluate"):
        one = outcome.result()
        if worst is not None and one.worst is not None:
            worst.update(one.worst)
        scored[outcome.item.id] = one.rows, one.meters
    scores: list[list[CaseScore]] = [[] for _ in predictors]
    meters: list[CalibrationMeter | None] = [None for _ in predictors]
    for case in cases.cases:  # sums depend on the order
        for index, (rows, meter) in enumerate(zip(*scored[case.id], strict=True)):
            scores[index] += rows
            total = meters[index]
            if total is None:
                meters[index] = meter
            elif meter is not None:
                total.add(meter)
    return scores, meters


def _score(
    entry: Case,
    predictors: Sequence[Predictor],
    cases: EvaluationCases,
    tolerance: float,
    drawn: bool,
) -> _Scored:
    """The scores of a case, here or on a cluster."""
    case = cases.read(entry)
    rows, shown = [], None
    for index, predictor in enumerate(predictors):
        truth, predicted = masked(case, predictor.predict(case), cases.labels)
        rows.append(score_case(case, truth, predicted, cases.labels, tolerance))
        dice = [row.dice for row in rows[-1] if row.dice is not None]
        if drawn and index == 0 and dice:
            shown = worst_case(entry.id, case.image, truth, predicted, float(np.mean(dice)))
    return _Scored(rows=rows, meters=[one.take_meter() for one in predictors], worst=shown)


def masked(case: EvaluationCase, predicted: Volume, labels: Labels) -> tuple[Volume, Volume]:
    """Truth and predicted label map of a case, 0 where they are left out of the evaluation.

    Args:
        case: with its truth.
        predicted: its label map, on the grid of its image.
        labels: to evaluate.
    """
    annotated = np.array(case.annotated)
    valid = True if labels.ignore is None else case.truth.array != labels.ignore
    truth, prediction = (
        one.with_array(np.where(np.isin(one.array, annotated) & valid, one.array, 0))
        for one in (case.truth, predicted)
    )
    return truth, prediction


def score_case(
    case: EvaluationCase, truth: Volume, predicted: Volume, labels: Labels, tolerance: float
) -> list[CaseScore]:
    """The scores of a label map, one row per label.

    Args:
        case: the case.
        truth: as `masked` returns it.
        predicted: the label map, as `masked` returns it.
        labels: to evaluate.
        tolerance: of NSD, in mm.
    """
    scores: dict[int, dict[str, Any]] = {value: {"state": "unknown"} for value in labels.names}
    scores |= score_labels(
        truth.array[0],
        predicted.array[0],
        case.annotated,
        truth.spacing,
        abs(float(np.linalg.det(truth.affine[:3, :3]))) / 1000,
        tolerance,
    )
    subject = case.case.subject
    return [
        CaseScore(case=case.case.id, subject=subject, label=value, name=name, **scores[value])
        for value, name in labels.names.items()
    ]


def _common(
    predictors: Sequence[Predictor], manifest: Manifest, stored: Plan | None
) -> tuple[Labels, ReadOptions]:
    """The labels that all models share, and how files are read.

    Both are those of the first network; without one, those of the prepared folder or data set.

    Raises:
        MedarError: no model, or different labels.
    """
    if not predictors:
        raise MedarError("no model to evaluate; name a network or a folder of label maps")
    plans = {one.name: one.plan for one in predictors if one.plan is not None}
    if len({one.name for one in predictors}) < len(predictors):
        raise MedarError("two models have the same name; name each folder once")
    if not plans:
        reading = ReadOptions() if stored is None else stored.reading
        return labels_of(manifest, stored), reading
    (name, first), *others = plans.items()
    for other, plan in others:
        if plan.labels != first.labels:
            raise MedarError(
                f"{other}: labels {plan.labels}, but {name} has {first.labels}; only models with "
                "the same labels can be compared"
            )
    ignore = manifest.ignore_label if first.ignore_label is None else first.ignore_label
    return Labels(names=dict(first.labels), ignore=ignore), first.reading


def _notes(cases: EvaluationCases, subjects: int, split: Split) -> list[str]:
    notes = []
    if subjects < FEW:
        number = format_count(subjects, "subject")
        notes.append(f"{number}, fewer than {FEW}: all values are rough estimates")
    if cases.skipped:
        notes.append(f"{cases.skipped} cases of the split {split} are not annotated: left out")
    if split == "train":
        notes.append("the split train: a model may have been trained on these cases")
    return notes


def _protocol(
    cases: EvaluationCases,
    predictors: Sequence[Predictor],
    split: Split,
    tolerance: float,
    seed: int,
) -> dict[str, Any]:
    """How each value was computed."""
    return {
        "name": NAME,
        "data": cases.digest,
        "split": split,
        "labels": {str(value): name for value, name in cases.labels.names.items()},
        "tolerance": tolerance,
        "seed": seed,
        "models": {one.name: one.about() for one in predictors},
        **PROTOCOL,
    }
