"""NRRD and MetaImage: what ITK assumes silently must be stated."""

import re

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medar.errors import GeometryWarning, MedarError
from medar.volume import ReadOptions, read_header, read_volume

VOXELS = np.arange(24, dtype="<i2").reshape(4, 3, 2)
DIRECTIONS = "space directions: (1,0,0) (0,2,0) (0,0,3)"
ORIGIN = "space origin: (5,6,7)"
CHANNELS = ReadOptions(channels=True)
MATRIX = "TransformMatrix = 1 0 0 0 1 0 0 0 1"
SPACING = "ElementSpacing = 1 2 3"


def nrrd(path, *fields, sizes="4 3 2", kind="short", data=VOXELS):
    """Write an NRRD file with these fields; the first axis is the fastest, as in Fortran."""
    count = len(sizes.split())
    lines = ["NRRD0005", f"type: {kind}", f"dimension: {count}", f"sizes: {sizes}", *fields]
    header = "\n".join([*lines, "encoding: raw", "endian: little", "", ""])
    path.write_bytes(header.encode() + data.tobytes(order="F"))
    return path


def meta(path, *fields, sizes="4 3 2", kind="MET_SHORT", file="LOCAL", data=VOXELS):
    """Write a MetaImage file with these fields."""
    lines = ["ObjectType = Image", f"NDims = {len(sizes.split())}", "BinaryData = True", *fields]
    lines += [f"DimSize = {sizes}", f"ElementType = {kind}", f"ElementDataFile = {file}", ""]
    path.write_bytes("\n".join(lines).encode() + data.tobytes(order="F"))
    return path


def refused(path, fragment, **options):
    """Check that reading fails with one line that names the file and contains the fragment."""
    with pytest.raises(MedarError, match=re.escape(fragment)) as caught:
        read_volume(path, **options)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("space", "axes", "origin"),
    [
        ("left-posterior-superior", "LPS", [-5, -6, 7]),
        ("LPS", "LPS", [-5, -6, 7]),
        ("right-anterior-superior", "RAS", [5, 6, 7]),
        ("RAS", "RAS", [5, 6, 7]),
        ("LAS", "LAS", [-5, 6, 7]),
    ],
)
def test_nrrd_spaces(space, axes, origin, tmp_path):
    path = nrrd(tmp_path / "a.nrrd", f"space: {space}", DIRECTIONS, ORIGIN)
    header = read_header(path)
    assert header.grid.orientation == axes
    assert header.grid.affine[:3, 3] == pytest.approx(origin)
    assert header.grid.spacing == (1.0, 2.0, 3.0)
    assert np.array_equal(header.load(), VOXELS)


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior"])
def test_nrrd_with_time_as_an_axis_of_space(space, tmp_path):
    data = np.arange(48, dtype="<i2").reshape(4, 3, 2, 2)
    directions = "space directions: (1,0,0,0) (0,2,0,0) (0,0,3,0) (0,0,0,1)"
    fields = (f"space: {space}-time", directions, "space origin: (5,6,7,0)")
    path = nrrd(tmp_path / "a.nrrd", *fields, sizes="4 3 2 2", data=data)
    plain = nrrd(tmp_path / "b.nrrd", f"space: {space}", DIRECTIONS, ORIGIN)
    refused(path, "--channels")
    volume = read_volume(path, channels=True)
    assert np.array_equal(volume.affine, read_volume(plain).affine)
    assert volume.provenance.grid.orientation == read_header(plain).grid.orientation
    assert volume.channels == 2


@pytest.mark.parametrize("first", [True, False])
def test_nrrd_vectors_are_channels(first, tmp_path):
    data = np.arange(48, dtype="<i2").reshape((2, 4, 3, 2) if first else (4, 3, 2, 2))
    sides = "(1,0,0) (0,2,0) (0,0,3)"
    path = nrrd(
        tmp_path / "a.nrrd",
        "space: RAS",
        f"space directions: none {sides}" if first else f"space directions: {sides} none",
        f"kinds: {'vector ' if first else ''}domain domain domain{'' if first else ' list'}",
        sizes="2 4 3 2" if first else "4 3 2 2",
        data=data,
    )
    refused(path, "2 volumes along a fourth axis")
    volume = read_volume(path, channels=True)
    assert np.array_equal(volume.array, data if first else np.moveaxis(data, -1, 0))


@pytest.mark.parametrize(
    ("fields", "spacing"),
    [
        (["spacings: 1 2 3"], (1.0, 2.0, 3.0)),
        (["space dimension: 3", DIRECTIONS], (1.0, 2.0, 3.0)),
        (["space: scanner-xyz", DIRECTIONS], (1.0, 2.0, 3.0)),
        (["space: LPS", "space origin: (5,6,7)"], None),
        ([], None),
    ],
)
def test_nrrd_without_a_patient_space_needs_an_option(fields, spacing, tmp_path):
    path = nrrd(tmp_path / "a.nrrd", *fields)
    refused(path, "orientation is unknown")
    if spacing is None:
        refused(path, "no usable spacing (none)", assume_spacing="header")
    else:
        with pytest.warns(GeometryWarning, match="taken as RAS"):
            assert read_volume(path, assume_spacing="header").spacing == spacing
    with pytest.warns(GeometryWarning, match="taken as RAS"):
        assumed = read_volume(path, assume_spacing=(2.0, 2.0, 4.0))
    assert np.array_equal(assumed.affine, np.diag([2.0, 2.0, 4.0, 1.0]))
    assert np.array_equal(assumed.array[0], VOXELS)


