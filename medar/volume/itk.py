"""NRRD and MetaImage, with or without a detached data file, through SimpleITK.

ITK always returns a geometry, if need be an identity that the file does not contain, and the
library of MetaImage prints to the terminal. The text header of both formats is therefore read
first.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813  the name that SimpleITK's own documentation uses

from medar.errors import MedarError
from medar.volume.geometry import LPS_TO_RAS, Affine, Shape3, shear_note
from medar.volume.header import Header, ReadOptions, assumed_affine, file_grid, spatial_shape

sitk.ProcessObject.SetGlobalWarningDisplay(False)

_INTEGERS = [f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)]
VOXEL_TYPES = {
    getattr(sitk, f"sitk{kind}{name}"): name.lower()
    for kind in ("", "Vector")
    for name in (*_INTEGERS, "Float32", "Float64")
}
"""NumPy's name of each of ITK's voxel types that medar reads."""

TO_RAS = {
    "left-posterior-superior": LPS_TO_RAS,
    "left-posterior-superior-time": LPS_TO_RAS,
    "right-anterior-superior-time": np.eye(4),
    "left-anterior-superior-time": np.diag([-1.0, 1.0, 1.0, 1.0]),
}
"""Maps a NRRD space to RAS+. ITK converts RAS and LAS to LPS itself, unless time is an axis."""

MILLIMETRES = {"", "mm", "millimeter", "millimeters", "millimetre", "millimetres"}
TIME_UNITS = {"s", "sec", "seconds", "ms", "msec", "milliseconds"}


def read_itk_header(path: Path, options: ReadOptions) -> Header:
    """The header of a NRRD or MetaImage file (see `read_header`)."""
    nrrd = path.name.lower().endswith((".nrrd", ".nhdr"))
    text = _nrrd_text(path) if nrrd else _meta_text(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")
    _check_data_file(path, text.get("data file", text.get("datafile", "")) if nrrd else "")
    try:
        reader.ReadImageInformation()
    except Exception as error:
        raise MedarError(f"{path}: not a readable header ({itk_reason(error)})") from error
    dtype = _voxel_type(path, reader)
    components = int(reader.GetNumberOfComponents())
    sizes = tuple(int(n) for n in reader.GetSize())
    shape, channels = spatial_shape(path, (*sizes, components) if components > 1 else sizes)
    if not nrrd:
        _check_meta_data(path, text, int(np.prod(sizes)) * components * np.dtype(dtype).itemsize)
    affine, notes = (_nrrd_affine if nrrd else _meta_affine)(path, text, reader, options)
    return Header(
        path=path,
        format="NRRD" if nrrd else "MetaImage",
        grid=file_grid(path, shape, affine),
        channels=channels,
        dtype=dtype,
        load=lambda: _load(path, shape, channels, vector=components > 1),
        notes=notes,
    )


def itk_reason(error: BaseException) -> str:
    """The reason in an ITK error: its last line, without object addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = re.sub(r"^ITK ERROR: \w+\(0x[0-9a-f]+\): ", "", lines[-1] if lines else "")
    return " ".join(last.split())[:200] or type(error).__name__


def _nrrd_text(path: Path) -> dict[str, str]:
    """The fields of a NRRD header, names in lower case."""
    fields = {}
    with path.open("rb") as file:
        if not file.readline(16).startswith(b"NRRD000"):
            raise MedarError(f"{path}: not a NRRD file (it does not begin with NRRD000)")
        # A blank line ends the header; no line of a real one comes near the limit.
        while line := file.readline(65536).strip():
            name, colon, value = line.decode("latin-1").partition(": ")
            if colon and not name.startswith("#"):
                fields[name.strip().lower()] = value.strip()
    return fields


def _meta_text(path: Path) -> dict[str, str]:
    """The fields of a MetaImage header, and "header bytes", its length."""
    fields = {}
    with path.open("rb") as file:
        while line := file.readline(65536):
            name, equals, value = line.decode("latin-1").partition("=")
            if not equals:
                break
            fields[name.strip()] = value.strip()
            if name.strip() == "ElementDataFile":
                fields["header bytes"] = str(file.tell())
                break
    if "NDims" not in fields or "ElementDataFile" not in fields:
        raise MedarError(f"{path}: not a MetaImage file (NDims or ElementDataFile is missing)")
    return fields


def _check_data_file(path: Path, name: str) -> Path | None:
    """The detached data file; None if the header names a list, a pattern or no file."""
    if not name or name.split()[0].upper() in ("LIST", "LOCAL", "SKIPLIST") or "%" in name:
        return None
    beside = path.parent / name
    if not beside.is_file():
        raise MedarError(f"{path}: its data file {name} is missing; put it beside the header")
    return beside


def _check_meta_data(path: Path, text: dict[str, str], size: int) -> None:
    """Check for truncated voxels, about which MetaImage's library would print to the terminal."""
    name = text["ElementDataFile"]
    beside = _check_data_file(path, name)
    if name.upper() == "LOCAL":
        there = path.stat().st_size - int(text["header bytes"])
    elif beside:
        there = beside.stat().st_size
    else:
        return
    if text.get("CompressedData", "").lower() == "true":
        written = text.get("CompressedDataSize", "0")
        size = int(written) if written.isdigit() else 0
    elif text.get("BinaryData", "").lower() == "false":
        return
    if there < size:
        raise MedarError(f"{path}: truncated: {there} bytes of voxels, expected {size}")


