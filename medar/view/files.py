"""Select the volumes to show, their label maps, and which of them are synthetic.

Nothing is guessed from file names or voxels. A label map is passed by the caller or named in the
record of a synthetic volume, and only such a record marks a volume as synthetic.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medar.data.sources import read_manifest
from medar.data.sources.bids import is_bids
from medar.errors import MedarError
from medar.files import read_json
from medar.records import RUN_FILE, SAMPLES

ENDINGS = (".nii.gz", ".nii")
MAX_PANELS = 8
"""Panels on a page. Browsers keep at most sixteen WebGL contexts."""

NO_LABEL = "none"


@dataclass(frozen=True, kw_only=True)
class VolumeFile:
    """A volume to show."""

    image: Path
    label: Path | None = None
    further_labels: tuple[Path, ...] = ()
    """See `medar.data.case.Case`."""
    synthetic: bool = False
    modality: str | None = None
    """According to the record of a synthetic volume."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The volumes to show."""

    volumes: tuple[VolumeFile, ...]
    notes: tuple[str, ...]
    """Messages for the user, such as volumes that were left out."""


def select_files(files: Sequence[Path], labels: Sequence[str] = ()) -> Selection:
    """Find the volumes in files and folders, each with its label map.

    Args:
        files: volumes in any format, DICOM folders, and folders of NIfTI files.
        labels: empty, or one per entry of `files`: a label map; for a folder, a folder of label
            maps with the same names; or "none". If empty, synthetic volumes have the label maps
            that their records name.

    Raises:
        MedarError: a file or label map does not exist, the number of labels differs from that of
            files, or there are more volumes than a page shows.
    """
    if labels and len(labels) != len(files):
        raise MedarError(
            f"--label: {len(labels)} for {len(files)} files; must be given once per file, in the "
            f"same order, '{NO_LABEL}' for a file without labels"
        )
    volumes: list[VolumeFile] = []
    notes: list[str] = []
    per_file: Sequence[str | None] = labels or [None] * len(files)
    for file, label in zip(files, per_file, strict=True):
        if not file.exists():
            raise MedarError(f"{file}: no such file or folder")
        images, records = _images(file), {}
        for image in images:
            records[image], remarks = _read_record(image)
            notes += remarks
        expanded = images != [file]
        if expanded:
            label_names = {_label_name(record) for record in records.values()}
            images = [image for image in images if image.name not in label_names]
            if len(images) > MAX_PANELS:
                notes.append(
                    f"{file}: the first {MAX_PANELS} of {len(images)} NIfTI files are shown"
                )
                images = images[:MAX_PANELS]
        volumes += (_volume_file(image, label, records[image], expanded) for image in images)
    if len(volumes) > MAX_PANELS:
        raise MedarError(
            f"{len(volumes)} volumes; a page shows at most {MAX_PANELS}: name fewer files"
        )
    return Selection(volumes=tuple(volumes), notes=tuple(notes))


@dataclass(frozen=True, kw_only=True)
class FolderCase:
    """A case of a folder: one volume, or one per channel."""

    title: str
    volumes: tuple[VolumeFile, ...]


@dataclass(frozen=True, kw_only=True)
class FolderCases:
    """The cases of a folder, to step through."""

    cases: tuple[FolderCase, ...]
    names: dict[int, str]
    """Of label values, where the folder is a data set that names them."""
    notes: tuple[str, ...]


def select_cases(folder: Path, labels: Sequence[str] = ()) -> FolderCases | None:
    """The cases of a folder of NIfTI files, of a data set, or of the samples of a run.

    Args:
        folder: an existing folder.
        labels: as in `select_files`.

    Returns:
        None for anything else, such as a DICOM series, and for a single volume.

    Raises:
        MedarError: a label map does not exist, or the folder holds a damaged data set.
    """
    samples = folder / SAMPLES
    if (folder / RUN_FILE).is_file() and samples.is_dir():
        folder = samples
    if _images(folder) != [folder]:
        volumes, notes = _volumes_of(folder, labels[0] if labels else None)
        cases = tuple(FolderCase(title=_stem(one.image), volumes=(one,)) for one in volumes)
        found = FolderCases(cases=cases, names={}, notes=tuple(notes))
    elif _is_data_set(folder):
        found = _data_set(folder, labels)
    else:
        return None
    return found if len(found.cases) > 1 else None


