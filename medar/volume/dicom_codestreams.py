"""Whether the header of a compressed frame states what its DICOM file states.

Decoders trust it: for a precision of 48 bits in place of 16 GDCM reads memory that is not its own,
for other sides it allocates what they ask for. Checked are JPEG and JPEG-LS (ITU-T T.81 B.2.2 and
T.87 C.2.2), JPEG 2000 (T.800 A.5.1) and RLE (PS3.5 G.5); frames in other syntaxes pass.
"""

import struct
from typing import NamedTuple

LENGTHS = 1 << 20
"""Bytes at the beginning of a frame in which its header must end."""
JPEG, JPEG_LS, JPEG_2000, RLE = (
    tuple(f"1.2.840.10008.1.2.{end}" for end in ends)
    for ends in (
        ("4.50", "4.51", "4.57", "4.70"), ("4.80", "4.81"),
        ("4.90", "4.91", "4.92", "4.93"), ("5",),
    )
)  # fmt: skip
"""Transfer syntaxes."""
NOT_A_FRAME = (0xC4, 0xC8, 0xCC)
"""Markers among those of frames, C0 to CF, that begin something else."""
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
MOST_TILES = 65535


class Frame(NamedTuple):
    """What a DICOM file states about each of its frames."""

    rows: int
    columns: int
    samples: int
    """Per pixel."""
    bits: int
    """Allocated per sample."""


def header_fits(content: bytes, syntax: str, frame: Frame) -> bool:
    """Whether a compressed frame begins with a header of what its file states.

    Args:
        content: the frame, or its beginning of at least `LENGTHS` bytes.
        syntax: transfer syntax of the file.
        frame: what the file states.
    """
    try:
        if syntax in JPEG or syntax in JPEG_LS:
            return _jpeg_fits(content, frame)
        if syntax in JPEG_2000:
            return _jpeg_2000_fits(content, frame)
        if syntax in RLE:
            return _rle_fits(content, frame)
    except struct.error:  # it ends within the header
        return False
    return True


def _jpeg_fits(content: bytes, frame: Frame) -> bool:
    if content[:2] != b"\xff\xd8":
        return False
    offset = 2
    while True:
        start, marker, length = struct.unpack_from(">BBH", content, offset)
        if start != 0xFF:
            return False
        if marker == 0xFF:  # fill byte
            offset += 1
            continue
        is_ls = marker == 0xF7
        if is_ls or (0xC0 <= marker <= 0xCF and marker not in NOT_A_FRAME):
            break
        if marker in (0xD9, 0xDA) or length < 2:  # no frame before the pixels
            return False
        offset += 2 + length
    precision, rows, columns, samples = struct.unpack_from(">BHHB", content, offset + 4)
    usual = range(2, 17) if is_ls or marker in LOSSLESS else (8, 12)
    stated = (rows, columns, samples)
    return precision in usual and precision <= frame.bits and stated == frame[:3]


def _jpeg_2000_fits(content: bytes, frame: Frame) -> bool:
    if content[4:8] == b"jP  ":  # in a JP2 file, against the standard
        content = content[content.find(b"\xff\x4f\xff\x51") :]
    if content[:4] != b"\xff\x4f\xff\x51":
        return False
    right, bottom, left, top, width, height, first_x, first_y, samples = struct.unpack_from(
        ">8IH", content, 8
    )
    if (bottom - top, right - left, samples) != frame[:3] or 0 in (width, height):
        return False
    if not (first_x <= left < first_x + width and first_y <= top < first_y + height):
        return False
    tiles = -(-(right - first_x) // width) * -(-(bottom - first_y) // height)
    depths = [struct.unpack_from(">BBB", content, 42 + 3 * k) for k in range(samples)]
    return tiles <= MOST_TILES and all(
        (depth & 0x7F) + 1 <= frame.bits and (x, y) == (1, 1) for depth, x, y in depths
    )


def _rle_fits(content: bytes, frame: Frame) -> bool:
    count, *offsets = struct.unpack_from("<16I", content)
    used = offsets[: min(count, 15)]
    return (
        count == frame.samples * -(-frame.bits // 8)
        and used[:1] == [64]
        and all(a < b for a, b in zip(used, [*used[1:], len(content)], strict=True))
    )
