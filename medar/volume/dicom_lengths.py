"""Whether a DICOM file is sound enough for GDCM, which allocates whatever a damaged length states.

Every element is walked by its length, within sequences and behind the pixels too, and no value is
read. A file passes only if it consists of elements, but for zeros or a few bytes at its end. What
undamaged files have beside the standard is understood: no preamble, sequences in another encoding
than their file (PS3.5 6.2.2), elements without value representation.
"""

import mmap
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from medar.volume.dicom_codestreams import LENGTHS, Frame, header_fits

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
FIRST_ITEMS = {b"\xfe\xff\x00\xe0": "<", b"\xff\xfe\xe0\x00": ">"}
"""With what a sequence begins, and the order of bytes that it shows."""
PIXELS = 0x7FE00010
SYNTAX = 0x00020010
OF_FRAMES = (0x00280010, 0x00280011, 0x00280002, 0x00280100)
"""Rows, Columns, SamplesPerPixel, BitsAllocated."""
UNDEFINED = 0xFFFFFFFF
SHORT = {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN",
    b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US",
}  # fmt: skip
"""Value representations whose length has two bytes; that of others has four."""
IMPLICIT, BIG_ENDIAN, DEFLATED = (
    b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99",
)  # fmt: skip
DEEPEST = 20
"""Sequences within sequences."""
MOST_INFLATED, MOST_RATIO = 128 << 20, 100
"""A deflated file may have this many bytes, or be this many times as long as it was."""

_Content = mmap.mmap | bytes


class _Encoding(NamedTuple):
    order: str
    """Of bytes, as in `struct`."""
    explicit: bool
    """Whether elements state their value representation."""


class _DamagedError(Exception):
    """An element reaches beyond its file or its sequence, or there is none where one must be."""


def lengths_fit(path: Path) -> bool:
    """Whether a file consists of DICOM elements whose lengths fit into it, with all its pixels."""
    with path.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # empty
            return False
        with content:
            try:
                _walk_file(content)
            except (_DamagedError, struct.error, zlib.error):
                return False
    return True


def inflates(path: Path) -> bool:
    """Whether a file is not deflated, or inflates to a bounded number of bytes."""
    with path.open("rb") as file:
        content = file.read(1024)
        if DEFLATED not in content:
            return True
        content += file.read()
        try:
            offset, syntax = _meta(content)
            if syntax == DEFLATED:
                _inflated(content[offset:])
        except (_DamagedError, struct.error, zlib.error):
            return False
    return True


def _walk_file(content: _Content) -> None:
    offset, syntax = _meta(content)
    if syntax == DEFLATED:
        content, offset = _inflated(content[offset:]), 0
    if syntax:
        encoding = _Encoding(">" if syntax == BIG_ENDIAN else "<", syntax != IMPLICIT)
    elif content[128:132] == b"DICM":  # GDCM tries one encoding after the other
        raise _DamagedError
    else:
        # Group numbers of the first element are small, in the order of bytes of the file.
        kind = content[offset + 4 : offset + 6]
        order = ">" if content[offset : offset + 1] == b"\0" else "<"
        encoding = _Encoding(order, _is_representation(kind))
    seen: dict[int, int] = {}
    _walk(content, offset, len(content), encoding, 0, seen)
    if PIXELS not in seen:  # damage earlier has led to where there are no elements
        raise _DamagedError
    pixels = seen[PIXELS]
    if content[pixels - 4 : pixels] == b"\xff\xff\xff\xff":
        parts = _fragments(content, pixels)
        if not header_fits(parts, syntax.decode("ascii", "replace"), _frame(content, seen, "<")):
            raise _DamagedError
    elif seen.keys() >= set(OF_FRAMES):
        # GDCM leaves pixels that are not there to whatever is in memory.
        frame = _frame(content, seen, encoding.order)
        needed = frame.rows * frame.columns * frame.bits // 8  # colours may be subsampled
        if _uint(content, pixels - 4, encoding.order) < needed:
            raise _DamagedError


def _frame(content: _Content, seen: dict[int, int], order: str) -> Frame:
    """What a file states about its frames."""
    try:
        return Frame(*(struct.unpack_from(f"{order}H", content, seen[tag])[0] for tag in OF_FRAMES))
    except KeyError as error:
        raise _DamagedError from error


def _fragments(content: _Content, offset: int) -> bytes:
    """The beginning of compressed pixels, behind their table of offsets."""
    found = b""
    offset += 8 + _uint(content, offset + 4, "<")
    while content[offset : offset + 4] in FIRST_ITEMS and len(found) < LENGTHS:
        length = _uint(content, offset + 4, "<")
        found += content[offset + 8 : offset + 8 + min(length, LENGTHS)]
        offset += 8 + length
    return found


def _meta(content: _Content) -> tuple[int, bytes]:
    """Where the file meta information ends, and the transfer syntax; b"" where it states none."""
    offset, syntax = 132 if content[128:132] == b"DICM" else 0, b""
    while content[offset : offset + 2] == b"\2\0" and _is_representation(
        content[offset + 4 : offset + 6]
    ):
        tag, value, offset = _element(content, offset, _Encoding("<", True), len(content))
        if offset == UNDEFINED:
            raise _DamagedError
        if tag == SYNTAX:
            syntax = content[value:offset].strip(b" \0")
    return offset, syntax


