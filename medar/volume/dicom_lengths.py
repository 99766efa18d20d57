"""Whether the elements of a DICOM file fit into it: GDCM allocates what a damaged length states.

Only lengths are read, of elements up to the pixels and within sequences. Where a file is not
understood, such as a deflated one or one of unknown value representations, GDCM decides.
"""

import mmap
import struct
from pathlib import Path

ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
FIRST_ITEM = b"\xfe\xff\x00\xe0"
"""With what a sequence begins that has no value representation."""
PIXELS = 0x7FE00010
SYNTAX = 0x00020010
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


class _NotUnderstoodError(Exception):
    """The file is left to GDCM."""


class _TooLongError(Exception):
    """An element reaches beyond its file or its sequence."""


def lengths_fit(path: Path) -> bool:
    """Whether no element of a file states a length beyond the end of the file.

    A file whose elements are not understood, and an empty one, passes.
    """
    with path.open("rb") as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # empty
            return True
        with content:
            try:
                _walk_file(content)
            except _TooLongError:
                return False
            except (_NotUnderstoodError, struct.error):
                return True
    return True


def _walk_file(content: mmap.mmap) -> None:
    offset, syntax = 0, b""
    if content[128:132] == b"DICM":
        offset = 132
        while content[offset : offset + 2] == b"\2\0":
            tag, value, offset = _element(content, offset, "<", 0, explicit=True, end=len(content))
            if tag == SYNTAX:
                syntax = content[value:offset].strip(b" \0")
    if syntax == DEFLATED:
        raise _NotUnderstoodError
    order = ">" if syntax == BIG_ENDIAN else "<"
    first = content[offset : offset + 6]
    if not syntax and not (first[:2] == b"\x08\0" and first[4:] in SHORT):
        raise _NotUnderstoodError
    explicit = syntax != IMPLICIT
    _walk(content, offset, len(content), order, explicit=explicit, depth=0)


def _walk(
    content: mmap.mmap, offset: int, end: int, order: str, *, explicit: bool, depth: int
) -> int:
    """Walk the elements up to the pixels, `end` or the end of an item; returns where that is."""
    if depth > DEEPEST:
        raise _NotUnderstoodError
    tag = 0
    while offset + 8 <= end:
        tag, value, after = _element(content, offset, order, tag, explicit=explicit, end=end)
        if tag == ITEM_END:
            return value
        if tag == PIXELS and after == UNDEFINED:
            return end
        kind = content[offset + 4 : offset + 6]
        is_sequence = kind == b"SQ" if explicit else content[value : value + 4] == FIRST_ITEM
        if after == UNDEFINED or is_sequence:
            after = _walk_items(
                content, value, end if after == UNDEFINED else after, order, after == UNDEFINED,
                explicit=explicit, depth=depth,
            )  # fmt: skip
        offset = after
    return end


def _walk_items(
    content: mmap.mmap,
    offset: int,
    end: int,
    order: str,
    open_: bool,
    *,
    explicit: bool,
    depth: int,
) -> int:
    """Walk the items of a sequence; returns where it ends."""
    while offset + 8 <= end:
        high, low, length = struct.unpack_from(f"{order}HHI", content, offset)
        tag, offset = high << 16 | low, offset + 8
        if tag == SEQUENCE_END and open_:
            return offset
        if tag != ITEM:
            raise _NotUnderstoodError
        if length != UNDEFINED and offset + length > end:
            raise _TooLongError
        stop = end if length == UNDEFINED else offset + length
        offset = _walk(content, offset, stop, order, explicit=explicit, depth=depth + 1)
    return end


def _is_followed(content: mmap.mmap, tag: int, offset: int, order: str, end: int) -> bool:
    """Whether an element ends at an offset: a later one begins there, or nothing."""
    if offset + 8 > end:
        return offset == end
    high, low = struct.unpack_from(f"{order}HH", content, offset)
    return tag < int(high << 16 | low)


def _uint(content: mmap.mmap, offset: int, order: str) -> int:
    """Four bytes as a number."""
    found: int = struct.unpack_from(f"{order}I", content, offset)[0]
    return found


def _element(
    content: mmap.mmap, offset: int, order: str, before: int, *, explicit: bool, end: int
) -> tuple[int, int, int]:
    """Tag of an element, and where its value begins and ends (UNDEFINED if it does not say).

    An element without value representation is damage, unless another follows where it ends.
    Whatever follows the pixels may be padding; `before` is the tag of the element before.
    """
    high, low = struct.unpack_from(f"{order}HH", content, offset)
    kind = content[offset + 4 : offset + 6]
    if high == 0xFFFE or not explicit:
        (length,) = struct.unpack_from(f"{order}I", content, offset + 4)
        value = offset + 8
    elif kind in SHORT:
        (length,) = struct.unpack_from(f"{order}H", content, offset + 6)
        value = offset + 8
    elif kind.isalpha() and kind.isupper():  # also one that is not known: PS3.5 7.1.2
        (length,) = struct.unpack_from(f"{order}I", content, offset + 8)
        value = offset + 12
    else:
        ends = [(8, _uint(content, offset + 4, order)), (12, _uint(content, offset + 8, order))]
        if before >= PIXELS and any(head + length <= end - offset for head, length in ends):
            raise _NotUnderstoodError
        for head, length in ends:
            value = offset + head
            if _is_followed(content, high << 16 | low, value + length, order, end):
                break
        else:
            raise _TooLongError
    if length == UNDEFINED:
        return high << 16 | low, value, UNDEFINED
    if value + length > end:
        raise _TooLongError
    return high << 16 | low, value, value + length
