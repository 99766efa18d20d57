"""Writing NRRD and MetaImage: a header in text, then the compressed voxels.

Both state positions in LPS here, as ITK and 3D Slicer do. Channels are stored voxel by voxel.
"""

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.files import atomic_path
from medar.volume.geometry import LPS_TO_RAS, Grid
from medar.volume.metaimage import TYPES
from medar.volume.volume import Volume
from medar.volume.write import PLANES, as_stored

HEAD = 4096
"""Bytes of a file among which its description is searched."""

LEVEL = 4
"""Compression by zlib: label maps gain nothing from more."""

NRRD_TYPES = {
    "i1": "int8", "u1": "uint8", "i2": "int16", "u2": "uint16", "i4": "int32", "u4": "uint32",
    "i8": "int64", "u8": "uint64", "f4": "float", "f8": "double",
}  # fmt: skip
"""Names by kind and bytes."""
META_TYPES = {code: name for name, code in TYPES.items() if "LONG" not in name or code[1] == "8"}
"""Names by kind and bytes."""

NRRD_DESCRIPTION, META_DESCRIPTION = "content: ", "Comment = "


def write_nrrd(
    path: str | Path,
    volume: Volume,
    *,
    grid: Literal["own", "source"] = "own",
    description: str = "",
) -> None:
    """Write a volume as NRRD, compressed, in its own voxel type; channels are a list axis.

    Args:
        path: ends in .nrrd.
        volume: the volume.
        grid: see `write_nifti`.
        description: for the field "content", ASCII, one line.

    Raises:
        MedarError: another ending, no source grid, or the file cannot be written.
    """
    path = Path(path)
    array, stored = _prepared(path, ".nrrd", volume, grid)
    columns, origin = _in_lps(stored)
    directions = [f"({','.join(map(repr, column))})" for column in columns]
    kinds, sizes = ["domain"] * 3, list(stored.shape)
    if len(array) > 1:
        directions, kinds, sizes = ["none", *directions], ["list", *kinds], [len(array), *sizes]
    lines = [
        "NRRD0005",
        *([NRRD_DESCRIPTION + _ascii(description)] if description else []),
        f"type: {NRRD_TYPES[_code(array)]}",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {' '.join(directions)}",
        f"kinds: {' '.join(kinds)}",
        "endian: little",
        "encoding: gzip",
        f"space origin: ({','.join(map(repr, origin))})",
        "",
        "",
    ]
    with _written(path) as file:
        file.write("\n".join(lines).encode())
        for part in _deflated(array, zlib.MAX_WBITS | 16):
            file.write(part)


def write_metaimage(
    path: str | Path,
    volume: Volume,
    *,
    grid: Literal["own", "source"] = "own",
    description: str = "",
) -> None:
    """Write a volume as a MetaImage of one file, compressed, in its own voxel type.

    Args:
        path: ends in .mha.
        volume: the volume.
        grid: see `write_nifti`.
        description: for the field "Comment", ASCII, one line.

    Raises:
        MedarError: another ending, no source grid, or the file cannot be written.
    """
    path = Path(path)
    array, stored = _prepared(path, ".mha", volume, grid)
    columns, origin = _in_lps(stored)
    sides = np.array(stored.spacing)
    axes = (np.array(columns) / sides[:, None]).ravel().tolist()
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        *([META_DESCRIPTION + _ascii(description)] if description else []),
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = True",
        "CompressedDataSize = ",
    ]
    more = [
        "",
        f"TransformMatrix = {' '.join(map(repr, axes))}",
        f"Offset = {' '.join(map(repr, origin))}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {' '.join(map(repr, sides.tolist()))}",
        f"DimSize = {' '.join(map(str, stored.shape))}",
        *([f"ElementNumberOfChannels = {len(array)}"] if len(array) > 1 else []),
        f"ElementType = {META_TYPES[_code(array)]}",
        "ElementDataFile = LOCAL",
        "",
    ]
    with _written(path) as file:
        file.write("\n".join(lines).encode())
        field = file.tell()
        # The size is known when all is written; spaces stand for it.
        file.write((" " * len(str(2**63)) + "\n".join(more)).encode())
        start = file.tell()
        for part in _deflated(array, zlib.MAX_WBITS):
            file.write(part)
        size = file.tell() - start
        file.seek(field)
        file.write(str(size).encode())


def header_description(path: Path) -> str | None:
    """The description in a NRRD or MetaImage file; None where there is none."""
    try:
        with path.open("rb") as file:
            lines = file.read(HEAD).split(b"\n")
    except OSError:
        return None
    for line in lines:
        text = line.decode("ascii", "replace").rstrip("\r")
        for start in (NRRD_DESCRIPTION, META_DESCRIPTION):
            if text.startswith(start):
                return text.removeprefix(start)
    return None


def _prepared(
    path: Path, ending: str, volume: Volume, grid: Literal["own", "source"]
) -> tuple[npt.NDArray[Any], Grid]:
    """The voxels, (C, X, Y, Z), little endian, and the grid that they are written on."""
    if not path.name.lower().endswith(ending):
        raise MedarError(f"{path}: the name must end in {ending}")
    array, stored = as_stored(path, volume, grid)
    return array.astype(array.dtype.newbyteorder("<"), copy=False), stored


def _code(array: npt.NDArray[Any]) -> str:
    """The type of the voxels as "u1", "f4" and the like."""
    return array.dtype.str[1:]


def _in_lps(grid: Grid) -> tuple[list[list[float]], list[float]]:
    """The steps along the array axes, and the position of the first voxel."""
    affine = LPS_TO_RAS @ grid.affine
    return affine[:3, :3].T.tolist(), affine[:3, 3].tolist()


def _ascii(description: str) -> str:
    """One line that any reader takes."""
    return " ".join(description.encode("ascii", "replace").decode().split())


@contextlib.contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            yield file
    except OSError as error:
        raise MedarError(f"{path}: cannot be written ({error.strerror or error})") from error


def _deflated(array: npt.NDArray[Any], wbits: int) -> Iterator[bytes]:
    """The voxels compressed, channels fastest, a few planes at a time."""
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, wbits)
    count = max(1, PLANES // (array[..., 0].size))
    for z in range(0, array.shape[-1], count):
        yield packer.compress(array[..., z : z + count].tobytes(order="F"))
    yield packer.flush()
