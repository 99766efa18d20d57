"""The report of an evaluation of label maps.

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
from medar.notebook import html_table
from medar.settings import plain, to_dict
from medar.words import format_count

METRICS = ("dice", "hd95", "nsd")


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """One label over all cases; intervals are 95 %, by bootstrap over subjects."""

    value: int
    cases: int
    """Number of cases with the label in truth or prediction; Dice and NSD are taken over these."""
    missed: int
    false_positive: int
    absent: int
    unknown: int
    dice: float | None
    dice_interval: Interval | None
    hd95: float | None
    """mm; over the cases in which both truth and prediction hold the label."""
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
    """A further model less the first; by metric, over all labels and for each label."""

    first: str
    second: str
    overall: dict[str, Paired | None]
    labels: dict[str, dict[str, Paired | None]]


@dataclass(frozen=True, kw_only=True)
class SegmentationReport:
    """Result of `evaluate_segmentation`."""

    cases: int
    subjects: int
    split: Split
    tolerance: float
    """Of NSD, in mm."""
    models: list[ModelReport]
    comparisons: list[Comparison]
    notes: list[str]
    """What to know before the values are compared with others."""
    protocol: dict[str, Any]
    """How each value was computed."""

    @property
    def dice_mean(self) -> float | None:
        """Of the first model."""
        return self.models[0].dice_mean

    @property
    def dice(self) -> dict[str, float | None]:
        """Of the first model, by label name."""
        return {name: one.dice for name, one in self.models[0].labels.items()}

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON holds; the first model's means are also at the top."""
        first = self.models[0]
        top = {
            name: getattr(first, name)
            for metric in METRICS
            for name in (f"{metric}_mean", f"{metric}_interval")
        }
        return {**plain(top), "dice": self.dice, **to_dict(self)}

    def _repr_html_(self) -> str:
        """For notebooks: the metrics of each model, over all labels and for each label."""
        rows: list[tuple[object, ...]] = []
        for model in self.models:
            means = (model.dice_mean, model.dice_interval, model.hd95_mean, model.nsd_mean)
            rows.append((model.name, "all", *means))
            rows += [
                ("", name, one.dice, one.dice_interval, one.hd95, one.nsd)
                for name, one in model.labels.items()
            ]
        title = f"{format_count(self.cases, 'case')} ({self.split})"
        headings = ("model", "label", "Dice", "95 %", "HD95, mm", f"NSD at {self.tolerance:g} mm")
        return html_table(title, rows, headings, "; ".join(self.notes))

    def rows(self) -> list[dict[str, Any]]:
        """One row per model, case and label."""
        return [
            {"model": model.name, **to_dict(score)}
            for model in self.models
            for score in model.cases
        ]


def model_report(
    name: str,
    scores: Sequence[CaseScore],
    names: dict[int, str],
    calibration: Calibration | None,
    bootstrap: Bootstrap,
) -> ModelReport:
    """Summarise the scores of one model."""
    means: dict[str, Any] = {}
    by_label: dict[str, dict[str, Any]] = {one: {} for one in names.values()}
    for metric in METRICS:
        values = table(scores, names, metric)
        means[f"{metric}_mean"] = mean(values)
        means[f"{metric}_interval"] = bootstrap.interval(values)
        for column, label in zip(values.T, names.values(), strict=True):
            by_label[label][metric] = mean(column[:, None])
            by_label[label][f"{metric}_interval"] = bootstrap.interval(column[:, None])
    labels = {
        label: _label_report(value, [one for one in scores if one.label == value], by_label[label])
        for value, label in names.items()
    }
    return ModelReport(
        name=name, labels=labels, calibration=calibration, cases=list(scores), **means
    )


def comparison(
    first: ModelReport, second: ModelReport, names: dict[int, str], bootstrap: Bootstrap
) -> Comparison:
    """Compare two models on the same cases."""
    overall: dict[str, Paired | None] = {}
    labels: dict[str, dict[str, Paired | None]] = {one: {} for one in names.values()}
    for metric in METRICS:
        a, b = (table(one.cases, names, metric) for one in (first, second))
        overall[metric] = compare(a, b, bootstrap)
        for index, label in enumerate(names.values()):
            labels[label][metric] = compare(a[:, [index]], b[:, [index]], bootstrap)
    return Comparison(first=first.name, second=second.name, overall=overall, labels=labels)


def table(scores: Sequence[CaseScore], names: dict[int, str], metric: str) -> Floats:
    """(N, K) values of a metric, in the order of the cases; NaN where undefined."""
    flat = [getattr(one, metric) for one in scores]
    values = np.array([np.nan if one is None else one for one in flat], dtype=np.float64)
    return values.reshape(-1, len(names))


def _label_report(value: int, scores: Sequence[CaseScore], means: dict[str, Any]) -> LabelReport:
    held = [one for one in scores if one.state in HELD]
    volumes = np.array([(one.truth_ml, one.predicted_ml) for one in held]).reshape(-1, 2)
    states = [one.state for one in scores]
    return LabelReport(
        value=value,
        cases=len(held),
        missed=states.count("missed"),
        false_positive=states.count("false_positive"),
        absent=states.count("absent"),
        unknown=states.count("unknown"),
        volume=volume_agreement(volumes[:, 0], volumes[:, 1]),
        **means,
    )
