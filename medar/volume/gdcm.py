"""What GDCM reads, through SimpleITK: the tags and the pixels of one DICOM file.

GDCM and the C libraries that decode compressed pixels for it may end the process on damage that
nobody has foreseen: these functions are called by way of `medar.volume.apart`.
"""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.volume.decoder_messages import decoding
from medar.volume.dicom_kinds import HEAD

COMPRESSED = (b"1.2.840.10008.1.2.4.", b"1.2.840.10008.1.2.5")
"""Beginnings of the transfer syntaxes of compressed pixels."""


def read_tags(path: Path, keys: Mapping[str, str]) -> tuple[dict[str, str], tuple[int, int]] | None:
    """Tags of a file by name, "" for those it lacks, and its columns and rows.

    Args:
        path: the file.
        keys: names and numbers of the tags, such as "0008|0060".

    Returns:
        None for a file without an image that GDCM can read.
    """
    reader = _reader(path)
    try:
        # GDCM reads the header of compressed pixels here, and prints what it finds there.
        with decoding(path) if _is_compressed(path) else contextlib.nullcontext():
            reader.ReadImageInformation()
    except (RuntimeError, MedarError):
        return None
    tags = {
        name: str(reader.GetMetaData(key)) if reader.HasMetaDataKey(key) else ""
        for name, key in keys.items()
    }
    columns, rows = reader.GetSize()[:2]
    return tags, (int(columns), int(rows))


def _is_compressed(path: Path) -> bool:
    """Whether a file states a transfer syntax of compressed pixels."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    return any(syntax in head for syntax in COMPRESSED)


def read_pixels(path: Path, named: Path, *, rescaled: bool) -> npt.NDArray[Any]:
    """The pixels of a file of one slice, (1, rows, columns).

    Args:
        path: the file.
        named: what messages name, where the file is a temporary one.
        rescaled: whether to apply slope and intercept, to float32; otherwise they are as stored.

    Raises:
        MedarError: they cannot be read, or are damaged.

    Warns:
        UserWarning: the decoder printed a remark.
    """
    import SimpleITK as sitk  # noqa: N813  slow to load, and only needed in one process

    reader = _reader(path)
    if rescaled:
        reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        with decoding(named):
            return np.asarray(sitk.GetArrayFromImage(reader.Execute()))
    except (RuntimeError, ValueError) as error:
        raise MedarError(f"{named}: its pixels cannot be read ({_reason(error)})") from error


def _reader(path: Path) -> Any:
    """SimpleITK's reader of a DICOM file, not yet read."""
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def _reason(error: BaseException) -> str:
    """The reason in an ITK error: its last line, without object addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = re.sub(r"^ITK ERROR: \w+\(0x[0-9a-f]+\): ", "", lines[-1] if lines else "")
    return " ".join(last.split())[:200] or type(error).__name__
