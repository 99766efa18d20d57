"""From stored DICOM pixels to the modality's values, where the DICOM reader leaves the standard.

By the standard (PS3.3 C.7.6.3.1.2, C.11.1), RescaleSlope and RescaleIntercept or a Modality LUT
turn stored values into the modality's, and MONOCHROME1 only says that low values are shown bright.
GDCM inverts MONOCHROME1, ignores Modality LUTs, and takes an unusable slope for 1.
"""

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.volume.dicom_slice import Slice

CHUNK = 1 << 16
"""Bytes of a file that are searched at once; data sets without their pixels are seldom longer."""

DEFLATED = b"1.2.840.10008.1.2.1.99"
MODALITY_LUT = re.compile(
    rb"\x28\x00\x00\x30(?:SQ\0\0)?.{4}\xfe\xff\x00\xe0|\x00\x28\x30\x00SQ\0\0.{4}\xff\xfe\xe0\x00",
    re.DOTALL,
)
"""The Modality LUT Sequence with its first item; of little and of big endian."""
PIXELS = re.compile(rb"\xe0\x7f\x10\x00|\x7f\xe0\x00\x10OW")


def check_rescaling(one: Slice) -> None:
    """Check the rescaling of a slice.

    Raises:
        MedarError: its slope or intercept is not a usable number.
    """
    for name, allowed in (
        ("RescaleSlope", "a number other than 0"),
        ("RescaleIntercept", "a number"),
    ):
        text = one.tags[name]
        try:
            number = float(text or 1)
        except ValueError:
            number = np.nan
        if not np.isfinite(number) or (number == 0 and name == "RescaleSlope"):
            raise MedarError(
                f"{one.where}: {name} must be {allowed}, got {text!r}; correct the tag, or export "
                "the series again"
            )


def check_alike_rescaling(slices: Sequence[Slice]) -> None:
    """Check that slices without rescaling are not among slices that are rescaled.

    Raises:
        MedarError: one is, whose values would be in another unit.
    """
    names = ("RescaleSlope", "RescaleIntercept")
    without = [one for one in slices if not any(one.tags[name] for name in names)]
    scaled = [one for one in slices if rescale_of(one.tags) != (1.0, 0.0)]
    if without and scaled:
        raise MedarError(
            f"{without[0].where}: neither RescaleSlope nor RescaleIntercept, which "
            f"{scaled[0].name} of the same series has; correct the tags, or export it again"
        )


def check_bits(one: Slice) -> None:
    """Check that the bits of a pixel that hold its value are those that decoders take.

    Raises:
        MedarError: they are not the lowest ones (PS3.5 8.1.1), or an inversion of many bits would
            have to be undone in float32.
    """
    stored, high = one.tags["BitsStored"], one.tags["HighBit"]
    if stored.isdigit() and high.isdigit() and int(high) != int(stored) - 1:
        raise MedarError(
            f"{one.where}: HighBit must be {int(stored) - 1} for BitsStored {stored}, got {high}; "
            "export the series again"
        )
    inverted = one.tags["PhotometricInterpretation"] == "MONOCHROME1" and one.frame is None
    if inverted and one.tags["BitsAllocated"] not in ("8", "16"):
        raise MedarError(
            f"{one.where}: MONOCHROME1 of {one.tags['BitsAllocated']} bits, which is read of 8 and "
            "16 bits only; export the series as MONOCHROME2"
        )


def check_table(path: Path) -> None:
    """Check that the values of a file are not given by a table.

    Raises:
        MedarError: it has a Modality LUT.
    """
    if _has_modality_lut(path):
        raise MedarError(
            f"{path}: its values are given by a table (Modality LUT Sequence), which medar does "
            "not apply; export the series with RescaleSlope and RescaleIntercept instead"
        )


def rescale_of(tags: Mapping[str, str]) -> tuple[float, float]:
    """Slope and intercept of a slice that `check_rescaling` passed; 1 and 0 where it has none."""
    return float(tags["RescaleSlope"] or 1), float(tags["RescaleIntercept"] or 0)


def without_inversion(
    values: npt.NDArray[np.float32], tags: Mapping[str, str]
) -> npt.NDArray[np.float32]:
    """The modality's values of a slice that GDCM read, which inverts stored MONOCHROME1 pixels."""
    if tags["PhotometricInterpretation"] != "MONOCHROME1":
        return values
    slope, intercept = rescale_of(tags)
    # Every bit of a pixel is inverted: v becomes 2^n - 1 - v, or -1 - v with a sign.
    total = -1.0 if tags["PixelRepresentation"] == "1" else 2.0 ** int(tags["BitsStored"]) - 1
    restored = slope * total + 2 * intercept - values.astype(np.float64)
    return restored.astype(np.float32)


def _has_modality_lut(path: Path) -> bool:
    """Whether the sequence stands before the pixels."""
    with path.open("rb") as file:
        start = file.read(CHUNK)
        if DEFLATED in start[:1024]:
            return MODALITY_LUT.search(_inflated(start, file)) is not None
        before = b""
        while start:
            # A match may lie across two chunks.
            window = before + start
            pixels = PIXELS.search(window)
            if MODALITY_LUT.search(window):
                return True
            if pixels:
                return False
            before, start = window[-32:], file.read(CHUNK)
    return False


def _inflated(start: bytes, file: BinaryIO) -> bytes:
    """The beginning of a deflated data set, which follows the file meta information."""
    end = 144 + int.from_bytes(start[140:144], "little")
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(start[end:] + file.read(CHUNK), 1 << 20)