def _is_data_set(folder: Path) -> bool:
    """Whether a folder says that it is a data set."""
    described = any((folder / name).is_file() for name in ("dataset.json", "manifest.jsonl"))
    return described or is_bids(folder)


def _data_set(folder: Path, labels: Sequence[str]) -> FolderCases:
    if labels and labels[0] != NO_LABEL:
        raise MedarError(f"--label: {folder} is a data set, which says itself which its labels are")
    manifest = read_manifest(folder)
    cases = tuple(
        FolderCase(
            title=case.id,
            volumes=tuple(
                VolumeFile(image=image, label=None if labels else case.label,
                           further_labels=case.further_labels, modality=case.modality)
                for image in case.images
            ),
        )
        for case in manifest
    )  # fmt: skip
    return FolderCases(cases=cases, names=dict(manifest.labels), notes=manifest.notes)


def _volumes_of(folder: Path, label: str | None) -> tuple[list[VolumeFile], list[str]]:
    """The NIfTI files of a folder, without label maps that records name; and remarks."""
    notes: list[str] = []
    records = {}
    for image in _images(folder):
        records[image], remarks = _read_record(image)
        notes += remarks
    names = {_label_name(record) for record in records.values()}
    images = [image for image in records if image.name not in names]
    return [_volume_file(one, label, records[one], expanded=True) for one in images], notes


def _images(path: Path) -> list[Path]:
    """NIfTI files of a folder, sorted; the path itself for a file or a folder without any."""
    if not path.is_dir():
        return [path]
    files = (one for one in path.iterdir() if one.name.lower().endswith(ENDINGS))
    return sorted(one for one in files if one.is_file() and not one.name.startswith(".")) or [path]


def _read_record(image: Path) -> tuple[dict[str, Any], list[str]]:
    """The record that `medar synthesize` wrote next to a volume, if any; and remarks."""
    if not image.is_file():
        return {}, []  # a DICOM folder
    path = image.with_name(_stem(image) + ".json")
    if not path.is_file():
        return {}, []
    try:
        record = read_json(path)
    except MedarError as error:
        return {}, [f"{error}; it is unknown whether {image.name} is synthetic"]
    ours = isinstance(record, dict) and record.get("synthetic") is True
    return (record, []) if ours and record.get("image", image.name) == image.name else ({}, [])


def _volume_file(
    image: Path, requested: str | None, record: dict[str, Any], expanded: bool
) -> VolumeFile:
    label: Path | None = None
    if requested is not None and requested != NO_LABEL:
        label = Path(requested) / image.name if expanded else Path(requested)
    elif requested is None and (name := _label_name(record)):
        label = image.with_name(name)
    if label is not None and not label.exists():
        raise MedarError(f"{label}: no such label map for {image.name}")
    attributes = record.get("attributes")
    modality = attributes.get("modality") if isinstance(attributes, dict) else None
    return VolumeFile(
        image=image,
        label=label,
        synthetic=bool(record),
        modality=modality if modality in ("CT", "MR") else None,
    )


def _label_name(record: dict[str, Any]) -> str:
    """File name of the label map of a synthetic volume; "" without one."""
    name = record.get("label")
    return Path(name).name if isinstance(name, str) else ""


def _stem(path: Path) -> str:
    ending = next((e for e in ENDINGS if path.name.lower().endswith(e)), path.suffix)
    return path.name[: len(path.name) - len(ending)]


def titles(paths: Sequence[Path]) -> list[str]:
    """Unique titles: the file name, with as many parent folders as needed."""
    whole = [path.absolute() for path in paths]
    return [_title(path, {*whole} - {path}) for path in whole]


def _title(path: Path, others: Set[Path]) -> str:
    depth = 1
    while any(one.parts[-depth:] == path.parts[-depth:] for one in others):
        depth += 1
    return "/".join(path.parts[-depth:])
