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
    """A CT slice; `more` are slope, intercept, private (bytes), a Modality LUT, high (bit), signed
    and allocated (bits).
    """
    signed = int(more.get("signed", pixels.min() < 0))
    allocated = more.get("allocated", 16)
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
        0x00280100: ("US", allocated),
        0x00280101: ("US", stored),
        0x00280102: ("US", more.get("high", stored - 1)),
        0x00280103: ("US", signed),
        0x7FE00010: ("OW", pixels.astype(f"<i{allocated // 8}").tobytes()),
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


def test_a_slice_without_rescaling_among_others(tmp_path):
    """Its values would be in another unit; slices without any effect need none."""
    folder = series(tmp_path / "s", slope="2", intercept="-1024")
    (folder / "1.dcm").write_bytes(slice_file(STORED, 1))
    with pytest.raises(MedarError, match=r"1\.dcm: neither RescaleSlope.*which 0\.dcm.*correct"):
        read_header(folder)
    for name in ("0.dcm", "2.dcm"):
        z = int(name[0])
        (folder / name).write_bytes(slice_file(STORED, z, slope="1", intercept="0"))
    np.testing.assert_array_equal(values_of(folder), np.stack([STORED] * 3))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_bits_above_those_of_the_value_are_no_part_of_it(tmp_path, photometric):
    """Old scanners keep overlays there."""
    folder = series(tmp_path / "s", STORED | 0x8000, stored=12, photometric=photometric)
    np.testing.assert_array_equal(values_of(folder), np.stack([STORED + z for z in range(3)]))


def test_a_sign_need_not_be_extended(tmp_path):
    folder = series(tmp_path / "s", STORED & 0xFFF, stored=12, signed=1)
    expected = np.stack([STORED + z for z in range(3)])
    np.testing.assert_array_equal(values_of(folder), expected - (expected >> 11 << 12))


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"stored": 12, "high": 15}, "HighBit must be 11 for BitsStored 12, got 15"),
        ({"stored": 16, "high": 11}, "HighBit must be 15 for BitsStored 16, got 11"),
        (
            {"stored": 32, "allocated": 32, "photometric": "MONOCHROME1"},
            "MONOCHROME1 of 32 bits.*export the series as MONOCHROME2",
        ),
    ],
)
def test_pixels_that_decoders_misread_are_refused(tmp_path, tags, message):
    """GDCM gives other values for them, without an error."""
    with pytest.raises(MedarError, match=rf"0\.dcm: {message}"):
        read_header(series(tmp_path / "s", STORED & 0xFFF, **tags))


def test_pixels_of_32_bits(tmp_path):
    folder = series(tmp_path / "s", STORED * 4000, stored=32, allocated=32)
    np.testing.assert_array_equal(
        values_of(folder), np.stack([STORED * 4000 + z for z in range(3)])
    )


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


@pytest.mark.parametrize("ending", ["gz", "part", "crdownload", "link"])
def test_an_incomplete_slice_is_not_overlooked(tmp_path, ending):
    """At the end of a series; a link leads nowhere where a file was not fetched, as in DataLad."""
    folder = series(tmp_path / "s", count=4)
    whole = folder / "3.dcm"
    if ending == "link":
        lost = whole
        whole.unlink()
        lost.symlink_to(tmp_path / "annex" / "3.dcm")
    else:
        lost = folder / f"3.dcm.{ending}"
        lost.write_bytes(whole.read_bytes()[:100])
        whole.unlink()
    header = read_header(folder)
    assert header.grid.shape == (5, 4, 3)
    assert header.notes == (f"1 file(s) without a readable image skipped, such as {lost.name}",)


def test_slices_in_a_subfolder_are_not_overlooked(tmp_path):
    folder = series(tmp_path / "s", count=4)
    for name in ("a", "b"):
        (folder / name).mkdir()
    (folder / "3.dcm").rename(folder / "b" / "3.dcm")
    note = "1 subfolder(s) with files of this series skipped (b)"
    assert read_header(folder).notes == (note,)
    (folder / "b" / "3.dcm").write_bytes(slice_file(STORED, 3).replace(b"1.2.9\0", b"1.2.8\0"))
    assert read_header(folder).notes == ()


def test_a_folder_of_unreadable_slices_names_one(tmp_path):
    folder = series(tmp_path / "s", photometric="PALETTE COLOR")
    with pytest.raises(MedarError, match=r"no DICOM image .*3 file\(s\) without .* such as 0\.dcm"):
        read_header(folder)


def test_messages_show_no_control_characters(tmp_path):
    """A carriage return or an escape sequence in a tag would rewrite what the terminal shows."""
    for z in range(2):
        pixels = np.full((2, 3), z, np.uint16)
        (tmp_path / f"{z}.dcm").write_bytes(slice_file(pixels, z, photometric="RGB\r\x1b[31m"))
    with pytest.raises(MedarError, match=r"colours \(RGB\?\?\[31m\), not intensities"):
        read_header(tmp_path)
