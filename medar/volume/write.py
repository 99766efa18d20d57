"""Writing NIfTI atomically, with equal sform and qform and a choice of voxel type and scaling.

Voxels are converted and compressed a few planes at a time, so that no second volume is in memory.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.files import atomic_path
from medar.volume.geometry import Affine, Grid, reorient
from medar.volume.resample import resample
from medar.volume.volume import Volume

SCANNER = 1
"""NIfTI code of scanner coordinates, for sform and qform."""

PLANES = 1 << 22
"""Voxels that are converted at once."""

Convert = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def write_nifti(
    path: str | Path,
    volume: Volume,
    *,
    dtype: npt.DTypeLike | None = None,
    slope: float | Literal["auto"] = 1.0,
    intercept: float = 0.0,
    grid: Literal["own", "source"] = "own",
    description: str = "",
) -> None:
    """Write a volume as NIfTI-1, or NIfTI-2 where a side exceeds 32,767 voxels.

    The file is complete or absent. sform and qform are equal; a sheared grid, which a qform cannot
    express, has only an sform.

    Args:
        path: ends in .nii or .nii.gz.
        volume: the volume; channels become the fourth axis.
        dtype: voxel type on disk; default: the array's own (float32, or the label type).
        slope: with an integer `dtype`: stored = (value - intercept) / slope, rounded. "auto" maps
            the volume's range to the type's.
        intercept: see `slope`; computed if that is "auto".
        grid: "own" writes the RAS+ grid, "source" the grid and orientation of the file that the
            volume was read from, resampling if the grids differ.
        description: for the header field of that name, ASCII, at most 79 characters.

    Raises:
        MedarError: an unsupported ending or voxel type, values beyond the type's range, no source
            grid, or the file cannot be written.
    """
    path = Path(path)
    _check_ending(path)
    array, stored = as_stored(path, volume, grid)
    kind = _voxel_type(path, array.dtype if dtype is None else dtype)
    convert, scale = _conversion(path, array, kind, slope, intercept)
    shape = array.shape[1:] if len(array) == 1 else (*array.shape[1:], len(array))
    header = _header(shape, kind, stored.affine, stored.is_sheared, description)
    header.set_slope_inter(*scale)
    _write(path, header, (convert(plane) for channel in array for plane in _planes(channel)))


def write_channels(
    path: str | Path,
    channels: Iterable[npt.NDArray[np.float32]],
    count: int,
    like: Volume,
    *,
    description: str = "",
) -> None:
    """Write a 4D float32 NIfTI file channel by channel, with one channel in memory at a time.

    Args:
        path: ends in .nii or .nii.gz.
        channels: each (X, Y, Z), on `like`'s grid.
        count: number of channels.
        like: gives the grid: its source grid if it was read from a file, otherwise its own.
        description: see `write_nifti`.

    Raises:
        MedarError: an unsupported ending, or the file cannot be written.
    """
    path = Path(path)
    _check_ending(path)
    source = like.provenance.grid if like.provenance else like.grid
    shape, kind = (*source.shape, count), np.dtype(np.float32)
    header = _header(shape, kind, source.affine, source.is_sheared, description)
    header.set_slope_inter(1.0, 0.0)
    turned = (reorient(channel, like.affine, source.orientation) for channel in channels)
    stored = (plane.astype(kind, copy=False) for one in turned for plane in _planes(one))
    _write(path, header, stored)


def nifti_description(path: Path) -> str | None:
    """The description in a NIfTI header, as `write_nifti` writes it; None for any other file."""
    try:
        description: bytes = nib.load(path).header["descrip"].item()
    except Exception:  # nibabel raises many types
        return None
    return description.decode("ascii", "replace")


def as_stored(
    path: Path, volume: Volume, grid: Literal["own", "source"]
) -> tuple[npt.NDArray[Any], Grid]:
    """The voxels to be written, (C, X, Y, Z), and their grid.

    Args:
        path: the file, for messages.
        volume: the volume.
        grid: see `write_nifti`.

    Raises:
        MedarError: no source grid.
    """
    if grid == "own":
        return np.asarray(volume.array), volume.grid
    if volume.provenance is None:
        raise MedarError(f"{path}: the volume was not read from a file: it has no source grid")
    source = volume.provenance.grid
    resampled = resample(volume, source.to_ras()).array
    return reorient(resampled, volume.affine, source.orientation), source


def _planes(channel: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """An (X, Y, Z) array as (X, Y, z), a few planes at a time."""
    count = max(1, PLANES // (channel.shape[0] * channel.shape[1]))
    for z in range(0, channel.shape[2], count):
        yield channel[..., z : z + count]


def _write(path: Path, header: Any, planes: Iterable[npt.NDArray[Any]]) -> None:
    """Write a header and its voxels.

    Args:
        path: the file; complete or absent.
        header: nibabel's.
        planes: the voxels in their order in the file, converted.
    """
    try:
        with atomic_path(path) as temporary, _opened(temporary) as file:
            header.write_to(file)
            for plane in planes:
                file.write(plane.tobytes(order="F"))
    except OSError as error:
        raise MedarError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file for writing, compressed if it ends in .gz."""
    with path.open("wb") as plain:
        if not path.name.lower().endswith(".gz"):
            yield plain
            return
        from isal import igzip

        # Without name and time stamp, the same volume gives the same bytes.
        with igzip.IGzipFile("", "wb", compresslevel=2, fileobj=plain, mtime=0) as packed:
            yield packed


