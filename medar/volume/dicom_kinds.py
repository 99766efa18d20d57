"""DICOM objects that are no scans: what they are, and what to do with them instead.

They lie beside scans in many exports. SEG, RT Dose and parametric maps have pixels and positions,
so that their class alone tells them from an image.
"""

import re
from pathlib import Path

HEAD = 1024
"""Bytes of a file in which its class stands, at the beginning of the file meta information."""

CLASS = re.compile(rb"\x02\x00\x02\x00UI(..)", re.DOTALL)
"""(0002,0002) Media Storage SOP Class UID and its length; always explicit little endian."""

TO_NIFTI = "convert it to NIfTI or NRRD first, for instance with"
SCAN = "give the series of the scan"
STORAGE = "1.2.840.10008.5.1.4.1.1."
KINDS = {
    "66.4": ("a segmentation (DICOM SEG)", f"{TO_NIFTI} dcmqi or 3D Slicer"),
    "66.7": ("a segmentation (DICOM label map)", f"{TO_NIFTI} highdicom or 3D Slicer"),
    "66.5": ("a surface segmentation", f"{TO_NIFTI} 3D Slicer"),
    "30": ("a parametric map", f"{TO_NIFTI} dcmqi or 3D Slicer"),
    "481.2": ("a dose distribution (RT Dose), in a unit and on a grid of its own", SCAN),
    "481.3": ("contours (RT Structure Set)", f"{TO_NIFTI} plastimatch or 3D Slicer"),
    "481.5": ("a treatment plan (RT Plan)", SCAN),
    "481.8": ("a treatment plan (RT Ion Plan)", SCAN),
    "66": ("raw data", SCAN),
    "66.1": ("a registration", SCAN),
    "66.3": ("a registration", SCAN),
    "104.1": ("a document (PDF)", SCAN),
    "11.": ("a presentation state", SCAN),
    "88.": ("a report", SCAN),
}
"""Name and advice by SOP class, without its beginning; an entry ending in a dot is a prefix."""


def storage_class(path: Path) -> str:
    """The SOP class of a file with file meta information; "" for any other."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    found = CLASS.search(head) if head[128:132] == b"DICM" else None
    if found is None:
        return ""
    value = head[found.end() : found.end() + int.from_bytes(found[1], "little")]
    return value.decode("ascii", "replace").strip(" \0")


def other_kind(uid: str) -> tuple[str, str] | None:
    """Name and advice for a SOP class that is no scan; None for scans and unknown classes."""
    if not uid.startswith(STORAGE):
        return None
    rest = uid.removeprefix(STORAGE)
    first, _, _ = rest.partition(".")
    return KINDS.get(rest) or KINDS.get(f"{first}.")
