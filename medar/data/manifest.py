"""`Manifest`: the cases of a data set, their labels and attributes.

A manifest is made from a folder, an MSD or nnU-Net `dataset.json`, a BIDS tree or a JSONL file
(`medar.data.sources`), and is stored as JSONL: one header line, then one line per case.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medar.data.case import SPLITS, Case, Split, case_from, entry_of, shown
from medar.errors import MedarError, one_line
from medar.files import digest, read_text, write_text

__all__ = ["SPLITS", "Case", "Manifest", "Split"]

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The cases of a data set and their common properties.

    Raises:
        MedarError: there is no case, two cases have the same id, a subject is in two splits, or an
            annotated value has no name.
    """

    root: Path
    """The folder of the data set."""
    source: str
    """The layout it was read as: "folder", "MSD", "nnU-Net", "BIDS", "JSONL", "file"."""
    cases: tuple[Case, ...]
    labels: dict[int, str] = field(default_factory=dict)
    """Label values and their names, without background (0)."""
    ignore_label: int | None = None
    """A label value for voxels that were not annotated (nnU-Net's "ignore")."""
    channels: tuple[str, ...] = ()
    """Channel names, if the data set gives them."""
    notes: tuple[str, ...] = ()
    """Remarks about the data set that arose while it was read."""

    def __post_init__(self) -> None:
        if not self.cases:
            raise MedarError(f"{self.root}: no volume found")
        seen: set[str] = set()
        split_of: dict[str, Split] = {}
        for case in self.cases:
            if case.id in seen:
                raise MedarError(f"{self.root}: two cases have the id {case.id!r}; ids are unique")
            seen.add(case.id)
            unnamed = set(case.annotated or ()) - set(self.labels) if self.labels else set()
            if unnamed:
                raise MedarError(
                    f"{self.root}: case {case.id!r} is annotated for the values "
                    f"{sorted(unnamed)}, which have no name; named: {sorted(self.labels)}"
                )
            if case.split is None:
                continue
            if split_of.setdefault(case.subject, case.split) != case.split:
                raise MedarError(
                    f"{self.root}: subject {case.subject!r} is in the splits "
                    f"{split_of[case.subject]} and {case.split}; it must be in one"
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
        """The label values that were annotated in a case; () if it has no label."""
        if case.label is None:
            return ()
        return tuple(self.labels) if case.annotated is None else case.annotated

    @property
    def digest(self) -> str:
        """A hash of the manifest without root and notes; the files' content is not included."""
        header, *cases = self._lines(relative_to=self.root)
        return digest([{**header, "root": None, "notes": None}, *cases])

    def save(self, path: str | Path) -> None:
        """Write the manifest as JSONL, atomically; paths below its folder become relative."""
        lines = self._lines(relative_to=Path(path).parent)
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    @classmethod
    def load(cls, path: str | Path) -> "Manifest":
        """Read a JSONL manifest.

        The first line may be a header (`{"medar_manifest": 1, "labels": {"1": "liver"}}`); each
        other line is a case with `id` and `image` or `images`, and optionally `label`,
        `missing_label`, `subject`, `modality`, `attributes`, `annotated`, `split`. Relative paths
        start at the file's folder.

        Raises:
            MedarError: a line is wrong; the message names the line and the key.
        """
        path = Path(path)
        folder = path.absolute().parent
        header: dict[str, Any] = {}
        cases = []
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise MedarError(f"{where}: not valid JSON ({one_line(error)})") from error
            if not isinstance(entry, dict):
                raise MedarError(f"{where}: each line must be a JSON object")
            if "medar_manifest" not in entry:
                cases.append(case_from(entry, folder, where))
            elif header or cases:
                raise MedarError(f"{where}: a header is allowed on the first line only")
            else:
                header = _header_from(entry, folder, where)
        if not cases:
            raise MedarError(f"{path}: no case; each line must be a JSON object")
        fields = {"root": folder, "source": "JSONL", **header}
        try:
            return cls(**fields, cases=tuple(cases))
        except MedarError as error:
            message = str(error).removeprefix(f"{fields['root']}: ")
            raise MedarError(f"{path}: {message}") from error

    def _lines(self, relative_to: Path) -> list[dict[str, Any]]:
        header = {
            "medar_manifest": FORMAT_VERSION,
            "root": shown(self.root, relative_to),
            "source": self.source,
            "labels": {str(value): name for value, name in self.labels.items()},
            "ignore_label": self.ignore_label,
            "channels": list(self.channels),
            "notes": list(self.notes),
        }
        return [header, *(entry_of(case, relative_to) for case in self.cases)]


def _header_from(entry: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """The fields of a manifest that its header line sets."""
    version = entry["medar_manifest"]
    if version != FORMAT_VERSION:
        raise MedarError(f"{where}: medar_manifest must be {FORMAT_VERSION}, got {version!r}")
    keys = ("medar_manifest", "root", "source", "labels", "ignore_label", "channels", "notes")
    unknown = sorted(set(entry) - set(keys))
    if unknown:
        raise MedarError(f"{where}: unknown key {unknown[0]!r}; known keys: {', '.join(keys)}")
    labels = entry.get("labels", {})
    if not isinstance(labels, dict) or not all(
        re.fullmatch(r"-?\d{1,9}", value) and int(value) != 0 and isinstance(name, str)
        for value, name in labels.items()
    ):
        raise MedarError(
            f'{where}: labels must map values other than 0 to names, such as {{"1": "liver"}}, '
            f"got {labels!r}"
        )
    fields: dict[str, Any] = {"labels": {int(value): name for value, name in labels.items()}}
    for key in ("root", "source"):
        if not isinstance(entry.get(key, ""), str):
            raise MedarError(f"{where}: {key} must be a text, got {entry[key]!r}")
    for key in ("channels", "notes"):
        texts = entry.get(key, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise MedarError(f"{where}: {key} must be a list of texts, got {texts!r}")
        fields[key] = tuple(texts)
    ignore = entry.get("ignore_label")
    if ignore is not None and type(ignore) is not int:
        raise MedarError(f"{where}: ignore_label must be a label value, got {ignore!r}")
    fields |= {"root": folder / entry.get("root", ""), "source": entry.get("source", "JSONL")}
    return {**fields, "ignore_label": ignore}
