"""The voxels behind a text header, of NRRD and MetaImage: where they are, and reading them.

A header names its own file, one file beside it, a list of files, or a numbered pattern. Files must
hold every voxel that the header states; compressed ones are checked to their last byte, and never
inflated beyond the voxels.
"""

import bz2
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError, one_line
from medar.volume.geometry import Grid
from medar.volume.header import Header

Encoding = Literal["raw", "deflate", "bzip2", "text", "hex"]

MOST_FILES = 100_000
"""Data files of one volume."""

MOST_BYTES, MOST_BYTES_OF_LINE = 1 << 26, 1 << 20
"""Of a header; no real one comes near."""

MOST_PER_BYTE = {"deflate": 1032, "bzip2": 1_200_000}
"""Bytes that one byte of compressed data can stand for."""

PATTERN = re.compile(r"[^%]*%0?(\d{0,2})d[^%]*")
"""A name with one plain integer, such as slice%03d.raw."""


@dataclass(frozen=True, kw_only=True)
class VoxelFiles:
    """The files of a volume's voxels, in order, and how they are written."""

    header: Path
    """For messages."""
    files: tuple[Path, ...]
    encoding: Encoding
    dtype: np.dtype[Any]
    """With byte order."""
    count: int
    """Numbers in all files together; each holds as many."""
    start: int = 0
    """Bytes before the voxels in each file; -1: the voxels end with the file."""
    skip_lines: int = 0
    """Lines after `start`, before the voxels."""
    skip_bytes: int = 0
    """Bytes before the voxels once they are inflated."""

    def check(self) -> tuple[str, ...]:
        """Check the sizes of the files, as far as they show before reading, and return remarks.

        Raises:
            MedarError: a file is missing, or too short.
        """
        for path in self.files:
            if not path.is_file():
                raise MedarError(
                    f"{self.header}: its data file {self._shown(path)} is missing; put it beside "
                    "the header"
                )
        size = self._bytes_per_file
        for path in self.files if self.encoding in MOST_PER_BYTE else ():
            if size > MOST_PER_BYTE[self.encoding] * path.stat().st_size:
                raise MedarError(
                    f"{self.header}: truncated: {size} bytes of voxels, more than the "
                    f"{path.stat().st_size} compressed ones{self._in(path)} can hold; the file is "
                    "damaged, or the header wrong"
                )
        if self.encoding != "raw":
            return ()
        notes = []
        for path in self.files:
            there = path.stat().st_size - max(self.start, 0) - self.skip_bytes
            if there < size:
                raise MedarError(
                    f"{self.header}: truncated: {max(there, 0)} bytes of voxels"
                    f"{self._in(path)}, expected {size}; the file is damaged, or the header wrong"
                )
            if there > size and self.start == 0 and not self.skip_lines:
                notes.append(
                    f"{self._shown(path)} holds {there - size} bytes more than the header states, "
                    "which are left out; check sizes and voxel type"
                )
        return tuple(notes[:1])

    def load(self) -> npt.NDArray[Any]:
        """All numbers, (count,), in native byte order.

        Raises:
            MedarError: a file is damaged, or holds more or fewer voxels than the header states.
        """
        self.check()
        parts = []
        for path in self.files:
            try:
                parts.append(self._read(path))
            except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
                raise MedarError(
                    f"{self.header}: its voxels cannot be read{self._in(path)} "
                    f"({one_line(error)}); restore the file from a copy"
                ) from error
        array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def as_header(
        self,
        format: str,
        grid: Grid,
        channels: int,
        arranged: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
        notes: Sequence[str],
    ) -> Header:
        """The header of the volume, its files checked.

        Args:
            format: its name.
            grid: of the volume.
            channels: per voxel.
            arranged: from all numbers, as in the files, to an array whose last axes are channels.
            notes: about the header.

        Raises:
            MedarError: see `check`.
        """
        remarks = self.check()

        def load() -> npt.NDArray[Any]:
            array = arranged(self.load()).reshape(*grid.shape, channels)
            return np.moveaxis(array, -1, 0) if channels > 1 else array[..., 0]

        return Header(
            path=self.header,
            format=format,
            grid=grid,
            channels=channels,
            dtype=self.dtype.newbyteorder("=").name,
            load=load,
            notes=(*notes, *remarks),
        )

    @property
    def _bytes_per_file(self) -> int:
        return self.count // len(self.files) * self.dtype.itemsize

    def _read(self, path: Path) -> npt.NDArray[Any]:
        number, size = self.count // len(self.files), self._bytes_per_file
        with path.open("rb") as file:
            file.seek(path.stat().st_size - size if self.start < 0 else self.start)
            for _ in range(self.skip_lines):
                file.readline()
            if self.encoding == "raw":
                file.seek(self.skip_bytes, 1)
                array = np.empty(number, self.dtype)
                if file.readinto(array.data.cast("B")) != size:
                    raise EOFError("fewer voxels than the header states")
                return array
            content = file.read()
        if self.encoding == "text":
            return _from_text(content, number, self.dtype)
        if self.encoding == "hex":
            content = bytes.fromhex(content.decode("ascii"))
        else:
            content = _inflated(content, size + self.skip_bytes, self.encoding)
        if len(content) != size + self.skip_bytes:
            raise EOFError(f"{len(content)} bytes, expected {size + self.skip_bytes}")
        return np.frombuffer(content, self.dtype, number, self.skip_bytes).copy()

    def _shown(self, path: Path) -> str:
        folder = self.header.parent
        return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()

    def _in(self, path: Path) -> str:
        return "" if path == self.header else f" in {self._shown(path)}"


