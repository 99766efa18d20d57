"""Writing a volume in the format that its name ends in, and the description in such a file."""

from pathlib import Path
from typing import Literal

from medar.errors import MedarError
from medar.volume.volume import Volume
from medar.volume.write import nifti_description, write_nifti
from medar.volume.write_headers import header_description, write_metaimage, write_nrrd

WRITERS = {
    ".nii": write_nifti,
    ".nii.gz": write_nifti,
    ".nrrd": write_nrrd,
    ".mha": write_metaimage,
}
"""By the ending of a file."""


def write_volume(
    path: str | Path,
    volume: Volume,
    *,
    grid: Literal["own", "source"] = "own",
    description: str = "",
) -> None:
    """Write a volume as NIfTI, NRRD or MetaImage, by the ending of its name.

    Args:
        path: ends in .nii, .nii.gz, .nrrd or .mha.
        volume: the volume.
        grid: see `write_nifti`.
        description: where the format has a place for it: what the volume is.

    Raises:
        MedarError: another ending, no source grid, or the file cannot be written.
    """
    check_written_ending(path)
    WRITERS[_ending(path)](path, volume, grid=grid, description=description)


def check_written_ending(*paths: str | Path | None) -> None:
    """Check that files to be written have the ending of a format; None is allowed.

    Raises:
        MedarError: one has not.
    """
    for path in paths:
        if path is not None and not _ending(path):
            raise MedarError(f"{path}: volumes are written as {', '.join(WRITERS)}")


def description_of(path: str | Path) -> str | None:
    """The description in a file, as the functions that write volumes have put it there."""
    path = Path(path)
    if path.name.lower().endswith(".dcm"):
        from medar.volume.dicom_seg import seg_description

        return seg_description(path)
    writer = WRITERS.get(_ending(path))
    if writer is write_nifti:
        return nifti_description(path)
    return None if writer is None else header_description(path)


def _ending(path: str | Path) -> str:
    """The ending of a format that is written; "" for any other."""
    name = Path(path).name.lower()
    return next((ending for ending in WRITERS if name.endswith(ending)), "")
