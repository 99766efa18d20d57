"""What an evaluation of label maps found.

docs/reference/segmentation-evaluation.md defines each value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medar.data.manifest import Split
from medar.evaluation.segmentation.metrics import HELD, Calibration, CaseScore
from medar.evaluation.segmentation.statistics import (
    Bootstrap,
    Floats,
    Interval,
    Paired,
    VolumeAgreement,
    compare,
    mean,
    volume_agreement,
)
from medar.settings import to_dict

METRICS = ("dice", "hd95", "nsd")


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """One label over all cases; intervals are 95 %, by bootstrap over subjects."""

    value: int
    cases: int
    """That truth or prediction holds the label in: those behind Dice and NSD."""
    missed: int
    invented: int
    absent: int
    unknown: int
    dice: float | None
    dice_interval: Interval | None
    hd95: float | None
    """mm; over the cases that truth and prediction hold the label in."""
    hd95_interval: Interval | None
    nsd: float | None
    nsd_interval: Interval | None
    volume: VolumeAgreement | None


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """One model; means over cases for each label, then over labels."""

    name: str
    dice_mean: float | None
    dice_interval: Interval | None
    hd95_mean: float | None
    hd95_interval: Interval | None
    nsd_mean: float | None
    nsd_interval: Interval | None
    labels: dict[str, LabelReport]
    calibration: Calibration | None
    cases: list[CaseScore]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A further model less the first; by metric, over all labels and for each."""

    first: str
    second: str
    overall: dict[str, Paired | None]
    labels: dict[str, dict[str, Paired | None]]


@dataclass(frozen=True, kw_only=True)
class SegmentationReport:
    """What `evaluate_segmentation` found."""

    cases: int
    subjects: int
    split: Split
    tolerance: float
    """Of NSD, in mm."""
    models: list[ModelReport]
    comparisons: list[Comparison]
    notes: list[str]
    """What to know before the figures are compared with others."""
    protocol: dict[str, Any]
    """How each figure was taken."""

    @property
    def dice_mean(self) -> float | None:
        """Of the first model."""
        return self.models[0].dice_mean

    @property
    def dice(self) -> dict[str, float | None]:
        """Of the first model, by label name."""
        return {name: one.dice for name, one in self.models[0].labels.items()}

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON holds; the first model's figures at the top."""
        first = self.models[0]
        top = {
            name: getattr(first, name)
            for metric in METRICS
            for name in (f"{metric}_mean", f"{metric}_interval")
        }
        return {**to_dict_of(top), "dice": self.dice, **to_dict(self)}

    def rows(self) -> list[dict[str, Any]]:
        """A row for each model, case and label."""
        return [
            {"model": model.name, **to_dict(score)}
            for model in self.models
            for score in model.cases
        ]


def to_dict_of(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as in the rest of a report."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def model_report(
    name: str,
    scores: Sequence[CaseScore],
    names: dict[int, str],
    calibration: Calibration | None,
    bootstrap: Bootstrap,
) -> ModelReport:
    """Sum up the scores of one model."""
    figures: dict[str, Any] = {}
    by_label: dict[str, dict[str, Any]] = {one: {} for one in names.values()}
    for metric in METRICS:
        values = table(scores, names, metric)
        figures[f"{metric}_mean"] = mean(values)
        figures[f"{metric}_interval"] = bootstrap.interval(values)
        for column, label in zip(values.T, names.values(), strict=True):
            by_label[label][metric] = mean(column[:, None])
            by_label[label][f"{metric}_interval"] = bootstrap.interval(column[:, None])
    labels = {
        label: _label_report(value, [one for one in scores if one.label == value], by_label[label])
        for value, label in names.items()
    }
    return ModelReport(
        name=name, labels=labels, calibration=calibration, cases=list(scores), **figures
    )


def comparison(
    first: ModelReport, second: ModelReport, names: dict[int, str], bootstrap: Bootstrap
) -> Comparison:
    """Compare two models of the same cases."""
    overall: dict[str, Paired | None] = {}
    labels: dict[str, dict[str, Paired | None]] = {one: {} for one in names.values()}
    for metric in METRICS:
        a, b = (table(one.cases, names, metric) for one in (first, second))
        overall[metric] = compare(a, b, bootstrap)
        for place, label in enumerate(names.values()):
            column = slice(place, place + 1)
            labels[label][metric] = compare(a[:, column], b[:, column], bootstrap)
    return Comparison(first=first.name, second=second.name, overall=overall, labels=labels)


def table(scores: Sequence[CaseScore], names: dict[int, str], metric: str) -> Floats:
    """(N, K) values of a metric, cases in their order; NaN where undefined."""
    flat = [getattr(one, metric) for one in scores]
    values = np.array([np.nan if one is None else one for one in flat], dtype=np.float64)
    return values.reshape(-1, len(names))


def _label_report(value: int, scores: Sequence[CaseScore], figures: dict[str, Any]) -> LabelReport:
    held = [one for one in scores if one.state in HELD]
    volumes = np.array([(one.truth_ml, one.predicted_ml) for one in held]).reshape(-1, 2)
    states = [one.state for one in scores]
    return LabelReport(
        value=value,
        cases=len(held),
        missed=states.count("missed"),
        invented=states.count("invented"),
        absent=states.count("absent"),
        unknown=states.count("unknown"),
        volume=volume_agreement(volumes[:, 0], volumes[:, 1]),
        **figures,
    )
