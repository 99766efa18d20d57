"""NRRD (https://teem.sourceforge.net/nrrd/format.html), with or without detached data files.

The patient space must be stated: a file without `space` or `space directions` needs a spacing to
assume. Axes of a range kind (vectors, lists) or without a direction are channels.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.volume.geometry import LPS_TO_RAS, Affine, shear_note
from medar.volume.header import Header, ReadOptions, assumed_affine, file_grid, spatial_shape
from medar.volume.voxel_files import (
    Encoding,
    VoxelFiles,
    data_file,
    header_text,
    integers_of,
    listed_files,
    numbers_of,
    pattern_files,
    shown_value,
)

MAGIC = b"NRRD000"
MOST_AXES = 16

TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long",
           "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}  # fmt: skip
ENCODINGS: dict[str, Encoding] = {
    "raw": "raw", "gz": "deflate", "gzip": "deflate", "bz2": "bzip2", "bzip2": "bzip2",
    "txt": "text", "text": "text", "ascii": "text", "hex": "hex",
}  # fmt: skip

RAS = np.eye(4)
LAS = np.diag([-1.0, 1.0, 1.0, 1.0])
SPACES = {
    "left-posterior-superior": LPS_TO_RAS,
    "lps": LPS_TO_RAS,
    "right-anterior-superior": RAS,
    "ras": RAS,
    "left-anterior-superior": LAS,
    "las": LAS,
}
"""Maps a space to RAS+; each may end in -time, or T."""
SPACES |= {f"{name}{'-time' if '-' in name else 't'}": turn for name, turn in SPACES.items()}

SPATIAL = {"domain", "space", "time", "???", "none", ""}
"""Kinds of axes that are not channels."""

MILLIMETRES = {"", "mm", "millimeter", "millimeters", "millimetre", "millimetres"}
TIME_UNITS = {"s", "sec", "seconds", "ms", "msec", "milliseconds"}


@dataclass(frozen=True, kw_only=True)
class _Text:
    """The fields of a header, by name in lower case without blanks."""

    path: Path
    fields: dict[str, str]
    names: tuple[str, ...]
    """Of the data files, for a LIST."""
    end: int
    """Bytes of the header."""

    def require(self, name: str) -> str:
        if name not in self.fields:
            raise MedarError(f"{self.path}: not a readable header: {name!r} is missing")
        return self.fields[name]


def read_nrrd_header(path: Path, options: ReadOptions) -> Header:
    """The header of a NRRD file (see `read_header`)."""
    text = _fields(path)
    (dimension,) = integers_of(path, "dimension", text.require("dimension"), 1, 1, MOST_AXES)
    sizes = integers_of(path, "sizes", text.require("sizes"), dimension)
    directions = _directions(text, dimension)
    channel_axis = _channel_axis(text, dimension, directions)
    spatial = [axis for axis in range(dimension) if axis != channel_axis]
    components = () if channel_axis is None else (sizes[channel_axis],)
    shape, channels = spatial_shape(path, (*(sizes[axis] for axis in spatial), *components))
    used = None if directions is None else [directions[axis] for axis in spatial]
    affine, notes = _affine(text, used, spatial, options)

    def arranged(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        array = numbers.reshape(sizes, order="F")
        return array if channel_axis is None else np.moveaxis(array, channel_axis, -1)

    grid = file_grid(path, shape, affine)
    return _voxels(text, sizes, options).as_header("NRRD", grid, channels, arranged, notes)


def nrrd_files(path: Path) -> tuple[Path, ...]:
    """The data files that a header names, wherever they are; itself if the voxels follow it."""
    text = _fields(path)
    (dimension,) = integers_of(path, "dimension", text.require("dimension"), 1, 1, MOST_AXES)
    sizes = integers_of(path, "sizes", text.require("sizes"), dimension)
    return _data_files(text, sizes, outside=True)


def _fields(path: Path) -> _Text:
    """Read the lines up to the blank one that ends the header, or those of a LIST of files."""
    fields: dict[str, str] = {}
    lines = header_text(path, MAGIC, "NRRD")
    next(lines)
    end = 0
    for line, end in lines:  # noqa: B007  where the header ends
        name, colon, value = line.partition(":")
        if not line.strip():
            break
        if line.startswith("#") or not colon or value.startswith("="):
            continue  # comments and key/value pairs
        key = re.sub(r"\s", "", name).lower()
        if key in fields:
            raise MedarError(
                f"{path}: not a readable header: {shown_value(name)} is given twice; keep one"
            )
        fields[key] = value.strip()
        if key == "datafile" and value.split()[:1] == ["LIST"]:
            names = tuple(one.strip() for one, _ in lines if one.strip())
            return _Text(path=path, fields=fields, names=names, end=0)
    return _Text(path=path, fields=fields, names=(), end=end)


def _voxels(text: _Text, sizes: tuple[int, ...], options: ReadOptions) -> VoxelFiles:
    path = text.path
    kind = " ".join(text.require("type").lower().split())
    code = next((code for code, names in TYPES.items() if kind in names), None)
    if code is None:
        raise MedarError(
            f"{path}: voxels of type {shown_value(kind)}; medar reads integers and floats"
        )
    encoding = ENCODINGS.get(text.require("encoding").lower())
    if encoding is None:
        raise MedarError(
            f"{path}: encoding must be one of {', '.join(ENCODINGS)}, got "
            f"{shown_value(text.require('encoding'))}"
        )
    order = "<"
    if encoding != "text" and code[1] != "1":
        endian = text.require("endian").lower()
        if endian not in ("little", "big"):
            raise MedarError(f"{path}: endian must be little or big, got {shown_value(endian)}")
        order = "<" if endian == "little" else ">"
    lines = text.fields.get("lineskip", "0")
    skipped = text.fields.get("byteskip", "0")
    (skip_lines,) = integers_of(path, "line skip", lines, 1, 0)
    (skip_bytes,) = integers_of(path, "byte skip", skipped, 1, -1)
    if skip_bytes < 0 and encoding != "raw":
        raise MedarError(f"{path}: byte skip -1 needs the encoding raw, got {encoding}")
    files = _data_files(text, sizes, options.allow_outside)
    start = text.end if files == (path,) else 0
    return VoxelFiles(
        header=path,
        files=files,
        encoding=encoding,
        dtype=np.dtype(order + code),
        count=int(np.prod(sizes, dtype=object)),
        start=-1 if skip_bytes < 0 else start,
        skip_lines=0 if skip_bytes < 0 else skip_lines,
        skip_bytes=max(skip_bytes, 0),
    )


def _data_files(text: _Text, sizes: tuple[int, ...], outside: bool) -> tuple[Path, ...]:
    """The files of the voxels; the header's own if it names none."""
    path, value = text.path, text.fields.get("datafile")
    if value is None:
        if path.name.lower().endswith(".nhdr"):
            raise MedarError(f"{path}: not a readable header: 'data file' is missing")
        return (path,)
    words = value.split()
    if words[:1] == ["LIST"]:
        needed = _number_of_files(path, sizes, words[1:])
        return listed_files(path, text.names, needed, "its LIST", outside)
    match = re.fullmatch(r"(\S+) +([+-]?\d{1,9}) +([+-]?\d{1,9}) +([+-]?\d{1,9})( +\d+)?", value)
    if "%" in value and match:
        first, last, step = (int(match[n]) for n in (2, 3, 4))
        needed = _number_of_files(path, sizes, (match[5] or "").split())
        return pattern_files(path, match[1], first, last, step, needed, outside)
    if "%" in value:
        raise MedarError(
            f"{path}: a pattern of data files must be a name with one number such as %03d, then "
            f"first, last and step, got {shown_value(value)}"
        )
    return (data_file(path, value, outside),)


