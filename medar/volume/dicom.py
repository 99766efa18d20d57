"""DICOM series with one file per slice, through SimpleITK's GDCM.

The slices of a series are sorted by position, never by name or number, and must be evenly spaced:
the affine follows from the first and the last position. Each slice is read on its own, so that its
own rescale slope and intercept apply (PET).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813  the name that SimpleITK's own documentation uses

from medar.errors import MedarError
from medar.volume.dicom_values import check_values, without_inversion
from medar.volume.geometry import LPS_TO_RAS, SHEAR_TOLERANCE, Affine, shear_of
from medar.volume.header import Header, ReadOptions, file_grid, is_dicom

sitk.ProcessObject.SetGlobalWarningDisplay(False)

UNEVEN = 0.05
"""Largest deviation from even spacing, as a fraction of the step: stored positions are rounded."""

SAME_POSITION = 0.01
"""Slices closer than this, in mm, have the same position."""

TAGS = {
    "ImageType": "0008|0008",
    "Modality": "0008|0060",
    "SeriesDescription": "0008|103e",
    "EchoTime": "0018|0081",
    "TriggerTime": "0018|1060",
    "DiffusionBValue": "0018|9087",
    "SeriesInstanceUID": "0020|000e",
    "AcquisitionNumber": "0020|0012",
    "ImagePositionPatient": "0020|0032",
    "ImageOrientationPatient": "0020|0037",
    "TemporalPositionIdentifier": "0020|0100",
    "PhotometricInterpretation": "0028|0004",
    "NumberOfFrames": "0028|0008",
    "PixelSpacing": "0028|0030",
    "BitsAllocated": "0028|0100",
    "BitsStored": "0028|0101",
    "PixelRepresentation": "0028|0103",
    "RescaleIntercept": "0028|1052",
    "RescaleSlope": "0028|1053",
}
DISTINGUISHING = (
    "TemporalPositionIdentifier",
    "EchoTime",
    "TriggerTime",
    "DiffusionBValue",
    "AcquisitionNumber",
    "ImageType",
)
"""Tags that may distinguish slices at the same position, in the order of checking."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One file of a series: its tags, without its pixels."""

    path: Path
    tags: dict[str, str]
    size: tuple[int, int]
    """Columns and rows."""

    @property
    def uid(self) -> str:
        """The series that the slice belongs to."""
        return self.tags["SeriesInstanceUID"]

    def numbers(self, name: str, count: int) -> npt.NDArray[np.float64]:
        """The numbers of a tag.

        Raises:
            MedarError: they are not `count` finite numbers.
        """
        text = self.tags[name]
        try:
            values = np.array([float(part) for part in text.split("\\")])
        except ValueError:
            values = np.array([])
        if values.shape != (count,) or not np.isfinite(values).all():
            raise MedarError(f"{self.path}: {name} must hold {count} numbers, got {text!r}")
        return values


def read_dicom_header(path: Path, options: ReadOptions) -> Header:
    """The header of a DICOM series: its folder, or one of its files (see `read_header`)."""
    folder, series = (path, options.series) if path.is_dir() else (path.parent, None)
    if path != folder:
        selected = _read_slice(path)
        if selected is None:
            raise MedarError(f"{path}: not a readable DICOM image")
        series = selected.uid
    slices, unreadable = _slices_in(folder)
    slices = _select_series(folder, slices, series)
    for one in slices:
        _check_supported(one)
    if len(slices) == 1:
        raise MedarError(
            f"{slices[0].path}: a series of one slice, whose spacing is unknown; "
            "a volume has at least two slices"
        )
    _check_alike(slices)
    skipped = ""
    if unreadable:
        count, example = len(unreadable), unreadable[0].name
        skipped = f"{count} file(s) without a readable image skipped, such as {example}"
    slices, affine, notes = _arrange(folder, slices, skipped)
    first_tags = slices[0].tags
    signed = "int" if first_tags["PixelRepresentation"] == "1" else "uint"
    columns, rows = slices[0].size
    return Header(
        path=folder,
        format="DICOM",
        grid=file_grid(folder, (columns, rows, len(slices)), affine),
        channels=1,
        dtype=f"{signed}{first_tags['BitsAllocated']}",
        load=lambda: _load(slices),
        modality=first_tags["Modality"] if first_tags["Modality"] in ("CT", "MR") else None,
        notes=tuple(notes),
    )


