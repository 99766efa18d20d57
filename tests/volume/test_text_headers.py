"""NRRD and MetaImage: voxels of every kind of file, damaged ones, and headers that are traps."""

import bz2
import contextlib
import gzip
import random
import re
import zlib

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medar.errors import GeometryWarning, MedarError
from medar.settings import to_dict
from medar.volume import ReadOptions, files_of, read_header, read_volume

SIDES = (5, 4, 3)
VOXELS = np.arange(60, dtype="<i2").reshape(SIDES, order="F")
SLICES = [VOXELS[..., z].tobytes(order="F") for z in range(3)]
NRRD = [
    "NRRD0004", "type: short", "dimension: 3", "space: RAS", "sizes: 5 4 3",
    "space directions: (1,0,0) (0,2,0) (0,0,3)", "endian: little",
]  # fmt: skip
META = [
    "NDims = 3", "DimSize = 5 4 3", "ElementType = MET_SHORT", "ElementSpacing = 1 2 3",
    "TransformMatrix = -1 0 0 0 -1 0 0 0 1",
]  # fmt: skip
"""Both in RAS."""


def nrrd(path, *fields, data=b"", without=()):
    lines = [line for line in NRRD if line.split(":")[0] not in without]
    path.write_bytes("\n".join([*lines, *fields, "", ""]).encode("latin-1") + data)
    return path


def meta(path, *fields, data=b"", file="LOCAL", without=()):
    lines = [line for line in META if line.split(" ")[0] not in without]
    lines += [*fields, f"ElementDataFile = {file}"]
    path.write_bytes("\n".join([*lines, ""]).encode("latin-1") + data)
    return path


def same(path, expected=VOXELS):
    array = read_volume(path).array[0]
    assert np.array_equal(array, expected)
    return True


def refused(path, match):
    with pytest.raises(MedarError, match=match) as caught:
        read_volume(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_simpleitk_agrees(tmp_path, name, compress, kind):
    """On voxels and geometry, for random axes."""
    generator = np.random.default_rng(sum(map(ord, name + kind)))
    data = generator.integers(0, 100, (7, 6, 5)).astype(kind)
    image = sitk.GetImageFromArray(data.T)
    image.SetSpacing(generator.uniform(0.3, 4, 3).tolist())
    image.SetOrigin(generator.uniform(-90, 90, 3).tolist())
    image.SetDirection(np.linalg.qr(generator.normal(size=(3, 3)))[0].ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / name), compress)
    header = read_header(tmp_path / name)
    assert header.dtype == np.dtype(kind).name
    assert np.array_equal(header.load(), data)
    again = sitk.ReadImage(str(tmp_path / name))
    for index in ([0, 0, 0], [6, 0, 0], [0, 5, 0], [0, 0, 4]):
        there = np.array(again.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
        assert (header.grid.affine @ [*index, 1])[:3] == pytest.approx(there, abs=1e-5)


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("raw", VOXELS.tobytes(order="F")),
        ("gzip", gzip.compress(VOXELS.tobytes(order="F"))),
        ("gz", gzip.compress(b"".join(SLICES[:1])) + gzip.compress(b"".join(SLICES[1:]))),
        ("bzip2", bz2.compress(VOXELS.tobytes(order="F"))),
        ("bz2", bz2.compress(b"".join(SLICES[:2])) + bz2.compress(SLICES[2])),
        ("ascii", " ".join(str(v) for v in VOXELS.ravel(order="F")).encode()),
        ("hex", VOXELS.tobytes(order="F").hex().encode()),
    ],
    ids=["raw", "gzip", "gz", "bzip2", "bz2", "ascii", "hex"],
)
def test_nrrd_encodings(tmp_path, encoding, data):
    assert same(nrrd(tmp_path / "a.nrrd", f"encoding: {encoding}", data=data))
    nrrd(tmp_path / "b.nhdr", f"encoding: {encoding}", "data file: sub/b.raw")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.raw").write_bytes(b"skip\n" + data)
    refused(tmp_path / "b.nhdr", "cannot be read in sub/b.raw|expected") if encoding != "raw" else 0
    nrrd(tmp_path / "c.nhdr", f"encoding: {encoding}", "line skip: 1", "data file: sub/b.raw")
    assert same(tmp_path / "c.nhdr")


