"""`dataset.json` of the Medical Segmentation Decathlon and of nnU-Net, v1 and v2.

MSD: arXiv 2106.05735; MONAI uses the same format. nnU-Net: documentation/dataset_format.md of its
repository; arXiv 1809.10486.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medar.data.case import common_modality
from medar.data.manifest import Case, Manifest, Split
from medar.data.sources.files import ENDINGS, channel_of, exists, ids_for, split_ending, visible
from medar.errors import MedarError
from medar.files import read_json

LISTS: dict[str, Split] = {"training": "train", "validation": "val", "test": "test"}


def read_msd(path: Path) -> Manifest:
    """Read a data set with a `dataset.json` of MSD.

    `training` and `validation` list `{"image", "label"}`, `test` lists paths without labels. With
    several modalities, each case is a 4D file with channels or, as nnU-Net v1 has it, one file per
    channel: `./imagesTr/a.nii.gz` then stands for `a_0000.nii.gz`, `a_0001.nii.gz`, ... Cases have
    a split only if more than one of the lists has entries.

    Raises:
        MedarError: a key is missing or invalid; the message names it.
    """
    described = read_object(path)
    root = path.parent
    lists = {key: named_list(described.get(key, []), f"{path}: {key}") for key in LISTS}
    divided = sum(bool(entries) for entries in lists.values()) > 1
    found: list[tuple[Path, tuple[Path, ...], Path | None, Split | None]] = []
    for key, entries in lists.items():
        for number, entry in enumerate(entries):
            image, label = _pair(entry, root, f"{path}: {key}[{number}]")
            found.append((image, _channels(image), label, LISTS[key] if divided else None))
    if not found:
        raise MedarError(f"{path}: training, validation and test are empty; no case to read")
    channels: tuple[str, ...] = ()
    if "modality" in described or "channel_names" in described:
        key = "modality" if "modality" in described else "channel_names"
        channels = channel_names(described[key], f"{path}: {key}")
    labels = parse_labels(described.get("labels", {}), f"{path}: labels")
    ids = _ids([image for image, *_ in found], path)
    cases = tuple(
        Case(
            id=ids[image],
            images=images,
            label=label,
            modality=common_modality(channels),
            split=split,
        )
        for image, images, label, split in found
    )
    return Manifest(
        root=root,
        source="MSD" if all(images == (image,) for image, images, *_ in found) else "nnU-Net",
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
        raise MedarError(f'{where} must be {{"image": ..., "label": ...}} or a path, got {entry!r}')
    image = named_path(entry["image"], root, f"{where}.image")
    label = entry.get("label")
    return image, named_path(label, root, f"{where}.label") if label is not None else None


def _channels(image: Path) -> tuple[Path, ...]:
    """The file itself, or where it is absent, those of its channels in nnU-Net v1."""
    stem, ending = split_ending(image.name)
    files: list[Path] = []
    if not exists(image):
        while exists(file := image.with_name(f"{stem}_{len(files):04}{ending}")):
            files.append(file)
    return tuple(files) or (image,)


def _ids(images: list[Path], path: Path) -> dict[Path, str]:
    """Ids from the file names; if these repeat, from the paths in the data set."""
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


Entry = tuple[str, tuple[Path, ...], Path | None, Split | None]


def read_nnunet(path: Path) -> Manifest:
    """Read a data set with a `dataset.json` of nnU-Net v2.

    Training cases are those of the key `dataset` (`{id: {"images": [...], "label": ...}}`) or,
    without it, those in `imagesTr` (`ID_0000.nii.gz`, one file per channel) and `labelsTr`
    (`ID.nii.gz`). Cases in `imagesTs` are the test split; then the others are train.

    Raises:
        MedarError: a key is missing or invalid; the message names it.
    """
    described = read_object(path)
    root = path.parent
    ending = described.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or ending.lower() not in ENDINGS:
        raise MedarError(
            f"{path}: file_ending must be one of {', '.join(sorted(ENDINGS))}, got {ending!r}"
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
        raise MedarError(f"{where} must be an object of ids and files")
    found: list[Entry] = []
    for name, entry in value.items():
        if not isinstance(entry, dict) or not entry.get("images"):
            raise MedarError(f'{where}.{name} must be {{"images": [...], "label": ...}}')
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


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Names of a data set's labels."""

    names: dict[int, str]
    """Values and names, without background."""
    ignore: int | None = None
    notes: tuple[str, ...] = ()


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise MedarError(f"{path}: must hold a JSON object, got {_kind(value)}")
    return value


