"""NIfTI-1 and NIfTI-2, single file or .hdr/.img pair, through nibabel.

nibabel silently repairs unusual headers: a zero spacing becomes 1 mm, and a file without an affine
gets one. Geometry is therefore taken from the unrepaired header.
"""

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip
from nibabel import imageglobals

from medar.errors import MedarError, one_line
from medar.volume.geometry import Affine, Shape3, corner_distance, shear_note
from medar.volume.header import Header, ReadOptions, assumed_affine, file_grid, spatial_shape

# nibabel prints every repair; medar checks the header itself and reports problems in its notes.
imageglobals.logger.setLevel(logging.CRITICAL + 1)

MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Length of a header unit in mm: metre, millimetre, micrometre."""

NIFTI2_SIZE = 540
"""Bytes of a NIfTI-2 header, the longest of all variants."""

TRAILING = 1 << 20
"""Bytes behind the voxels of a compressed file that are tolerated."""

MOST_DEFLATED = 1032
"""Bytes that one byte of a gzip file can stand for."""

ROUNDED = 1e-3
"""Largest excess over 1 of the length of a quaternion that is taken for rounding."""

CIFTI = range(3000, 3100)
"""Intent codes of surface data in a NIfTI-2 file."""

DISAGREEMENT = 0.1
"""Largest distance of corners, as a fraction of the smallest voxel side, at which sform and qform
agree."""


def read_nifti_header(path: Path, options: ReadOptions) -> Header:
    """The header of a NIfTI file (see `read_header`)."""
    path = _existing_header(path)
    try:
        with _opened(path) as file:
            # nibabel would report a damaged gzip stream as an unknown file type.
            start = file.read(NIFTI2_SIZE)
        with _quiet():
            kind = _kind_of(start) or type(nib.load(path))
            size = kind.header_class.template_dtype.itemsize
            raw = kind.header_class(start[:size], check=False)
            stored = raw.get_data_shape()
    except MedarError:
        raise
    except Exception as error:
        raise MedarError(f"{path}: not a readable NIfTI file ({one_line(error)})") from error
    if "intent_code" in raw and int(raw["intent_code"]) in CIFTI:
        raise MedarError(f"{path}: CIFTI surface data, not a volume")
    dtype = _voxel_type(path, raw)
    shape, channels = spatial_shape(path, tuple(int(n) for n in stored))
    affine, notes = _geometry(path, raw, shape, options)
    return Header(
        path=path,
        format=_format_name(raw),
        grid=file_grid(path, shape, affine),
        channels=channels,
        dtype=str(dtype.newbyteorder("=")),
        step=abs(_slope(raw)) if dtype.kind in "iu" else 0.0,
        load=lambda: _load(path, kind, raw, shape, channels),
        notes=notes,
    )


def _slope(raw: Any) -> float:
    """The factor from stored integers to values."""
    slope = float(raw["scl_slope"]) if "scl_slope" in raw else 1.0
    return slope if math.isfinite(slope) and slope else 1.0


def _voxel_type(path: Path, raw: Any) -> np.dtype[Any]:
    """The stored voxel type: integers or floats."""
    code = int(raw["datatype"])
    try:
        dtype: np.dtype[Any] = raw.get_data_dtype()
    except Exception as error:
        raise MedarError(f"{path}: voxel type code {code} is not one of NIfTI") from error
    if dtype.fields is not None:
        raise MedarError(f"{path}: RGB colours, not intensities; convert to one grey channel")
    if dtype.kind == "c":
        raise MedarError(f"{path}: complex voxels ({dtype}); write the magnitude or the phase")
    if dtype.kind not in "iuf":
        raise MedarError(f"{path}: voxel type code {code}; medar reads integers and floats")
    return dtype


def _geometry(
    path: Path, raw: Any, shape: Shape3, options: ReadOptions
) -> tuple[Affine, tuple[str, ...]]:
    """The affine: the sform, otherwise the qform, otherwise the assumed one."""
    spacing = tuple(float(abs(s)) for s in raw["pixdim"][1:4])
    coded = "sform_code" in raw
    sform = int(raw["sform_code"]) > 0 if coded else False
    qform = int(raw["qform_code"]) > 0 if coded else False
    unit = MILLIMETRES.get(int(raw["xyzt_units"]) & 7, 1.0) if coded else 1.0
    notes = []
    if not sform and not qform:
        missing = "neither sform nor qform" if coded else "an Analyze header without orientation"
        scaled = (spacing[0] * unit, spacing[1] * unit, spacing[2] * unit)
        affine, note = assumed_affine(path, scaled, options, missing=missing)
        return affine, (note,)
    affine = np.asarray(raw.get_sform() if sform else _qform(path, raw, spacing))
    if unit != 1.0:
        affine = np.diag([unit, unit, unit, 1.0]) @ affine
        notes.append(f"header in units of {unit:g} mm, converted")
    columns = np.linalg.norm(affine[:3, :3], axis=0)
    if sform and qform:
        try:
            other = np.diag([unit, unit, unit, 1.0]) @ _qform(path, raw, spacing)
            gap = corner_distance(shape, affine, other)
            if not gap <= DISAGREEMENT * columns.min():
                notes.append(f"sform and qform disagree by up to {gap:.3g} mm; the sform is used")
        except MedarError:
            notes.append("the qform is unusable; the sform is used")
    sheared = shear_note(affine)
    return affine, (*notes, sheared) if sheared else tuple(notes)


def _qform(path: Path, raw: Any, spacing: tuple[float, ...]) -> Affine:
    if min(spacing) <= 0:
        raise MedarError(
            f"{path}: pixdim must hold positive spacings in mm, got "
            f"{', '.join(f'{s:g}' for s in spacing)}; correct the header first"
        )
    if raw["pixdim"][0] == 0:
        # According to the standard, 0 stands for 1.
        raw["pixdim"][0] = 1
    names = ("quatern_b", "quatern_c", "quatern_d")
    length = math.sqrt(sum(float(raw[name]) ** 2 for name in names))
    if 1 < length <= 1 + ROUNDED:
        for name in names:  # as ITK does
            raw[name] /= length
    try:
        return cast(Affine, np.asarray(raw.get_qform()))
    except Exception as error:
        raise MedarError(f"{path}: unusable qform ({one_line(error)})") from error


def _kind_of(start: bytes) -> Any:
    """nibabel's class for a single-file NIfTI, by its first bytes; None for older formats."""
    if start[344:348] == b"n+1\0":
        return nib.Nifti1Image
    return nib.Nifti2Image if start[4:8] == b"n+2\0" else None