def test_sheared_directions_are_kept_with_a_warning(tmp_path):
    path = nrrd(tmp_path / "a.nrrd", "space: RAS", "space directions: (1,0,0) (.5,2,0) (0,0,3)")
    with pytest.warns(GeometryWarning, match="sheared"):
        volume = read_volume(path)
    assert volume.affine[:3, 1] == pytest.approx([0.5, 2, 0])
    assert np.array_equal(volume.array[0], VOXELS)


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        (["space directions: (1,0,0) (1,0,0) (0,0,3)"], "singular"),
        (["space directions: (1,0,0) (0,0,0) (0,0,3)"], "positive numbers"),
        (["space directions: (1,0,0) (0,nan,0) (0,0,3)"], "not a readable header"),
        ([DIRECTIONS, 'space units: "cm" "cm" "cm"'], "space units must be mm, got 'cm'"),
        ([DIRECTIONS, "data file: gone.raw"], "gone.raw is missing"),
    ],
)
def test_invalid_nrrd_headers(fields, fragment, tmp_path, capfd):
    refused(nrrd(tmp_path / "a.nrrd", "space: LPS", *fields), fragment)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("sizes", "kinds", "kind", "fragment"),
    [
        ("3 4 3 2", "RGB-color", "uchar", "RGB-color"),
        ("2 4 3 2", "complex", "float", "complex"),
    ],
)
def test_nrrd_colours_and_complex_voxels(sizes, kinds, kind, fragment, tmp_path):
    fields = ("space: RAS", "space directions: none (1,0,0) (0,2,0) (0,0,3)")
    path = tmp_path / "a.nrrd"
    data = np.zeros(96, "<f4")
    nrrd(path, *fields, f"kinds: {kinds} domain domain domain", sizes=sizes, kind=kind, data=data)
    refused(path, fragment, channels=True)


@pytest.mark.parametrize(("sizes", "fragment"), [("4 6", "three axes"), ("4 3 2 1 1", "space")])
def test_two_and_five_axes(sizes, fragment, tmp_path):
    refused(nrrd(tmp_path / "a.nrrd", sizes=sizes), fragment)


def test_metaimage_is_lps(tmp_path):
    volume = read_volume(meta(tmp_path / "a.mha", MATRIX, "Offset = 5 6 7", SPACING))
    assert volume.provenance.grid.orientation == "LPS"
    expected = np.diag([-1.0, -2.0, 3.0, 1.0])
    expected[:3, 3] = [-5, -6, 7]
    assert np.array_equal(volume.provenance.grid.affine, expected)
    assert np.array_equal(volume.array[0, ::-1, ::-1], VOXELS)


def test_metaimage_channels_and_time(tmp_path):
    vectors = np.arange(48, dtype="<i2").reshape(2, 4, 3, 2)
    fields = (MATRIX, SPACING, "ElementNumberOfChannels = 2")
    header = read_header(meta(tmp_path / "a.mha", *fields, data=vectors), CHANNELS)
    assert np.array_equal(header.load(), vectors)
    matrix = "TransformMatrix = " + " ".join(map(str, np.eye(4, dtype=int).ravel()))
    frames = np.arange(48, dtype="<i2").reshape(4, 3, 2, 2)
    path = tmp_path / "b.mha"
    meta(path, matrix, "ElementSpacing = 1 2 3 1", sizes="4 3 2 2", data=frames)
    header = read_header(path, CHANNELS)
    assert np.array_equal(np.moveaxis(header.load(), 0, -1), frames)
    assert header.grid.spacing == (1.0, 2.0, 3.0)


def test_metaimage_without_a_matrix_needs_an_option(tmp_path):
    refused(meta(tmp_path / "a.mha", SPACING), "'header' for the header's own 1, 2, 3 mm")
    with pytest.warns(GeometryWarning, match="without TransformMatrix"):
        volume = read_volume(tmp_path / "a.mha", assume_spacing="header")
    assert np.array_equal(volume.affine, np.diag([1.0, 2.0, 3.0, 1.0]))
    refused(meta(tmp_path / "b.mha"), "no usable spacing", assume_spacing="header")


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ([MATRIX], "no ElementSpacing"),
        ([MATRIX, "ElementSpacing = 1 0 3"], "positive numbers"),
        ([MATRIX, "ElementSpacing = 1 -2 3"], "positive numbers"),
        (["TransformMatrix = 1 0 0 1 0 0 0 0 1", SPACING], "singular"),
        ([MATRIX, SPACING, "DistanceUnits = um"], "DistanceUnits must be mm, got 'um'"),
        ([MATRIX, SPACING, "ElementToIntensityFunctionSlope = 2"], "which ITK does not apply"),
        ([MATRIX, SPACING, "ElementToIntensityFunctionSlope = x"], "which ITK does not apply"),
    ],
)
def test_invalid_metaimage_headers(fields, fragment, tmp_path, capfd):
    refused(meta(tmp_path / "a.mha", *fields), fragment)
    assert capfd.readouterr() == ("", "")


def test_a_missing_data_file(tmp_path, capfd):
    refused(meta(tmp_path / "a.mhd", MATRIX, SPACING, file="a.raw"), "data file a.raw is missing")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("compress", [True, False])
def test_files_written_by_simpleitk(name, compress, tmp_path, capfd):
    data = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    image = sitk.GetImageFromArray(data.T)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))
    sitk.WriteImage(image, str(tmp_path / name), compress)
    header = read_header(tmp_path / name)
    assert header.dtype == "float32"
    assert header.grid.orientation == "PIL"
    assert np.array_equal(header.load(), data)
    for voxels in tmp_path.iterdir():
        if voxels.stat().st_size > 600:
            voxels.write_bytes(voxels.read_bytes()[:-200])
    with pytest.raises(MedarError, match=r"cannot be read|truncated"):
        read_volume(tmp_path / name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(500)])
def test_files_of_another_format(name, content, tmp_path, capfd):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "not a ")
    assert capfd.readouterr() == ("", "")
