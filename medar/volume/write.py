"""Writing NIfTI: atomic, sform and qform equal, voxel type and scaling as the caller chose."""

from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.files import atomic_path
from medar.volume.geometry import reorient
from medar.volume.resample import resample
from medar.volume.volume import Volume

SCANNER = 1
"""NIfTI code of scanner coordinates, for sform and qform."""


def write_nifti(
    path: str | Path,
    volume: Volume,
    *,
    dtype: npt.DTypeLike | None = None,
    slope: float | Literal["auto"] = 1.0,
    intercept: float = 0.0,
    grid: Literal["own", "source"] = "own",
) -> None:
    """Write a volume as NIfTI-1, or NIfTI-2 where a side exceeds 32,767 voxels.

    The file appears whole or not at all. sform and qform are equal; a sheared grid, which a qform
    cannot express, has the sform alone.

    Args:
        path: ends in .nii or .nii.gz.
        volume: what to write; channels become the fourth axis.
        dtype: voxel type on disk; default the array's own (float32, or the label type).
        slope: with an integer `dtype`: stored = (value - intercept) / slope, rounded. "auto"
            spreads the volume's range over the type.
        intercept: see `slope`; found too where that is "auto".
        grid: "own" writes the RAS+ grid; "source" goes back to the grid and orientation of the
            file that the volume came from, resampling where the grids differ.

    Raises:
        MedarError: another ending, values beyond the type's range, or no source to go back to.
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise MedarError(f"{path}: volumes are written as .nii or .nii.gz")
    array, affine = np.asarray(volume.array), volume.affine
    if grid == "source":
        if volume.provenance is None:
            raise MedarError(f"{path}: the volume did not come from a file: it has no source grid")
        source = volume.provenance.grid
        array = reorient(resample(volume, source.to_ras()).array, affine, source.orientation)
        affine = source.affine
    kind = np.dtype(dtype) if dtype is not None else array.dtype
    stored, slope_out, intercept_out = _stored(path, array, kind, slope, intercept)
    last = np.moveaxis(stored, 0, -1)
    last = last[..., 0] if last.shape[-1] == 1 else last
    large = max(last.shape) > np.iinfo(np.int16).max
    image = (nib.Nifti2Image if large else nib.Nifti1Image)(last, affine, dtype=stored.dtype)
    image.header.set_slope_inter(slope_out, intercept_out)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=SCANNER)
    if volume.grid.is_sheared:
        image.set_qform(None, code=0)
    else:
        image.set_qform(affine, code=SCANNER)
    with atomic_path(path) as temporary:
        _to_file(image, temporary)


def _stored(
    path: Path,
    array: npt.NDArray[Any],
    dtype: np.dtype[Any],
    slope: float | Literal["auto"],
    intercept: float,
) -> tuple[npt.NDArray[Any], float, float]:
    """The voxels as they go to disk, with the slope and intercept that lead back."""
    if dtype.kind == "f":
        if slope != 1.0 or intercept != 0.0:
            raise MedarError(f"{path}: slope and intercept go with an integer type, not {dtype}")
        return array.astype(dtype), 1.0, 0.0
    if dtype.kind not in "iu":
        raise MedarError(f"{path}: voxel type {dtype}; integers and floats can be written")
    if not np.isfinite(array).all():
        raise MedarError(f"{path}: NaN or Inf voxels do not fit {dtype}; write float32")
    low, high = float(array.min()), float(array.max())
    room = np.iinfo(dtype)
    if slope == "auto":
        slope = (high - low) / (float(room.max) - float(room.min)) or 1.0
        intercept = low - slope * float(room.min)
    if array.dtype.kind in "iu" and slope == 1.0 and intercept == 0.0:
        values = array
    else:
        values = np.rint((array.astype(np.float64) - intercept) / slope)
        if slope != 1.0:
            values = values.clip(float(room.min), float(room.max))
    least, most = float(values.min()), float(values.max())
    if least < room.min or most > room.max:
        raise MedarError(
            f"{path}: values from {low:g} to {high:g} do not fit {dtype} "
            f"({room.min} to {room.max}); choose a wider type or slope='auto'"
        )
    return values.astype(dtype), float(slope), float(intercept)


def _to_file(image: Any, path: Path) -> None:
    data = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        from isal import igzip

        # No time stamp: the same volume gives the same bytes.
        data = igzip.compress(data, compresslevel=2, mtime=0)
    path.write_bytes(data)