def _voxel_type(path: Path, reader: Any) -> str:
    kinds = [reader.GetMetaData(k) for k in reader.GetMetaDataKeys() if k == "NRRD_kinds[pixel]"]
    name = VOXEL_TYPES.get(reader.GetPixelID())
    if kinds and kinds[0].lower().endswith("color"):
        raise MedarError(f"{path}: {kinds[0]} colours, not intensities; convert to grey")
    if name is None:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise MedarError(f"{path}: voxels of type {kind!r}; medar reads integers and floats")
    return name


def _nrrd_affine(
    path: Path, text: dict[str, str], reader: Any, options: ReadOptions
) -> tuple[Affine, tuple[str, ...]]:
    """The affine of a NRRD file with a patient space; otherwise the assumed one."""
    units = re.findall(r'"([^"]*)"', text.get("space units") or text.get("units", ""))
    odd = [u for u in units if u.lower() not in MILLIMETRES | TIME_UNITS]
    if odd:
        raise MedarError(f"{path}: space units must be mm, got {odd[0]!r}; convert the file first")
    space = reader.GetMetaData("NRRD_space") if reader.HasMetaDataKey("NRRD_space") else None
    if space in TO_RAS and "space directions" in text:
        return _itk_affine(path, reader, TO_RAS[space])
    has_spacing = "spacings" in text or "space directions" in text
    missing = f"a NRRD header of space {space}" if space else "a NRRD header without space"
    if space in TO_RAS:
        missing = "a NRRD header without space directions"
    affine, note = assumed_affine(path, _spacing(reader, has_spacing), options, missing=missing)
    return affine, (note,)


def _meta_affine(
    path: Path, text: dict[str, str], reader: Any, options: ReadOptions
) -> tuple[Affine, tuple[str, ...]]:
    """The affine of a MetaImage file with axes; otherwise the assumed one."""
    unit = text.get("DistanceUnits", "")
    if unit.lower() not in MILLIMETRES | {"?"}:
        raise MedarError(f"{path}: DistanceUnits must be mm, got {unit!r}; convert the file first")
    slope = text.get("ElementToIntensityFunctionSlope", "1")
    offset = text.get("ElementToIntensityFunctionOffset", "0")
    if not (_equals(slope, 1.0) and _equals(offset, 0.0)):
        raise MedarError(
            f"{path}: scaled by ElementToIntensityFunction (slope {slope}, offset {offset}), which "
            "ITK does not apply; apply it and remove both keys first"
        )
    # Without ElementSpacing ITK uses the older ElementSize.
    spaced = "ElementSpacing" in text or "ElementSize" in text
    if not {"TransformMatrix", "Orientation", "Rotation"} & set(text):
        missing = "a MetaImage header without TransformMatrix"
        affine, note = assumed_affine(path, _spacing(reader, spaced), options, missing=missing)
        return affine, (note,)
    if not spaced:
        raise MedarError(f"{path}: no ElementSpacing; add the voxel sides in mm to the header")
    return _itk_affine(path, reader, LPS_TO_RAS)


def _equals(written: str, number: float) -> bool:
    try:
        return float(written) == number
    except ValueError:
        return False


def _spacing(reader: Any, stated: bool) -> tuple[float, float, float] | None:
    x, y, z = (*reader.GetSpacing(), 0.0)[:3]
    return (float(x), float(y), float(z)) if stated else None


def _itk_affine(path: Path, reader: Any, to_ras: Affine) -> tuple[Affine, tuple[str, ...]]:
    """The affine that ITK read, in RAS+, and a note if its axes are sheared."""
    n = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(n, n)
    if np.abs(direction[:3, 3:]).max(initial=0) > 1e-6:
        raise MedarError(f"{path}: the grid moves along the fourth axis; medar reads fixed grids")
    spacing = np.array(reader.GetSpacing()[:3])
    if not (spacing > 0).all():
        sides = ", ".join(f"{s:g}" for s in spacing)
        raise MedarError(f"{path}: spacing must be positive numbers in mm, got {sides}")
    affine = np.eye(4)
    affine[:3, :3] = direction[:3, :3] * spacing
    affine[:3, 3] = reader.GetOrigin()[:3]
    affine = to_ras @ affine
    note = shear_note(affine)
    return affine, (note,) if note else ()


def _load(path: Path, shape: Shape3, channels: int, *, vector: bool) -> npt.NDArray[Any]:
    """The voxels, (X, Y, Z) or (C, X, Y, Z)."""
    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except Exception as error:
        raise MedarError(f"{path}: its voxels cannot be read ({itk_reason(error)})") from error
    # ITK's arrays have the axes in reverse order, but vector components last.
    array = np.moveaxis(array, -1, 0).T if vector else array.T
    array = array.reshape(*shape, channels)
    return np.moveaxis(array, -1, 0) if channels > 1 else array[..., 0]