def test_byte_order_and_skipped_bytes(tmp_path):
    big = VOXELS.astype(">i2").tobytes(order="F")
    assert same(
        nrrd(tmp_path / "a.nrrd", "endian: big", "encoding: raw", data=big, without=["endian"])
    )
    assert same(meta(tmp_path / "a.mha", "BinaryDataByteOrderMSB = True", data=big))
    assert same(meta(tmp_path / "b.mha", "ElementByteOrderMSB = True", data=big))
    raw = b"".join(SLICES)
    (tmp_path / "a.raw").write_bytes(b"12345" + raw)
    for skip in (5, -1):
        name = f"a{skip}"
        nrrd(tmp_path / f"{name}.nhdr", "encoding: raw", f"byte skip: {skip}", "data file: a.raw")
        meta(tmp_path / f"{name}.mhd", f"HeaderSize = {skip}", file="a.raw")
        assert same(tmp_path / f"{name}.nhdr")
        assert same(tmp_path / f"{name}.mhd")
    packed = gzip.compress(b"12345" + raw)
    assert same(nrrd(tmp_path / "z.nrrd", "encoding: gzip", "byte skip: 5", data=packed))


def test_metaimage_text_and_spellings(tmp_path):
    words = " ".join(str(v) for v in VOXELS.ravel(order="F")).encode()
    assert same(meta(tmp_path / "a.mha", "BinaryData = False", data=words))
    refused(
        meta(tmp_path / "b.mha", "BinaryData = False", data=words[:-4]),
        "59 numbers, expected 60|58",
    )
    refused(
        meta(
            tmp_path / "c.mha", "BinaryData = False", "ElementType = MET_CHAR",
            data=words.replace(b"59", b"590"), without=["ElementType"],
        ),
        "cannot be read",
    )  # fmt: skip
    refused(
        meta(tmp_path / "d.mha", "BinaryData = Yes"), "BinaryData must be True or False, got 'Yes'"
    )


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
def test_damage_in_compressed_voxels_is_noticed(tmp_path, name):
    """A flipped bit wherever it is, bytes that are zeroed, lost or too many."""
    data = np.random.default_rng(0).integers(0, 50, (24, 20, 16)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(data.T), str(tmp_path / name), True)
    (voxels,) = [p for p in tmp_path.iterdir() if p.stat().st_size > 1000]
    good = voxels.read_bytes()
    generator = random.Random(0)
    start = len(good) - 3000
    damaged = [good[:-n] + bytes(n) for n in (1, 2, 4, 8, 100)] + [
        good[:-1],
        good[: len(good) // 2],
    ]
    for place in generator.sample(range(8 * start, 8 * len(good)), 60):
        flipped = bytearray(good)
        flipped[place // 8] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    unnoticed = 0
    for content in damaged:
        voxels.write_bytes(content)
        with contextlib.suppress(MedarError):
            # A few bits mean nothing, such as the last ones of a stream.
            assert np.array_equal(read_header(tmp_path / name).load(), data)
            unnoticed += 1
    assert unnoticed <= 4
    voxels.write_bytes(good)
    assert np.array_equal(read_header(tmp_path / name).load(), data)


@pytest.mark.parametrize("missing", [1, 2, 59, 119, 120])
def test_fewer_voxels_than_the_header_states(tmp_path, missing):
    raw = b"".join(SLICES)[:-missing]
    match = (
        rf"truncated: {120 - missing} bytes of voxels, expected 120|truncated.*in a.raw, expected"
    )
    (tmp_path / "a.raw").write_bytes(raw)
    refused(meta(tmp_path / "a.mha", data=raw), match)
    refused(nrrd(tmp_path / "a.nrrd", "encoding: raw", data=raw), match)
    refused(meta(tmp_path / "a.mhd", file="a.raw"), match)
    refused(nrrd(tmp_path / "a.nhdr", "encoding: raw", "data file: a.raw"), match)
    packed = zlib.compress(raw)
    refused(meta(tmp_path / "b.mha", "CompressedData = True", data=packed), "cannot be read")
    refused(nrrd(tmp_path / "b.nrrd", "encoding: gzip", data=gzip.compress(raw)), "cannot be read")


def test_more_voxels_than_the_header_states(tmp_path):
    raw = b"".join(SLICES) + b"12"
    (tmp_path / "a.raw").write_bytes(raw)
    with pytest.warns(GeometryWarning, match="a.raw holds 2 bytes more than the header states"):
        assert same(meta(tmp_path / "a.mhd", file="a.raw"))
    packed = meta(tmp_path / "b.mha", "CompressedData = True", data=zlib.compress(raw))
    refused(packed, "more voxels than the header states")


def test_lists_and_patterns(tmp_path):
    for z, content in enumerate(SLICES):
        (tmp_path / f"s{z:02}.raw").write_bytes(content)
    names = "\n".join(f"s{z:02}.raw" for z in range(3)) + "\n"
    good = [
        meta(tmp_path / "a.mhd", file="LIST", data=names.encode()),
        meta(tmp_path / "b.mhd", file="LIST 2", data=names.encode()),
        meta(tmp_path / "c.mhd", file="s%02d.raw 0 2 1"),
        nrrd(tmp_path / "a.nhdr", "encoding: raw", f"data file: LIST\n{names}"),
        nrrd(tmp_path / "b.nhdr", "encoding: raw", f"data file: LIST 2\n{names}"),
        nrrd(tmp_path / "c.nhdr", "encoding: raw", "data file: s%02d.raw 0 2 1"),
        nrrd(tmp_path / "d.nhdr", "encoding: raw", "data file: s%02d.raw 0 2 1 2"),
    ]
    for path in good:
        assert same(path)
        assert [one.name for one in files_of(path)] == [path.name, "s00.raw", "s01.raw", "s02.raw"]
    assert same(meta(tmp_path / "e.mhd", file="s%02d.raw 2 0 -1"), VOXELS[..., ::-1])
    twice = names.replace("s01", "s00")
    refused(meta(tmp_path / "x.mhd", file="LIST", data=twice.encode()), "names 's00.raw' twice")
    fewer, more = names[8:].encode(), (names + "s03.raw").encode()
    for content in (fewer, more, b""):
        refused(
            meta(tmp_path / "x.mhd", file="LIST", data=content), "names . data files, but 3 are"
        )
        listed = f"data file: LIST\n{content.decode()}"
        refused(nrrd(tmp_path / "x.nhdr", "encoding: raw", listed), "names . data files, but 3 are")
    for numbers in ("0 1 1", "0 3 1", "0 2 2", "2 0 1"):
        match = "names . data files, but 3 are needed"
        refused(meta(tmp_path / "x.mhd", file=f"s%02d.raw {numbers}"), match)
        refused(
            nrrd(tmp_path / "x.nhdr", "encoding: raw", f"data file: s%02d.raw {numbers}"), match
        )
    refused(meta(tmp_path / "x.mhd", file="s%02d.raw"), "its data file s03.raw is missing")
    (tmp_path / "s01.raw").write_bytes(SLICES[1][:-2])
    for path in good:
        refused(path, "truncated: 38 bytes of voxels in s01.raw, expected 40")
    (tmp_path / "s01.raw").unlink()
    for path in good:
        refused(path, "its data file s01.raw is missing; put it beside the header")


@pytest.mark.parametrize(
    "name",
    ["../a.raw", "sub/../../a.raw", ".", "..", "./", "sub", "/etc/hostname", "a\0b", "x" * 2000],
)
def test_names_that_are_no_file_of_the_folder(tmp_path, name):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "a.raw").write_bytes(b"".join(SLICES))
    match = "not a file in the header's folder|is missing|not the name of a data file"
    refused(meta(tmp_path / "data" / "a.mhd", file=name), match)
    refused(nrrd(tmp_path / "data" / "a.nhdr", "encoding: raw", f"data file: {name}"), match)


@pytest.mark.parametrize("absolute", [True, False])
def test_data_files_outside_the_folder_on_request(tmp_path, absolute):
    """Refused by default; where they are allowed, a case's hash covers them too."""
    (tmp_path / "data").mkdir()
    raw = tmp_path / "a.raw"
    raw.write_bytes(b"".join(SLICES))
    name = raw if absolute else "../a.raw"
    paths = [
        meta(tmp_path / "data" / "a.mhd", file=name),
        nrrd(tmp_path / "data" / "a.nhdr", "encoding: raw", f"data file: {name}"),
    ]
    for path in paths:
        refused(path, r"not a file in the header's folder; .*\(--allow-outside\)$")
        assert np.array_equal(read_volume(path, allow_outside=True).array[0], VOXELS)
        assert [one.resolve() for one in files_of(path)] == [path, raw]
    short = meta(tmp_path / "data" / "b.mhd", file="/dev/zero")
    with pytest.raises(MedarError, match="its data file /dev/zero is missing"):
        read_volume(short, allow_outside=True)


def test_plans_of_earlier_versions_keep_their_digest():
    """Options that came later are not in files and digests unless they are used."""
    assert "allow_outside" not in to_dict(ReadOptions())
    assert to_dict(ReadOptions(allow_outside=True))["allow_outside"] is True


@pytest.mark.parametrize(
    "name",
    [
        "%n", "%s", "%99999999d 1 3 1", "%d%d 1 3 1", "%*d 1 3 1", "%x 1 3 1", "%ld 1 3 1",
        "s%d.raw 1 99999999 1", "s%d.raw 1 3 0", "s%d.raw 99999999999 1 1", "LIST 99999999999",
        "LIST 0", "LIST x", "LIST 9",
    ],
)  # fmt: skip
def test_patterns_that_are_traps(tmp_path, name):
    match = "pattern|most 100000|must be|LIST|missing"
    refused(meta(tmp_path / "a.mhd", file=name), match)
    refused(nrrd(tmp_path / "a.nhdr", "encoding: raw", f"data file: {name}"), match)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("NDims", "100"), ("NDims", "0"), ("NDims", "-1"), ("NDims", "3.5"), ("DimSize", "5 4"),
        ("DimSize", "5 4 0"), ("DimSize", "5 4 99999999999"), ("DimSize", "60000 60000 60000"),
        ("ElementSpacing", "1 2 nan"), ("ElementSpacing", "1 2 1e999"),
        ("TransformMatrix", "1 " * 5000), ("ElementType", "MET_" + "A" * 5000),
        ("ElementNumberOfChannels", "0"), ("ElementNumberOfChannels", "99999999999"),
        ("HeaderSize", "-2"), ("CompressedDataSize", "x"), ("Name", "A" * 300), ("NDims", "3\0"),
    ],
)  # fmt: skip
def test_metaimage_fields_that_are_traps(tmp_path, field, value):
    compressed = "CompressedData = " + str(field == "CompressedDataSize")
    path = meta(
        tmp_path / "a.mha", compressed, f"{field} = {value}", data=b"".join(SLICES), without=[field]
    )
    if field == "Name":
        assert same(path)
    else:
        refused(path, re.escape(field) + "|truncated|voxels of type|axes|spacing")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dimension", "99"), ("dimension", "x"), ("sizes", "5 4"), ("sizes", "5 4 99999999999"),
        ("sizes", "9 9 9"), ("type", "short " * 500), ("endian", "middle"), ("kinds", "domain"),
        ("kinds", "list list domain"), ("space directions", "(1,0,0) (0,2,0)"),
        ("space directions", "(1,0) (0,2) (0,3)"), ("space directions", "(" * 5000),
        ("space origin", "(1,2)"), ("space origin", "(1,2,inf)"), ("byte skip", "-7"),
        ("line skip", "9" * 50), ("content", "A" * 5000),
    ],
)  # fmt: skip
def test_nrrd_fields_that_are_traps(tmp_path, field, value):
    path = nrrd(
        tmp_path / "a.nrrd", "encoding: raw", f"{field}: {value}", data=b"".join(SLICES),
        without=[field],
    )  # fmt: skip
    if field == "content":
        assert same(path)
    else:
        refused(path, re.escape(field) + "|truncated|voxels of type|axes")


