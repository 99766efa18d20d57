"""A folder of volumes without a description; names distinguish images from labels."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

from medar.data.manifest import Case, Manifest, Split
from medar.data.sources.dataset_json import parse_labels, read_object
from medar.data.sources.dicom_labels import images_of
from medar.data.sources.files import (
    find_volumes,
    ids_for,
    is_dicom_folder,
    is_segmentation_file,
    no_scan_in,
    not_a_data_set,
    stem_of,
)
from medar.data.sources.label_names import label_maps
from medar.errors import MedarError

LAYOUTS: tuple[tuple[str, str, Split | None], ...] = (
    ("images", "labels", None),
    ("images", "masks", None),
    ("imagesTr", "labelsTr", None),
    ("imagesTs", "labelsTs", "test"),
)
"""Folders of images, of labels with the same names, and the split that these imply."""

OTHER_FORMATS = (
    ".mgh", ".mgz", ".mif", ".mif.gz", ".mih", ".mnc", ".gipl", ".gipl.gz", ".vtk", ".vti", ".par",
    ".npy", ".npz", ".tif", ".tiff",
)  # fmt: skip
"""Endings of other volume formats: their files are skipped, with a note."""


@dataclass(kw_only=True)
class _Found:
    """Images by their path without ending, with the labels and splits of some, and stray labels."""

    images: dict[str, Path] = field(default_factory=dict)
    labels: dict[str, Path] = field(default_factory=dict)
    further_labels: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    """More DICOM segmentations of images, beside that in `labels`."""
    splits: dict[str, Split] = field(default_factory=dict)
    stray: list[Path] = field(default_factory=list)
    segmentations: dict[Path, str] = field(default_factory=dict)
    """DICOM segmentations and their paths without ending."""
    notes: list[str] = field(default_factory=list)


def read_folder(root: Path) -> Manifest:
    """Read the volumes in a folder and its subfolders, one case per file or DICOM series.

    Labels are files in `labels/` beside `images/` (also `masks/`, `labelsTr/`, `labelsTs/`) with
    the image's name; otherwise files beside the image that are named as label maps
    (`medar.data.sources.label_names`), or the only label of a folder with one image. What is named
    as a label map is never an image: without an image of its name it is left out, with a note.
    Label names come from `labels.json` in the folder, `{"1": "liver"}`.

    Raises:
        MedarError: there is no volume, or two files have the same id or the same image.

    Warns:
        UserWarning: of two files whose names differ in the ending, the second is left out.
    """
    found = _in_layouts(root) or _beside(root)
    if not found.images and found.segmentations:
        raise MedarError(
            f"{next(iter(found.segmentations))}: a segmentation, and no image in {root}; name a "
            "folder that holds both"
        )
    if not found.images:
        raise not_a_data_set(root)
    _pair_segmentations(found)
    ids = ids_for(found.images)
    trained: Split | None = "train" if found.splits else None
    cases = tuple(
        Case(
            id=ids[stem],
            images=(image,),
            label=found.labels.get(stem),
            further_labels=found.further_labels.get(stem, ()),
            split=found.splits.get(stem, trained),
        )
        for stem, image in found.images.items()
    )
    names: dict[int, str] = {}
    notes = found.notes
    if (root / "labels.json").exists():
        parsed = parse_labels(read_object(root / "labels.json"), str(root / "labels.json"))
        names = parsed.names
        notes += parsed.notes
    if found.stray:
        notes.append(
            f"{len(found.stray)} label files without an image of their name are skipped (the "
            f"first: {found.stray[0].relative_to(root).as_posix()}; IMAGE_seg is IMAGE's label)"
        )
    return Manifest(
        root=root,
        source="folder",
        cases=cases,
        labels=names,
        notes=(*notes, *_skipped(root)),
    )


def _skipped(root: Path) -> list[str]:
    """Notes on files that look like volumes but are skipped."""
    notes = []
    other = [
        path
        for path in root.rglob("*")
        if path.name.lower().endswith(OTHER_FORMATS)
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    if other:
        notes.append(
            f"{len(other)} files of formats that medar does not read are skipped "
            f"(the first: {min(other).relative_to(root).as_posix()})"
        )
    kinds = {
        folder: kind
        for folder in sorted(path for path in root.rglob("*") if path.is_dir())
        if not any(part.startswith(".") for part in folder.relative_to(root).parts)
        and (kind := no_scan_in(folder))
    }
    if kinds:
        first, kind = next(iter(kinds.items()))
        notes.append(
            f"{len(kinds)} folder(s) of DICOM files without a scan are skipped (the first: "
            f"{first.relative_to(root).as_posix()}, {kind})"
        )
    for folder in (root, *(root / images for images, _, _ in LAYOUTS)):
        if folder.is_dir() and is_dicom_folder(folder):
            notes.append(
                f"DICOM files in {folder.name} itself, beside other volumes, are skipped; "
                "move each series to a folder of its own"
            )
    return notes


def _in_layouts(root: Path) -> _Found | None:
    """The cases of `images/` and `labels/` or similar; None if there is no such folder."""
    found = _Found()
    used = False
    for images, labels, split in LAYOUTS:
        if not (root / images).is_dir() or (images == "images" and found.labels):
            continue
        if labels == "masks" and used and not (root / labels).is_dir():
            continue
        if labels == "labels" and not (root / labels).is_dir() and (root / "masks").is_dir():
            continue
        used = True
        kept = _by_stem(root / images, found.images if images == "imagesTs" else {}, found)
        named = _by_stem(root / labels, {}, found) if (root / labels).is_dir() else {}
        for stem in label_maps(kept):
            # Names that a folder of labels repeats are those of images.
            if stem not in named and (path := kept.pop(stem)) not in found.stray:
                found.stray.append(path)
        found.images |= kept
        if any(stem.endswith("_0000") and f"{stem[:-1]}1" in kept for stem in kept):
            raise MedarError(
                f"{root / images}: names with _0000 and _0001 are channels of one case; "
                "write nnU-Net's dataset.json, which names the channels; if they are cases, rename "
                "them, such as case1 and case2"
            )
        for name, path in named.items():
            stem = name if name in kept else f"{name}_0000"
            if stem in kept:
                found.labels[stem] = path
            else:
                found.stray.append(path)
        if split is not None:
            found.splits |= dict.fromkeys(kept, split)
    return found if used else None


def _by_stem(folder: Path, paths: dict[str, Path], found: _Found) -> dict[str, Path]:
    """The volumes of a folder by their path without ending; segmentations are set aside."""
    stems: dict[str, Path] = {}
    for path in find_volumes(folder):
        stem = stem_of(path, folder)
        if is_segmentation_file(path):
            found.segmentations[path] = stem
            continue
        if stem in paths:
            raise MedarError(f"{path}: has the same name as {paths[stem]}; rename one of them")
        if stem in stems:
            warnings.warn(
                f"{path}: left out, as it has the same name as {stems[stem].name}; rename it if it "
                "is another case",
                stacklevel=5,
            )
        stems.setdefault(stem, path)
    return stems


def _beside(root: Path) -> _Found:
    """The cases of a folder with labels beside their images."""
    found = _Found()
    found.images = _by_stem(root, {}, found)
    for stem, image in label_maps(found.images).items():
        path = found.images[stem]
        if image is None:
            found.stray.append(path)
        else:
            _add_label(found, image, path)
    left_out = {*found.labels.values(), *found.stray}
    found.images = {stem: path for stem, path in found.images.items() if path not in left_out}
    return found


def _pair_segmentations(found: _Found) -> None:
    """Make segmentations the labels of the series that they refer to, else those of their name."""
    refers, notes = images_of(found.segmentations, found.images)
    found.notes += notes
    by_name = label_maps({*found.images, *found.segmentations.values()})
    for path, stem in found.segmentations.items():
        names = (refers.get(path), stem, f"{stem}_0000", by_name.get(stem))
        image = next((name for name in names if name in found.images), None)
        if image is None:
            found.stray.append(path)
        else:
            _add_label(found, image, path)


def _add_label(found: _Found, image: str, path: Path) -> None:
    """Make a file the label of an image; several must be DICOM segmentations."""
    first = found.labels.setdefault(image, path)
    if first == path:
        return
    if not {first, path} <= found.segmentations.keys():
        raise MedarError(
            f"{path}: a second label of {image!r}, beside {first.name}; keep one, or write a JSONL "
            "manifest"
        )
    found.further_labels[image] = (*found.further_labels.get(image, ()), path)
