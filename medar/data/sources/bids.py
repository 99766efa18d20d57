"""BIDS names (https://bids-specification.readthedocs.io): sub-01/ses-1/anat/sub-01_ses-1_T1w."""

import csv
from dataclasses import dataclass
from pathlib import Path

from medar.data.case import modality_of
from medar.data.manifest import Case, Manifest
from medar.data.sources.files import (
    find_volumes,
    is_segmentation_file,
    split_ending,
    visible,
)
from medar.errors import MedarError

LABEL_SUFFIXES = ("dseg", "seg", "mask")
"""Suffixes of label maps, in the order of preference."""
DERIVED = {"desc", "label", "res", "den", "atlas", "seg", "space"}
"""Entities of derivatives that their images do not have."""


@dataclass(frozen=True, kw_only=True)
class _Name:
    """The parts of a BIDS file name."""

    path: Path
    entities: tuple[tuple[str, str], ...]
    suffix: str
    image_suffix: str | None = None
    """For a label: the suffix of its image, if the name has it (sub-01_T1w_seg)."""

    def get(self, key: str) -> str | None:
        return dict(self.entities).get(key)

    @property
    def own(self) -> frozenset[tuple[str, str]]:
        """The entities that an image and its label have in common."""
        return frozenset(pair for pair in self.entities if pair[0] not in DERIVED)


def is_bids(root: Path) -> bool:
    """Whether a folder has subfolders `sub-...` with a volume of a BIDS name."""
    return any(
        _parsed(path) is not None
        for folder in visible(root)
        if folder.is_dir() and folder.name.startswith("sub-")
        for path in find_volumes(folder)
    )


def read_bids(root: Path) -> Manifest:
    """Read a BIDS tree, with one case per image.

    Images are files whose suffix names an MR sequence or `ct`. A label is a `_dseg`, `_seg` or
    `_mask` file of the same entities, beside its image or below `derivatives/`, on the image's own
    grid (no `space` entity, or that of the image). Session and suffix become attributes.

    Raises:
        MedarError: no MR or CT image among the files of BIDS names.
    """
    names, notes, segmentations = [], [], []
    other: set[str] = set()
    for folder in visible(root):
        if folder.is_dir() and (folder.name.startswith("sub-") or folder.name == "derivatives"):
            paths = list(find_volumes(folder))
            segmentations += [path for path in paths if is_segmentation_file(path)]
            found = [_parsed(path) for path in paths]
            names += [name for name in found if name is not None]
    raw = [name for name in names if "derivatives" not in name.path.relative_to(root).parts]
    labels: dict[frozenset[tuple[str, str]], list[_Name]] = {}
    for name in names:
        if name.suffix in LABEL_SUFFIXES:
            labels.setdefault(name.own, []).append(name)
    cases, unclear = [], []
    for name in raw:
        modality = modality_of(name.suffix)
        if name.suffix in LABEL_SUFFIXES:
            continue
        if modality is None:
            other.add(name.suffix)
            continue
        label, several = _label_of(name, labels.get(name.own, []))
        unclear += [name.path.name] if several else []
        cases.append(_case(name, modality, label))
    if other:
        notes.append(f"files with the suffix {', '.join(sorted(other))} are skipped")
    if segmentations:
        notes.append(
            f"{len(segmentations)} DICOM segmentations are skipped (the first: "
            f"{segmentations[0].relative_to(root).as_posix()}); label maps of BIDS are NIfTI: "
            "convert them, or name them in a JSONL manifest"
        )
    if unclear:
        notes.append(
            f"{len(unclear)} images have several label maps and count as unlabelled "
            f"(the first: {unclear[0]}); list the right ones in a JSONL manifest"
        )
    if not cases:
        raise MedarError(
            f"{root}: BIDS names, but no MR or CT image among them (sub-01/anat/sub-01_T1w.nii.gz)"
        )
    return Manifest(
        root=root, source="BIDS", cases=tuple(cases), labels=_lookup(root), notes=tuple(notes)
    )


def _parsed(path: Path) -> _Name | None:
    """The parts of a BIDS name; None for any other name."""
    stem, ending = split_ending(path.name)
    *pairs, suffix = stem.split("_")
    image_suffix = None
    if suffix in LABEL_SUFFIXES and pairs and "-" not in pairs[-1]:
        image_suffix = pairs.pop()
    if not ending or not pairs or not all("-" in pair for pair in pairs):
        return None
    entities = tuple((key, value) for key, _, value in (pair.partition("-") for pair in pairs))
    if entities[0][0] != "sub":
        return None
    return _Name(path=path, entities=entities, suffix=suffix, image_suffix=image_suffix)


def _case(name: _Name, modality: str, label: Path | None) -> Case:
    session = name.get("ses")
    attributes = {"suffix": name.suffix} | ({"session": session} if session else {})
    return Case(
        id=split_ending(name.path.name)[0],
        images=(name.path,),
        subject=f"sub-{name.get('sub')}",
        label=label,
        modality=modality,
        attributes=attributes,
    )


def _label_of(image: _Name, labels: list[_Name]) -> tuple[Path | None, bool]:
    """The label map of an image among `labels`, and whether several match."""
    fitting = [
        label
        for label in labels
        if label.image_suffix in (None, image.suffix)
        and label.get("space") in (None, "orig", image.suffix)
    ]
    for suffix in LABEL_SUFFIXES:
        same = [label for label in fitting if label.suffix == suffix]
        if same:
            return (same[0].path, False) if len(same) == 1 else (None, True)
    return None, False


def _lookup(root: Path) -> dict[int, str]:
    """Label values and names from a lookup table `dseg.tsv` with the columns index and name."""
    folders = (
        [root, *(path for path in visible(root / "derivatives") if path.is_dir())]
        if (root / "derivatives").is_dir()
        else [root]
    )
    tables = [path for folder in folders for path in visible(folder) if _is_lookup(path)]
    if not tables:
        return {}
    with tables[0].open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    try:
        named = {int(row["index"]): str(row["name"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise MedarError(
            f"{tables[0]}: a lookup table must have the columns index (integers) and name"
        ) from error
    return {value: name for value, name in sorted(named.items()) if value != 0}


def _is_lookup(path: Path) -> bool:
    return path.is_file() and (path.name == "dseg.tsv" or path.name.endswith("_dseg.tsv"))
