"""DICOM series: files of one slice, through SimpleITK's GDCM, and enhanced multi-frame files.

Each slice is read on its own, so that its own rescale slope and intercept apply (PET).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.volume.apart import run_apart
from medar.volume.dicom_enhanced import frames_of, is_enhanced, load_frames, read_file
from medar.volume.dicom_kinds import is_segmentation, other_kind, storage_class
from medar.volume.dicom_order import arrange, check_alike
from medar.volume.dicom_slice import Slice
from medar.volume.dicom_values import (
    check_alike_rescaling,
    check_bits,
    check_rescaling,
    check_table,
    without_inversion,
)
from medar.volume.gdcm import read_pixels
from medar.volume.geometry import Affine
from medar.volume.header import DICOM_ENDINGS, Header, ReadOptions, file_grid, is_dicom

LEFT_OVER = (".gz", ".zip", ".part", ".partial", ".crdownload", ".download", ".filepart")
"""What stands behind the ending of a slice that is packed, or was not downloaded to its end."""


@dataclass(kw_only=True)
class _Folder:
    """The files of a folder, by what they are."""

    slices: list[Slice] = field(default_factory=list)
    """Images, multi-frame files whole."""
    unreadable: list[Path] = field(default_factory=list)
    """Files that are meant to be slices and hold no readable image."""
    others: dict[Path, tuple[str, str]] = field(default_factory=dict)
    """Objects that are no scans: their kind, and what to do with them."""

    @property
    def skipped(self) -> str:
        """A note on the files that are not read; "" if there are none."""
        notes = []
        if self.unreadable:
            notes.append(
                f"{len(self.unreadable)} file(s) without a readable image skipped, such as "
                f"{self.unreadable[0].name}"
            )
        # Segmentations belong beside their scan: they are its label maps.
        if others := {p: kind for p, kind in self.others.items() if not is_segmentation(p)}:
            path, (kind, _) = next(iter(others.items()))
            notes.append(
                f"{len(others)} file(s) that are no scans skipped, such as {path.name} ({kind})"
            )
        return "; ".join(notes)


def read_dicom_header(path: Path, options: ReadOptions) -> Header:
    """The header of a DICOM series: its folder, or one of its files (see `read_header`)."""
    folder, slices, affine, notes = ordered_series(path, options.series)
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
        series=slices[0].uid,
        frame_of_reference=first_tags["FrameOfReferenceUID"] or None,
    )


def ordered_series(path: Path, series: str | None) -> tuple[Path, list[Slice], Affine, list[str]]:
    """The folder of a series, its slices in their order, their affine in RAS+, and notes.

    Args:
        path: the folder, or one file of the series.
        series: SeriesInstanceUID, for a folder of several series.

    Raises:
        MedarError: there is no such series, or its slices do not form one volume.
    """
    folder = path if path.is_dir() else path.parent
    if path != folder:
        if kind := other_kind(storage_class(path)):
            raise MedarError(f"{path}: {kind[0]}, not a scan; {kind[1]}")
        selected = read_file(path)
        if selected is None:
            raise MedarError(f"{path}: not a readable DICOM image")
        series = selected.uid
    found = _files_in(folder)
    slices = []
    for one in _select_series(folder, found.slices, series):
        _check_supported(one)
        slices += frames_of(one) if is_enhanced(one) else [one]
    for one in slices:
        check_rescaling(one)
        check_bits(one)
    check_alike_rescaling(slices)
    if len(slices) == 1:
        raise MedarError(
            f"{slices[0].path}: a series of one slice, whose spacing is unknown; "
            "a volume has at least two slices"
        )
    check_alike(slices)
    notes = [note for note in (found.skipped, _elsewhere(folder, slices[0].uid)) if note]
    return folder, *arrange(folder, slices, "; ".join(notes))


def _elsewhere(folder: Path, series: str) -> str:
    """A note on subfolders with slices of the same series, which are not read; "" without any."""
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    found = [path.name for path in inner if first_series(path) == series]
    return (
        f"{len(found)} subfolder(s) with files of this series skipped ({found[0]})" if found else ""
    )


def series_files(path: Path) -> tuple[Path, ...]:
    """The files of the series that a file belongs to; the file alone if it is not readable."""
    selected = read_file(path)
    if selected is None:
        return (path,)
    beside = _meant_as_slices(path.parent)
    slices = [one for p in beside if p.exists() and (one := read_file(p)) is not None]
    return tuple(one.path for one in slices if one.uid == selected.uid) or (path,)


def first_series(folder: Path) -> str | None:
    """SeriesInstanceUID of the first image of a folder; None without one."""
    for path in _meant_as_slices(folder):
        if not path.exists() or other_kind(storage_class(path)):
            continue
        if found := read_file(path):
            return found.uid
    return None


def _files_in(folder: Path) -> _Folder:
    """The files of a folder that are, or are meant to be, DICOM objects.

    Raises:
        MedarError: there is no image.
    """
    found = _Folder()
    for path in _meant_as_slices(folder):
        if not path.exists():
            found.unreadable.append(path)
            continue
        kind = other_kind(storage_class(path))
        one = None if kind else read_file(path)
        if one and (kind := other_kind(one.tags["SOPClassUID"])):
            one = None
        if kind:
            found.others[path] = kind
        elif one is None:
            found.unreadable.append(path)
        else:
            found.slices.append(one)
    if found.slices:
        return found
    if found.others:
        path, (name, advice) = next(iter(found.others.items()))
        raise MedarError(f"{path}: {name}, not a scan; {advice}")
    damaged = f"{found.skipped}; " if found.unreadable else ""
    raise MedarError(
        f"{folder}: no DICOM image in this folder ({damaged}subfolders are not searched)"
    )


def _meant_as_slices(folder: Path) -> list[Path]:
    """The files of a folder that are meant to be slices, by name; also links that lead nowhere."""
    entries = (path for path in sorted(folder.iterdir()) if not path.is_dir())
    return [path for path in entries if (path.is_file() or path.is_symlink()) and _is_slice(path)]


def _is_slice(path: Path) -> bool:
    """Whether a file is meant to be a slice: DICOM, or one that may be damaged or incomplete.

    Slices without ending are known by their content, which an empty or damaged one does not have,
    nor an old one without a preamble.
    """
    name = path.name.lower()
    if name.startswith((".", "dicomdir", "readme", "licen")):
        return False
    for ending in LEFT_OVER:
        if name.removesuffix(ending).endswith(DICOM_ENDINGS):
            return True
    # Names that are unique identifiers have dots, but end in a number.
    return is_dicom(path) or not path.suffix.strip(".0123456789")


def _select_series(folder: Path, slices: list[Slice], series: str | None) -> list[Slice]:
    groups: dict[str, list[Slice]] = {}
    for one in slices:
        groups.setdefault(one.uid, []).append(one)
    if series is None and len(groups) == 1:
        return slices
    if series in groups:
        return groups[series]
    listed = "; ".join(
        f"{uid} ({sum(map(_count, group))} slices, "
        f"{group[0].tags['SeriesDescription'] or 'no description'})"
        for uid, group in groups.items()
    )
    if series is None:
        raise MedarError(
            f"{folder}: {len(groups)} series; choose one with series (--series): {listed}"
        )
    raise MedarError(f"{folder}: no series {series}; available: {listed}")


def _count(one: Slice) -> int:
    """The number of frames that a file states."""
    stated = one.tags["NumberOfFrames"]
    return int(stated) if stated.isdigit() else 1


def _check_supported(one: Slice) -> None:
    """Refuse mosaics, colours and values that are given by a table."""
    if "MOSAIC" in one.tags["ImageType"].upper():
        raise MedarError(
            f"{one.path}: a Siemens mosaic (many slices in one image); convert it to NIfTI first, "
            "for instance with dcm2niix"
        )
    if not one.tags["PhotometricInterpretation"].startswith("MONOCHROME"):
        colour = one.tags["PhotometricInterpretation"]
        raise MedarError(f"{one.path}: colours ({colour}), not intensities; convert to grey")
    check_table(one.path)


def _load(slices: Sequence[Slice]) -> npt.NDArray[np.float32]:
    """The pixels as (X, Y, Z) float32, each slice scaled by its own slope and intercept."""
    columns, rows = slices[0].size
    stack = np.empty((len(slices), rows, columns), dtype=np.float32)
    load_frames(slices, stack)
    for picture, one in zip(stack, slices, strict=True):
        if one.frame is not None:
            continue
        read = run_apart(one.path, read_pixels, one.path, one.path, rescaled=True)
        if read.size != rows * columns:
            raise MedarError(
                f"{one.path}: its pixels cannot be read ({read.size}, expected {rows * columns})"
            )
        picture[...] = without_inversion(read.reshape(rows, columns), one.tags)
    return stack.transpose(2, 1, 0)
