"""`Manifest`: which volumes a data set holds, whose they are, and what is known about each.

A manifest is made from a folder, an MSD or nnU-Net `dataset.json`, a BIDS tree or a JSONL file
(`medar.data.sources`), and is stored as JSONL: one header line, then one line a case.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medar.errors import MedarError
from medar.files import digest, write_text

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Case:
    """One volume, with what is known about it.

    Raises:
        MedarError: no image, an id that cannot be a file name, or an unknown split.
    """

    id: str
    images: tuple[Path, ...]
    """One file (or DICOM folder) per channel, or a single 4D file."""
    subject: str = ""
    """Whose volume it is: splits never part a subject. Default: the case's id."""
    label: Path | None = None
    annotated: tuple[int, ...] | None = None
    """Label values that somebody looked for in this case; None: all that the manifest names.
    A value that is annotated and has no voxel is absent; one that is not annotated is unknown."""
    modality: str | None = None
    """"CT" or "MR"."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Class, age, scanner: any column of the data set's table."""
    split: Split | None = None

    def __post_init__(self) -> None:
        if not self.id or set(self.id) & set('/\\:*?"<>|') or self.id.startswith("."):
            raise MedarError(f"case id {self.id!r}: it must be usable as a file name")
        if not self.images:
            raise MedarError(f"case {self.id}: no image; each case names at least one file")
        if self.split is not None and self.split not in SPLITS:
            raise MedarError(f"case {self.id}: split {self.split!r}; allowed: {', '.join(SPLITS)}")
        if not self.subject:
            object.__setattr__(self, "subject", self.id)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The cases of a data set and what they share.

    Raises:
        MedarError: two cases of one id, a subject in two splits, or no case at all.
    """

    root: Path
    """The folder that the data set was found in."""
    source: str
    """What it was read as: "folder", "MSD", "nnU-Net", "BIDS", "JSONL", "file"."""
    cases: tuple[Case, ...]
    labels: dict[int, str] = field(default_factory=dict)
    """Label values and their names, without background (0)."""
    ignore_label: int | None = None
    """A label value that means "not looked at" (nnU-Net's "ignore")."""
    channels: tuple[str, ...] = ()
    """Channel names where the data set gives them."""
    notes: tuple[str, ...] = ()
    """What was found while reading it that its owner should know."""

    def __post_init__(self) -> None:
        if not self.cases:
            raise MedarError(f"{self.root}: no volume found")
        seen: set[str] = set()
        split_of: dict[str, Split] = {}
        for case in self.cases:
            if case.id in seen:
                raise MedarError(f"{self.root}: two cases have the id {case.id!r}; ids are unique")
            seen.add(case.id)
            if case.split is None:
                continue
            if split_of.setdefault(case.subject, case.split) != case.split:
                raise MedarError(
                    f"{self.root}: subject {case.subject!r} is in the splits "
                    f"{split_of[case.subject]} and {case.split}; one subject, one split"
                )

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    def __getitem__(self, case_id: str) -> Case:
        for case in self.cases:
            if case.id == case_id:
                return case
        raise MedarError(f"{self.root}: no case {case_id!r}; the first is {self.cases[0].id!r}")

    def select(self, split: Split) -> tuple[Case, ...]:
        """The cases of one split."""
        return tuple(case for case in self.cases if case.split == split)

    def with_cases(self, cases: tuple[Case, ...]) -> "Manifest":
        """The same data set with other cases."""
        return replace(self, cases=cases)

    def annotated(self, case: Case) -> tuple[int, ...]:
        """The label values that were looked for in a case: none where it has no label."""
        if case.label is None:
            return ()
        return tuple(self.labels) if case.annotated is None else case.annotated

    @property
    def digest(self) -> str:
        """A hash of what the manifest says (not of the files' content)."""
        return digest(self._lines(relative_to=self.root))

    def save(self, path: str | Path) -> None:
        """Write the manifest as JSONL, atomically; paths inside its folder are kept relative."""
        lines = self._lines(relative_to=Path(path).resolve().parent)
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    @classmethod
    def load(cls, path: str | Path) -> "Manifest":
        """Read a JSONL manifest.

        The first line may be a header (`{"medar_manifest": 1, "labels": {"1": "liver"}}`); each
        other line is a case with `id` and `image` or `images`, and optionally `label`, `subject`,
        `modality`, `attributes`, `annotated`, `split`. Relative paths start at the file's folder.

        Raises:
            MedarError: naming the line and the key that is wrong.
        """
        path = Path(path)
        header: dict[str, Any] = {}
        cases = []
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MedarError(f"{path}: cannot be read ({error})") from error
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except json.JSONDecodeError as error:
                raise MedarError(f"{path}:{number}: not valid JSON ({error})") from error
            if not isinstance(entry, dict):
                raise MedarError(f"{path}:{number}: a JSON object is needed on each line")
            if "medar_manifest" in entry:
                header = _checked_header(entry, f"{path}:{number}")
            else:
                cases.append(_case_from(entry, path.resolve().parent, f"{path}:{number}"))
        return cls(
            root=Path(header.get("root", path.resolve().parent)),
            source=header.get("source", "JSONL"),
            cases=tuple(cases),
            labels={int(value): name for value, name in header.get("labels", {}).items()},
            ignore_label=header.get("ignore_label"),
            channels=tuple(header.get("channels", ())),
            notes=tuple(header.get("notes", ())),
        )

    def _lines(self, relative_to: Path) -> list[dict[str, Any]]:
        header = {
            "medar_manifest": FORMAT_VERSION,
            "root": _shown(self.root, relative_to),
            "source": self.source,
            "labels": {str(value): name for value, name in self.labels.items()},
            "ignore_label": self.ignore_label,
            "channels": list(self.channels),
            "notes": list(self.notes),
        }
        return [header, *(_entry_of(case, relative_to) for case in self.cases)]


CASE_KEYS = (
    "id", "image", "images", "label", "subject", "modality", "attributes", "annotated", "split",
)  # fmt: skip


def _entry_of(case: Case, relative_to: Path) -> dict[str, Any]:
    """A case as a JSONL line; keys that hold nothing are left out."""
    entry = {
        "id": case.id,
        "subject": case.subject,
        "images": [_shown(image, relative_to) for image in case.images],
        "label": _shown(case.label, relative_to) if case.label else None,
        "annotated": list(case.annotated) if case.annotated is not None else None,
        "modality": case.modality,
        "attributes": case.attributes or None,
        "split": case.split,
    }
    return {key: value for key, value in entry.items() if value is not None}


def _case_from(entry: dict[str, Any], folder: Path, where: str) -> Case:
    unknown = sorted(set(entry) - set(CASE_KEYS))
    if unknown:
        raise MedarError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(CASE_KEYS)}")
    if "id" not in entry or not ("image" in entry or "images" in entry):
        raise MedarError(f"{where}: a case needs the keys 'id' and 'image' or 'images'")
    images = entry["images"] if "images" in entry else [entry["image"]]
    if not isinstance(images, list) or not all(isinstance(i, str) for i in images):
        raise MedarError(f"{where}: images {images!r}; a list of paths is needed")
    attributes = entry.get("attributes", {})
    if not isinstance(attributes, dict):
        raise MedarError(f"{where}: attributes {attributes!r}; an object is needed")
    annotated = entry.get("annotated")
    if annotated is not None and not all(isinstance(v, int) for v in annotated):
        raise MedarError(f"{where}: annotated {annotated!r}; a list of label values is needed")
    try:
        return Case(
            id=str(entry["id"]),
            images=tuple(folder / image for image in images),
            subject=str(entry.get("subject", "")),
            label=folder / entry["label"] if entry.get("label") else None,
            annotated=tuple(annotated) if annotated is not None else None,
            modality=entry.get("modality"),
            attributes=attributes,
            split=entry.get("split"),
        )
    except MedarError as error:
        raise MedarError(f"{where}: {error}") from error


def _checked_header(entry: dict[str, Any], where: str) -> dict[str, Any]:
    if entry["medar_manifest"] != FORMAT_VERSION:
        raise MedarError(
            f"{where}: manifest format {entry['medar_manifest']!r}; "
            f"this medar reads {FORMAT_VERSION}"
        )
    labels = entry.get("labels", {})
    if not isinstance(labels, dict) or not all(str(v).lstrip("-").isdigit() for v in labels):
        raise MedarError(f"{where}: labels {labels!r}; an object of value and name is needed")
    if "root" in entry:
        entry = {**entry, "root": (Path(where.rsplit(":", 1)[0]).resolve().parent / entry["root"])}
    return entry


def _shown(path: Path, relative_to: Path) -> str:
    """`path` as it is stored: relative where it lies inside `relative_to`."""
    absolute = Path(path).absolute()
    if absolute.is_relative_to(relative_to):
        return absolute.relative_to(relative_to).as_posix()
    return absolute.as_posix()