def channel_names(value: Any, where: str) -> tuple[str, ...]:
    """The names of {"0": "T1w", "1": "FLAIR"}, in the order of the numbers."""
    message = f'{where} must map channels to names, such as {{"0": "CT"}}, got {_short(value)}'
    if not isinstance(value, dict) or not value:
        raise MedarError(message)
    if not all(
        re.fullmatch(r"\d{1,9}", str(key)) and isinstance(name, str) for key, name in value.items()
    ):
        raise MedarError(message)
    ordered = sorted(value.items(), key=lambda item: int(item[0]))
    if [int(key) for key, _ in ordered] != list(range(len(ordered))):
        raise MedarError(
            f"{where}: channels must count from 0 without a gap, got {', '.join(value)}"
        )
    return tuple(name for _, name in ordered)


def parse_labels(value: Any, where: str) -> Labels:
    """Labels in either direction: {"0": "background", "1": "liver"} or {"liver": 1}.

    A name with a list of values is nnU-Net's region, a union: its values are kept, named after
    the region only where it holds a single value. The name "ignore" gives the ignore label.
    """
    if not isinstance(value, dict):
        raise MedarError(f'{where} must be an object such as {{"1": "liver"}}, got {_short(value)}')
    names: dict[int, str] = {}
    regions: list[str] = []
    region_values: set[int] = set()
    ignore = None
    for key, entry in value.items():
        name, values = _label_entry(key, entry, where)
        if len(values) > 1:
            regions.append(name)
            region_values |= set(values)
        elif name.lower() == "ignore" and not _is_number(key):
            ignore = values[0]
        elif names.setdefault(values[0], name) != name:
            raise MedarError(
                f"{where}: value {values[0]} is named {names[values[0]]!r} and {name!r}; "
                "a value has one name"
            )
    for number in sorted(region_values - set(names)):
        names[number] = f"label_{number}"
    names.pop(0, None)
    notes = (
        f"labels {', '.join(regions)} are regions (unions of values); "
        f"the values {', '.join(map(str, sorted(names)))} are used"
    )
    return Labels(
        names=dict(sorted(names.items())), ignore=ignore, notes=(notes,) if regions else ()
    )


def named_path(value: Any, root: Path, where: str) -> Path:
    """A path that a JSON file names, relative to the data set's folder.

    Files written on Windows have backslashes.
    """
    if not isinstance(value, str) or not value.strip():
        raise MedarError(f"{where} must be the path of a file, got {_short(value)}")
    path = root / value
    return root / value.replace("\\", "/") if "\\" in value and not exists(path) else path


def named_list(value: Any, where: str) -> list[Any]:
    """A list in a JSON file."""
    if not isinstance(value, list):
        raise MedarError(f"{where} must be a list, got {_short(value)}")
    return value


def _label_entry(key: str, entry: Any, where: str) -> tuple[str, list[int]]:
    """Name and values of one label; a value may be written as number or as text."""
    if _is_number(key) and isinstance(entry, str) and not _is_number(entry):
        return entry, [int(key)]
    values = entry if isinstance(entry, list) else [entry]
    if not values or not all(_is_number(v) for v in values):
        raise MedarError(f"{where}: {key!r} must be an integer or a name, got {_short(entry)}")
    return key, [int(v) for v in values]


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return False
    # Label maps have 32 bits at most.
    return re.fullmatch(r"-?\d{1,9}", str(value)) is not None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")