def _number_of_files(path: Path, sizes: tuple[int, ...], words: list[str]) -> int:
    """Files of a list or pattern: one for each index of the axes that a file does not have."""
    own = len(sizes) - 1
    if words:
        (own,) = integers_of(path, "dimension of a data file", " ".join(words), 1, 1, len(sizes))
    if own == len(sizes):
        return 1
    return int(np.prod(sizes[own:], dtype=object))


def _directions(text: _Text, dimension: int) -> list[npt.NDArray[np.float64] | None] | None:
    """The direction of each axis; None for those without, and if the header has none at all."""
    written = text.fields.get("spacedirections")
    if written is None:
        return None
    found: list[npt.NDArray[np.float64] | None] = []
    for vector in re.findall(r"\([^()]*\)|none|[^\s()]+", written):
        if vector.lower() == "none":
            found.append(None)
            continue
        inside = vector.strip("()")
        numbers = inside.replace(",", " ")
        count = inside.count(",") + 1
        if count not in (3, 4) or not vector.startswith("("):
            numbers, count = vector, 3
        found.append(numbers_of(text.path, "space directions", numbers, count))
    lengths = {len(one) for one in found if one is not None}
    if len(found) != dimension or len(lengths) > 1:
        raise MedarError(
            f"{text.path}: not a readable header: space directions must be {dimension} vectors of "
            f"one length, got {shown_value(written)}"
        )
    return found


