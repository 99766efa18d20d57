"""Placing the frames of a DICOM segmentation on a grid: that of its image, or one of their own.

A segmentation usually has frames only where there is something to show, and in any order. On the
grid of its image, axes may be permuted and flipped, as in a NIfTI file of the same series; nothing
is resampled.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError, OffGridError
from medar.volume.dicom_order import SAME_POSITION, WHOLE, directions
from medar.volume.dicom_slice import Slice
from medar.volume.geometry import LPS_TO_RAS, Affine, Grid
from medar.volume.header import file_grid

TOLERANCE = 0.1
"""Largest distance of a frame's corner from a voxel, in voxel sides, as between an image and its
label map of any other format."""


class FramePosition(NamedTuple):
    """Where a frame lies in an array (X, Y, Z)."""

    axes: tuple[int, int]
    """Axes along which the columns and the rows of the frame are counted."""
    signs: tuple[int, int]
    """1 if they are counted in the direction of the axis, otherwise -1."""
    first: tuple[int, int, int]
    """The voxel of the first pixel."""
    size: tuple[int, int]
    """Columns and rows."""

    def view(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The voxels of the frame as (rows, columns), a view of the array."""
        parts: list[Any] = list(self.first)
        for axis, sign, count in zip(self.axes, self.signs, self.size, strict=True):
            start = self.first[axis]
            stop = start + sign * count
            parts[axis] = slice(start, stop if stop >= 0 else None, sign)
        seen: npt.NDArray[Any] = array[tuple(parts)]
        return seen.T if self.axes[0] < self.axes[1] else seen


def place_frames(frames: Sequence[Slice], grid: Grid, what: str) -> list[FramePosition]:
    """Where frames of the same size, spacing and orientation lie on a grid.

    Args:
        frames: of a file, see `check_alike`.
        grid: in RAS+ coordinates, in any orientation.
        what: names the grid, for messages.

    Raises:
        OffGridError: a frame lies beside the voxels of the grid, or beyond them.
    """
    inverse = np.linalg.inv(grid.affine)
    steps = inverse[:3, :3] @ in_plane(frames[0])
    axes = np.abs(steps).argmax(axis=0)
    whole = np.zeros((3, 2))
    whole[axes, (0, 1)] = np.sign(steps[axes, (0, 1)])
    columns, rows = frames[0].size
    corners = np.array([[0, columns - 1, 0, columns - 1], [0, 0, rows - 1, rows - 1]])
    positions = []
    for one in frames:
        position = LPS_TO_RAS[:3, :3] @ one.numbers("ImagePositionPatient", 3)
        first = inverse[:3, :3] @ position + inverse[:3, 3]
        exact = first[:, None] + steps @ corners
        nearest = np.rint(first)[:, None] + whole @ corners
        if axes[0] == axes[1] or np.abs(exact - nearest).max() > TOLERANCE:
            away = np.linalg.norm(grid.affine[:3, :3] @ (exact - nearest), axis=0).max()
            raise OffGridError(
                f"{one.where}: its corners are {away:.3g} mm away from voxels of {what}; take the "
                "image that it was drawn on"
            )
        if (nearest < 0).any() or (nearest.max(axis=1) >= grid.shape).any():
            raise OffGridError(
                f"{one.where}: lies beyond {what}, of {' x '.join(map(str, grid.shape))} voxels; "
                "take the image that it was drawn on"
            )
        x, y, z = np.rint(first).astype(int).tolist()
        signs = [int(whole[axis, column]) for column, axis in enumerate(axes)]
        positions.append(
            FramePosition(
                axes=(int(axes[0]), int(axes[1])),
                signs=(signs[0], signs[1]),
                first=(x, y, z),
                size=(columns, rows),
            )
        )
    return positions


def own_grid(frames: Sequence[Slice]) -> Grid:
    """The grid that frames span, in RAS+: from the first to the last along their normal.

    The distance of planes is the SpacingBetweenSlices of the file, or without it that of frames at
    equal distances: which planes have no frame is not guessed.

    Args:
        frames: of the same size, spacing and orientation.

    Raises:
        MedarError: that does not determine a grid.
    """
    path, stated = frames[0].path, frames[0].tags["SpacingBetweenSlices"]
    normal = np.cross(*directions(frames[0]))
    points = np.array([one.numbers("ImagePositionPatient", 3) for one in frames])
    points = points[np.argsort(points @ normal, kind="stable")]
    depths = (points - points[0]) @ normal
    gaps = int((np.diff(depths) > SAME_POSITION).sum())
    spacing = depths[-1] / max(gaps, 1)
    if stated:
        spacing = abs(float(frames[0].numbers("SpacingBetweenSlices", 1)[0]))
    planes = depths / spacing if spacing > SAME_POSITION else np.array([np.nan])
    if not np.abs(planes - np.rint(planes)).max() <= WHOLE:
        has = f"SpacingBetweenSlices {stated}" if stated else "no SpacingBetweenSlices"
        raise MedarError(
            f"{path}: the planes of its {len(frames)} frame(s) do not say where those without a "
            f"frame lie ({has}); give it as the label map of its image, on whose slices it lies"
        )
    count = int(np.rint(planes[-1]))
    affine: Affine = np.eye(4)
    affine[:3, :2] = in_plane(frames[0])
    step = (points[-1] - points[0]) / count if count else normal * spacing
    affine[:3, 2] = LPS_TO_RAS[:3, :3] @ step
    affine[:3, 3] = LPS_TO_RAS[:3, :3] @ points[0]
    columns, rows = frames[0].size
    return file_grid(path, (columns, rows, count + 1), affine)


def in_plane(one: Slice) -> npt.NDArray[np.float64]:
    """The steps from one column and from one row to the next, (3, 2), in RAS+ and mm."""
    row, column = directions(one)
    between_rows, between_columns = one.numbers("PixelSpacing", 2)
    steps = np.stack([row * between_columns, column * between_rows], axis=1)
    return np.asarray(LPS_TO_RAS[:3, :3] @ steps)