def _slices_in(folder: Path) -> tuple[list[Slice], list[Path]]:
    """The DICOM images of a folder, and the files of slices that hold no readable image."""
    slices, unreadable = [], []
    for path in sorted(p for p in folder.iterdir() if p.is_file() and _is_of_series(p)):
        one = _read_slice(path)
        if one is None:
            unreadable.append(path)
        else:
            slices.append(one)
    if not slices:
        raise MedarError(f"{folder}: no DICOM image in this folder (subfolders are not searched)")
    return slices, unreadable


def _is_of_series(path: Path) -> bool:
    """Whether a file is meant to be a slice: DICOM, or one without ending that may be damaged.

    Slices without ending are known by their content, which an empty or damaged one does not have,
    nor an old one without a preamble.
    """
    name = path.name.lower()
    if name.startswith((".", "dicomdir", "readme", "licen")):
        return False
    # Names that are unique identifiers have dots, but end in a number.
    return is_dicom(path) or not path.suffix.strip(".0123456789")


def _read_slice(path: Path) -> Slice | None:
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    tags = {}
    for name, key in TAGS.items():
        text = reader.GetMetaData(key) if reader.HasMetaDataKey(key) else ""
        # Bytes of older character sets would break error messages.
        tags[name] = text.encode("ascii", "replace").decode().strip(" \0")
    columns, rows = reader.GetSize()[:2]
    return Slice(path=path, tags=tags, size=(int(columns), int(rows)))


def _reader(path: Path) -> Any:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def _select_series(folder: Path, slices: list[Slice], series: str | None) -> list[Slice]:
    groups: dict[str, list[Slice]] = {}
    for one in slices:
        groups.setdefault(one.uid, []).append(one)
    if series is None and len(groups) == 1:
        return slices
    if series in groups:
        return groups[series]
    listed = "; ".join(
        f"{uid} ({len(group)} slices, {group[0].tags['SeriesDescription'] or 'no description'})"
        for uid, group in groups.items()
    )
    if series is None:
        raise MedarError(
            f"{folder}: {len(groups)} series; choose one with series (--series): {listed}"
        )
    raise MedarError(f"{folder}: no series {series}; available: {listed}")


def _check_supported(one: Slice) -> None:
    """Refuse mosaics, multi-frame files, colours and values that cannot be had from the pixels."""
    advice = "convert it to NIfTI first, for instance with dcm2niix"
    if "MOSAIC" in one.tags["ImageType"].upper():
        raise MedarError(f"{one.path}: a Siemens mosaic (many slices in one image); {advice}")
    if one.tags["NumberOfFrames"] not in ("", "0", "1"):
        frames = one.tags["NumberOfFrames"]
        raise MedarError(f"{one.path}: enhanced multi-frame DICOM ({frames} frames); {advice}")
    if not one.tags["PhotometricInterpretation"].startswith("MONOCHROME"):
        colour = one.tags["PhotometricInterpretation"]
        raise MedarError(f"{one.path}: colours ({colour}), not intensities; convert to grey")
    check_values(one.path, one.tags)


def _check_alike(slices: list[Slice]) -> None:
    """Check that all slices of a series have the same size, pixel spacing and orientation."""
    first = slices[0]
    spacing = first.numbers("PixelSpacing", 2)
    orientation = first.numbers("ImageOrientationPatient", 6)
    if not (spacing > 0).all():
        raise MedarError(
            f"{first.path}: PixelSpacing must be positive, got {first.tags['PixelSpacing']}"
        )
    for one in slices[1:]:
        differs = None
        if one.size != first.size:
            differs = f"{one.size[0]}x{one.size[1]} pixels", f"{first.size[0]}x{first.size[1]}"
        elif not np.allclose(one.numbers("PixelSpacing", 2), spacing, atol=1e-4):
            differs = f"PixelSpacing {one.tags['PixelSpacing']}", first.tags["PixelSpacing"]
        elif not np.allclose(one.numbers("ImageOrientationPatient", 6), orientation, atol=1e-3):
            name = "ImageOrientationPatient"
            differs = f"{name} {one.tags[name]}", first.tags[name]
        if differs:
            raise MedarError(
                f"{one.path}: {differs[0]} where {first.path.name} has {differs[1]}; all slices of "
                "a volume must agree: split the series"
            )


