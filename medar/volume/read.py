"""Reading a volume from any supported file.

`read_header` reads format and geometry, `Header.load` the voxels as stored, and `load_volume`
checks them and turns them to RAS+; `read_volume` does all of it. Geometry is never guessed
(docs/reference/volumes.md lists the rules):

- it comes from the file, for NIfTI from the sform, otherwise the qform; a file with neither is
  refused unless the caller gives a spacing to assume;
- NaN and Inf voxels are refused unless the caller gives a replacement;
- a fourth axis is read as channels only if the caller asks for it.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medar.errors import GeometryWarning, MedarError
from medar.volume.dicom_kinds import check_label_kind, segmentation_at
from medar.volume.geometry import Spacing
from medar.volume.header import (
    FORMATS,
    META_ENDINGS,
    NIFTI_ENDINGS,
    NRRD_ENDINGS,
    Header,
    ReadOptions,
    is_dicom,
)
from medar.volume.volume import Provenance, Volume

SMALLEST_SIDE, LARGEST_SIDE = 0.01, 100.0
"""Sides of voxels in mm beyond which a header is likely in another unit: scans of people have 0.1
to 20, of small animals and specimens 0.01 and more."""


def read_header(
    path: str | Path,
    options: ReadOptions | None = None,
    *,
    labels: bool = False,
    image: Provenance | None = None,
) -> Header:
    """Read the geometry and voxel type of a file or DICOM folder; no voxel is read.

    Args:
        path: see `read_volume`.
        options: how to read a file that leaves a question open.
        labels: whether it is a label map: only as such are DICOM segmentations read.
        image: the image of a label map, on whose grid a DICOM segmentation is placed; default: the
            grid of its own frames.

    Raises:
        MedarError: the file is absent, of an unsupported format, damaged, or its geometry is not
            defined by the file and `options`.
        OffGridError: a segmentation does not lie on the image's grid.
    """
    path = Path(path)
    options = options or ReadOptions()
    try:
        if not path.is_file() and not path.is_dir():
            raise MedarError(f"{path}: no such file or folder")
        header = _header(path, options, labels, image)
    except OSError as error:
        raise MedarError(f"{path}: cannot be read ({error.strerror or error})") from error
    if header.channels > 1 and not options.channels:
        raise MedarError(
            f"{path}: {header.channels} volumes along a fourth axis; "
            "pass channels=True (--channels) to read them as channels, or split the file"
        )
    note = _note_on_size(header.grid.spacing)
    return replace(header, notes=(*header.notes, note)) if note else header


def _note_on_size(spacing: Spacing) -> str | None:
    """A remark on voxels whose sides are likely not in mm."""
    small, large = min(spacing) < SMALLEST_SIDE, max(spacing) > LARGEST_SIDE
    if not (small or large):
        return None
    sides = " x ".join(f"{side:.3g}" for side in spacing)
    unit = "metres" if small else "micrometres"
    return f"voxels of {sides} mm are unlike a scan's; is the header in {unit}?"


def _header(path: Path, options: ReadOptions, labels: bool, image: Provenance | None) -> Header:
    """Read the header with the reader of the file's format."""
    name = path.name.lower()
    # Readers are imported when they are needed: SimpleITK and nibabel are slow to load.
    if path.is_dir() or is_dicom(path):
        if labels and (segmentation := segmentation_at(path)):
            from medar.volume.dicom_segments import read_segments_header

            return read_segments_header(segmentation, image)
        if labels:
            check_label_kind(path)
        from medar.volume.dicom import read_dicom_header

        return read_dicom_header(path, options)
    if name.endswith((".gii", ".gii.gz")):
        raise MedarError(f"{path}: surface data, not a volume; medar reads {FORMATS}")
    if name.endswith(NIFTI_ENDINGS):
        from medar.volume.nifti import read_nifti_header

        return read_nifti_header(path, options)
    if name.endswith(NRRD_ENDINGS):
        from medar.volume.nrrd import read_nrrd_header

        return read_nrrd_header(path, options)
    if name.endswith(META_ENDINGS):
        from medar.volume.metaimage import read_meta_header

        return read_meta_header(path, options)
    raise MedarError(f"{path}: unknown volume format; medar reads {FORMATS}")


