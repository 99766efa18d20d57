"""Defaults for showing a volume: its grey levels, and the voxel to cut it at."""

import numpy as np
import numpy.typing as npt

from medar.volume.volume import Volume

Range = tuple[float, float]

SOFT_TISSUE: Range = (-160.0, 240.0)
"""Intensities shown as black and white in CT, in HU."""

PERCENTILES = (0.5, 99.5)


def display_range(volume: Volume) -> Range:
    """Intensities shown as black and white: soft tissue for CT, percentiles of the first channel
    for anything else."""
    if volume.modality == "CT":
        return SOFT_TISSUE
    finite = volume.array[0][np.isfinite(volume.array[0])]
    low, high = map(float, np.percentile(finite, PERCENTILES)) if finite.size else (0.0, 1.0)
    # Graphics cards compute in float32, with about seven digits.
    smallest = 1e-5 * max(abs(low), abs(high))
    return low, high if high - low > smallest else low + max(1.0, 100 * smallest)


def labelled_middle(label: npt.NDArray[np.generic]) -> tuple[int, ...] | None:
    """The labelled voxel nearest to the centroid of all labels; None if every voxel is 0.

    Args:
        label: (X, Y, Z).
    """
    labelled = np.argwhere(label != 0)
    if not len(labelled):
        return None
    nearest = np.abs(labelled - labelled.mean(axis=0)).sum(axis=1).argmin()
    return tuple(int(n) for n in labelled[nearest])
