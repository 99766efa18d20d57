"""DICOM series: order and affine from the positions, and invalid series."""

import re

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medar.data.hashes import HashIndex
from medar.errors import GeometryWarning, MedarError
from medar.volume import files_of, read_header, read_volume

UID = "1.2.826.0.1"
SLICES = 6
STEP = 2.5


def write_slice(path, pixels, position, orientation="1\\0\\0\\0\\1\\0", **tags):
    """One slice, (rows, columns), of pixel spacing 0.5 mm along a row and 0.75 mm along a column.

    Tags are named as t0020_000e; None leaves one out.
    """
    image = sitk.GetImageFromArray(pixels[None])
    image.SetSpacing((0.5, 0.75, 1.0))
    values = {
        "t0008_0060": "CT",
        "t0020_000d": "1.2",
        "t0020_000e": UID,
        "t0020_0032": "\\".join(f"{p:.6f}" for p in position),
        "t0020_0037": orientation,
        **tags,
    }
    row, column = np.array([float(v) for v in values["t0020_0037"].split("\\")]).reshape(2, 3)
    direction = np.stack([row, column, np.cross(row, column)], axis=1)
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin([float(p) for p in position])
    for name, value in values.items():
        if value is not None:
            image.SetMetaData(name[1:].replace("_", "|"), value)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


def pixels_of(k):
    """Pixels (4 rows, 5 columns) of slice k."""
    return (np.arange(20, dtype=np.int16) + 100 * k).reshape(4, 5)


def write_series(folder, count=SLICES, step=(0.0, 0.0, STEP), skip=(), **tags):
    """Write a series along `step` whose file names are in reverse spatial order."""
    folder.mkdir(exist_ok=True)
    for k in range(count):
        if k not in skip:
            position = np.array([10.0, 20.0, 30.0]) + k * np.array(step)
            write_slice(folder / f"{count - k:03}.dcm", pixels_of(k), position, **tags)
    return folder


