"""Resampling a volume onto another grid, through SimpleITK.

Everything is computed in voxel indices: one affine from target to source indices covers rotation,
shear, another spacing, cropping and padding, whereas ITK's own geometry refuses sheared axes. Grids
that differ by whole voxels are cropped and padded without interpolation.

Downsampling is anti-aliased: the source is first blurred by the Gaussian that widens a voxel's
point spread function to the target's (Cardoso et al., MICCAI 2015). Labels are never mixed: each
label is interpolated as a 0-1 image, and the largest value wins.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.volume.counts import value_counts
from medar.volume.geometry import Grid, Shape3
from medar.volume.interpolation import ITK, Interpolation, interpolate, sampled_slabs
from medar.volume.volume import Volume

WHOLE = 1e-3
"""Index error, in voxels, below which two grids count as parts of the same lattice."""


def resample(
    volume: Volume,
    grid: Grid,
    *,
    interpolation: Interpolation = "linear",
    fill: float | None = None,
    antialias: bool = True,
) -> Volume:
    """Resample a volume onto another grid in RAS+ (see `Grid.to_ras`).

    Args:
        volume: image (C, X, Y, Z), or labels.
        grid: the target grid.
        interpolation: "linear", "bspline" (cubic) or "nearest". For labels, "linear" interpolates
            each label on its own and takes the largest.
        fill: value outside the source; default: the smallest voxel of an image, 0 for labels.
        antialias: whether to blur before downsampling; ignored by "nearest".

    Raises:
        MedarError: the interpolation is unknown, or "bspline" for labels; `fill` is not a possible
            label; or the grid is not RAS+.
    """
    if interpolation not in ITK:
        raise MedarError(f"interpolation must be one of {', '.join(ITK)}, got {interpolation!r}")
    if volume.is_label and interpolation == "bspline":
        raise MedarError("interpolation of labels must be 'linear' or 'nearest', got 'bspline'")
    if fill is None:
        fill = 0.0 if volume.is_label else float(volume.array.min())
    limits = np.iinfo(volume.array.dtype) if volume.is_label else None
    if limits and not (limits.min <= fill <= limits.max and fill == int(fill)):
        raise MedarError(f"fill must be an integer of the labels' {limits.dtype}, got {fill:g}")
    to_source = np.linalg.solve(volume.affine, grid.affine)
    offset = np.rint(to_source[:3, 3])
    whole = np.eye(4)
    whole[:3, 3] = offset
    reach = np.array([*grid.shape, 1.0])
    if (np.abs(to_source - whole)[:3] @ reach).max() < WHOLE:
        start = (int(offset[0]), int(offset[1]), int(offset[2]))
        array = crop_or_pad(volume.array, start, grid.shape, fill)
    elif volume.is_label and interpolation == "linear":
        array = _labels(volume.array, to_source, grid.shape, int(fill), antialias)
    else:
        smooth = antialias and interpolation != "nearest"
        array = np.empty((volume.channels, *grid.shape), volume.array.dtype)
        for made, channel in zip(array, volume.array, strict=True):
            interpolate(channel, to_source, made, interpolation, fill, smooth)
    return Volume(
        array=array,
        affine=grid.affine,
        modality=volume.modality,
        provenance=volume.provenance,
    )


def crop_or_pad(
    array: npt.NDArray[Any], start: Shape3, shape: Shape3, fill: float
) -> npt.NDArray[Any]:
    """The box of `shape` at voxel `start` of a (C, X, Y, Z) array; `fill` outside the array."""
    if start == (0, 0, 0) and shape == array.shape[1:]:
        return array
    low = [max(0, s) for s in start]
    high = [min(n, s + m) for n, s, m in zip(array.shape[1:], start, shape, strict=True)]
    out = np.full((array.shape[0], *shape), fill, dtype=array.dtype)
    if all(a < b for a, b in zip(low, high, strict=True)):
        source = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        target = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
        out[(slice(None), *target)] = array[(slice(None), *source)]
    return out


def _labels(
    array: npt.NDArray[Any], to_source: npt.NDArray[Any], shape: Shape3, fill: int, antialias: bool
) -> npt.NDArray[Any]:
    """Interpolate each label as a 0-1 image within its own box; the largest value wins."""
    source = array[0]
    best = np.zeros(shape, dtype=np.float32)
    background = _coverage(source.shape, to_source, shape)
    out = np.zeros(shape, dtype=array.dtype)
    outside = background <= 0.5 if fill else None
    if outside is not None:
        np.copyto(out, fill, where=outside)
    margin = np.ceil(3 * np.abs(to_source[:3, :3]).max(axis=1)).astype(int) + 2
    inverse = np.linalg.inv(to_source)
    for label in value_counts(source):
        if label == 0:
            continue
        mask = source == label
        low, high = _box(mask, margin)
        part = np.ascontiguousarray(mask[tuple(map(slice, low, high))], dtype=np.float32)
        target_box = _target_box(inverse, low, high, shape)
        if target_box is None:
            continue
        start, stop = target_box
        shift = np.eye(4)
        shift[:3, 3] = start
        local = to_source @ shift
        local[:3, 3] -= low
        size = (int(stop[0] - start[0]), int(stop[1] - start[1]), int(stop[2] - start[2]))
        box = tuple(map(slice, start, stop))
        views = best[box], background[box], out[box]
        for planes, fraction in sampled_slabs(part, local, size, "linear", 0.0, antialias):
            largest, rest, chosen = (view[planes] for view in views)
            rest -= fraction
            larger = fraction > largest
            np.copyto(largest, fraction, where=larger)
            np.copyto(chosen, label, where=larger)
    # Background competes too: it wins where no label has a larger fraction.
    empty = background >= best
    if outside is not None:
        empty &= ~outside
    np.copyto(out, 0, where=empty)
    return out[None]


def _coverage(
    source: Shape3, to_source: npt.NDArray[Any], shape: Shape3
) -> npt.NDArray[np.float32]:
    """1 where a voxel of the target lies in the source, 0 elsewhere: its ones, interpolated."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    at = to_source[:3, :3] @ corners + to_source[:3, 3:]
    sides = np.array(source)[:, None]
    # ITK counts half a voxel around the centres as inside.
    if (at > WHOLE - 0.5).all() and (at < sides - 0.5 - WHOLE).all():
        return np.ones(shape, np.float32)
    covered = np.empty(shape, np.float32)
    interpolate(np.ones(source, np.float32), to_source, covered, "linear", 0.0, antialias=False)
    return covered


def _box(mask: npt.NDArray[np.bool_], margin: npt.NDArray[Any]) -> tuple[Any, Any]:
    """The corners of the box around a mask, widened by `margin` within the array."""
    low, high = [], []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        low.append(max(0, int(inside[0]) - int(margin[axis])))
        high.append(min(mask.shape[axis], int(inside[-1]) + 1 + int(margin[axis])))
    return np.array(low), np.array(high)


def _target_box(
    inverse: npt.NDArray[Any], low: Any, high: Any, shape: Shape3
) -> tuple[Any, Any] | None:
    """The box of target voxels that a source box maps to; None if it lies outside."""
    corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1)
    reached = inverse[:3, :3] @ corners + inverse[:3, 3:]
    start = np.clip(np.floor(reached.min(axis=1)).astype(int) - 1, 0, shape)
    stop = np.clip(np.ceil(reached.max(axis=1)).astype(int) + 2, 0, shape)
    return (start, stop) if (start < stop).all() else None
