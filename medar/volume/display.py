"""What a picture of a volume needs: grey levels, and a place to cut it."""

import numpy as np
import numpy.typing as npt

from medar.volume.volume import Volume

Range = tuple[float, float]

SOFT_TISSUE: Range = (-160.0, 240.0)
"""Black and white of CT, in HU."""

PERCENTILES = (0.5, 99.5)


def display_range(volume: Volume) -> Range:
    """Black and white of the first channel: soft tissue for CT, percentiles for the rest."""
    if volume.modality == "CT":
        return SOFT_TISSUE
    finite = volume.array[0][np.isfinite(volume.array[0])]
    low, high = map(float, np.percentile(finite, PERCENTILES)) if finite.size else (0.0, 1.0)
    # A graphics card tells numbers apart by about seven digits.
    least = 1e-5 * max(abs(low), abs(high))
    return low, high if high - low > least else low + max(1.0, 100 * least)


def labelled_middle(label: npt.NDArray[np.generic]) -> tuple[int, ...] | None:
    """The labelled voxel of (X, Y, Z) nearest to the labels' mean; None where all are 0."""
    found = np.argwhere(label != 0)
    if not len(found):
        return None
    nearest = np.abs(found - found.mean(axis=0)).sum(axis=1).argmin()
    return tuple(int(n) for n in found[nearest])
