"""`Ranges`: the spacings and intensities that a network was trained on, and what lies outside them.

A label map of a volume unlike the training volumes may be worthless and look fine: whoever asked
for it is told. Intensities are compared as the network sees them, after the plan's window: what the
window takes out, such as the scale of MR intensities, is no difference.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from medar.data.plan import Plan
from medar.data.prepared import Prepared
from medar.settings import STRICT
from medar.volume import Spacing

QUANTILES = (5.0, 25.0, 50.0, 75.0, 95.0)
"""Percentages at which prepared intensities are compared."""
MARGIN = 0.25
"""How far a quantile may lie outside the training volumes' range; prepared intensities span 2."""
FACTOR = 1.25
"""How far a spacing may lie outside, as a ratio."""
WITHOUT = 2.0
"""The same where nothing but the plan's own spacing is known."""
CASES = 64
"""Most training volumes that are looked at, spread over all of them."""
SAMPLE = 1_000_000
"""Voxels of a channel that quantiles are taken from; larger ones are strided down to about it."""

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """Lowest and highest over the training volumes."""

    __pydantic_config__: ClassVar[Any] = STRICT

    spacing: tuple[Range, Range, Range]
    """Of the files along RAS+ axes, in mm."""
    intensity: tuple[tuple[Range, ...], ...]
    """By channel, of the quantiles at `QUANTILES`, after the plan's window to [-1, 1]."""


def ranges_of(prepared: Prepared, places: list[int]) -> Ranges:
    """What a network sees that is trained on some cases of a prepared data set.

    Args:
        prepared: the data set.
        places: the cases, at least one; of more than `CASES` a spread choice is looked at.
    """
    count = min(len(places), CASES)
    cases = [prepared[places[n * len(places) // count]] for n in range(count)]
    spacings = np.array([prepared.trace(case).source.spacing for case in cases])
    seen = np.stack([_quantiles(prepared.image(case)) for case in cases])
    x, y, z = (_range(spacings[:, axis]) for axis in range(3))
    intensity = tuple(tuple(map(_range, channel)) for channel in np.moveaxis(seen, 0, -1))
    return Ranges(spacing=(x, y, z), intensity=intensity)


def outside(
    ranges: Ranges | None, plan: Plan, spacing: Spacing, image: npt.NDArray[Any]
) -> list[str]:
    """What of a volume lies outside, in sentences; none where it is like the training volumes.

    Args:
        ranges: of the network; without them the plan's spacing is all there is to compare with.
        plan: the network's.
        spacing: the volume's own, mm.
        image: the prepared volume, (C, X, Y, Z) in [-1, 1].
    """
    known = ranges.spacing if ranges else tuple((s, s) for s in plan.spacing)
    factor = FACTOR if ranges else WITHOUT
    said = []
    pairs = zip(spacing, known, strict=True)
    if any(not low / factor <= own <= high * factor for own, (low, high) in pairs):
        own, trained = " x ".join(f"{s:.4g}" for s in spacing), " x ".join(map(_span, known))
        said.append(
            f"spacing {own} mm, {'training volumes had' if ranges else 'the plan has'} {trained} mm"
        )
    if ranges is None:
        return said
    names = plan.channels or ("",)
    for name, found, channel in zip(names, _quantiles(image), ranges.intensity, strict=True):
        for percent, own, (low, high) in zip(QUANTILES, found, channel, strict=True):
            if not low - MARGIN <= own <= high + MARGIN:
                said.append(
                    f"intensities{f' of {name}' if name else ''}: percentile {percent:g} is "
                    f"{own:.2f} between -1 and 1 in the plan's window, training volumes had "
                    f"{_span((low, high))}"
                )
                break
    return said


def _quantiles(image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(C, X, Y, Z) to (C, quantiles)."""
    flat = image.reshape(len(image), -1)
    flat = flat[:, :: max(1, flat.shape[1] // SAMPLE)]
    found: npt.NDArray[np.float64] = np.percentile(flat, QUANTILES, axis=1).T
    return found


def _range(values: npt.NDArray[Any]) -> Range:
    return round(float(values.min()), 4), round(float(values.max()), 4)


def _span(bounds: Range) -> str:
    low, high = (f"{value:.4g}" for value in bounds)
    return low if low == high else f"{low} to {high}"
