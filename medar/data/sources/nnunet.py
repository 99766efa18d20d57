"""nnU-Net v2's `dataset.json` (documentation/dataset_format.md of nnU-Net; arXiv 1809.10486)."""

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
from medar.data.sources.files import ENDINGS, channel_of, ids_for, split_ending, visible
from medar.errors import MedarError

Entry = tuple[str, tuple[Path, ...], Path | None, Split | None]


def read_nnunet(path: Path) -> Manifest:
    """The data set that an nnU-Net `dataset.json` describes.

    Training cases are those of the key `dataset` (`{id: {"images": [...], "label": ...}}`) or,
    without it, those in `imagesTr` (`ID_0000.nii.gz`, one file a channel) and `labelsTr`
    (`ID.nii.gz`). Cases in `imagesTs` are the test split; then the others are train.

    Raises:
        MedarError: naming the key that is wrong.
    """
    described = read_object(path)
    root = path.parent
    ending = described.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or ending.lower() not in ENDINGS:
        raise MedarError(
            f"{path}: file_ending {ending!r}; medar reads {', '.join(sorted(ENDINGS))}"
        )
    key = "channel_names" if "channel_names" in described else "modality"
    channels = channel_names(described.get(key), f"{path}: {key}")
    labels = parse_labels(described.get("labels"), f"{path}: labels")
    if "dataset" in described:
        training = _named(described["dataset"], root, f"{path}: dataset")
    else:
        training = _scanned(root, "Tr", ending)
    named = {image for entry in training for image in entry[1]}
    test = [entry for entry in _scanned(root, "Ts", ending) if not named & set(entry[1])]
    if test:
        training = [(name, images, label, "train") for name, images, label, _ in training]
    found = training + [(name, images, label, "test") for name, images, label, _ in test]
    if not found:
        raise MedarError(
            f"{path}: no case: neither a key 'dataset' nor {root.name}/imagesTr/*_0000{ending}"
        )
    ids = ids_for(name for name, *_ in found)
    modality = common_modality(channels)
    cases = tuple(
        Case(id=ids[name], images=images, label=label, modality=modality, split=split)
        for name, images, label, split in found
    )
    return Manifest(
        root=root,
        source="nnU-Net",
        cases=cases,
        labels=labels.names,
        ignore_label=labels.ignore,
        channels=channels,
        notes=labels.notes,
    )


def _named(value: Any, root: Path, where: str) -> list[Entry]:
    """The cases of the key `dataset`."""
    if not isinstance(value, dict):
        raise MedarError(f"{where}: an object of ids and files is needed")
    found: list[Entry] = []
    for name, entry in value.items():
        if not isinstance(entry, dict) or not entry.get("images"):
            raise MedarError(f'{where}.{name}: {{"images": [...], "label": ...}} is needed')
        images = tuple(
            named_path(image, root, f"{where}.{name}.images")
            for image in named_list(entry["images"], f"{where}.{name}.images")
        )
        label = entry.get("label")
        if label is not None:
            label = named_path(label, root, f"{where}.{name}.label")
        found.append((name, images, label, None))
    return found


def _scanned(root: Path, which: str, ending: str) -> list[Entry]:
    """The cases in `imagesTr` or `imagesTs`: files ID_0000, ID_0001 ... are the channels of ID."""
    folder = root / f"images{which}"
    if not folder.is_dir():
        return []
    channels: dict[str, list[Path]] = {}
    for path in visible(folder):
        if split_ending(path.name)[1].lower() == ending.lower() and (of := channel_of(path)):
            channels.setdefault(split_ending(of[0].name)[0], []).append(path)
    found: list[Entry] = []
    for name, images in channels.items():
        label = root / f"labels{which}" / f"{name}{ending}"
        # A training case without its label is a lost label; a test case need not have one.
        expected = label.parent.is_dir() and (which == "Tr" or label.exists())
        found.append((name, tuple(images), label if expected else None, None))
    return found
