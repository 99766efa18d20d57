"""Lengths of DICOM elements: what reaches beyond the file is refused before GDCM allocates it."""

import random
import struct
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from dicom_files import compressed, enhanced, write_classic
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medar.errors import MedarError
from medar.volume import apart, dicom_lengths, read_header
from medar.volume.dicom_enhanced import read_file
from medar.volume.dicom_lengths import inflates, lengths_fit
from medar.volume.dicom_slice import read_slice
from medar.volume.gdcm import read_tags

STACK = np.arange(6 * 20, dtype=np.int16).reshape(6, 4, 5)
LARGER = np.arange(4 * 40 * 44, dtype=np.int16).reshape(4, 40, 44)
SYNTAXES = [
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]  # fmt: skip


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """GDCM reads in this process, whose memory is measured."""
    monkeypatch.setattr(apart, "_here", True)


def written(path, syntax=ExplicitVRLittleEndian, open_=False):
    """An enhanced file, whose sequences are nested, of defined or undefined lengths."""
    made = enhanced(STACK)
    made.file_meta.TransferSyntaxUID = syntax
    inner, outer = Dataset(), Dataset()
    inner.PatientComments = "innermost"
    outer.OtherPatientIDsSequence = [inner, inner]
    made.RequestAttributesSequence = [outer, Dataset()]
    if open_:
        for element in made.iterall():
            if element.VR == "SQ":
                element.is_undefined_length = True
                for item in element.value:
                    item.is_undefined_length_sequence_item = True
    made.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("open_", [False, True])
@pytest.mark.parametrize("preamble", [True, False])
def test_whole_files_pass(tmp_path, syntax, open_, preamble):
    path = written(tmp_path / "a.dcm", syntax, open_)
    if not preamble:
        content = path.read_bytes()
        path.write_bytes(content[144 + int.from_bytes(content[140:144], "little") :])
    # Deflated elements cannot be told from other bytes where nothing says what they are.
    assert lengths_fit(path) == (preamble or syntax != DeflatedExplicitVRLittleEndian)


def test_files_of_many_programs_pass():
    """Those that pydicom brings for its own tests and whose header GDCM reads, but for two.

    One states another transfer syntax than its elements are in, and takes 1.2 GB; the other's
    frame states 14 million tiles.
    """
    count = 0
    damaged = ("SC_rgb_jpeg.dcm", "JPEG2000-embedded-sequence-delimiter.dcm")
    for path in sorted((Path(pydicom.data.__file__).parent / "test_files").rglob("*")):
        if path.is_file() and path.stat().st_size and path.name not in damaged:
            if read_tags(path, {}) is None:
                continue
            count += 1
            assert lengths_fit(path), path.name
    assert count > 50


def test_sequences_in_another_encoding_pass(tmp_path):
    """Of unknown representation they are implicit; some programs swap the bytes of private ones."""
    content = written(tmp_path / "a.dcm").read_bytes()
    at = content.index(b"\x20\x00\x0d\x00UI")
    for order in "<>":
        for explicit in (True, False):
            kind = b"LO" + struct.pack(f"{order}H", 4) if explicit else struct.pack(f"{order}I", 4)
            element = struct.pack(f"{order}HH", 0x11, 0x10) + kind + b"abcd"
            item = struct.pack(f"{order}HHI", 0xFFFE, 0xE000, 12) + element
            end = struct.pack(f"{order}HHI", 0xFFFE, 0xE0DD, 0)
            sequence = b"\x11\x00\x10\x10UN\0\0\xff\xff\xff\xff" + item + end
            path = tmp_path / "b.dcm"
            path.write_bytes(content[:at] + sequence + content[at:])
            assert lengths_fit(path)
            path.write_bytes(content[:at] + sequence.replace(b"abcd", b"a") + content[at:])
            assert not lengths_fit(path)


def test_parts_of_compressed_pixels(tmp_path):
    made = compressed(enhanced(LARGER), "JPEG2000", tmp_path)
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert lengths_fit(tmp_path / "a.dcm")
    content = (tmp_path / "a.dcm").read_bytes()
    at = content.index(b"\xfe\xff\x00\xe0", content.index(b"\xe0\x7f\x10\x00") + 20) + 4
    for length in (0x7FFFFFFF, 3, 0xFFFFFFFF):
        changed = content[:at] + struct.pack("<I", length) + content[at + 4 :]
        (tmp_path / "b.dcm").write_bytes(changed)
        assert not lengths_fit(tmp_path / "b.dcm")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("open_", [False, True])
@pytest.mark.parametrize("name", ["StudyTime", "PatientID", "PatientComments", "StackID"])
def test_a_length_beyond_the_end(tmp_path, syntax, open_, name):
    path = written(tmp_path / "a.dcm", syntax, open_)
    content = path.read_bytes()
    tag = pydicom.tag.Tag(name)
    place = content.index(struct.pack("<HH", tag.group, tag.element)) + 4
    width = ("<I", 4) if syntax == ImplicitVRLittleEndian else ("<H", 2)
    place += 0 if syntax == ImplicitVRLittleEndian else 2
    length = struct.pack(width[0], 0xFFF0 if width[1] == 2 else 0x7FFFFFF0)
    path.write_bytes(content[:place] + length + content[place + width[1] :])
    assert not lengths_fit(path)


def test_an_unknown_representation_has_a_long_length(tmp_path):
    path = written(tmp_path / "a.dcm")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"UI\x1c\x00", b"UK\x1c\x00", 1))
    assert not lengths_fit(path)