def _arrange(
    folder: Path, slices: list[Slice], skipped: str
) -> tuple[list[Slice], Affine, list[str]]:
    """The slices from first to last along their normal, their affine in RAS+, and notes."""
    row, column = _directions(slices[0])
    normal = np.cross(row, column)
    points = np.array([one.numbers("ImagePositionPatient", 3) for one in slices])
    order = np.argsort(points @ normal, kind="stable")
    slices, points = [slices[i] for i in order], points[order]
    _check_even(folder, slices, points, normal, skipped)
    between_rows, between_columns = slices[0].numbers("PixelSpacing", 2)
    affine = np.eye(4)
    affine[:3, 0] = row * between_columns
    affine[:3, 1] = column * between_rows
    affine[:3, 2] = (points[-1] - points[0]) / (len(points) - 1)
    affine[:3, 3] = points[0]
    notes = [skipped] if skipped else []
    if shear_of(affine) > SHEAR_TOLERANCE:
        cosine = affine[:3, 2] @ normal / np.linalg.norm(affine[:3, 2])
        tilt = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
        notes.append(f"gantry tilt of {tilt:.2f} degrees; the grid is kept sheared, as acquired")
    return slices, LPS_TO_RAS @ affine, notes


def _directions(one: Slice) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Unit vectors along a row and along a column of pixels, in LPS."""
    both = one.numbers("ImageOrientationPatient", 6).reshape(2, 3)
    lengths = np.linalg.norm(both, axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(both[0] @ both[1]) > 1e-2:
        raise MedarError(
            f"{one.path}: ImageOrientationPatient must be two orthogonal unit vectors, got "
            f"{one.tags['ImageOrientationPatient']}"
        )
    row, column = both / lengths[:, None]
    return row, column


def _check_even(
    folder: Path,
    slices: Sequence[Slice],
    points: npt.NDArray[np.float64],
    normal: npt.NDArray[np.float64],
    skipped: str,
) -> None:
    """Check that no slices share a position, are missing, or are unevenly spaced."""
    repeated = np.flatnonzero(np.diff(points @ normal) < SAME_POSITION)
    if repeated.size:
        a, b = slices[repeated[0]], slices[repeated[0] + 1]
        raise MedarError(
            f"{folder}: {repeated.size} slice(s) have the same position as another, such as "
            f"{a.path.name} and {b.path.name} ({_difference(a, b)}); "
            "split the series into one volume each"
        )
    count = len(points) - 1
    step = (points[-1] - points[0]) / count
    even = points[0] + np.arange(count + 1)[:, None] * step
    if np.linalg.norm(points - even, axis=1).max() <= UNEVEN * np.linalg.norm(step):
        return
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    usual = float(np.sort(steps)[(count - 1) // 2])
    missing = np.rint(steps / usual).astype(int) - 1
    gaps = np.flatnonzero(missing > 0)
    if not gaps.size:
        raise MedarError(
            f"{folder}: uneven slices, {steps.min():.4g} to {steps.max():.4g} mm apart; "
            "resample them to an even grid with the scanner's software first"
        )
    k = int(gaps[0])
    raise MedarError(
        f"{folder}: {missing[k]} slice(s) missing after slice {k + 1} of {count + 1}, between "
        f"{slices[k].path.name} and {slices[k + 1].path.name}: {steps[k]:.4g} mm where the usual "
        f"step is {usual:.4g} mm ({missing.sum()} missing in all); add the missing files"
        + (f" ({skipped})" if skipped else "")
    )


def _difference(a: Slice, b: Slice) -> str:
    """The first tag that distinguishes two slices at the same position, for an error message."""
    for name in DISTINGUISHING:
        if a.tags[name] != b.tags[name]:
            return f"{name} {a.tags[name] or 'none'} and {b.tags[name] or 'none'}"
    return "all tags agree; copies?"


def _load(slices: Sequence[Slice]) -> npt.NDArray[np.float32]:
    """The pixels as (X, Y, Z) float32, each slice scaled by its own slope and intercept."""
    columns, rows = slices[0].size
    stack = np.empty((len(slices), rows, columns), dtype=np.float32)
    for picture, one in zip(stack, slices, strict=True):
        reader = _reader(one.path)
        reader.SetOutputPixelType(sitk.sitkFloat32)
        try:
            read = sitk.GetArrayFromImage(reader.Execute()).reshape(rows, columns)
        except (RuntimeError, ValueError) as error:
            reason = _reason(error)
            raise MedarError(f"{one.path}: its pixels cannot be read ({reason})") from error
        picture[...] = without_inversion(read, one.tags)
    return stack.transpose(2, 1, 0)


def _reason(error: BaseException) -> str:
    """The reason in an ITK error: its last line, without object addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = re.sub(r"^ITK ERROR: \w+\(0x[0-9a-f]+\): ", "", lines[-1] if lines else "")
    return " ".join(last.split())[:200] or type(error).__name__
