"""Reading a data set of any layout as a `Manifest`, with its attributes and splits."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from medar.data.attributes import join_attributes, note_on_tables
from medar.data.identifying import without_identifying
from medar.data.manifest import Case, Manifest, Split
from medar.data.segments import joined_names
from medar.data.sources.bids import is_bids, read_bids
from medar.data.sources.dataset_json import read_msd, read_nnunet, read_object
from medar.data.sources.dicom_labels import images_of
from medar.data.sources.files import (
    exists,
    ids_for,
    is_dicom_folder,
    is_segmentation_file,
    not_a_data_set,
    split_ending,
    visible,
)
from medar.data.sources.folder import read_folder
from medar.data.splits import FRACTIONS, assign_splits
from medar.errors import MedarError
from medar.volume.header import is_dicom

__all__ = ["read_manifest"]


def read_manifest(
    path: str | Path,
    *,
    attributes: str | Path | None = None,
    modality: str | None = None,
    keep_attributes: Collection[str] = (),
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    stored: Manifest | Mapping[str, Split] | None = None,
) -> Manifest:
    """Read a data set: its volumes, subjects, labels, attributes and splits.

    Args:
        path: a folder (of volumes, of DICOM series, with an MSD or nnU-Net `dataset.json`, or a
            BIDS tree), a `dataset.json`, a JSONL manifest, or a single volume.
        attributes: a CSV or TSV table of the cases; default: the one in the folder, if any.
        modality: "CT" or "MR", for cases whose modality the data set does not give; default: the
            modality that all cases of `stored` have.
        keep_attributes: attributes to keep although they may identify people, by name; "all": all.
        seed: of the splits of subjects to which the data set assigns none.
        fractions: of the subjects in train, val and test.
        stored: an earlier manifest of this data set, or splits by subject, which are kept.

    Returns:
        The manifest; each case has a split. Labels that the data set names but that do not exist
        are in `Case.missing_label`, and the case counts as unlabelled.

    Raises:
        MedarError: `path` holds no data set, a file that describes it is invalid, or an attribute
            to be kept does not exist.

    Warns:
        UserWarning: rows of a table match no case, or attributes that may identify people are left
            out.
    """
    root = Path(path)
    if not root.exists():
        raise MedarError(f"{root}: no such file or folder")
    manifest = without_identifying(join_attributes(_read(root), attributes), keep_attributes)
    if attributes is None and root.is_dir() and not (root / "manifest.jsonl").is_file():
        manifest = replace(manifest, notes=(*manifest.notes, *note_on_tables(manifest.root)))
    modality = modality or _stored_modality(stored)
    cases = tuple(
        replace(_with_label(case), modality=case.modality or modality) for case in manifest
    )
    manifest = manifest.with_cases(cases)
    if not manifest.labels:
        names = joined_names(case.labels for case in cases)
        manifest = replace(manifest, labels=names)
    return assign_splits(manifest, fractions=fractions, seed=seed, stored=stored)


def _stored_modality(stored: Manifest | Mapping[str, Split] | None) -> str | None:
    """The modality of an earlier manifest, if all its cases have the same."""
    found = {case.modality for case in stored} if isinstance(stored, Manifest) else set()
    return found.pop() if len(found) == 1 else None


def _read(path: Path) -> Manifest:
    """Recognise the layout of the data set at `path`, and read it."""
    if path.is_file():
        if path.suffix == ".jsonl":
            return Manifest.load(path)
        if path.suffix == ".json":
            return _described(path)
        if split_ending(path.name)[1] or is_dicom(path):
            return _single(path)
        raise not_a_data_set(path)
    if (path / "manifest.jsonl").is_file():
        return Manifest.load(path / "manifest.jsonl")
    if (path / "dataset.json").is_file():
        return _described(path / "dataset.json")
    if is_bids(path):
        return read_bids(path)
    if is_dicom_folder(path) and not any(entry.is_dir() for entry in visible(path)):
        return _single(path)
    return read_folder(path)


def _described(path: Path) -> Manifest:
    """The data set of a `dataset.json`, MSD's or nnU-Net's."""
    described = read_object(path)
    if "training" in described:
        return read_msd(path)
    if described.keys() & {"channel_names", "file_ending", "dataset"}:
        return read_nnunet(path)
    raise MedarError(
        f"{path}: neither MSD's key 'training' nor nnU-Net's 'channel_names' and 'labels'"
    )


def _single(path: Path) -> Manifest:
    """A manifest of one volume."""
    name = path.resolve().name
    stem = name if path.is_dir() else split_ending(name)[0]
    labels, notes = _segmentations_in(path) if path.is_dir() else ([], [])
    case = Case(
        id=ids_for([stem])[stem],
        images=(path,),
        label=next(iter(labels), None),
        further_labels=tuple(labels[1:]),
    )
    root = path if path.is_dir() else path.parent
    return Manifest(root=root, source="file", cases=(case,), notes=tuple(notes))


def _segmentations_in(folder: Path) -> tuple[list[Path], list[str]]:
    """The segmentations of a DICOM series in its own folder; and notes."""
    found = [path for path in visible(folder) if is_segmentation_file(path)]
    refers, notes = images_of(found, {"": folder})
    if others := [path for path in found if path not in refers]:
        notes.append(
            f"{len(others)} segmentation(s) that refer to another series are skipped (the first: "
            f"{others[0].name})"
        )
    return list(refers), notes


def _with_label(case: Case) -> Case:
    """The case with its label if all of its files exist, otherwise with `missing_label`."""
    named = case.label or case.missing_label
    if named is None:
        return case
    paths = (named, *case.further_labels)
    missing = next((path for path in paths if not exists(path)), None)
    first = named if missing is None else missing
    return replace(
        case,
        label=named if missing is None else None,
        further_labels=tuple(path for path in paths if path != first),
        missing_label=missing,
    )
