"""Values of DICOM slices: MONOCHROME1, Modality LUTs and rescaling, in files made byte by byte."""

import struct
import zlib

import numpy as np
import pytest

from medar.errors import MedarError
from medar.volume import read_header, read_volume

EXPLICIT, IMPLICIT, DEFLATED = (
    "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99",
)  # fmt: skip
CT = "1.2.840.10008.5.1.4.1.1.2"


def element(tag, vr, value, syntax=EXPLICIT):
    """One element; numbers become US, texts are padded."""
    if isinstance(value, int):
        value = struct.pack("<H", value)
    if isinstance(value, str):
        value = value.encode()
    value += (b"\0" if vr in ("UI", "OB", "OW", "SQ") else b" ") * (len(value) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT:
        return head + struct.pack("<I", len(value)) + value
    long = vr in ("OB", "OW", "SQ")
    length = b"\0\0" + struct.pack("<I", len(value)) if long else struct.pack("<H", len(value))
    return head + vr.encode() + length + value


def slice_file(pixels, z, *, syntax=EXPLICIT, photometric="MONOCHROME2", stored=16, **more):
    """A CT slice; `more` are slope, intercept, private (bytes) and a Modality LUT."""
    signed = int(pixels.min() < 0)
    rows, columns = pixels.shape
    elements = {
        0x00080016: ("UI", CT),
        0x00080018: ("UI", f"1.2.{z + 1}"),
        0x00080060: ("CS", "CT"),
        0x0020000D: ("UI", "1.2"),
        0x0020000E: ("UI", "1.2.9"),
        0x00200032: ("DS", f"0\\0\\{z}"),
        0x00200037: ("DS", "1\\0\\0\\0\\1\\0"),
        0x00280002: ("US", 1),
        0x00280004: ("CS", photometric),
        0x00280010: ("US", rows),
        0x00280011: ("US", columns),
        0x00280030: ("DS", "1\\1"),
        0x00280100: ("US", 16),
        0x00280101: ("US", stored),
        0x00280102: ("US", stored - 1),
        0x00280103: ("US", signed),
        0x7FE00010: ("OW", pixels.astype("<i2" if signed else "<u2").tobytes()),
    }
    if "private" in more:
        elements[0x00190010] = ("LO", "TEST")
        elements[0x00191010] = ("OB", more["private"])
    if "lut" in more:
        table = np.arange(1000, 1256, dtype="<u2").tobytes()
        item = element(0x00283002, "US", struct.pack("<HHH", 256, 0, 16), syntax)
        item += element(0x00283006, "OW", table, syntax)
        head = struct.pack("<HHI", 0xFFFE, 0xE000, len(item))
        elements[0x00283000] = ("SQ", head + item)
    for tag, name in ((0x00281052, "intercept"), (0x00281053, "slope")):
        if name in more:
            elements[tag] = ("DS", more[name])
    meta = element(0x00020001, "OB", b"\0\1") + element(0x00020002, "UI", CT)
    meta += element(0x00020003, "UI", f"1.2.{z + 1}") + element(0x00020010, "UI", syntax)
    meta = element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta
    body = b"".join(element(tag, *elements[tag], syntax) for tag in sorted(elements))
    if syntax == DEFLATED:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = packer.compress(body) + packer.flush()
    return bytes(128) + b"DICM" + meta + body


STORED = np.arange(0, 4000, 200).reshape(4, 5)
"""Four rows and five columns."""


def series(folder, pixels=STORED, count=3, **tags):
    folder.mkdir(exist_ok=True)
    for z in range(count):
        (folder / f"{z}.dcm").write_bytes(slice_file(pixels + z, z, **tags))
    return folder


def values_of(folder):
    """The voxels as (slices, rows, columns) in the order of the file."""
    array = read_volume(folder).array[0]
    return array[::-1, ::-1].transpose(2, 1, 0)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("pixels", "tags"),
    [
        (STORED, {}),
        (STORED, {"stored": 12}),
        (STORED, {"syntax": IMPLICIT}),
        (STORED - 1024, {}),
        (STORED, {"stored": 12, "slope": "2.5", "intercept": "-1024"}),
        (STORED - 1024, {"slope": "-0.1", "intercept": "7"}),
        (STORED, {"slope": "3"}),
        (STORED, {"intercept": "-1000"}),
        (STORED, {"slope": "", "intercept": ""}),
    ],
)
def test_values_do_not_depend_on_how_they_are_shown(tmp_path, photometric, pixels, tags):
    folder = series(tmp_path / "s", pixels, photometric=photometric, **tags)
    slope, intercept = (float(tags.get(n) or d) for n, d in (("slope", 1), ("intercept", 0)))
    expected = slope * np.stack([pixels + z for z in range(3)]) + intercept
    np.testing.assert_allclose(values_of(folder), expected, rtol=0, atol=2e-3)


