"""The grey levels that voxels are shown with by default."""

from typing import Any

import numpy as np
import numpy.typing as npt

Range = tuple[float, float]

SOFT_TISSUE: Range = (-160.0, 240.0)
"""Intensities shown as black and white in CT, in HU."""

PERCENTILES = (0.5, 99.5)


def grey_range(array: npt.NDArray[Any], modality: str | None) -> Range:
    """Intensities shown as black and white: soft tissue for CT, percentiles for anything else."""
    if modality == "CT":
        return SOFT_TISSUE
    finite = array[np.isfinite(array)]
    low, high = map(float, np.percentile(finite, PERCENTILES)) if finite.size else (0.0, 1.0)
    # Graphics cards compute in float32, with about seven digits.
    smallest = 1e-5 * max(abs(low), abs(high))
    return low, high if high - low > smallest else low + max(1.0, 100 * smallest)
