"""`Case`: one volume of a data set with its metadata, and its line in a JSONL file."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medar.errors import MedarError

MR_NAMES = re.compile(
    r"(MRI?|T1|T2|T1[-_ ]?(w|c|ce|gd|weighted|rho|map)|T2[-_ ]?(w|star|starw|weighted|map)"
    r"|(T[12][-_ ]?)?FLAIR|FLASH|PDw?|PDT2|UNIT1|inplaneT[12]|angio|MTw|ADC|DWI|SWI|DCE|TOF|MRA)",
    re.IGNORECASE,
)
CT_NAMES = re.compile(r"(CT|CBCT|CTA|CECT|HU)", re.IGNORECASE)


def modality_of(name: str | None) -> str | None:
    """ "CT" or "MR" for the name of a modality or sequence; None where it is neither."""
    text = (name or "").strip()
    if CT_NAMES.fullmatch(text):
        return "CT"
    return "MR" if MR_NAMES.fullmatch(text) else None


def common_modality(names: tuple[str, ...]) -> str | None:
    """The modality of all channels; None if they differ."""
    found = {modality_of(name) for name in names}
    return found.pop() if len(found) == 1 else None


UNUSABLE = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f]')
"""Characters that ids, which are file names, must not have; control characters among them."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One volume of a data set, with its metadata.

    Raises:
        MedarError: there is no image, the id cannot be a file name, a name is not valid UTF-8, or
            the split is unknown.
    """

    id: str
    images: tuple[Path, ...]
    """One file (or DICOM folder) per channel, or a single 4D file."""
    subject: str = ""
    """Subject of the volume; its cases are all in the same split. Default: the case's id."""
    label: Path | None = None
    further_labels: tuple[Path, ...] = ()
    """More DICOM segmentations of the image, joined with `label` (`medar.data.segments`)."""
    missing_label: Path | None = None
    """A label that the data set names but that does not exist: the case counts as unlabelled."""
    annotated: tuple[int, ...] | None = None
    """Label values that were annotated in this case; None: all labels of the manifest. A value that
    is annotated but has no voxel is absent; one that is not annotated is unknown."""
    modality: str | None = None
    """"CT" or "MR"."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Class, age, scanner and other columns of the data set's table."""
    split: Split | None = None

    def __post_init__(self) -> None:
        if not self.id or UNUSABLE.search(self.id) or self.id.startswith("."):
            raise MedarError(f"case id must be usable as a file name, got {self.id!r}")
        paths = (*self.images, *self.labels, *self.further_labels, self.missing_label or "")
        for text in (*map(str, paths), self.id):
            if not text.isascii() and text.encode("utf-8", "ignore").decode() != text:
                name = text.encode("utf-8", "backslashreplace").decode()
                raise MedarError(f"{name}: the name is not valid UTF-8; rename it")
            if "\0" in text:
                raise MedarError(f"case {self.id}: no file can be named {text!r}; correct the path")
        if not self.images:
            raise MedarError(f"case {self.id}: a case must have at least one image")
        if self.split is not None and self.split not in SPLITS:
            raise MedarError(
                f"case {self.id}: split must be one of {', '.join(SPLITS)}, got {self.split!r}"
            )
        if not self.subject:
            object.__setattr__(self, "subject", self.id)

    @property
    def labels(self) -> tuple[Path, ...]:
        """The files of the case's label map: none, one, or several DICOM segmentations."""
        return () if self.label is None else (self.label, *self.further_labels)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the case's images and label map."""
        return (*self.images, *self.labels)


CASE_KEYS = (
    "id", "image", "images", "label", "missing_label", "subject", "modality", "attributes",
    "annotated", "split",
)  # fmt: skip