def test_slices_may_differ_in_how_they_are_shown(tmp_path):
    folder = series(tmp_path / "s")
    (folder / "1.dcm").write_bytes(slice_file(STORED + 1, 1, photometric="MONOCHROME1"))
    np.testing.assert_array_equal(values_of(folder), np.stack([STORED + z for z in range(3)]))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, DEFLATED])
@pytest.mark.parametrize("before", [0, 65_000, 65_300, 200_000])
def test_a_modality_lut_is_refused(tmp_path, syntax, before):
    """Wherever it stands: private elements may push it far into the file."""
    folder = series(tmp_path / "s", syntax=syntax, lut=True, private=bytes(before))
    with pytest.raises(MedarError, match=r"0\.dcm: its values are given by a table.*RescaleSlope"):
        read_header(folder)
    plain = series(tmp_path / "plain", syntax=syntax, private=bytes(before))
    assert read_header(plain).grid.shape == (5, 4, 3)


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        ({"slope": "0"}, "RescaleSlope"),
        ({"slope": "2,5"}, "RescaleSlope"),
        ({"slope": "2\\3"}, "RescaleSlope"),
        ({"slope": "nan"}, "RescaleSlope"),
        ({"slope": "inf"}, "RescaleSlope"),
        ({"slope": "x"}, "RescaleSlope"),
        ({"slope": "1", "intercept": "-1024 HU"}, "RescaleIntercept"),
        ({"slope": "1", "intercept": "nan"}, "RescaleIntercept"),
    ],
)
def test_an_unusable_rescaling_is_refused(tmp_path, tags, name):
    """GDCM takes such a slope for 1."""
    with pytest.raises(
        MedarError, match=rf"0\.dcm: {name} must be a number.*got .*correct the tag"
    ):
        read_header(series(tmp_path / "s", **tags))


def without_endings(folder, names="IM{:03}"):
    folder.mkdir()
    for z in range(6):
        (folder / names.format(z)).write_bytes(slice_file(STORED + z, z))
    return folder


@pytest.mark.parametrize("names", ["IM{:03}", "{}", "1.2.840.10008.{}"])
@pytest.mark.parametrize("keep", [0, 100, 131, 200, 400, -10, "zeros", "text"])
@pytest.mark.parametrize("lost", [0, 5])
def test_a_damaged_slice_without_ending_is_not_overlooked(tmp_path, names, keep, lost):
    """At the end of a series, where no gap shows that it is missing."""
    folder = without_endings(tmp_path / "s", names)
    path = folder / names.format(lost)
    content = path.read_bytes()
    words = {"zeros": bytes(len(content)), "text": b"hello" * 60}
    path.write_bytes(words[keep] if isinstance(keep, str) else content[:keep])
    header = read_header(folder)
    assert header.grid.shape == (5, 4, 5)
    assert header.notes == (f"1 file(s) without a readable image skipped, such as {path.name}",)


def test_a_damaged_slice_within_a_series_is_a_gap(tmp_path):
    folder = without_endings(tmp_path / "s")
    (folder / "IM003").write_bytes(b"")
    with pytest.raises(MedarError, match=r"1 slice\(s\) missing .*image skipped, such as IM003"):
        read_header(folder)


def test_a_slice_without_preamble_is_read(tmp_path):
    folder = without_endings(tmp_path / "s")
    for name in ("IM000", "IM005"):
        (folder / name).write_bytes((folder / name).read_bytes()[132:])
    for name in ("README", "LICENSE", "DICOMDIR", ".hidden", "notes.txt", "a.json"):
        (folder / name).write_text("not a slice")
    header = read_header(folder)
    assert (header.grid.shape, header.notes) == ((5, 4, 6), ())
