"""MSD's `dataset.json` (Medical Segmentation Decathlon, arXiv 2106.05735), as MONAI uses it too."""

from collections import Counter
from pathlib import Path
from typing import Any

from medar.data.manifest import Case, Manifest, Split
from medar.data.modality import common_modality
from medar.data.sources.fields import (
    channel_names,
    named_list,
    named_path,
    parse_labels,
    read_object,
)
from medar.data.sources.files import ids_for, split_ending
from medar.errors import MedarError

LISTS: dict[str, Split] = {"training": "train", "validation": "val", "test": "test"}


def read_msd(path: Path) -> Manifest:
    """The data set that an MSD `dataset.json` describes.

    `training` and `validation` list `{"image", "label"}`, `test` lists paths without labels.
    Several modalities mean one 4D file with channels. Cases have a split only where more than
    one of the lists holds something.

    Raises:
        MedarError: naming the key that is wrong.
    """
    described = read_object(path)
    root = path.parent
    lists = {key: named_list(described.get(key, []), f"{path}: {key}") for key in LISTS}
    divided = sum(bool(entries) for entries in lists.values()) > 1
    found: list[tuple[Path, Path | None, Split | None]] = []
    for key, entries in lists.items():
        for number, entry in enumerate(entries):
            image, label = _pair(entry, root, f"{path}: {key}[{number}]")
            found.append((image, label, LISTS[key] if divided else None))
    if not found:
        raise MedarError(f"{path}: training, validation and test are empty; no case to read")
    channels: tuple[str, ...] = ()
    if "modality" in described or "channel_names" in described:
        key = "modality" if "modality" in described else "channel_names"
        channels = channel_names(described[key], f"{path}: {key}")
    labels = parse_labels(described.get("labels", {}), f"{path}: labels")
    ids = _ids([image for image, _, _ in found], path)
    cases = tuple(
        Case(
            id=ids[image],
            images=(image,),
            label=label,
            modality=common_modality(channels),
            split=split,
        )
        for image, label, split in found
    )
    return Manifest(
        root=root,
        source="MSD",
        cases=cases,
        labels=labels.names,
        ignore_label=labels.ignore,
        channels=channels,
        notes=labels.notes,
    )


def _pair(entry: Any, root: Path, where: str) -> tuple[Path, Path | None]:
    if isinstance(entry, str):
        return named_path(entry, root, where), None
    if not isinstance(entry, dict) or "image" not in entry:
        raise MedarError(f'{where}: {entry!r}; {{"image": ..., "label": ...}} or a path is needed')
    image = named_path(entry["image"], root, f"{where}.image")
    label = entry.get("label")
    return image, named_path(label, root, f"{where}.label") if label is not None else None


def _ids(images: list[Path], path: Path) -> dict[Path, str]:
    """File names are the ids of MSD; where they repeat, the path in the data set is."""
    repeated = [image for image, times in Counter(images).items() if times > 1]
    if repeated:
        raise MedarError(f"{path}: {repeated[0]} is listed twice; keep one")
    stems = {image: split_ending(image.name)[0] for image in images}
    if len(set(stems.values())) < len(images):
        root = path.parent
        stems = {
            image: split_ending(
                (image.relative_to(root) if image.is_relative_to(root) else image).as_posix()
            )[0]
            for image in images
        }
    ids = ids_for(stems.values())
    return {image: ids[stem] for image, stem in stems.items()}
