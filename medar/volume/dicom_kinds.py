"""DICOM objects that are no scans: what they are, and what to do with them instead.

They lie beside scans in many exports. SEG, RT Dose and parametric maps have pixels and positions,
so that their class alone tells them from an image. Segmentations are read as label maps.
"""

import re
from pathlib import Path

from medar.errors import MedarError

HEAD = 1024
"""Bytes of a file in which its class stands, at the beginning of the file meta information."""

CLASS = re.compile(rb"\x02\x00\x02\x00UI(..)", re.DOTALL)
"""(0002,0002) Media Storage SOP Class UID and its length; always explicit little endian."""

TO_NIFTI = "convert it to NIfTI or NRRD first, for instance with"
SCAN = "give the series of the scan"
LABEL = f"{SCAN}, of which it can be the label map"
STORAGE = "1.2.840.10008.5.1.4.1.1."
SEGMENTATIONS = ("66.4", "66.7")
"""SOP classes that are read as label maps, without their beginning."""
UNREAD_LABELS = ("481.3", "66.5")
"""SOP classes that mark regions in forms that medar does not read, without their beginning."""
KINDS = {
    "66.4": ("a segmentation (DICOM SEG)", LABEL),
    "66.7": ("a segmentation (DICOM label map)", LABEL),
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


def is_segmentation(path: Path) -> bool:
    """Whether a file is a DICOM segmentation: a SEG or a label map."""
    return path.is_file() and storage_class(path).removeprefix(STORAGE) in SEGMENTATIONS


def segmentation_at(path: Path) -> Path | None:
    """The segmentation that a path leads to: a file, or the only one of a folder without a scan.

    Raises:
        MedarError: the folder holds several, and nothing else.
    """
    if not path.is_dir():
        return path if is_segmentation(path) else None
    classes = {one: storage_class(one) for one in sorted(path.iterdir()) if one.is_file()}
    found = [one for one in classes if is_segmentation(one)]
    if not found or any(uid and other_kind(uid) is None for uid in classes.values()):
        return None
    if len(found) > 1:
        raise MedarError(
            f"{path}: {len(found)} segmentations, such as {found[0].name} and {found[1].name}; "
            "name the file of one"
        )
    return found[0]


def check_label_kind(path: Path) -> None:
    """Check that what is named as a label, a file or a folder without a scan, can be read as one.

    Raises:
        MedarError: it holds contours or surfaces.
    """
    files = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.is_file())
    classes = {one: storage_class(one) for one in files}
    if any(uid and other_kind(uid) is None for uid in classes.values()):
        return
    for one, uid in classes.items():
        if (kind := uid.removeprefix(STORAGE)) in UNREAD_LABELS:
            name, advice = KINDS[kind]
            raise MedarError(
                f"{one}: {name}: a label, but not as voxels, and medar does not read it; {advice}"
            )
