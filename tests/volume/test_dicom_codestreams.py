"""Headers of compressed frames: what their file does not state is refused before it is decoded."""

import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import compressed, enhanced, write_classic
from pydicom.uid import RLELossless

from medar.errors import MedarError
from medar.volume import read_volume
from medar.volume.dicom_codestreams import JPEG, JPEG_2000, RLE, Frame, header_fits
from medar.volume.dicom_slice import read_slice

STACK = np.arange(4 * 40 * 44, dtype=np.int16).reshape(4, 40, 44)
FRAME = Frame(rows=40, columns=44, samples=1, bits=16)
FIELDS = {
    "JPEG": (b"\xff\xc3", (
        (4, "B", 16, 48), (5, ">H", 40, 41), (7, ">H", 44, 65535), (9, "B", 1, 3),
    )),
    "JPEG2000": (b"\xff\x51", (
        (6, ">I", 44, 45), (10, ">I", 40, 39), (14, ">I", 0, 1), (22, ">I", 44, 0),
        (38, ">H", 1, 2), (40, "B", 143, 159), (41, "B", 1, 0),
    )),
}  # fmt: skip
"""Marker of the header by compressor, and its fields: offset, form, value and a wrong one."""


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, bytes]]:
    """Transfer syntax and the first compressed frame, by compressor."""
    folder = tmp_path_factory.mktemp("frames")
    found = {}
    for name in (*FIELDS, "RLE"):
        made = enhanced(STACK)
        if name == "RLE":
            made.compress(RLELossless, generate_instance_uid=False)
        else:
            made = compressed(made, name, folder)
        (first, *_) = pydicom.encaps.generate_frames(made.PixelData, number_of_frames=4)
        found[name] = (str(made.file_meta.TransferSyntaxUID), first)
    return found


def replaced(content: bytes, offset: int, form: str, value: int) -> bytes:
    size = struct.calcsize(form)
    return content[:offset] + struct.pack(form, value) + content[offset + size :]


@pytest.mark.parametrize("name", [*FIELDS, "RLE"])
def test_frames_pass_only_as_what_they_are(frames: dict[str, tuple[str, bytes]], name: str) -> None:
    syntax, content = frames[name]
    assert syntax in JPEG + JPEG_2000 + RLE
    assert header_fits(content, syntax, FRAME)
    others = [FRAME._replace(samples=3), FRAME._replace(bits=8)]
    if name != "RLE":  # which does not state its sides
        others += [FRAME._replace(rows=44, columns=40), FRAME._replace(columns=43)]
    for other in others:
        assert not header_fits(content, syntax, other)
    for end in (1, 3, 9):
        assert not header_fits(content[:end], syntax, FRAME)
        assert not header_fits(bytes(end) + content, syntax, FRAME)


@pytest.mark.parametrize("name", FIELDS)
def test_each_field(frames: dict[str, tuple[str, bytes]], name: str) -> None:
    syntax, content = frames[name]
    marker, fields = FIELDS[name]
    at = content.index(marker)
    for offset, form, value, wrong in fields:
        assert struct.unpack_from(form, content, at + offset) == (value,)
        assert not header_fits(replaced(content, at + offset, form, wrong), syntax, FRAME)


def test_segments_of_rle(frames: dict[str, tuple[str, bytes]]) -> None:
    syntax, content = frames["RLE"]
    for offset, value in ((0, 1), (0, 16), (4, 65), (8, 64), (8, len(content))):
        assert not header_fits(replaced(content, offset, "<I", value), syntax, FRAME)


def test_other_syntaxes_are_left_to_the_decoder() -> None:
    assert header_fits(b"anything", "1.2.840.10008.1.2.4.201", FRAME)


def test_damaged_headers_in_files(tmp_path: Path) -> None:
    """For a precision of 48 bits GDCM ended with a segmentation fault."""
    made = compressed(enhanced(STACK), "JPEG", tmp_path)
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    content = (tmp_path / "a.dcm").read_bytes()
    marker = b"\xff\xc3\x00\x0b"
    last = content.rindex(marker) + 4
    (tmp_path / "a.dcm").write_bytes(replaced(content, last, "B", 48))
    with pytest.raises(
        MedarError, match=r"a\.dcm: .* damaged \(frame 4 has not the header of 44 x"
    ):
        read_volume(tmp_path)
    series = write_classic(tmp_path / "s", STACK)
    for path in sorted(series.iterdir()):
        one = compressed(pydicom.dcmread(path), "JPEG", tmp_path)
        one.save_as(path, enforce_file_format=True)
    assert np.array_equal(read_volume(series).array[0], STACK.transpose(2, 1, 0)[::-1, ::-1])
    content = path.read_bytes()
    path.write_bytes(replaced(content, content.index(marker) + 4, "B", 48))
    assert read_slice(path) is None
