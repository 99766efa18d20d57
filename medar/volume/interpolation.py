"""Sampling an array at the voxels of another grid, through SimpleITK, a few planes at a time.

SimpleITK copies an array on its way in and out. By slabs of the target, each with the planes of the
source that it reaches, these copies stay small; the numbers are those of the whole at once, as
slabs keep their place in space.
"""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813  the name that SimpleITK's own documentation uses

from medar.volume.geometry import Shape3

Interpolation = Literal["linear", "bspline", "nearest"]
ITK = {"linear": sitk.sitkLinear, "bspline": sitk.sitkBSpline, "nearest": sitk.sitkNearestNeighbor}

FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))
"""Full width at half maximum of a Gaussian of standard deviation 1."""

NARROW = 0.3
"""Standard deviation, in voxels, below which a blur is skipped: at 0.3 a neighbour has a weight of
less than half a percent."""

SLAB = 1 << 22
"""Voxels of a slab, unless a single plane has more."""

REACH = 2
"""Planes beyond the outermost sampled ones that interpolation may look at."""


def use_threads(count: int) -> None:
    """Limit the threads of each filter in this process; parallel workers use one."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)


def interpolate(
    array: npt.NDArray[Any],
    to_source: npt.NDArray[Any],
    out: npt.NDArray[Any],
    interpolation: Interpolation,
    fill: float,
    antialias: bool,
) -> None:
    """Sample one (X, Y, Z) array at `to_source @ index` into another; see `sampled_slabs`."""
    x, y, z = out.shape
    slabs = sampled_slabs(array, to_source, (x, y, z), interpolation, fill, antialias)
    for planes, part in slabs:
        out[planes] = part


def sampled_slabs(
    array: npt.NDArray[Any],
    to_source: npt.NDArray[Any],
    shape: Shape3,
    interpolation: Interpolation,
    fill: float,
    antialias: bool,
) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Sample one (X, Y, Z) array at `to_source @ index`, some planes of X at a time.

    Args:
        array: the source.
        to_source: (4, 4), from target to source indices.
        shape: of the target.
        interpolation: see `medar.volume.resample.resample`.
        fill: value outside the source.
        antialias: whether to blur where the target is coarser; for float32 arrays.

    Yields:
        The planes, and their voxels.
    """
    source = _blurred(array, to_source) if antialias else array
    limits = None
    if source is not array and interpolation == "linear":
        # The recursive filter overshoots beside sharp edges, by up to a thousandth of the range.
        limits = min(array.min(), fill), max(array.max(), fill)
    for planes, reached in _slabs(to_source, shape, source.shape, interpolation):
        sides = planes.stop - planes.start, *shape[1:]
        if reached.start >= reached.stop:
            yield planes, np.full(sides, fill, array.dtype)
            continue
        part = _sampled(source, reached, to_source, planes.start, sides, interpolation, fill)
        yield planes, part if limits is None else np.clip(part, *limits, out=part)


def _slabs(
    to_source: npt.NDArray[Any],
    shape: Shape3,
    source: tuple[int, ...],
    interpolation: Interpolation,
) -> list[tuple[slice, slice]]:
    """Planes of the target, and those of the source that they reach; maybe none."""
    across, along = to_source[0, 1:3], to_source[0, 0]
    ends = np.minimum(0, across) @ (np.array(shape[1:]) - 1) + to_source[0, 3]
    spread = np.abs(across) @ (np.array(shape[1:]) - 1)
    found = []
    for planes in _cuts(shape, 0):
        first, last = sorted((along * planes.start, along * (planes.stop - 1)))
        low = int(np.floor(ends + first)) - REACH
        high = int(np.ceil(ends + last + spread)) + REACH + 1
        found.append((planes, slice(max(0, low), min(source[0], high))))
    # Splines depend on all planes, and slabs of a turned grid reach the same ones again and again.
    if interpolation == "bspline" or sum(part.stop - part.start for _, part in found) > (
        2 * source[0] + 2 * (REACH + 1) * len(found)
    ):
        return [(slice(0, shape[0]), slice(0, source[0]))]
    return found


def _sampled(
    source: npt.NDArray[Any],
    reached: slice,
    to_source: npt.NDArray[Any],
    start: int,
    sides: Shape3,
    interpolation: Interpolation,
    fill: float,
) -> npt.NDArray[Any]:
    """Planes of the target from `start` on."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(source[reached]))
    image.SetOrigin([0.0, 0.0, float(reached.start)])
    # ITK's first axis is the array's last: rows and columns of the affine are reversed.
    matrix = to_source[:3, :3][::-1, ::-1]
    offset = to_source[:3, 3][::-1]
    transform = sitk.AffineTransform(matrix.ravel().tolist(), offset.tolist())
    sampled: npt.NDArray[Any] = sitk.GetArrayFromImage(
        sitk.Resample(
            image,
            size=[int(n) for n in sides[::-1]],
            transform=transform,
            interpolator=ITK[interpolation],
            outputOrigin=[0.0, 0.0, float(start)],
            outputSpacing=[1.0] * 3,
            outputDirection=np.eye(3).ravel().tolist(),
            defaultPixelValue=fill,
            outputPixelType=image.GetPixelID(),
        )
    )
    return sampled


def _blurred(array: npt.NDArray[Any], to_source: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Blur along each source axis by as much as the target's voxels are wider.

    Voxels are modelled as Gaussians: the target's has the covariance M M^T in source voxels, of
    which the diagonal, minus the source's own 1, remains to be added.
    """
    width = np.linalg.norm(to_source[:3, :3], axis=1)
    sigma = [float(np.sqrt(max(0.0, shrink**2 - 1.0)) / FWHM) for shrink in width]
    # The recursive filter needs four voxels.
    wide = [axis for axis in (2, 1, 0) if sigma[axis] >= NARROW and array.shape[axis] >= 4]
    if not wide:
        return array
    out = array.copy()
    # Each line is filtered by itself, so that slabs along another axis change nothing.
    for cut, axes in ((0, (2, 1)), (1, (0,))):
        if not set(axes) & set(wide):
            continue
        for part in _cuts(array.shape, cut):
            box = (slice(None), part) if cut else (part,)
            image = sitk.GetImageFromArray(np.ascontiguousarray(out[box]))
            for axis in axes:
                if axis in wide:
                    image = sitk.RecursiveGaussian(image, sigma=sigma[axis], direction=2 - axis)
            out[box] = sitk.GetArrayViewFromImage(image)
    return out


def _cuts(shape: tuple[int, ...], axis: int) -> Iterator[slice]:
    """Slices along an axis, of about `SLAB` voxels."""
    voxels = shape[0] * shape[1] * shape[2]
    count = max(1, SLAB * shape[axis] // voxels)
    for low in range(0, shape[axis], count):
        yield slice(low, min(low + count, shape[axis]))
