"""Labels unlike those of the other cases: volume, connected parts and position.

A spinal cord of 1,359 ml where others have 9 to 42 is a wrong label, whatever the header says. Only
a check of every voxel finds it, and only beside other cases.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medar.data.problems import Problem, problem
from medar.volume import Grid

FEWEST = 5
"""Smallest number of cases with a label in which outliers are reported."""

FAR_MADS = 3.5
MAD_SCALE = 1.4826
"""An outlier is further from the median than this many median absolute deviations, scaled to
standard deviations of a normal distribution (Iglewicz and Hoaglin 1993), and than the limit of its
measure."""

VOLUME_RATIO, PARTS_RATIO = 4.0, 5.0
LARGEST_CHANGE, CENTRE_CHANGE = 0.3, 0.2

MOST_LABELS, LARGEST_LABEL = 500, 1 << 15
"""More values, or larger ones, are instances rather than classes, and are not measured."""


@dataclass(frozen=True, kw_only=True)
class LabelFacts:
    """Measurements of one label in one case."""

    ml: float
    """Its volume."""
    parts: int
    """Connected parts; voxels that share a corner are connected."""
    largest: float
    """Fraction of its voxels in the largest part."""
    centre: tuple[float, float, float]
    """Mean position along R, A and S, as fractions of the volume's sides."""


def measure_labels(array: npt.NDArray[np.integer], grid: Grid) -> dict[int, LabelFacts]:
    """Measure every label of a label map except 0.

    Args:
        array: (X, Y, Z) as stored.
        grid: of the file.
    """
    from scipy import ndimage

    values = [int(value) for value in np.unique(array) if value]
    if not values or len(values) > MOST_LABELS or max(map(abs, values)) > LARGEST_LABEL:
        return {}
    ras = grid.to_ras()
    to_ras = np.linalg.solve(ras.affine, grid.affine)
    voxel = float(abs(np.linalg.det(grid.affine[:3, :3]))) / 1000.0
    boxes = ndimage.find_objects(np.maximum(array, 0))
    around = np.ones((3, 3, 3), bool)
    found = {}
    for value in values:
        box = boxes[value - 1] if value > 0 else (slice(None),) * 3
        mask = array[box] == value
        parts, number = ndimage.label(mask, around)
        sizes = np.bincount(parts.ravel())[1:]
        inside = np.array(ndimage.center_of_mass(mask)) + [one.start or 0 for one in box]
        centre = ((to_ras[:3, :3] @ inside + to_ras[:3, 3]) + 0.5) / ras.shape
        found[value] = LabelFacts(
            ml=float(sizes.sum()) * voxel,
            parts=int(number),
            largest=float(sizes.max() / sizes.sum()),
            centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        )
    return found


def label_outliers(
    measured: Mapping[str, Mapping[int, LabelFacts]], names: Mapping[int, str], ignore: int | None
) -> list[Problem]:
    """Cases with a label that is unlike that of the others.

    Args:
        measured: what `measure_labels` returned, by case.
        names: of the labels.
        ignore: a value that is not a label.
    """
    values = sorted({value for facts in measured.values() for value in facts} - {ignore})
    problems = []
    for value in values:
        having = {case: facts[value] for case, facts in measured.items() if value in facts}
        if len(having) < FEWEST:
            continue
        name = f"{names[value]} ({value})" if value in names else f"label {value}"
        found = dict.fromkeys(having, "")
        for case, text in _unlike(having):
            found[case] += f"; {text}" if found[case] else text
        problems += [
            problem("label-outlier", f"{name}: {text}", case=case)
            for case, text in found.items()
            if text
        ]
    return problems


def _unlike(having: Mapping[str, LabelFacts]) -> Iterable[tuple[str, str]]:
    """Cases and how their label differs, from what all cases have."""
    cases, facts = list(having), list(having.values())
    volumes = np.array([one.ml for one in facts])
    for index in _far(np.log(volumes), np.log(VOLUME_RATIO)):
        yield cases[index], f"{volumes[index]:.4g} ml, {_others(volumes, index)}"
    parts = np.array([one.parts for one in facts])
    for index in _far(np.log(parts), np.log(PARTS_RATIO)):
        yield cases[index], f"{parts[index]} connected parts, {_others(parts, index)}"
    largest = np.array([one.largest for one in facts])
    for index in _far(largest, LARGEST_CHANGE):
        percent = f"{100 * largest[index]:.3g} % of it in its largest part"
        yield cases[index], f"{percent}, {_others(100 * largest, index)}"
    centres = np.array([one.centre for one in facts])
    for axis, direction in enumerate(("left to right", "back to front", "bottom to top")):
        for index in _far(centres[:, axis], CENTRE_CHANGE):
            where = f"centred at {100 * centres[index, axis]:.3g} % from {direction}"
            yield cases[index], f"{where}, {_others(100 * centres[:, axis], index)}"


def _far(values: npt.NDArray[np.float64], least: float) -> Iterable[int]:
    """The indices of outliers: far from the median, and well outside nine tenths of the others.

    The median alone would report a tenth of the cases where a label has two usual forms.
    """
    away = np.abs(values - np.median(values))
    limit = max(least, FAR_MADS * MAD_SCALE * float(np.median(away)))
    for index in map(int, np.flatnonzero(away > limit)):
        low, high = np.percentile(np.delete(values, index), [5, 95])
        if max(low - values[index], values[index] - high) > least / 2:
            yield index


def _others(values: npt.NDArray[np.float64], index: int) -> str:
    """The range of nine tenths of the other cases: an outlier would hide others."""
    low, high = np.percentile(np.delete(values, index), [5, 95])
    return f"most others have {low:.3g} to {high:.3g}"