def entry_of(case: Case, folder: Path) -> dict[str, Any]:
    """A case as a JSONL line of a file in `folder`; empty values are left out."""
    entry = {
        "id": case.id,
        "subject": case.subject,
        "images": [shown(image, folder) for image in case.images],
        "label": _shown_labels(case.label, case, folder),
        "missing_label": _shown_labels(case.missing_label, case, folder),
        "annotated": list(case.annotated) if case.annotated is not None else None,
        "modality": case.modality,
        "attributes": case.attributes or None,
        "split": case.split,
    }
    return {key: value for key, value in entry.items() if value is not None}


def case_from(entry: dict[str, Any], folder: Path, where: str) -> Case:
    """The case of a JSONL line.

    Args:
        entry: the parsed line.
        folder: start of relative paths.
        where: the line, for messages.

    Raises:
        MedarError: a key is unknown or missing, or has a value of the wrong type.
    """
    unknown = sorted(set(entry) - set(CASE_KEYS))
    if unknown:
        raise MedarError(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(CASE_KEYS)}")
    if "id" not in entry or ("image" in entry) == ("images" in entry):
        raise MedarError(f"{where}: a case needs the keys 'id' and 'image' or 'images'")
    images = entry["images"] if "images" in entry else [entry["image"]]
    if not isinstance(images, list) or not all(isinstance(i, str) and i for i in images):
        raise MedarError(f"{where}: images must be a list of paths, got {images!r}")
    annotated = entry.get("annotated")
    whole = isinstance(annotated, list) and all(type(value) is int for value in annotated)
    if annotated is not None and not whole:
        raise MedarError(f"{where}: annotated must be a list of label values, got {annotated!r}")
    attributes = entry.get("attributes", {})
    plain = isinstance(attributes, dict) and all(
        isinstance(value, str | int | float) and (isinstance(value, str) or math.isfinite(value))
        for value in attributes.values()
    )
    if not plain:
        raise MedarError(
            f"{where}: attributes must be an object of texts and numbers, got {attributes!r}"
        )
    label, further = _label_paths(entry, "label", folder, where)
    missing, others = _label_paths(entry, "missing_label", folder, where)
    try:
        return Case(
            id=_text(entry, "id", where) or "",
            images=tuple(folder / image for image in images),
            subject=_text(entry, "subject", where) or "",
            label=label,
            further_labels=further or others,
            missing_label=missing,
            annotated=tuple(annotated) if annotated is not None else None,
            modality=_text(entry, "modality", where),
            attributes=attributes,
            split=entry.get("split"),
        )
    except MedarError as error:
        message = str(error)
        raise MedarError(message if message.startswith(where) else f"{where}: {message}") from error


def shown(path: Path, folder: Path) -> str:
    """`path` as stored in a file of `folder`: relative if it is inside."""
    absolute, folder = Path(path).absolute(), Path(folder).absolute()
    if absolute.is_relative_to(folder):
        return absolute.relative_to(folder).as_posix()
    return absolute.as_posix()


def _text(entry: dict[str, Any], key: str, where: str) -> str | None:
    value = entry.get(key)
    if value is not None and type(value) not in (str, int):
        raise MedarError(f"{where}: {key} must be a text, got {value!r}")
    return None if value is None else str(value)


def _shown_labels(first: Path | None, case: Case, folder: Path) -> str | list[str] | None:
    """The files of a label map for `entry_of`: one path, or a list of several."""
    if first is None:
        return None
    paths = [shown(path, folder) for path in (first, *case.further_labels)]
    return paths if len(paths) > 1 else paths[0]


def _label_paths(
    entry: dict[str, Any], key: str, folder: Path, where: str
) -> tuple[Path | None, tuple[Path, ...]]:
    """The first file of a label map, and further ones."""
    value = entry.get(key)
    paths = value if isinstance(value, list) else [value] if value else []
    if not all(isinstance(path, str) and path for path in paths) or value == []:
        raise MedarError(
            f"{where}: {key} must be the path of a file, or a list of DICOM segmentations, got "
            f"{value!r}"
        )
    first, *further = [folder / path for path in paths] or [None]
    return first, tuple(further)
