"""`shape`: size, place and form of each label of a label map.

Of each label: the cube root of its share of the volume, the extent of its box along each axis and
its centre of mass, in shares of the volume's sides, and its elongation and flatness, logarithms of
ratios between the deviations along its principal axes (in mm). A label that a volume does not hold
has size and extents 0, lies in the middle and is round.

N volumes, X Y Z voxels, K labels.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

NAME = "shape-v1"
"""Name and version: raise the version whenever a feature changes."""

FEATURES = (
    "size", "extent_x", "extent_y", "extent_z", "centre_x", "centre_y", "centre_z", "elongation",
    "flatness",
)  # fmt: skip
"""Of each label."""

ABSENT = (0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.0, 0.0)


def shape_features(
    labels: npt.NDArray[np.integer], values: Sequence[int], spacing: Sequence[float]
) -> npt.NDArray[np.float64]:
    """The features of label maps.

    Args:
        labels: (N, X, Y, Z) label values.
        values: the K labels to describe, in order.
        spacing: voxel sides in mm.

    Returns:
        (N, K * 9), the 9 `FEATURES` of the first label first.
    """
    rows = [[_describe(one == value, spacing) for value in values] for one in labels]
    return np.asarray(rows, dtype=np.float64).reshape(len(labels), -1)


def _describe(mask: npt.NDArray[np.bool_], spacing: Sequence[float]) -> list[float]:
    """The features of one label, (X, Y, Z)."""
    places = np.argwhere(mask)
    if not len(places):
        return list(ABSENT)
    sides = np.asarray(mask.shape)
    extents = (np.ptp(places, axis=0) + 1) / sides
    centre = (places.mean(axis=0) + 0.5) / sides
    # A voxel has a width of its own: without it a flat label would be infinitely flat.
    widths = np.diag(np.square(spacing)) / 12
    covariance = np.cov(places * np.asarray(spacing), rowvar=False, bias=True) + widths
    small, middle, large = np.sqrt(np.linalg.eigvalsh(covariance))
    form = [np.log(large / middle), np.log(middle / small)]
    return [np.cbrt(mask.mean()), *extents, *centre, *form]