def read_volume(
    path: str | Path,
    *,
    labels: bool = False,
    channels: bool = False,
    assume_spacing: Spacing | Literal["header"] | None = None,
    nonfinite: float | Literal["error", "min", "keep"] = "error",
    series: str | None = None,
    allow_outside: bool = False,
    modality: str | None = None,
) -> Volume:
    """Read a volume and turn its axes to RAS+.

    Args:
        path: a NIfTI, NRRD or MetaImage file, a DICOM file or the folder of a DICOM series; with
            `labels` also a DICOM segmentation.
        labels: whether to read a label map: integers, an error if the file holds fractions.
        channels: whether to read a fourth axis as channels.
        assume_spacing: for files without orientation: "header", or the spacing in mm.
        nonfinite: treatment of NaN and Inf: "error", "min", "keep" or a replacement.
        series: SeriesInstanceUID to read from a DICOM folder that holds several series.
        allow_outside: whether to read data files that a NRRD or MetaImage header names outside of
            its folder.
        modality: "CT" or "MR", for files that do not state it (only DICOM does).

    Returns:
        (C, X, Y, Z) float32 in the file's own units (HU for CT), or integers for labels.

    Raises:
        MedarError: the file cannot be read without guessing; the message names the option that
            decides.

    Warns:
        GeometryWarning: sform and qform disagree, axes are sheared, or a spacing was assumed.
    """
    options = ReadOptions(
        channels=channels,
        assume_spacing=assume_spacing,
        nonfinite=nonfinite,
        series=series,
        allow_outside=allow_outside,
    )
    header = read_header(path, options, labels=labels)
    for note in header.notes:
        warnings.warn(f"{path}: {note}", GeometryWarning, stacklevel=2)
    return load_volume(header, options, labels=labels, modality=modality)


def load_volume(
    header: Header, options: ReadOptions, *, labels: bool = False, modality: str | None = None
) -> Volume:
    """Read the voxels behind a header, checked and turned to RAS+ (see `read_volume`)."""
    array = header.load()
    if array.shape[-3:] != header.grid.shape:
        raise MedarError(
            f"{header.path}: damaged: voxels of shape {array.shape[-3:]}, but the header states "
            f"{header.grid.shape}"
        )
    if labels and header.channels > 1:
        raise MedarError(
            f"{header.path}: a label map of {header.channels} channels; it must have one: split it"
        )
    array = as_labels(array, header.path, header.step) if labels else as_image(array)
    if not labels:
        array = replace_nonfinite(array, options.nonfinite, header.path)
    return Volume.from_array(
        array,
        header.grid.affine,
        modality=modality or header.modality,
        provenance=header.provenance,
    )


def as_image(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """`array` in native float32, in its own order; values beyond its range become Inf."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(np.float32, order="K", copy=False)


MOST_ROUNDING = 0.05
"""Largest distance of a rounded label from its integer."""


def fractions_of(array: npt.NDArray[Any], step: float) -> npt.NDArray[Any]:
    """The finite voxels, flat, that are no integers but for the rounding of `Header.step`."""
    allowed = min(step / 2, MOST_ROUNDING) * 1.001  # the factor covers float32
    return np.asarray(array[np.abs(array - np.rint(array)) > allowed])


def as_labels(array: npt.NDArray[Any], path: str | Path, step: float = 0.0) -> npt.NDArray[Any]:
    """`array` as the smallest of uint8, int16 and int32 that holds it.

    Args:
        array: of any type.
        path: for messages.
        step: of the values, see `Header.step`. Software that stores floats as scaled integers
            rounds labels to multiples of it: they may be half a step away from integers.

    Raises:
        MedarError: it holds fractions, NaN, Inf, or values beyond 32 bits.
    """
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise MedarError(f"{path}: NaN or Inf in a label map; labels must be integers")
        fractions = fractions_of(array, step)
        if fractions.size:
            raise MedarError(
                f"{path}: {fractions.size} voxels of a label map are not integers "
                f"(such as {fractions.flat[0]:g}); is it an image, or an interpolated label map? "
                "If it is neither, round its voxels to integers first"
            )
        array = np.rint(array)
    low, high = int(array.min()), int(array.max())
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.ascontiguousarray(array, dtype=dtype)
    raise MedarError(f"{path}: label values must fit 32 bits, got {low} to {high}")


def replace_nonfinite(
    array: npt.NDArray[np.float32],
    policy: float | Literal["error", "min", "keep"],
    path: str | Path,
) -> npt.NDArray[np.float32]:
    """Apply the caller's policy to NaN and Inf voxels (see `ReadOptions.nonfinite`)."""
    if policy == "keep" or np.isfinite(array).all():
        return array
    finite = np.isfinite(array)
    counts = f"{int(np.isnan(array).sum())} NaN and {int(np.isinf(array).sum())} Inf voxels"
    if policy == "error":
        raise MedarError(
            f"{path}: {counts} of {array.size}; pass nonfinite='min' or a number "
            "(--nonfinite min) to replace them"
        )
    if not finite.any():
        raise MedarError(f"{path}: {counts} and no finite voxel")
    replacement = array[finite].min() if policy == "min" else policy
    return np.where(finite, array, np.float32(replacement))
