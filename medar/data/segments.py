"""Label maps whose files name their values: DICOM segmentations.

The segments of a file are numbered from 1, so that one structure may have another number in each
case. Where a data set names its labels, a segment has the value of the label of its name. Several
files of one image are merged by the names of their segments, if no two of them hold the same voxel.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.volume import Header, Provenance, ReadOptions, read_header
from medar.volume.dicom_codes import label_text
from medar.volume.dicom_kinds import segmentation_at


def plain_name(name: str) -> str:
    """A name without case, blanks and punctuation: "SpinalCord" equals "spinal_cord"."""
    return re.sub(r"[\W_]", "", name.lower())


def read_label_header(
    paths: Sequence[Path],
    options: ReadOptions,
    image: Provenance | None,
    names: Mapping[int, str],
) -> Header:
    """The header of a label map; segments have the values of their names.

    Args:
        paths: its file, or several DICOM segmentations, which are merged.
        options: how to read it.
        image: the image that it belongs to, on whose grid segments are placed.
        names: of the data set's labels by value; empty: segment numbers are the values, or those of
            `joined_names` if several files are merged.

    Raises:
        MedarError: see `read_header`; or a segment whose name and number contradict the names, or
            files that cannot be merged; when they are loaded also if their segments overlap.
    """
    if len(paths) == 1:
        return _valued(read_header(paths[0], options, labels=True, image=image), names)
    headers = [read_header(path, options, labels=True, image=image) for path in paths]
    for header in headers:
        if segmentation_at(header.path) is None:
            raise MedarError(
                f"{header.path}: one of {len(paths)} label maps of an image, of which only DICOM "
                "segmentations are merged; join them to one file"
            )
    names = names or joined_names([paths])
    return _merged([_valued(header, names) for header in headers])


def _valued(header: Header, names: Mapping[int, str]) -> Header:
    """The header with the values of the names, if it has segments and there are names."""
    if not header.segments or not names:
        return header
    values = _values(header, names)
    small = min(values.values()) >= 0 and max(values.values()) < 256
    table = np.zeros(max(values) + 1, dtype=np.uint8 if small else np.int32)
    table[list(values)] = list(values.values())
    return replace(
        header,
        load=lambda: table[header.load()],
        dtype=str(table.dtype),
        segments={value: header.segments[number] for number, value in values.items()},
    )


def _merged(headers: Sequence[Header]) -> Header:
    """Segmentations of one image as one label map.

    Raises:
        MedarError: a value has two names, a name two codes, or they lie on different grids.
    """
    first = headers[0]
    source: dict[int, Header] = {}
    for header in headers:
        for value in header.segments:
            _check_same(value, header, source.setdefault(value, header))
        if not header.grid.matches(first.grid):
            raise MedarError(
                f"{header.path}: has another grid than {first.path}; segmentations are merged on "
                "the grid of their image: give it with them"
            )
    return replace(
        first,
        load=lambda: _load_merged(headers),
        dtype=str(np.result_type(*(header.dtype for header in headers))),
        notes=tuple(dict.fromkeys(note for header in headers for note in header.notes)),
        segments={v: n for header in headers for v, n in header.segments.items()},
    )


def _check_same(value: int, one: Header, earlier: Header) -> None:
    """Check that a value means the same in two segmentations.

    Raises:
        MedarError: it does not, or that is not known.
    """
    name, named = one.segments[value], earlier.segments[value]
    if one is earlier:
        return
    if plain_name(named) != plain_name(name):
        raise MedarError(
            f"{one.path}: {name!r} would be label {value}, which {named!r} of {earlier.path} is; "
            "give each name a value in labels.json"
        )
    if re.fullmatch(r"(segment|untitled)?\d*", plain_name(name)):
        raise MedarError(
            f"{one.path}: {name!r} is a name that {earlier.path} uses too and that does not say "
            "what it is; name the segments"
        )
    mine, its = (_code_of(header.path, name) for header in (one, earlier))
    if mine and its and mine != its:
        raise MedarError(
            f"{one.path}: {name!r} has the code {mine}, but {its} in {earlier.path}; name the "
            "segments apart, or keep one of the files"
        )


def _code_of(path: Path, name: str) -> str | None:
    """The coded type of the segment of a name."""
    from medar.volume.dicom_segments import segment_codes, segment_names

    codes = segment_codes(path)
    return next((codes.get(n) for n, other in segment_names(path).items() if other == name), None)


def _load_merged(headers: Sequence[Header]) -> npt.NDArray[Any]:
    """The voxels of all segmentations.

    Raises:
        MedarError: two of them hold the same voxel.
    """
    merged: npt.NDArray[Any] = np.zeros(1)
    for index, header in enumerate(headers):
        array = header.load()
        if index == 0:
            merged = array.astype(np.result_type(*(one.dtype for one in headers)))
            continue
        both = (merged != 0) & (array != 0)
        if both.any():
            mine, its = int(array[both][0]), int(merged[both][0])
            other = next(one for one in headers if its in one.segments)
            raise MedarError(
                f"{header.path}: {header.segments[mine]!r} and {other.segments[its]!r} of "
                f"{other.path} overlap in {np.count_nonzero(both)} voxels in all, but a label map "
                "has one value per voxel; keep one of the files, or export them without overlap"
            )
        np.copyto(merged, array, where=array != 0, casting="same_kind")
    return merged


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


def names_in_key(labels: Sequence[Path], names: Mapping[int, str]) -> dict[str, Any]:
    """What the values of a label map depend on besides its files, for the key of a stored result.

    Args:
        labels: its files, see `read_label_header`.
        names: see `read_label_header`.
    """
    if not any(segmentation_at(path) for path in labels):
        return {}
    return {"names": {str(value): name for value, name in sorted(names.items())}}


def joined_names(labels: Iterable[Sequence[Path]]) -> dict[int, str]:
    """Values and names of the segments of all DICOM segmentations among label maps.

    Segment numbers are the values. Where a label map has several files, whose segments are all
    numbered from 1, each new name, in the order of label maps, files and segments, has its own
    number if that is free, otherwise the smallest value that is. Files that cannot be opened are
    left out: reading them reports it.

    Args:
        labels: the files of each label map.

    Raises:
        MedarError: no label map has several files, and a number has different names.
    """
    labels = [tuple(paths) for paths in labels]
    by_name = any(len(paths) > 1 for paths in labels)
    names: dict[int, str] = {}
    source: dict[int, Path] = {}
    for path in (path for paths in labels for path in paths):
        for number, name in _names_in(path).items():
            if by_name:
                if plain_name(name) not in map(plain_name, names.values()):
                    free = (value for value in chain([number], count(1)) if value not in names)
                    names[next(free)] = name
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


def _names_in(path: Path) -> dict[int, str]:
    """The names of the segments of a file by number; none if it is another, or cannot be opened."""
    from medar.volume.dicom_segments import segment_names

    try:
        found = segment_names(one) if (one := segmentation_at(path)) else {}
    except (MedarError, OSError):
        return {}
    return {number: name for number, name in sorted(found.items()) if number}
