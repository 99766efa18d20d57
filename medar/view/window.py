"""Black and white: presets for CT, LEVEL/WIDTH, or what a volume's voxels suggest."""

import math

import numpy as np

from medar.errors import MedarError
from medar.volume import Volume

Range = tuple[float, float]

PRESETS = {"soft": "40/400", "lung": "-600/1500", "bone": "300/1500", "brain": "40/80"}
"""Names of CT windows and what they stand for, LEVEL/WIDTH in HU."""

PERCENTILES = (0.5, 99.5)


def parse_window(text: str) -> Range:
    """Black and white of a preset's name or of LEVEL/WIDTH.

    Raises:
        MedarError: neither of the two, or a width that is not above 0.
    """
    level, sign, width = PRESETS.get(text, text).partition("/")
    try:
        middle, span = float(level), float(width)
    except ValueError:
        sign = ""
    if not sign or not (math.isfinite(middle) and math.isfinite(span) and span > 0):
        raise MedarError(
            f"--window {text}: {', '.join(PRESETS)}, or LEVEL/WIDTH such as 40/400 is needed"
        )
    return middle - span / 2, middle + span / 2


def own_window(volume: Volume) -> Range:
    """Black and white of a volume by itself: the soft tissue window for CT, percentiles else."""
    if volume.modality == "CT":
        return parse_window("soft")
    finite = volume.array[np.isfinite(volume.array)]
    low, high = np.percentile(finite, PERCENTILES) if finite.size else (0.0, 1.0)
    return float(low), float(high if high > low else low + 1)