def _channel_axis(
    text: _Text, dimension: int, directions: list[npt.NDArray[np.float64] | None] | None
) -> int | None:
    """The axis of channels, if there is one."""
    kinds = [kind.lower() for kind in text.fields.get("kinds", "").split()]
    if kinds and len(kinds) != dimension:
        raise MedarError(
            f"{text.path}: not a readable header: kinds must be {dimension} words, got "
            f"{shown_value(text.fields['kinds'])}"
        )
    for kind in kinds:
        if kind.endswith("color"):
            raise MedarError(
                f"{text.path}: {shown_value(text.fields['kinds'].split()[kinds.index(kind)])} "
                "colours, not intensities; convert to grey"
            )
        if kind == "complex":
            raise MedarError(f"{text.path}: complex voxels; write the magnitude or the phase")
    found = {axis for axis, kind in enumerate(kinds) if kind not in SPATIAL}
    found |= {axis for axis, one in enumerate(directions or ()) if one is None}
    if len(found) > 1:
        raise MedarError(
            f"{text.path}: {len(found)} axes of kinds other than space; medar reads one, as "
            "channels"
        )
    return found.pop() if found else None


def _affine(
    text: _Text,
    directions: list[npt.NDArray[np.float64] | None] | None,
    spatial: list[int],
    options: ReadOptions,
) -> tuple[Affine, tuple[str, ...]]:
    """The affine of a file with a patient space; otherwise the assumed one."""
    path, fields = text.path, text.fields
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits") or fields.get("units", ""))
    odd = [u for u in units if u.lower() not in MILLIMETRES | TIME_UNITS]
    if odd:
        raise MedarError(
            f"{path}: space units must be mm, got {shown_value(odd[0])}; convert the file first"
        )
    space = fields.get("space", "").lower()
    if space in SPACES and directions is not None:
        return _stated(text, directions, SPACES[space])
    missing = (
        f"a NRRD header of space {shown_value(space)}" if space else "a NRRD header without space"
    )
    if space in SPACES:
        missing = "a NRRD header without space directions"
    spacing = None
    if directions is not None and all(one is not None for one in directions[:3]):
        lengths = [float(np.linalg.norm(one)) for one in directions[:3] if one is not None]
        spacing = (lengths[0], lengths[1], lengths[2])
    elif "spacings" in fields:
        words = fields["spacings"].split()
        sides = [words[axis] for axis in spatial[:3] if axis < len(words)]
        x, y, z = numbers_of(path, "spacings", " ".join(sides), 3)
        spacing = (float(x), float(y), float(z))
    affine, note = assumed_affine(path, spacing, options, missing=missing)
    return affine, (note,)


def _stated(
    text: _Text, directions: list[npt.NDArray[np.float64] | None], to_ras: Affine
) -> tuple[Affine, tuple[str, ...]]:
    """The affine that a header states, in RAS+, and a note if its axes are sheared."""
    path, vectors = text.path, [one for one in directions if one is not None]
    time = len(text.fields["space"].split("-")) == 4 or len(text.fields["space"]) == 4
    length = 4 if time else 3
    if len(vectors) < 3 or any(len(one) != length for one in vectors):
        raise MedarError(
            f"{path}: not a readable header: space directions must be vectors of {length} numbers "
            f"in this space, got {shown_value(text.fields['spacedirections'])}"
        )
    moves = [one[:3] for one in vectors[3:]] + [one[3:] for one in vectors[:3]]
    if any(np.abs(one).max(initial=0) > 1e-6 for one in moves):
        raise MedarError(f"{path}: the grid moves along the fourth axis; medar reads fixed grids")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([one[:3] for one in vectors[:3]], axis=1)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (lengths > 0).all():
        sides = ", ".join(f"{s:g}" for s in lengths)
        raise MedarError(f"{path}: spacing must be positive numbers in mm, got {sides}")
    origin = text.fields.get("spaceorigin")
    if origin is not None:
        inside = origin.strip("() ").replace(",", " ")
        affine[:3, 3] = numbers_of(path, "space origin", inside, length)[:3]
    affine = to_ras @ affine
    note = shear_note(affine)
    return affine, (note,) if note else ()