def data_file(header: Path, name: str, outside: bool) -> Path:
    """A data file that a header names, inside its folder unless it may be outside.

    Raises:
        MedarError: the name is empty, too long, not text, or leads out of the folder.
    """
    if not name or len(name) > 1000 or not name.isprintable():
        raise MedarError(f"{header}: not the name of a data file: {shown_value(name)}")
    folder = header.parent.absolute()
    path = folder / name
    inside = path.is_relative_to(folder) and ".." not in PurePath(name).parts
    if path == folder or not (inside or outside):
        raise MedarError(
            f"{header}: its data file {shown_value(name)} is not a file in the header's folder; "
            "put it beside the header, and its plain name in the header; or, if you trust the "
            "header, pass allow_outside (--allow-outside)"
        )
    return header.parent / (path.relative_to(folder) if inside else name)


def listed_files(
    header: Path, names: Sequence[str], needed: int, what: str, outside: bool
) -> tuple[Path, ...]:
    """The files of a list, which must be as many as are needed.

    Raises:
        MedarError: another number of files, one that is named twice, or see `data_file`.
    """
    if len(names) != needed:
        raise MedarError(
            f"{header}: {what} names {len(names)} data files, but {needed} are needed; complete "
            "the list, or correct the sizes"
        )
    for name, times in Counter(names).most_common(1):
        if times > 1:
            raise MedarError(
                f"{header}: {what} names {shown_value(name)} twice; each slice has its own file"
            )
    return tuple(data_file(header, name, outside) for name in names)


def pattern_files(
    header: Path, pattern: str, first: int, last: int, step: int, needed: int, outside: bool
) -> tuple[Path, ...]:
    """The files of a numbered pattern.

    Raises:
        MedarError: the pattern is not a name with one plain integer, or see `listed_files`.
    """
    if len(pattern) > 1000 or not PATTERN.fullmatch(pattern):
        raise MedarError(
            f"{header}: a pattern of data files must hold one number such as %03d, got "
            f"{shown_value(pattern)}"
        )
    if step == 0 or abs(last - first) // max(abs(step), 1) >= MOST_FILES:
        raise MedarError(
            f"{header}: data files from {first} to {last} in steps of {step}; a volume has at most "
            f"{MOST_FILES}"
        )
    numbers = range(first, last + (1 if step > 0 else -1), step)
    return listed_files(header, [pattern % n for n in numbers], needed, "its pattern", outside)


def header_text(path: Path, magic: bytes, what: str) -> Iterator[tuple[str, int]]:
    """The lines of a file that begins with a text header, with the offset after each.

    Args:
        path: the file.
        magic: what it begins with; empty if anything.
        what: the format, for messages.

    Raises:
        MedarError: the file does not begin with `magic`.
    """
    with path.open("rb") as file:
        if file.read(len(magic)) != magic:
            raise MedarError(
                f"{path}: not a {what} file (it does not begin with {magic.decode('ascii')})"
            )
        file.seek(0)
        while file.tell() < MOST_BYTES and (line := file.readline(MOST_BYTES_OF_LINE)):
            yield line.decode("latin-1").strip("\r\n"), file.tell()


def numbers_of(path: Path, name: str, text: str, count: int) -> npt.NDArray[np.float64]:
    """The finite numbers of a field.

    Raises:
        MedarError: they are not `count` finite numbers.
    """
    words = text.split()
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        values = np.array([np.nan])
    if len(words) != count or not np.isfinite(values).all():
        raise MedarError(
            f"{path}: not a readable header: {name} must be {count} numbers, got "
            f"{shown_value(text)}"
        )
    return values


def integers_of(
    path: Path, name: str, text: str, count: int, least: int = 1, most: int = 2**31 - 1
) -> tuple[int, ...]:
    """The integers of a field.

    Raises:
        MedarError: they are not `count` integers from `least` to `most`.
    """
    words = text.split()
    fine = len(words) == count and all(re.fullmatch(r"[+-]?\d{1,12}", word) for word in words)
    values = tuple(int(word) for word in words) if fine else ()
    if not fine or not all(least <= value <= most for value in values):
        many = f"{count} integers" if count > 1 else "an integer"
        raise MedarError(
            f"{path}: not a readable header: {name} must be {many} from {least} to {most}, got "
            f"{shown_value(text)}"
        )
    return values


def _inflated(content: bytes, size: int, encoding: Encoding) -> bytes:
    """The bytes of a compressed file, at most one more than `size`, its checksum compared."""
    parts: list[bytes] = []
    total = 0
    while True:
        # A deflate stream has the header of zlib or gzip.
        stream: Any = bz2.BZ2Decompressor() if encoding == "bzip2" else zlib.decompressobj(47)
        while not stream.eof:
            piece = stream.decompress(content, size + 1 - total)
            total += len(piece)
            parts.append(piece)
            if total > size:
                raise ValueError("more voxels than the header states")
            waiting = encoding == "bzip2" and not stream.needs_input
            content = b"" if encoding == "bzip2" else stream.unconsumed_tail
            if not content and not waiting and not stream.eof:
                raise EOFError("the compressed data end early")
        content = stream.unused_data
        if total == size or not content:
            return b"".join(parts)


def _from_text(content: bytes, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Numbers that are written as text."""
    words = content.split(maxsplit=count)[:count]
    if len(words) != count:
        raise EOFError(f"{len(words)} numbers, expected {count}")
    if dtype.kind == "f":
        return np.array([float(word) for word in words], dtype.newbyteorder("="))
    # Raises an error for numbers beyond the type.
    return np.array([int(word) for word in words], dtype.newbyteorder("="))


def shown_value(text: str) -> str:
    """A text in a file, quoted for messages, whatever it holds."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