def _load(path: Path, kind: Any, raw: Any, shape: Shape3, channels: int) -> npt.NDArray[Any]:
    """The voxels, (X, Y, Z) or (C, X, Y, Z), in their stored type unless the header scales them."""
    try:
        offset, name = int(raw["vox_offset"]), path.name.lower()
        size = offset + math.prod(shape) * channels * raw.get_data_dtype().itemsize
        with _quiet():
            if name.endswith(".nii.gz"):
                image = kind.from_bytes(_inflated(path, max(size, NIFTI2_SIZE)))
            elif name.endswith(".gz"):
                beside = path.with_name(path.name[: -len(".hdr.gz")] + ".img.gz")
                files = {
                    "header": _inflated(path, raw.sizeof_hdr),
                    "image": _inflated(beside, size),
                }
                holders = {n: nib.FileHolder(fileobj=io.BytesIO(data)) for n, data in files.items()}
                image = kind.from_file_map(holders)
            else:
                image = nib.load(path)
            array = np.asanyarray(image.dataobj)
    except Exception as error:
        raise MedarError(f"{path}: its voxels cannot be read ({one_line(error)})") from error
    array = array.reshape(*shape, channels) if channels > 1 else array.reshape(shape)
    return np.moveaxis(array, -1, 0) if channels > 1 else array


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No remarks of nibabel and NumPy, such as on extensions of the header, which are not read."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _inflated(path: Path, size: int) -> bytes:
    """The first `size` bytes of a gzip file, once all of it has been compared with its checksum.

    What follows the voxels is neither kept nor, beyond `TRAILING`, tolerated: a small file can hold
    gigabytes of zeros.
    """
    if size > NIFTI2_SIZE + MOST_DEFLATED * path.stat().st_size:
        raise EOFError("the header states more voxels than the file can hold")
    # ISA-L inflates several times faster than zlib, which would dominate reading.
    with igzip.open(path) as file:
        content: bytes = file.read(size)
        if len(file.read(TRAILING + 1)) > TRAILING:
            raise ValueError(f"more than {TRAILING} bytes follow the voxels; is the header right?")
    return content


def _existing_header(path: Path) -> Path:
    """The header of a pair: for an .img file the .hdr file beside it."""
    lower = path.name.lower()
    for image, header in ((".img.gz", ".hdr.gz"), (".img", ".hdr")):
        if lower.endswith(image):
            beside = path.with_name(path.name[: -len(image)] + header)
            if not beside.exists():
                raise MedarError(f"{path}: its header {beside.name} is missing")
            return beside
        if lower.endswith(header):
            beside = path.with_name(path.name[: -len(header)] + image)
            if not beside.exists():
                raise MedarError(f"{path}: its voxels {beside.name} are missing")
    return path


def _opened(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(2)
    zipped, named = start == b"\x1f\x8b", path.name.lower().endswith(".gz")
    if start and zipped != named:
        raise MedarError(
            f"{path}: {'gzip data' if zipped else 'no gzip data'} under a name that "
            f"{'does not end' if zipped else 'ends'} in .gz; rename it"
        )
    return igzip.open(path) if named else path.open("rb")


def _format_name(raw: Any) -> str:
    if int(raw["sizeof_hdr"]) == NIFTI2_SIZE:
        return "NIfTI-2"
    return "NIfTI-1" if "sform_code" in raw else "Analyze 7.5"
