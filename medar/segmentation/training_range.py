"""`TrainingRange`: spacings and intensities of the training volumes, to recognise unlike inputs.

A network may produce a worthless label map that looks plausible for a volume unlike its training
volumes, so prediction warns. Intensities are compared after the plan's window, as the network sees
them: differences that the window removes, such as the scale of MR intensities, do not count.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.data.plan import Plan
from medar.data.prepared import Prepared
from medar.segmentation.data import SAMPLED_CASES, SAMPLED_VOXELS, spread
from medar.settings import settings
from medar.volume import Spacing

PERCENTILES = (5.0, 25.0, 50.0, 75.0, 95.0)
"""Percentiles of the prepared intensities that are compared."""
INTENSITY_MARGIN = 0.25
"""Tolerance for a percentile outside the range; prepared intensities span 2."""
SPACING_FACTOR = 1.25
"""Tolerance for a spacing outside the range, as a ratio."""
PLAN_SPACING_FACTOR = 2.0
"""The same where only the plan's spacing is known."""

Range = tuple[float, float]


@settings
class TrainingRange:
    """Minimum and maximum over the training volumes."""

    spacing: tuple[Range, Range, Range]
    """Of the files along RAS+ axes, in mm."""
    intensity: tuple[tuple[Range, ...], ...]
    """Per channel, of each of `PERCENTILES`, after the plan's map to [-1, 1]."""

    @classmethod
    def measure(cls, prepared: Prepared, indices: Sequence[int]) -> "TrainingRange":
        """Measure cases of a prepared data set, at most `SAMPLED_CASES` of them.

        Args:
            prepared: the data set.
            indices: the training cases, at least one.
        """
        cases = [prepared[index] for index in spread(indices, SAMPLED_CASES)]
        spacings = np.array([prepared.trace(case).source.spacing for case in cases])
        values = np.stack([_percentiles(prepared.image(case)) for case in cases])
        x, y, z = (_range(spacings[:, axis]) for axis in range(3))
        intensity = tuple(tuple(map(_range, channel)) for channel in np.moveaxis(values, 0, -1))
        return cls(spacing=(x, y, z), intensity=intensity)


def out_of_range(
    training_range: TrainingRange | None, plan: Plan, spacing: Spacing, image: npt.NDArray[Any]
) -> list[str]:
    """Describe how a volume differs from the training volumes; empty where it does not.

    Args:
        training_range: the network's; without it only the plan's spacing is compared.
        plan: the network's.
        spacing: the volume's own, mm.
        image: the prepared volume, (C, X, Y, Z) in [-1, 1].
    """
    ranges = training_range.spacing if training_range else tuple((s, s) for s in plan.spacing)
    factor = SPACING_FACTOR if training_range else PLAN_SPACING_FACTOR
    notes = []
    pairs = zip(spacing, ranges, strict=True)
    if any(not low / factor <= own <= high * factor for own, (low, high) in pairs):
        own, trained = " x ".join(f"{s:.4g}" for s in spacing), " x ".join(map(_text, ranges))
        source = "training volumes had" if training_range else "the plan has"
        notes.append(f"spacing {own} mm, {source} {trained} mm")
    if training_range is None:
        return notes
    names = plan.channels or ("",)
    channels = zip(names, _percentiles(image), training_range.intensity, strict=True)
    for name, values, limits in channels:
        for percent, value, (low, high) in zip(PERCENTILES, values, limits, strict=True):
            if not low - INTENSITY_MARGIN <= value <= high + INTENSITY_MARGIN:
                notes.append(
                    f"intensities{f' of {name}' if name else ''}: percentile {percent:g} is "
                    f"{value:.2f} on the plan's scale from -1 to 1, training volumes had "
                    f"{_text((low, high))}"
                )
                break
    return notes


def _percentiles(image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(C, X, Y, Z) to (C, percentiles)."""
    flat = image.reshape(len(image), -1)
    flat = flat[:, :: max(1, flat.shape[1] // SAMPLED_VOXELS)]
    values: npt.NDArray[np.float64] = np.percentile(flat, PERCENTILES, axis=1).T
    return values


def _range(values: npt.NDArray[Any]) -> Range:
    return round(float(values.min()), 4), round(float(values.max()), 4)


def _text(bounds: Range) -> str:
    low, high = (f"{value:.4g}" for value in bounds)
    return low if low == high else f"{low} to {high}"
