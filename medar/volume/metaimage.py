"""MetaImage (https://itk.org/Wiki/ITK/MetaIO/Documentation), in one file or with data files.

ITK gives a geometry to every file, if need be an identity that it does not contain; here
`TransformMatrix` and `ElementSpacing` must be stated, or a spacing to assume.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.volume.geometry import LPS_TO_RAS, Affine, shear_note
from medar.volume.header import Header, ReadOptions, assumed_affine, file_grid, spatial_shape
from medar.volume.nrrd import MILLIMETRES
from medar.volume.voxel_files import (
    Encoding,
    VoxelFiles,
    data_file,
    header_text,
    integers_of,
    listed_files,
    numbers_of,
    pattern_files,
    shown_value,
)

TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
"""A long has 32 bits, as in ITK."""

MOST_AXES, MOST_CHANNELS = 10, 100_000
HEADER_BYTES, NAMES = "header bytes", "names"
"""Keys of the header's length and, in lines, the data files after LIST."""


def read_meta_header(path: Path, options: ReadOptions) -> Header:
    """The header of a MetaImage file (see `read_header`)."""
    fields = _fields(path)
    (dimension,) = integers_of(path, "NDims", fields["NDims"], 1, 1, MOST_AXES)
    sizes, components = _sizes(path, fields, dimension)
    shape, channels = spatial_shape(path, (*sizes, components) if components > 1 else sizes)
    voxels = _voxels(path, fields, sizes, components, options)
    affine, notes = _affine(path, fields, dimension, options)

    def arranged(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        # The components of a voxel are stored together.
        return np.moveaxis(numbers.reshape((components, *sizes), order="F"), 0, -1)

    grid = file_grid(path, shape, affine)
    return voxels.as_header("MetaImage", grid, channels, arranged, notes)


def meta_files(path: Path) -> tuple[Path, ...]:
    """The data files that a header names, wherever they are; itself if the voxels follow it."""
    fields = _fields(path)
    (dimension,) = integers_of(path, "NDims", fields["NDims"], 1, 1, MOST_AXES)
    return _data_files(path, fields, _sizes(path, fields, dimension)[0], outside=True)


def _fields(path: Path) -> dict[str, str]:
    """The fields of a header, its length and the names after LIST."""
    fields: dict[str, str] = {}
    lines = header_text(path, b"", "MetaImage")
    for line, end in lines:
        at = min((line.index(sign) for sign in "=:" if sign in line), default=-1)
        if at < 0:
            break
        name, value = line[:at].strip(), line[at + 1 :].strip()
        if name in fields:
            raise MedarError(
                f"{path}: not a readable header: {shown_value(name)} is given twice; keep one"
            )
        fields[name] = value
        if name == "ElementDataFile":
            fields[HEADER_BYTES] = str(end)
            if value.split()[:1] == ["LIST"]:
                fields[NAMES] = "\n".join(one.strip() for one, _ in lines if one.strip())
            break
    if "NDims" not in fields or "ElementDataFile" not in fields:
        raise MedarError(f"{path}: not a MetaImage file (NDims or ElementDataFile is missing)")
    return fields


def _sizes(path: Path, fields: dict[str, str], dimension: int) -> tuple[tuple[int, ...], int]:
    """Voxels along each axis, and components of a voxel."""
    sizes = integers_of(path, "DimSize", fields.get("DimSize", ""), dimension)
    number = fields.get("ElementNumberOfChannels", "1")
    (components,) = integers_of(path, "ElementNumberOfChannels", number, 1, 1, MOST_CHANNELS)
    return sizes, components


def _voxels(
    path: Path,
    fields: dict[str, str],
    sizes: tuple[int, ...],
    components: int,
    options: ReadOptions,
) -> VoxelFiles:
    kind = fields.get("ElementType", "")
    if kind not in TYPES:
        raise MedarError(
            f"{path}: voxels of type {shown_value(kind)}; medar reads integers and floats"
        )
    files = _data_files(path, fields, sizes, options.allow_outside)
    own = files == (path,)
    encoding: Encoding = "raw"
    if not _flag(path, fields, "BinaryData", default=True):
        encoding = "text"
    elif _flag(path, fields, "CompressedData", default=False):
        encoding = "deflate"
        stated = fields.get("CompressedDataSize", "0")
        (stated_size,) = integers_of(path, "CompressedDataSize", stated, 1, 0, 2**62)
        there = path.stat().st_size - int(fields[HEADER_BYTES])
        if len(files) == 1 and not own:
            there = files[0].stat().st_size if files[0].is_file() else stated_size
        if len(files) == 1 and there < stated_size:
            raise MedarError(f"{path}: truncated: {there} bytes of voxels, expected {stated_size}")
    (skip,) = integers_of(path, "HeaderSize", fields.get("HeaderSize", "0"), 1, -1, 2**40)
    if skip and encoding != "raw":
        raise MedarError(f"{path}: HeaderSize {skip} needs raw voxels, not {encoding} ones")
    msb = any(
        _flag(path, fields, name, default=False)
        for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB")
    )
    start = int(fields[HEADER_BYTES]) if own and skip == 0 else skip
    return VoxelFiles(
        header=path,
        files=files,
        encoding=encoding,
        dtype=np.dtype((">" if msb else "<") + TYPES[kind]),
        count=int(np.prod(sizes, dtype=object)) * components,
        start=start,
    )


def _data_files(
    path: Path, fields: dict[str, str], sizes: tuple[int, ...], outside: bool
) -> tuple[Path, ...]:
    """The files of the voxels: the header's own, one beside it, a list or a pattern."""
    value = fields["ElementDataFile"]
    words = value.split()
    if value.upper() == "LOCAL":
        return (path,)
    if words[:1] == ["LIST"]:
        own = len(sizes) - 1
        if words[1:]:
            written = " ".join(words[1:]).upper().removesuffix("D")
            (own,) = integers_of(path, "the dimension after LIST", written, 1, 1, len(sizes))
        needed = int(np.prod(sizes[own:], dtype=object))
        names = fields[NAMES].split("\n") if fields[NAMES] else []
        return listed_files(path, names, needed, "its LIST", outside)
    if "%" in value:
        numbers = " ".join(words[1:]) or f"1 {sizes[-1]} 1"
        least = -(2**31)
        first, last, step = integers_of(
            path, "first, last and step of a pattern", numbers, 3, least
        )
        return pattern_files(path, words[0], first, last, step, sizes[-1], outside)
    return (data_file(path, value, outside),)


def _flag(path: Path, fields: dict[str, str], name: str, *, default: bool) -> bool:
    value = fields.get(name)
    if value is None:
        return default
    if value[:1].lower() not in ("t", "f", "1", "0"):
        raise MedarError(f"{path}: {name} must be True or False, got {shown_value(value)}")
    return value[:1].lower() in ("t", "1")


def _affine(
    path: Path, fields: dict[str, str], dimension: int, options: ReadOptions
) -> tuple[Affine, tuple[str, ...]]:
    """The affine of a file with axes; otherwise the assumed one."""
    unit = fields.get("DistanceUnits", "")
    if unit.lower() not in MILLIMETRES | {"?"}:
        raise MedarError(
            f"{path}: DistanceUnits must be mm, got {shown_value(unit)}; convert the file first"
        )
    slope = fields.get("ElementToIntensityFunctionSlope", "1")
    offset = fields.get("ElementToIntensityFunctionOffset", "0")
    if not (_equals(slope, 1.0) and _equals(offset, 0.0)):
        raise MedarError(
            f"{path}: scaled by ElementToIntensityFunction (slope {shown_value(slope)}, offset "
            f"{shown_value(offset)}), which ITK does not apply; apply it and remove both keys first"
        )
    # Without ElementSpacing the older ElementSize counts.
    spacing = None
    for name in ("ElementSize", "ElementSpacing"):
        if name in fields:
            spacing = numbers_of(path, name, fields[name], dimension)[:3]
    turned = [name for name in ("TransformMatrix", "Orientation", "Rotation") if name in fields]
    if not turned:
        missing = "a MetaImage header without TransformMatrix"
        sides = None if spacing is None else (spacing[0], spacing[1], spacing[2])
        affine, note = assumed_affine(path, sides, options, missing=missing)
        return affine, (note,)
    if spacing is None:
        raise MedarError(f"{path}: no ElementSpacing; add the voxel sides in mm to the header")
    if not (spacing > 0).all():
        sides_shown = ", ".join(f"{s:g}" for s in spacing)
        raise MedarError(f"{path}: spacing must be positive numbers in mm, got {sides_shown}")
    matrix = numbers_of(path, turned[0], fields[turned[0]], dimension**2)
    axes = matrix.reshape(dimension, dimension)
    if max(np.abs(axes[3:, :3]).max(initial=0), np.abs(axes[:3, 3:]).max(initial=0)) > 1e-6:
        raise MedarError(f"{path}: the grid moves along the fourth axis; medar reads fixed grids")
    affine = np.eye(4)
    # A row of the matrix is the direction of an axis.
    affine[:3, :3] = axes[:3, :3].T * spacing
    for name in ("Origin", "Position", "Offset"):
        if name in fields:
            affine[:3, 3] = numbers_of(path, name, fields[name], dimension)[:3]
    affine = LPS_TO_RAS @ affine
    note_on_shear = shear_note(affine)
    return affine, (note_on_shear,) if note_on_shear else ()


def _equals(written: str, number: float) -> bool:
    try:
        return float(written) == number
    except ValueError:
        return False
