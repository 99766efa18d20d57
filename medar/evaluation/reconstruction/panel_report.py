"""The report of a panel for medical detail: organs, structures, detection limits, one sentence.

docs/reference/evaluation.md defines each value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medar.data.manifest import Split
from medar.evaluation.reconstruction.organs import OrganScore
from medar.evaluation.reconstruction.structures import SHAPES, Shape
from medar.evaluation.segmentation.statistics import Bootstrap, Floats, Interval, mean
from medar.evaluation.similarity import Fidelity
from medar.settings import to_dict

DETECTED = 0.5
"""Fraction of the contrast that must be recovered for a structure to count as detected."""

NOUNS: dict[Shape, tuple[str, str]] = {
    "sphere": ("lesions", "smaller"), "tube": ("tubes", "thinner"), "plate": ("plates", "thinner")
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CaseOrgan(OrganScore):
    """One label of one case, as one method reconstructs it."""

    method: str
    case: str
    dice_original: float | None
    """Of the segmenter on the original; None without a segmenter."""
    dice: float | None
    """Of the segmenter on the reconstruction."""


@dataclass(frozen=True, kw_only=True)
class CaseStructure:
    """One inserted structure, as one method reconstructs it."""

    method: str
    case: str
    shape: Shape
    contrast: float
    """In the report's unit."""
    voxels: float
    """Diameter or thickness."""
    mm: float
    recovered: float | None
    """Fraction of the contrast; None where clipping left less than half of it in the original."""


@dataclass(frozen=True, kw_only=True)
class OrganReport:
    """One label over all cases that hold it."""

    cases: int
    original: float
    """Mean intensity, in the report's unit; so are bias and spread."""
    bias: float
    """Mean over cases of the reconstruction's mean less the original's."""
    bias_interval: Interval | None
    """95 %, by bootstrap over subjects."""
    bias_deviation: float | None
    """Standard deviation of the bias over cases; None for one case."""
    spread: float | None
    """Standard deviation over the label's inner voxels in the original, mean over cases."""
    spread_ratio: float | None
    """The reconstruction's over the original's."""
    gradient: float | None
    """Across the border in the original, per mm."""
    gradient_ratio: float | None
    dice_original: float | None
    dice: float | None
    dice_change: Interval | None
    """95 % interval of `dice` less `dice_original`."""


@dataclass(frozen=True, kw_only=True)
class StructureReport:
    """One shape, contrast and size over all cases."""

    shape: Shape
    contrast: float
    voxels: float
    mm: float
    cases: int
    recovered: float
    """Mean fraction of the contrast."""
    recovered_interval: Interval | None
    lost: float
    """Fraction of the cases in which less than half of the contrast is recovered."""


@dataclass(frozen=True, kw_only=True)
class DetectionLimit:
    """Smallest size from which on at least half of the contrast is recovered in the mean."""

    shape: Shape
    contrast: float
    voxels: float | None
    """None if the largest size is lost too."""
    mm: float | None
    smallest: float
    """Smallest size that was inserted, in voxels."""
    largest: float
    largest_mm: float


@dataclass(frozen=True, kw_only=True)
class MethodReport:
    """One way of reconstructing."""

    summary: str
    """Which structures it loses, in one sentence."""
    fidelity: Fidelity
    organs: dict[str, OrganReport]
    structures: list[StructureReport]
    limits: list[DetectionLimit]


