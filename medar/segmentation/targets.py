"""The files that label maps are written to: their formats, and what they may replace."""

from pathlib import Path
from typing import Literal

from medar.data.sources.files import is_dicom_folder
from medar.errors import MedarError
from medar.files import check_writable
from medar.volume import Volume, description_of, write_volume
from medar.volume.dicom_seg import check_seg, write_seg

LabelFormat = Literal["nii.gz", "nii", "nrrd", "mha", "seg"]
SEG_ENDING = ".dcm"
ENDINGS: dict[LabelFormat, str] = {
    "nii.gz": ".nii.gz", "nii": ".nii", "nrrd": ".nrrd", "mha": ".mha", "seg": SEG_ENDING,
}  # fmt: skip
"""Endings of the formats of label maps, the default first."""

DESCRIPTION = "medar segment"
"""The description in the header of label maps, by which they are recognised."""


def is_folder_of_volumes(path: Path) -> bool:
    """Whether a path is a folder of several volumes, rather than a file or a DICOM series."""
    return path.is_dir() and not is_dicom_folder(path)


def check_output(path: Path, out: Path, format: LabelFormat | None = None) -> str:
    """Check that `out` can hold the label maps of `path`, before any work is done.

    Args:
        path: a volume, or a folder of volumes.
        out: a file, whose ending gives the format; for a folder of volumes, a folder.
        format: of the label maps in a folder; default: nii.gz.

    Returns:
        The ending of the label maps.

    Raises:
        MedarError: a folder needs an output folder, a file one of a format that is written; or
            `out` contains the input, or cannot be written to.
    """
    name = out.name.lower()
    named = next((ending for ending in ENDINGS.values() if name.endswith(ending)), None)
    if SEG_ENDING in (named, ENDINGS[format or "nii.gz"]):
        check_seg()
    if is_folder_of_volumes(path):
        if named or (out.exists() and not out.is_dir()):
            raise MedarError(f"{out}: must be a folder for the label maps of the folder {path}")
        if path.resolve().is_relative_to(out.resolve()):
            raise MedarError(f"{out}: contains the input {path}; name another folder")
        check_writable(out)
        return ENDINGS[format or "nii.gz"]
    if named is None:
        endings = ", ".join(ENDINGS.values())
        raise MedarError(f"{out}: label maps are written as {endings}; name such a file")
    if format is not None and named != ENDINGS[format]:
        raise MedarError(
            f"{out}: ends in {named}, but the format is {format}; leave out the format, or name a "
            f"file in {ENDINGS[format]}"
        )
    check_target(out)
    check_writable(out.parent)
    return named


def write_label(target: Path, label: Volume, names: dict[int, str], model: str) -> None:
    """Write a label map on the grid of the file that its volume was read from.

    Args:
        target: its ending gives the format.
        label: (1, X, Y, Z).
        names: of the labels by value.
        model: digest of the network, for DICOM SEG.

    Raises:
        MedarError: it cannot be written.
    """
    if target.name.lower().endswith(SEG_ENDING):
        write_seg(target, label, names, model=model, description=DESCRIPTION)
    else:
        write_volume(target, label, grid="source", description=DESCRIPTION)


def check_target(target: Path) -> None:
    """Check that a file to be written does not exist, or is a label map of `medar segment`.

    Raises:
        MedarError: it is another file, such as an image.
    """
    if target.exists() and description_of(target) != DESCRIPTION:
        raise MedarError(
            f"{target}: exists and was not written by medar segment; name another file, or delete "
            "it"
        )