def _check_ending(path: Path) -> None:
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise MedarError(f"{path}: volumes are written as .nii or .nii.gz")


def _header(
    shape: Sequence[int], dtype: np.dtype[Any], affine: Affine, sheared: bool, description: str
) -> Any:
    """A nibabel header with sform and, unless it is sheared, the same qform."""
    # A placeholder that takes no memory: only its header is used.
    voxels = np.broadcast_to(np.zeros((), dtype), tuple(shape))
    large = max(shape) > np.iinfo(np.int16).max
    image = (nib.Nifti2Image if large else nib.Nifti1Image)(voxels, affine, dtype=dtype)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    image.set_sform(affine, code=SCANNER)
    if sheared:
        image.set_qform(None, code=0)
    else:
        image.set_qform(affine, code=SCANNER)
    return image.header


def _voxel_type(path: Path, dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = np.dtype(object)
    if kind.kind not in "iu" and kind not in (np.float32, np.float64):
        raise MedarError(
            f"{path}: voxel type must be an integer type, float32 or float64, got {dtype}"
        )
    return kind.newbyteorder("<")


def _conversion(
    path: Path,
    array: npt.NDArray[Any],
    dtype: np.dtype[Any],
    slope: float | Literal["auto"],
    intercept: float,
) -> tuple[Convert, tuple[float, float]]:
    """How voxels become those of the file, and the slope and intercept that restore them."""
    if dtype.kind == "f":
        if slope != 1.0 or intercept != 0.0:
            raise MedarError(f"{path}: slope and intercept need an integer type, got {dtype}")
        return lambda part: part.astype(dtype, copy=False), (1.0, 0.0)
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise MedarError(f"{path}: NaN or Inf voxels do not fit {dtype}; write float32")
    limits = np.iinfo(dtype)
    least, most = float(limits.min), float(limits.max)
    automatic = slope == "auto"
    if slope == "auto":
        slope = (high - low) / (most - least) or 1.0
        intercept = low - slope * least
    # NIfTI-1 stores both in float32: the voxels must be scaled by the stored numbers.
    scale = float(np.float32(slope)), float(np.float32(intercept))
    if scale[0] == 0.0 or not np.isfinite(scale).all():
        raise MedarError(
            f"{path}: slope and intercept must be finite and slope not 0, got {scale[0]:g} and "
            f"{scale[1]:g}"
        )
    whole = array.dtype.kind in "iu" and scale == (1.0, 0.0)

    def scaled(part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        values = np.rint((part.astype(np.float64) - scale[1]) / scale[0])
        # Rounding may exceed the range by one step.
        return values.clip(least, most) if automatic else values

    ends = [int(array.min()), int(array.max())] if whole else scaled(np.array([low, high])).tolist()
    if min(ends) < limits.min or max(ends) > limits.max:
        raise MedarError(
            f"{path}: values from {low:g} to {high:g} do not fit {dtype} "
            f"({limits.min} to {limits.max}); choose a wider type or slope='auto'"
        )
    if whole:
        return lambda part: part.astype(dtype, copy=False), scale
    return lambda part: scaled(part).astype(dtype), scale
