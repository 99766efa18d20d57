"""Counting the values of a label map without sorting its voxels."""

from typing import Any

import numpy as np
import numpy.typing as npt

SPAN = 1 << 16
"""Largest range of values that are counted; beyond it they are sorted."""


def value_counts(array: npt.NDArray[Any]) -> dict[int, int]:
    """The number of voxels of each value that occurs, in the order of the values.

    Args:
        array: integers of any shape.
    """
    low, high = int(array.min()), int(array.max())
    if high - low >= SPAN:
        values, counts = np.unique(array, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))
    total = np.zeros(high - low + 1, np.int64)
    flat = array.reshape(-1, array.shape[-1])
    step = max(1, SPAN // array.shape[-1])
    for first in range(0, len(flat), step):  # a part at a time, as it takes eight bytes a voxel
        part = flat[first : first + step].astype(np.int64) - low
        total += np.bincount(part.reshape(-1), minlength=len(total))
    return {low + int(index): int(total[index]) for index in np.flatnonzero(total)}