def test_fields_given_twice_and_key_value_pairs(tmp_path):
    raw = b"".join(SLICES)
    refused(meta(tmp_path / "a.mha", "DimSize = 5 4 3", data=raw), "'DimSize' is given twice")
    refused(nrrd(tmp_path / "a.nrrd", "encoding: raw", "sizes: 5 4 3", data=raw), "given twice")
    pairs = ["Segment0_Name:=" + "long " * 400, "# a comment: of any kind", "Key:=a: b"]
    assert same(nrrd(tmp_path / "b.nrrd", "encoding: raw", *pairs, data=raw))


def test_a_small_file_of_many_voxels_takes_no_memory(tmp_path):
    """The sizes of a header are compared with the file first, and inflating ends at the voxels."""
    bomb = zlib.compress(bytes(50_000_000), 9)
    path = meta(tmp_path / "a.mha", "CompressedData = True", data=bomb)
    refused(path, "more voxels than the header states")
    huge = ["DimSize = 20000 20000 20000"]
    path = meta(tmp_path / "b.mha", *huge, "CompressedData = True", data=bomb, without=["DimSize"])
    refused(path, "16000000000000 bytes of voxels, more than the .* compressed ones can hold")
    packed = bz2.compress(bytes(50_000_000), 9)
    for encoding, data in (("gzip", bomb), ("bzip2", packed)):
        sizes = ["sizes: 20000 20000 2000000", f"encoding: {encoding}"]
        path = nrrd(tmp_path / "d.nrrd", *sizes, data=data, without=["sizes", "encoding"])
        refused(path, "more than the .* compressed ones can hold")
    refused(meta(tmp_path / "c.mha", *huge, data=bomb, without=["DimSize"]), "truncated")
