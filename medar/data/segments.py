"""Label maps whose file names their values: DICOM segmentations.

The segments of a file are numbered from 1, so that one structure may have another number in each
case. Where a data set names its labels, a segment has the value of the label of its name.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medar.errors import MedarError
from medar.volume import Header, Provenance, ReadOptions, read_header
from medar.volume.dicom_codes import label_text
from medar.volume.dicom_kinds import segmentation_at


def plain_name(name: str) -> str:
    """A name without case, blanks and punctuation: "SpinalCord" equals "spinal_cord"."""
    return re.sub(r"[\W_]", "", name.lower())


def read_label_header(
    path: Path, options: ReadOptions, image: Provenance | None, names: Mapping[int, str]
) -> Header:
    """The header of a label map; segments have the values of their names.

    Args:
        path: the file.
        options: how to read it.
        image: the image that it belongs to, on whose grid segments are placed.
        names: of the data set's labels by value; empty: segment numbers are the values.

    Raises:
        MedarError: see `read_header`; or a segment whose name and number contradict the names.
    """
    header = read_header(path, options, labels=True, image=image)
    if not header.segments or not names:
        return header
    values = _values(header, names)
    small = min(values.values()) >= 0 and max(values.values()) < 256
    table = np.zeros(max(values) + 1, dtype=np.uint8 if small else np.int32)
    table[list(values)] = list(values.values())
    return replace(
        header,
        load=lambda: table[header.load()],
        segments={value: header.segments[number] for number, value in values.items()},
    )


def _values(header: Header, names: Mapping[int, str]) -> dict[int, int]:
    """The label value of each segment, by its number."""
    by_name: dict[str, list[int]] = {}
    for value, name in names.items():
        by_name.setdefault(plain_name(label_text(name)), []).append(value)
    values: dict[int, int] = {}
    for number, name in header.segments.items():
        named = by_name.get(plain_name(name), [])
        value = number if number in named or len(named) != 1 else named[0]
        if value in names and value not in named:
            raise MedarError(
                f"{header.path}: segment {number} is {name!r}, but label {number} is "
                f"{names[number]!r}; labels must have the names of the segments (labels.json)"
            )
        if value in values.values():
            other = next(n for n, v in values.items() if v == value)
            raise MedarError(
                f"{header.path}: segments {other} and {number} would both be label {value} "
                f"({names.get(value, name)}); join them, or give each a name of its own"
            )
        values[number] = value
    return values


def names_in_key(label: Path | None, names: Mapping[int, str]) -> dict[str, Any]:
    """What the values of a label map depend on besides its file, for the key of a stored result."""
    if label is None or segmentation_at(label) is None:
        return {}
    return {"names": {str(value): name for value, name in sorted(names.items())}}


def joined_names(labels: Iterable[Path]) -> dict[int, str]:
    """Values and names of the segments of all DICOM segmentations among label maps.

    Those that cannot be opened are left out: reading them reports it.

    Raises:
        MedarError: a number has different names.
    """
    from medar.volume.dicom_segments import segment_names

    names: dict[int, str] = {}
    source: dict[int, Path] = {}
    for path in labels:
        try:
            segmentation = segmentation_at(path)
            segments = segment_names(segmentation) if segmentation else {}
        except (MedarError, OSError):
            continue
        for number, name in segments.items():
            if number == 0:
                continue
            earlier = names.setdefault(number, name)
            first = source.setdefault(number, path)
            if plain_name(earlier) != plain_name(name):
                example = json.dumps({"1": earlier, "2": name}, ensure_ascii=False)
                raise MedarError(
                    f"{path}: segment {number} is {name!r}, but {earlier!r} in {first}; give each "
                    f"name a value in labels.json, such as {example}, or as labels in the first "
                    "line of a JSONL manifest"
                )
    return dict(sorted(names.items()))