def _inflated(packed: bytes) -> bytes:
    """The elements of a deflated file (PS3.5 A.5)."""
    most = max(MOST_INFLATED, MOST_RATIO * len(packed))
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    content = stream.decompress(packed, most)
    if not stream.eof:
        raise _DamagedError
    return content


def _walk(
    content: _Content, offset: int, end: int, encoding: _Encoding, depth: int, seen: dict[int, int]
) -> int:
    """Walk elements up to `end` or the end of their item; returns where that is.

    Where values begin is added to `seen`, by tag.
    """
    if depth > DEEPEST:
        raise _DamagedError
    bare = True
    while offset + 8 <= end:
        if PIXELS in seen and depth == 0 and _is_zero(content, offset):
            return end
        tag, value, after = _element(content, offset, encoding, end)
        if tag == ITEM_END and depth:
            return value
        seen[tag] = value
        kind = content[offset + 4 : offset + 6] if encoding.explicit else b""
        # Of elements without representation GDCM stands one, but takes a file of them for another.
        if encoding.explicit and bare and not _is_representation(kind):
            raise _DamagedError
        bare = encoding.explicit and not _is_representation(kind)
        if tag == PIXELS and after == UNDEFINED:
            offset = _walk_fragments(content, value, end, encoding.order)
        elif after == UNDEFINED:
            offset = _walk_items(content, value, end, encoding, depth, open_=True)
        elif kind == b"SQ" or (not kind and content[value : value + 4] in FIRST_ITEMS):
            offset = _walk_items(content, value, after, encoding, depth, open_=False)
        else:
            offset = after
    return end


def _walk_items(
    content: _Content, offset: int, end: int, encoding: _Encoding, depth: int, *, open_: bool
) -> int:
    """Walk the items of a sequence, which may be in another encoding; returns where it ends.

    Args:
        content: of the file.
        offset: of the first item.
        end: of the sequence, or what it may not reach beyond if it is open.
        encoding: of the elements around it.
        depth: of the sequence within others.
        open_: whether a delimiter ends it.
    """
    order, explicit = encoding
    if content[offset : offset + 4] in FIRST_ITEMS:
        order = FIRST_ITEMS[content[offset : offset + 4]]
    while offset + 8 <= end:
        high, low, length = struct.unpack_from(f"{order}HHI", content, offset)
        tag, offset = high << 16 | low, offset + 8
        if tag == SEQUENCE_END and open_:
            return offset
        if tag != ITEM or (length != UNDEFINED and offset + length > end):
            raise _DamagedError
        stop = end if length == UNDEFINED else offset + length
        inner = _Encoding(order, explicit and _is_representation(content[offset + 4 : offset + 6]))
        offset = _walk(content, offset, stop, inner, depth + 1, {})
    return end


def _walk_fragments(content: _Content, offset: int, end: int, order: str) -> int:
    """Walk the parts of compressed pixels; returns where they end."""
    while offset + 8 <= end:
        high, low, length = struct.unpack_from(f"{order}HHI", content, offset)
        tag, offset = high << 16 | low, offset + 8
        if tag == SEQUENCE_END:
            return offset
        if tag != ITEM or offset + length > end:
            raise _DamagedError
        offset += length
    return end


def _is_representation(kind: bytes) -> bool:
    """Whether two bytes are a value representation, if not one that is defined (PS3.5 7.1.2)."""
    return kind.isalpha() and kind.isupper()


def _is_zero(content: _Content, offset: int) -> bool:
    """Whether nothing but zeros follows."""
    step = 1 << 16
    return all(
        not any(content[start : start + step]) for start in range(offset, len(content), step)
    )


def _is_followed(content: _Content, tag: int, offset: int, order: str, end: int) -> bool:
    """Whether an element ends at an offset: a later one begins there, or nothing."""
    if offset + 8 > end:
        return offset == end
    high, low = struct.unpack_from(f"{order}HH", content, offset)
    return tag < int(high << 16 | low)


def _uint(content: _Content, offset: int, order: str) -> int:
    """Four bytes as a number."""
    found: int = struct.unpack_from(f"{order}I", content, offset)[0]
    return found


def _element(content: _Content, offset: int, encoding: _Encoding, end: int) -> tuple[int, int, int]:
    """Tag of an element, and where its value begins and ends (UNDEFINED if it does not say).

    An element without value representation is damage, unless another follows where it ends.
    """
    order, explicit = encoding
    high, low = struct.unpack_from(f"{order}HH", content, offset)
    tag = int(high << 16 | low)
    kind = content[offset + 4 : offset + 6]
    if high == 0xFFFE or not explicit:
        length, value = _uint(content, offset + 4, order), offset + 8
    elif kind in SHORT:
        (length,) = struct.unpack_from(f"{order}H", content, offset + 6)
        value = offset + 8
    elif _is_representation(kind):
        length, value = _uint(content, offset + 8, order), offset + 12
    else:
        for value in (offset + 8, offset + 12):
            length = _uint(content, value - 4, order)
            if _is_followed(content, tag, value + length, order, end):
                break
        else:
            raise _DamagedError
    if length == UNDEFINED:
        return tag, value, UNDEFINED
    if value + length > end:
        raise _DamagedError
    return tag, value, value + length