@dataclass(frozen=True, kw_only=True)
class PanelReport:
    """Result of `evaluate_panel`."""

    cases: int
    structure_cases: int
    split: Split
    unit: str
    """Of intensities and contrasts."""
    methods: dict[str, MethodReport]
    notes: list[str]
    protocol: dict[str, Any]
    case_organs: list[CaseOrgan]
    case_structures: list[CaseStructure]

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON holds, without the rows of single cases."""
        values = to_dict(self)
        del values["case_organs"], values["case_structures"]
        return values


def organ_reports(rows: Sequence[CaseOrgan], subjects: dict[str, str]) -> dict[str, OrganReport]:
    """Summarise the rows of one method, by label in the order of their first row.

    Args:
        rows: of one method.
        subjects: of each case, by id.
    """
    by_label: dict[str, list[CaseOrgan]] = {}
    for row in rows:
        by_label.setdefault(row.label, []).append(row)
    return {
        label: _organ_report(found, Bootstrap([subjects[one.case] for one in found], 0))
        for label, found in by_label.items()
    }


def _organ_report(rows: Sequence[CaseOrgan], bootstrap: Bootstrap) -> OrganReport:
    def column(name: str) -> Floats:
        values = [getattr(row, name) for row in rows]
        return np.array([np.nan if one is None else one for one in values], np.float64)[:, None]

    bias = column("reconstructed") - column("original")
    spread = mean(column("original_spread"))
    gradient = mean(column("original_gradient"))
    return OrganReport(
        cases=len(rows),
        original=float(column("original").mean()),
        bias=float(bias.mean()),
        bias_interval=bootstrap.interval(bias),
        bias_deviation=float(bias.std(ddof=1)) if len(rows) > 1 else None,
        spread=spread,
        spread_ratio=_ratio(mean(column("reconstructed_spread")), spread),
        gradient=gradient,
        gradient_ratio=_ratio(mean(column("reconstructed_gradient")), gradient),
        dice_original=mean(column("dice_original")),
        dice=mean(column("dice")),
        dice_change=bootstrap.interval(column("dice") - column("dice_original")),
    )


def _ratio(value: float | None, reference: float | None) -> float | None:
    """None where the original has nothing to compare with."""
    return None if value is None or not reference or reference <= 0 else value / reference


def structure_reports(
    rows: Sequence[CaseStructure], subjects: dict[str, str]
) -> list[StructureReport]:
    """Summarise the rows of one method, by shape, contrast and size."""
    groups: dict[tuple[Shape, float, float], list[CaseStructure]] = {}
    for row in rows:
        if row.recovered is not None:
            groups.setdefault((row.shape, row.contrast, row.voxels), []).append(row)
    reports = []
    for shape, contrast, voxels in sorted(groups, key=lambda key: (SHAPES.index(key[0]), *key[1:])):
        found = groups[shape, contrast, voxels]
        values = np.array([[row.recovered] for row in found], np.float64)
        bootstrap = Bootstrap([subjects[row.case] for row in found], 0)
        reports.append(
            StructureReport(
                shape=shape,
                contrast=contrast,
                voxels=voxels,
                mm=found[0].mm,
                cases=len(found),
                recovered=float(values.mean()),
                recovered_interval=bootstrap.interval(values),
                lost=float((values < DETECTED).mean()),
            )
        )
    return reports


def detection_limits(reports: Sequence[StructureReport]) -> list[DetectionLimit]:
    """The limit of each shape and contrast; a size counts only if all larger ones are detected."""
    groups: dict[tuple[Shape, float], list[StructureReport]] = {}
    for one in reports:
        groups.setdefault((one.shape, one.contrast), []).append(one)
    limits = []
    for (shape, contrast), found in groups.items():
        smallest: StructureReport | None = None
        for one in reversed(found):
            if one.recovered < DETECTED:
                break
            smallest = one
        limits.append(
            DetectionLimit(
                shape=shape,
                contrast=contrast,
                voxels=smallest.voxels if smallest else None,
                mm=smallest.mm if smallest else None,
                smallest=found[0].voxels,
                largest=found[-1].voxels,
                largest_mm=found[-1].mm,
            )
        )
    return limits


def summary(limits: Sequence[DetectionLimit], unit: str) -> str:
    """Which structures are lost, in one sentence."""
    parts = []
    for shape in SHAPES:
        noun, less = NOUNS[shape]
        losses: dict[str, list[float]] = {}
        for one in limits:
            if one.shape != shape or one.voxels == one.smallest:
                continue
            if one.voxels is None:
                name = f"all {noun} up to {one.largest:g} voxels ({one.largest_mm:.3g} mm)"
            else:
                name = f"{noun} {less} than {one.voxels:g} voxels ({one.mm:.3g} mm)"
            losses.setdefault(name, []).append(one.contrast)
        parts += [
            f"{name} at {contrast_names(contrasts, unit)}" for name, contrasts in losses.items()
        ]
        if not losses and any(one.shape == shape for one in limits):
            parts.append(f"none of the {noun}")
    return f"Loses {'; '.join(parts)}." if parts else "No structure was inserted."


def contrast_names(values: Sequence[float], unit: str) -> str:
    """Contrasts with signs and unit: "+50 and ±200 HU", "-30 % of the window"."""
    scale, name = (100, "% of the window") if unit.startswith("fraction") else (1, unit)
    names = []
    for size in sorted({abs(value) for value in values}):
        sign = "±" if {size, -size} <= set(values) else "+" if size in values else "-"
        names.append(f"{sign}{scale * size:.3g}")
    return f"{' and '.join(names)} {name}"
