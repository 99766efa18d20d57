"""Lengths of DICOM elements: what reaches beyond the file is refused before GDCM allocates it."""

import struct

import numpy as np
import pydicom
import pytest
from dicom_files import enhanced, write_classic
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medar.errors import MedarError
from medar.volume import read_header
from medar.volume.dicom_lengths import lengths_fit

STACK = np.arange(6 * 20, dtype=np.int16).reshape(6, 4, 5)
SYNTAXES = [
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]  # fmt: skip


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
    assert lengths_fit(path)


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


@pytest.mark.parametrize("content", [b"", b"hello", bytes(1000), b"\x08\x00" * 300])
def test_other_files_are_left_to_gdcm(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    assert lengths_fit(tmp_path / "a")


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
    for padding in (b"\0", bytes(1000)):
        path.write_bytes(content + padding)
        assert lengths_fit(path)
    path.write_bytes(content + b"x" * 1000)
    assert not lengths_fit(path)
