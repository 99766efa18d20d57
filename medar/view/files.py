"""Which files are shown: volumes, folders of them, their label maps, and what is synthetic.

Nothing is guessed from names or voxels. A label map is one that the caller gives, or that the
record beside a synthetic volume names; synthetic is what such a record calls so.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medar.errors import MedarError
from medar.files import read_json

ENDINGS = (".nii.gz", ".nii")
MOST = 8
"""Panels on a page: browsers keep sixteen WebGL contexts, and a person compares fewer."""

NO_LABEL = "none"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A volume to show."""

    image: Path
    label: Path | None = None
    synthetic: bool = False
    modality: str | None = None
    """As the record of a synthetic volume has it."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is shown, and what has to be said about that."""

    shown: tuple[Shown, ...]
    notes: tuple[str, ...]


def choose(files: Sequence[Path], labels: Sequence[str] = ()) -> Choice:
    """The volumes behind files and folders, each with its label map.

    Args:
        files: volumes in any format, DICOM folders, and folders of NIfTI files.
        labels: none at all, or one for each of `files` in their order: a label map; for a folder
            the folder that holds label maps of the same names; "none" where there is none. Without
            one, a synthetic volume has the label map that its record names.

    Raises:
        MedarError: a file or label map that is not there, another number of labels than of files,
            or more volumes than a page shows.
    """
    if labels and len(labels) != len(files):
        raise MedarError(
            f"--label: {len(labels)} for {len(files)} files; give one for each file in their "
            f"order, '{NO_LABEL}' for a file without"
        )
    shown: list[Shown] = []
    notes: list[str] = []
    given: Sequence[str | None] = labels or [None] * len(files)
    for file, label in zip(files, given, strict=True):
        if not file.exists():
            raise MedarError(f"{file}: no such file or folder")
        found, records = _volumes(file), {}
        for one in found:
            records[one], said = _record(one)
            notes += said
        expanded = found != [file]
        if expanded:
            named = {_own_label(record) for record in records.values()}
            found = [one for one in found if one.name not in named]
            if len(found) > MOST:
                notes.append(f"{file}: the first {MOST} of {len(found)} NIfTI files are shown")
                found = found[:MOST]
        shown += (_shown(one, label, records[one], expanded) for one in found)
    if len(shown) > MOST:
        raise MedarError(f"{len(shown)} volumes; a page shows at most {MOST}, name fewer files")
    return Choice(shown=tuple(shown), notes=tuple(notes))


def _volumes(path: Path) -> list[Path]:
    """A folder's NIfTI files by name; the path itself if it is a file, or a folder without any."""
    if not path.is_dir():
        return [path]
    found = (one for one in path.iterdir() if one.name.lower().endswith(ENDINGS))
    return sorted(one for one in found if one.is_file() and not one.name.startswith(".")) or [path]


def _record(image: Path) -> tuple[dict[str, Any], list[str]]:
    """What the JSON beside a volume says of it if it is a record of `medar synthesize`."""
    if not image.is_file():
        return {}, []  # a DICOM folder
    beside = image.with_name(_stem(image) + ".json")
    if not beside.is_file():
        return {}, []
    try:
        record = read_json(beside)
    except MedarError as error:
        return {}, [f"{error}; whether {image.name} is synthetic is not known"]
    ours = isinstance(record, dict) and record.get("synthetic") is True
    return (record, []) if ours and record.get("image", image.name) == image.name else ({}, [])


def _shown(image: Path, given: str | None, record: dict[str, Any], expanded: bool) -> Shown:
    label: Path | None = None
    if given is not None and given != NO_LABEL:
        label = Path(given) / image.name if expanded else Path(given)
    elif given is None and (name := _own_label(record)):
        label = image.with_name(name)
    if label is not None and not label.exists():
        raise MedarError(f"{label}: no such label map for {image.name}")
    attributes = record.get("attributes")
    modality = attributes.get("modality") if isinstance(attributes, dict) else None
    return Shown(
        image=image,
        label=label,
        synthetic=bool(record),
        modality=modality if modality in ("CT", "MR") else None,
    )


def _own_label(record: dict[str, Any]) -> str:
    """The name of the label map beside a synthetic volume, "" where it has none."""
    name = record.get("label")
    return Path(name).name if isinstance(name, str) else ""


def _stem(path: Path) -> str:
    ending = next((e for e in ENDINGS if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def titles(paths: Sequence[Path]) -> list[str]:
    """Names that tell files apart: the name alone, or with as many folders as that takes."""
    whole = [path.absolute() for path in paths]
    return [_title(path, {*whole} - {path}) for path in whole]


def _title(path: Path, others: Set[Path]) -> str:
    depth = 1
    while any(one.parts[-depth:] == path.parts[-depth:] for one in others):
        depth += 1
    return "/".join(path.parts[-depth:])
