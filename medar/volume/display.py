"""Defaults for showing a volume: its grey levels, and the voxel to cut it at."""

import numpy as np
import numpy.typing as npt

from medar.volume.grey_levels import SOFT_TISSUE as SOFT_TISSUE
from medar.volume.grey_levels import Range as Range
from medar.volume.grey_levels import grey_range
from medar.volume.volume import Volume


def display_range(volume: Volume) -> Range:
    """Intensities shown as black and white: soft tissue for CT, percentiles of the first channel
    for anything else."""
    return grey_range(volume.array[0], volume.modality)


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