@pytest.mark.parametrize("damage", [bytes(400), b"\x08\x00\x16\xc0\x7f\x00" + bytes(60)])
def test_what_is_no_element_is_not_left_to_gdcm(tmp_path, damage):
    """GDCM took over 1 GB for zeros or another tag among the elements of a file of 4 kB."""
    path = write_classic(tmp_path / "s", STACK) / "002.dcm"
    content = path.read_bytes()
    place = content.index(b"\x08\x00\x16\x00UI")
    path.write_bytes(content[:place] + damage + content[place + len(damage) :])
    assert not lengths_fit(path)


def test_elements_without_representation_and_padding_behind_pixels_pass(tmp_path):
    path = write_classic(tmp_path / "s", STACK) / "002.dcm"
    content = path.read_bytes()
    place = content.index(b"\x20\x00\x0d\x00UI")
    for between in (b"", b"??\0\0"):
        element = b"\x10\x00\x00\x10" + between + b"\x04\0\0\0abcd"
        path.write_bytes(content[:place] + element + content[place:] + bytes(100))
        assert lengths_fit(path)


@pytest.mark.parametrize(
    "content", [b"", b"hello, world", b"\x08\x00" * 300, bytes(1000) + b"x" * 20]
)
def test_other_files_do_not_pass(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert not lengths_fit(tmp_path / "a")
    assert read_slice(tmp_path / "a") is None


def test_such_a_slice_is_unreadable(tmp_path):
    folder = write_classic(tmp_path / "s", STACK)
    path = folder / "005.dcm"
    path.write_bytes(path.read_bytes().replace(b"UI\x14\x00", b"UK\x14\x00", 1))
    header = read_header(folder)
    assert header.grid.shape == (5, 4, 5)
    assert "005.dcm" in header.notes[0]
    with pytest.raises(MedarError, match="not a readable DICOM image"):
        read_header(path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_what_stands_behind_the_pixels(tmp_path, syntax):
    path = written(tmp_path / "a.dcm", syntax)
    content = path.read_bytes()
    for padding in (b"\0", bytes(1000), bytes(100_000)):
        path.write_bytes(content + padding)
        assert lengths_fit(path)
    for padding in (b"x" * 1000, bytes(1000) + b"x" * 20):
        path.write_bytes(content + padding)
        assert not lengths_fit(path)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_file_twice(tmp_path, syntax):
    """Zeros of the second preamble, then its elements: GDCM took 1.1 GB for such a file of 9 kB."""
    path = written(tmp_path / "a.dcm", syntax)
    content = path.read_bytes()
    draw = random.Random(0)
    for end in (len(content) - 1, *(draw.randrange(200, len(content)) for _ in range(40))):
        path.write_bytes(content[:end] * 2)
        with memory_below(50 << 20):
            assert read_slice(path) is None


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_flipped_bits_before_the_elements(tmp_path, syntax):
    """With a transfer syntax lost, GDCM guessed one and took 0.7 GB for a file of 4 kB."""
    path = written(tmp_path / "a.dcm", syntax)
    content = path.read_bytes()
    end = 144 + int.from_bytes(content[140:144], "little") + 40
    draw = random.Random(1)
    flips = [[(132, bit)] for bit in range(8)]
    flips += [
        [(draw.randrange(128, end), draw.randrange(8)) for _ in range(n)] for n in [1, 4] * 30
    ]
    for places in flips:
        changed = bytearray(content)
        for at, bit in places:
            changed[at] ^= 1 << bit
        path.write_bytes(changed)
        with memory_below(50 << 20):
            read_slice(path)


def test_deflated_files_inflate_to_a_bounded_length(tmp_path, monkeypatch):
    """Some megabytes of such a file are gigabytes of zeros, for GDCM and for pydicom."""
    monkeypatch.setattr(dicom_lengths, "MOST_INFLATED", 1 << 20)
    classic = write_classic(tmp_path / "s", STACK) / "002.dcm"
    many = written(tmp_path / "a.dcm")
    for path in (classic, many):
        deflated(path, bytes(100_000))
        assert lengths_fit(path)
        assert inflates(path)
        assert read_file(path).size == (5, 4)
        deflated(path, bytes(64 << 20))
        with memory_below(20 << 20):
            assert not lengths_fit(path)
            assert not inflates(path)
            with pytest.raises(MedarError, match="not a readable DICOM image"):
                read_header(path)


def deflated(path, behind):
    """Deflate the elements of a file, with bytes behind its pixels."""
    file = pydicom.dcmread(path)
    file.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file.DataSetTrailingPadding = behind
    file.save_as(path, enforce_file_format=True)


@contextmanager
def memory_below(limit):
    """Check that a block needs no more bytes at a time, where Linux tells it."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        yield
        return
    clear.write_text("5")
    before = peak()
    yield
    assert peak() - before < limit


def peak():
    """Peak memory of this process in bytes since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("lost", [2, 20, 40])
def test_fewer_pixels_than_the_slice_has(tmp_path, syntax, lost):
    """GDCM would fill the rest with whatever is in memory."""
    folder = write_classic(tmp_path / "s", STACK)
    for path in folder.iterdir():
        made = pydicom.dcmread(path)
        pixels = made.pixel_array.astype("<i2")
        made.file_meta.TransferSyntaxUID = syntax
        content = pixels.astype(">i2" if syntax == ExplicitVRBigEndian else "<i2").tobytes()
        made.PixelData = content[:-lost] if path.name == "005.dcm" else content
        new = Dataset()
        new.update(made)
        new.file_meta = made.file_meta
        new.save_as(path, enforce_file_format=True)
    assert lengths_fit(folder / "004.dcm")
    assert not lengths_fit(folder / "005.dcm")
    header = read_header(folder)
    assert header.grid.shape == (5, 4, 5)
    assert header.notes == ("1 file(s) without a readable image skipped, such as 005.dcm",)