def refused(path, *fragments, **options):
    """Check that reading fails with one line that contains the fragments."""
    with pytest.raises(MedarError) as caught:
        read_volume(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def expected_voxels(count=SLICES):
    """The voxels (columns, rows, slices) as stored."""
    return np.stack([pixels_of(k).T for k in range(count)], axis=-1)


def test_a_regular_series(tmp_path, capfd):
    header = read_header(write_series(tmp_path / "s"))
    assert header.format == "DICOM"
    assert header.modality == "CT"
    assert header.dtype == "int16"
    assert header.notes == ()
    expected = np.diag([-0.5, -0.75, STEP, 1.0])
    expected[:3, 3] = [-10, -20, 30]
    assert header.grid.affine == pytest.approx(expected)
    assert np.array_equal(header.load(), expected_voxels())
    volume = read_volume(tmp_path / "s")
    assert volume.modality == "CT"
    assert np.array_equal(volume.array[0, ::-1, ::-1], expected_voxels())
    assert capfd.readouterr() == ("", "")


def test_one_file_represents_its_series(tmp_path):
    folder = write_series(tmp_path / "s")
    write_slice(folder / "other", pixels_of(0), (0, 0, 0), t0020_000e="1.9")
    write_slice(folder / "other2", pixels_of(0), (0, 0, 1), t0020_000e="1.9")
    assert read_volume(folder / "003.dcm").shape == (5, 4, SLICES)
    assert read_volume(folder / "other").shape == (5, 4, 2)
    assert read_header(folder / "other").path == folder


def test_the_files_of_a_series(tmp_path):
    folder = write_series(tmp_path / "s")
    write_slice(folder / "other", pixels_of(0), (0, 0, 0), t0020_000e="1.9")
    (folder / "notes.txt").write_text("hello")
    (folder / "bad.dcm").write_bytes(b"hello")
    names = [f"{k:03}.dcm" for k in range(1, SLICES + 1)]
    assert [path.name for path in files_of(folder / "003.dcm")] == names
    assert files_of(folder / "other") == (folder / "other",)
    assert files_of(folder / "bad.dcm") == (folder / "bad.dcm",)
    assert files_of(folder / "absent.dcm") == (folder / "absent.dcm",)
    before = HashIndex()[folder / "003.dcm"]
    write_slice(folder / "001.dcm", pixels_of(9), (10, 20, 30 + 5 * STEP))
    assert HashIndex()[folder / "003.dcm"] != before


def test_several_series_are_listed(tmp_path):
    folder = write_series(tmp_path / "s", t0008_103e="Abdomen")
    write_slice(folder / "other.dcm", pixels_of(0), (0, 0, 0), t0020_000e="1.9")
    refused(folder, "2 series", f"{UID} (6 slices, Abdomen)", "1.9 (1 slices, no description)")
    refused(folder, "no series 7.7", UID, "1.9", series="7.7")
    assert read_volume(folder, series=UID).shape == (5, 4, SLICES)


def test_an_oblique_series(tmp_path):
    row, column = np.array([0.0, 0.8, -0.6]), np.array([1.0, 0.0, 0.0])
    normal = np.cross(row, column)
    orientation = "\\".join(f"{v:g}" for v in [*row, *column])
    folder = write_series(tmp_path / "s", step=3 * normal, orientation=orientation)
    header = read_header(folder)
    flip = np.array([-1.0, -1.0, 1.0])
    assert header.grid.affine[:3, 0] == pytest.approx(flip * row * 0.5)
    assert header.grid.affine[:3, 1] == pytest.approx(flip * column * 0.75)
    assert header.grid.affine[:3, 2] == pytest.approx(flip * normal * 3)
    assert np.array_equal(header.load(), expected_voxels())


def test_gantry_tilt_is_kept_and_reported(tmp_path):
    step = (0.0, STEP * np.tan(np.radians(15)), STEP)
    folder = write_series(tmp_path / "s", step=step)
    with pytest.warns(GeometryWarning, match=re.escape("gantry tilt of 15.00 degrees")):
        volume = read_volume(folder)
    assert volume.grid.is_sheared
    assert volume.affine[:3, 2] == pytest.approx([0, -step[1], STEP], abs=1e-5)


def test_rounded_positions_are_not_reported_as_tilt(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    for k in range(20):
        write_slice(folder / f"{k}.dcm", pixels_of(k), (0, 0, round(k * 3.33, 1)))
    assert read_header(folder).notes == ()


@pytest.mark.parametrize("hole", [(1,), (2,), (4,), (2, 3)])
def test_missing_slices(hole, tmp_path):
    before, after = SLICES - hole[0] + 1, SLICES - hole[-1] - 1
    refused(
        write_series(tmp_path / "s", skip=hole),
        f"{len(hole)} slice(s) missing after slice {hole[0]} of {SLICES - len(hole)}",
        f"between {before:03}.dcm and {after:03}.dcm",
    )


def series_at(folder, positions, **tags):
    """A series of slices at positions along z; a tag may be a list, one value per slice."""
    folder.mkdir()
    for k, z in enumerate(positions):
        own = {name: v[k] if isinstance(v, list) else v for name, v in tags.items()}
        write_slice(folder / f"{k:02}.dcm", pixels_of(k), (0, 0, z), **own)
    return folder


def along(*runs):
    """Positions from runs of (number of steps, step)."""
    return np.concatenate([[0], np.cumsum([s for n, s in runs for _ in range(n)])])


@pytest.mark.parametrize(
    ("positions", "tags", "message"),
    [
        ([0, 1, 2, 3.3, 4.6, 5.9], {}, "2 step(s) of 1 mm, 3 step(s) of 1.3 mm"),
        (along((15, 4.22), (12, 7.38)), {}, "15 step(s) of 4.22 mm, 12 step(s) of 7.38 mm"),
        (along((12, 7.38), (15, 4.22)), {}, "15 step(s) of 4.22 mm, 12 step(s) of 7.38 mm"),
        (along((6, 4), (5, 7)), {"t0018_0050": ["4"] * 6 + ["7"] * 6}, "6 step(s) of 4 mm, 5"),
        (along((5, 1), (1, 1.5), (5, 1)), {}, "10 step(s) of 1 mm, 1 step(s) of 1.5 mm"),
        ([0, 1, 2.2, 3.6, 4.1, 6.8], {}, "uneven slices: 0.5 to 2.7 mm apart"),
        # whole steps, but nothing is missing
        (
            along((6, 2), (4, 4)),
            {"t0018_0050": ["2"] * 7 + ["4"] * 4},
            "6 step(s) of 2 mm, 4 step(s) of 4 mm, of SliceThickness 2 to 4 mm",
        ),
        (
            along((6, 2), (4, 4)),
            {"t0020_0013": [str(n) for n in range(11)]},
            "6 step(s) of 2 mm, 4 step(s) of 4 mm, numbered without a gap",
        ),
        (
            along((6, 2), (4, 4)),
            {"t0020_0013": [str(n) for n in range(11, 0, -1)]},
            "6 step(s) of 2 mm, 4 step(s) of 4 mm, numbered without a gap",
        ),
    ],
)
def test_uneven_slices_are_not_called_missing(tmp_path, positions, tags, message):
    folder = series_at(tmp_path / "s", positions, **tags)
    refused(folder, "uneven slices: ", message, "resample them to an even grid")


@pytest.mark.parametrize(
    ("positions", "numbers", "missing"),
    [
        (along((3, 2), (1, 4), (4, 2)), None, 1),
        (along((3, 2), (1, 6), (4, 2)), [1, 2, 3, 4, 7, 8, 9, 10, 11], 2),
        (along((3, 2), (1, 4), (4, 2)), [11, 10, 9, 8, 6, 5, 4, 3, 2], 1),
        (along((2, 2), (1, 4), (2, 2), (1, 4), (2, 2)), [1, 2, 3, 5, 6, 7, 8, 9, 10], 1),
        (along((3, 3.3), (1, 6.7), (2, 3.3), (2, 3.4)), None, 1),
        (along((3, 2), (1, 4), (4, 2)), ["x"] * 9, 1),
    ],
)
@pytest.mark.parametrize("thickness", ["2", "", "unknown", "-1"])
def test_missing_slices_are_not_called_uneven(tmp_path, positions, numbers, missing, thickness):
    tags = {"t0020_0013": [str(n) for n in numbers]} if numbers else {}
    tags["t0018_0050"] = thickness
    refused(series_at(tmp_path / "s", positions, **tags), f"{missing} slice(s) missing")


@pytest.mark.parametrize(
    ("tag", "name"), [("t0020_0100", "TemporalPositionIdentifier"), ("t0018_0081", "EchoTime")]
)
def test_several_volumes_in_a_series(tag, name, tmp_path):
    folder = write_series(tmp_path / "s", **{tag: "1"})
    for k in range(SLICES):
        position = (10, 20, 30 + k * STEP)
        write_slice(folder / f"b{k}.dcm", pixels_of(k), position, **{tag: "2"})
    refused(folder, "6 slice(s) have the same position as another", f"{name} 1 and 2")


TIMES = [
    ("t0008_0032", "AcquisitionTime"),
    ("t0008_0033", "ContentTime"),
    ("t0008_002a", "AcquisitionDateTime"),
    ("t0020_0013", "InstanceNumber"),
    ("t0054_1300", "FrameReferenceTime"),
    ("t0018_0082", "InversionTime"),
    ("t0018_1314", "FlipAngle"),
    ("t0018_1210", "ConvolutionKernel"),
]


@pytest.mark.parametrize(("tag", "name"), TIMES)
def test_time_points_are_not_called_copies(tag, name, tmp_path):
    positions = [0, 2, 4, 0, 2, 4]
    folder = series_at(tmp_path / "s", positions, **{tag: ["1"] * 3 + ["2"] * 3})
    refused(folder, "3 slice(s) have the same position", "00.dcm and 03.dcm", f"({name} 1 and 2)",
            "split the series")  # fmt: skip


def test_nothing_may_tell_slices_apart(tmp_path):
    folder = series_at(tmp_path / "s", [0, 2, 4, 0, 2, 4])
    refused(folder, "no tag tells them apart", "keep one of each if they are copies")


def test_a_copied_slice(tmp_path):
    folder = write_series(tmp_path / "s", t0008_0018="1.2.3.5")
    (folder / "copy.dcm").write_bytes((folder / "002.dcm").read_bytes())
    refused(folder, "002.dcm and copy.dcm (copies, both of SOPInstanceUID 1.2.3.5)", "keep one")


def test_each_slice_has_its_own_scale(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    expected = []
    for k, (slope, intercept) in enumerate([(1, 0), (2, -10), (5, 7)]):
        values = (pixels_of(0) * slope + intercept).astype(np.int16)
        scale = {"t0028_1052": str(intercept), "t0028_1053": str(slope), "t0008_0060": "PT"}
        write_slice(folder / f"{k}.dcm", values, (0, 0, k), **scale)
        expected.append(values.T)
    header = read_header(folder)
    assert header.modality is None
    assert np.array_equal(header.load(), np.stack(expected, axis=-1))


def test_slices_must_be_consistent(tmp_path):
    size = write_series(tmp_path / "size")
    write_slice(size / "z.dcm", np.zeros((4, 6), np.int16), (10, 20, 99))
    refused(size, "z.dcm", "6x4 pixels where 001.dcm has 5x4")
    turned = write_series(tmp_path / "turned")
    write_slice(turned / "z.dcm", pixels_of(0), (10, 20, 99), orientation="1\\0\\0\\0\\0\\1")
    refused(turned, "z.dcm", "ImageOrientationPatient")


def test_a_slice_needs_a_position(tmp_path):
    folder = write_series(tmp_path / "s", count=2)
    raw = (folder / "001.dcm").read_bytes()
    # The tag (0020,0032) becomes an unknown one.
    (folder / "001.dcm").write_bytes(raw.replace(b"\x20\x00\x32\x00", b"\x20\x00\x33\x00"))
    refused(folder, "001.dcm", "ImagePositionPatient must hold 3 numbers, got ''")


def test_a_single_slice_is_refused(tmp_path):
    refused(write_series(tmp_path / "s", count=1), "one slice, whose spacing is unknown")


def test_mosaic_and_colour_are_refused(tmp_path):
    mosaic = write_series(tmp_path / "m", t0008_0008="ORIGINAL\\PRIMARY\\M\\MOSAIC")
    refused(mosaic, "Siemens mosaic", "dcm2niix")
    colour = tmp_path / "c"
    colour.mkdir()
    sitk.WriteImage(sitk.Image([5, 4, 1], sitk.sitkVectorUInt8, 3), str(colour / "a.dcm"))
    refused(colour, "colours (RGB)")


def test_other_files_are_ignored(tmp_path, capfd):
    folder = write_series(tmp_path / "s")
    (folder / "notes.txt").write_text("hello")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "sub").mkdir()
    assert read_header(folder).notes == ()
    (folder / "bad.dcm").write_bytes((folder / "001.dcm").read_bytes()[:300])
    assert "1 file(s) without a readable image" in read_header(folder).notes[0]
    assert capfd.readouterr() == ("", "")


def test_a_truncated_slice_is_reported_missing(tmp_path, capfd):
    folder = write_series(tmp_path / "s")
    (folder / "003.dcm").write_bytes((folder / "003.dcm").read_bytes()[:-20])
    refused(folder, "1 slice(s) missing", "003.dcm")
    refused(folder / "003.dcm", "not a readable DICOM image")
    assert capfd.readouterr() == ("", "")


def test_folders_without_dicom(tmp_path):
    refused(tmp_path, "no DICOM image in this folder")
    (tmp_path / "a.dcm").write_bytes(b"hello")
    refused(tmp_path, "no DICOM image in this folder")


def test_names_in_an_old_character_set(tmp_path):
    folder = write_series(tmp_path / "s", t0008_103e="Schaedel")
    raw = (folder / "001.dcm").read_bytes()
    (folder / "001.dcm").write_bytes(raw.replace(b"Schaedel", b"Sch\xe4deln"))
    write_slice(folder / "other.dcm", pixels_of(0), (0, 0, 0), t0020_000e="1.9")
    refused(folder, "(6 slices, Sch?deln)")
