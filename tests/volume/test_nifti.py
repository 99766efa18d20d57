"""NIfTI and Analyze: geometry, invalid files and warnings."""

import contextlib
import gzip
import re
import shutil
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nibabel.testing import data_path

from medar.errors import GeometryWarning, MedarError
from medar.volume import ReadOptions, read_header, read_volume

AFFINE = np.array([[1.0, 0, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
VOXELS = np.arange(24, dtype=np.int16).reshape(4, 3, 2)


def write(path, changes=(), data=VOXELS, kind=nib.Nifti1Image, cut=0):
    """Write a NIfTI file with qform and sform, then overwrite header fields without checks.

    A change is (field, value) or (field, index, value).
    """
    image = kind(data, AFFINE, dtype=data.dtype)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 1)
    raw = bytearray(image.to_bytes())
    size = image.header.template_dtype.itemsize
    header = np.frombuffer(raw[:size], image.header.template_dtype).copy()
    for field, *index, value in changes:
        if index:
            header[0][field][index[0]] = value
        else:
            header[0][field] = value
    raw[:size] = header.tobytes()
    raw = bytes(raw[: len(raw) - cut])
    path.write_bytes(gzip.compress(raw, mtime=0) if path.name.lower().endswith(".gz") else raw)
    return path


def refused(path, fragment, **options):
    """Check that reading fails with one line that names the file and contains the fragment."""
    with pytest.raises(MedarError, match=re.escape(fragment)) as caught:
        read_volume(path, **options)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.nii", "A.NII", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_plain_files(name, kind, tmp_path):
    volume = read_volume(write(tmp_path / name, kind=kind))
    assert np.array_equal(volume.array[0], VOXELS)
    assert np.array_equal(volume.affine, AFFINE)
    assert volume.provenance.format == ("NIfTI-2" if kind is nib.Nifti2Image else "NIfTI-1")
    assert volume.provenance.dtype == "int16"


@pytest.mark.parametrize(
    "dtype", ["i1", "u1", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4"]
)
def test_voxel_types_and_byte_orders(dtype, tmp_path):
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    header.set_data_dtype(dtype)
    nib.Nifti1Image(VOXELS.astype(dtype), AFFINE, header).to_filename(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert np.array_equal(volume.array[0], VOXELS)
    assert volume.provenance.dtype == str(np.dtype(dtype).newbyteorder("="))


@pytest.mark.parametrize("name", ["a.hdr", "a.img"])
def test_a_pair_opens_by_either_name(name, tmp_path):
    nib.Nifti1Pair(VOXELS, AFFINE).to_filename(tmp_path / "a.hdr")
    assert np.array_equal(read_volume(tmp_path / name).array[0], VOXELS)


def test_half_a_pair_is_refused(tmp_path):
    nib.Nifti1Pair(VOXELS, AFFINE).to_filename(tmp_path / "a.hdr")
    shutil.copy(tmp_path / "a.img", tmp_path / "b.img")
    refused(tmp_path / "b.img", "its header b.hdr is missing")
    (tmp_path / "a.img").unlink()
    refused(tmp_path / "a.hdr", "its voxels a.img are missing")


def test_the_sform_takes_precedence_and_a_disagreement_gives_a_warning(tmp_path):
    path = write(tmp_path / "a.nii", [("qoffset_x", 50.0)])
    with pytest.warns(GeometryWarning, match="disagree by up to 45 mm; the sform is used"):
        assert np.array_equal(read_volume(path).affine, AFFINE)


def test_the_qform_where_there_is_no_sform(tmp_path):
    path = write(tmp_path / "a.nii", [("sform_code", 0), ("srow_x", 0, 9.0)])
    assert read_volume(path).affine == pytest.approx(AFFINE)


@pytest.mark.parametrize("excess", [0.0, 3e-7, 1e-6, 1e-4])
def test_a_quaternion_slightly_too_long_is_normalised(excess, tmp_path):
    """As ITK does; here half a turn about (0.6, 0.8, 0)."""
    numbers = [("quatern_b", 0.6 * (1 + excess)), ("quatern_c", 0.8 * (1 + excess))]
    path = write(tmp_path / "a.nii", [("sform_code", 0), *numbers])
    turn = np.array([[-0.28, 0.96, 0], [0.96, 0.28, 0], [0, 0, -1]])
    grid = read_header(path).grid
    assert grid.affine[:3, :3] == pytest.approx(turn @ np.diag([1, 2, 3]), abs=2e-6)
    there = sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint([3, 2, 1])
    assert (grid.affine @ [3, 2, 1, 1])[:3] == pytest.approx(
        np.array(there) * [-1, -1, 1], abs=1e-3
    )


def test_a_zero_qfac_means_one(tmp_path):
    path = write(tmp_path / "a.nii", [("sform_code", 0), ("pixdim", 0, 0.0)])
    assert read_volume(path).affine == pytest.approx(AFFINE)


@pytest.mark.parametrize("change", [("quatern_b", 3.0), ("pixdim", 1, 0.0), ("pixdim", 0, 5.0)])
def test_a_broken_qform_with_a_valid_sform_gives_a_warning(change, tmp_path):
    path = write(tmp_path / "a.nii", [change])
    with pytest.warns(GeometryWarning, match="qform is unusable"):
        assert np.array_equal(read_volume(path).affine, AFFINE)


def test_no_orientation_is_refused_unless_spacing_is_assumed(tmp_path):
    path = write(tmp_path / "a.nii", [("sform_code", 0), ("qform_code", 0)])
    refused(path, "'header' for the header's own 1, 2, 3 mm")
    with pytest.warns(GeometryWarning, match="taken as RAS"):
        assert read_volume(path, assume_spacing="header").spacing == (1.0, 2.0, 3.0)
    with pytest.warns(GeometryWarning, match="at 4, 5, 6 mm"):
        assert read_volume(path, assume_spacing=(4.0, 5.0, 6.0)).spacing == (4.0, 5.0, 6.0)
    oriented = read_volume(write(tmp_path / "b.nii"), assume_spacing=(4.0, 5.0, 6.0))
    assert oriented.spacing == (1.0, 2.0, 3.0)


def test_a_header_spacing_of_zero_cannot_be_assumed(tmp_path):
    path = write(tmp_path / "a.nii", [("sform_code", 0), ("qform_code", 0), ("pixdim", 1, 0.0)])
    refused(path, "no usable spacing (0, 2, 3)", assume_spacing="header")


@pytest.mark.parametrize(("code", "factor"), [(0, 1.0), (1, 1000.0), (2, 1.0), (3, 0.001)])
def test_units(code, factor, tmp_path):
    header = read_header(write(tmp_path / "a.nii", [("xyzt_units", code)]))
    assert header.grid.affine[:3] == pytest.approx(AFFINE[:3] * factor)
    assert bool(header.notes) == (factor != 1.0)


def test_sheared_axes_are_kept_with_a_warning(tmp_path):
    path = write(tmp_path / "a.nii", [("srow_x", 2, 1.0), ("qform_code", 0)])
    with pytest.warns(GeometryWarning, match="sheared"):
        assert read_volume(path).affine[0, 2] == 1.0


@pytest.mark.parametrize(
    ("slope", "inter", "factor", "shift"),
    [(2.0, 1.0, 2, 1), (0.0, 5.0, 1, 0), (np.nan, np.nan, 1, 0), (1.0, -1024.0, 1, -1024)],
)
def test_scaling(slope, inter, factor, shift, tmp_path):
    path = write(tmp_path / "a.nii", [("scl_slope", slope), ("scl_inter", inter)])
    assert np.array_equal(read_volume(path).array[0], VOXELS * factor + shift)


@pytest.mark.parametrize("shape", [(4, 3, 2, 2), (4, 3, 2, 1, 2)])
def test_a_fourth_axis_is_channels_only_on_request(shape, tmp_path):
    data = np.arange(48, dtype=np.int16).reshape(shape)
    path = write(tmp_path / "a.nii", data=data)
    refused(path, "--channels")
    volume = read_volume(path, channels=True)
    assert np.array_equal(np.moveaxis(volume.array, 0, -1), data.reshape(4, 3, 2, 2))
    refused(path, "a label map of 2 channels", channels=True, labels=True)


def test_trailing_single_axes_are_dropped(tmp_path):
    path = write(tmp_path / "a.nii", data=VOXELS[:, :, :1, None, None])
    assert read_volume(path).array.shape == (1, 4, 3, 1)


@pytest.mark.parametrize("policy", ["min", 7.0])
def test_nan_is_counted_and_replaced_on_request(policy, tmp_path):
    data = VOXELS.astype(np.float32) - 3
    data[1, 1, 1], data[2, 2, 0] = np.nan, np.inf
    path = write(tmp_path / "a.nii", data=data)
    refused(path, "1 NaN and 1 Inf voxels of 24")
    expected = np.where(np.isfinite(data), data, -3 if policy == "min" else policy)
    assert np.array_equal(read_volume(path, nonfinite=policy).array[0], expected)
    kept = read_volume(path, nonfinite="keep").array[0]
    assert np.array_equal(kept, data, equal_nan=True)


def test_labels_must_be_integers(tmp_path):
    whole = read_volume(write(tmp_path / "a.nii", data=VOXELS.astype(np.float32)), labels=True)
    assert whole.array.dtype == np.uint8
    refused(write(tmp_path / "b.nii", data=VOXELS / np.float32(2)), "not integers", labels=True)
    large = read_volume(write(tmp_path / "c.nii", data=VOXELS.astype("i4") - 40000), labels=True)
    assert large.array.dtype == np.int32
    refused(write(tmp_path / "d.nii", data=VOXELS.astype("i8") << 40), "32 bits", labels=True)


@pytest.mark.parametrize(("largest", "stored"), [(3, "i2"), (255, "i2"), (5, "u1")])
def test_labels_that_were_stored_as_scaled_integers(largest, stored, tmp_path):
    """Their values differ from integers by up to half a step of scl_slope."""
    labels = np.random.default_rng(0).integers(0, largest + 1, (6, 5, 4))
    info = np.iinfo(stored)
    slope = largest / (info.max - 10.5)  # so that labels are not multiples of it
    packed = np.rint(labels / slope).astype(stored)
    path = write(tmp_path / "a.nii", [("scl_slope", slope), ("scl_inter", 0.0)], data=packed)
    values = read_header(path).load()
    assert np.abs(values - labels).max() > 1e-7
    assert np.array_equal(read_volume(path, labels=True).array[0], labels)
    between = packed.copy()
    between[0, 0, 0] = np.rint(0.5 / slope)
    write(path, [("scl_slope", slope), ("scl_inter", 0.0)], data=between)
    refused(path, "1 voxels of a label map are not integers", labels=True)


def test_a_large_slope_makes_no_labels_of_fractions(tmp_path):
    path = write(tmp_path / "a.nii", [("scl_slope", 0.9)])
    refused(path, "round its voxels to integers first", labels=True)


COLOUR = [("R", "u1"), ("G", "u1"), ("B", "u1")]
BROKEN = {
    "zero side": ([("dim", 2, 0)], {}, "at least one voxel"),
    "negative side": ([("dim", 2, -3)], {}, "at least one voxel"),
    "no side": ([("dim", 0, 0)], {}, "three axes"),
    "NaN in the sform": ([("srow_x", 0, np.nan)], {}, "NaN"),
    "zero sform": ([(f"srow_{a}", 0.0) for a in "xyz"], {}, "singular"),
    "zero pixdim, qform alone": ([("pixdim", 1, 0), ("sform_code", 0)], {}, "got 0, 2, 3"),
    "NaN in the qform": ([("quatern_b", np.nan), ("sform_code", 0)], {}, "NaN"),
    "bad quaternion": ([("quatern_b", 3.0), ("sform_code", 0)], {}, "unusable qform"),
    "bad qfac": ([("pixdim", 0, 5.0), ("sform_code", 0)], {}, "qfac"),
    "bits": ([("datatype", 1), ("bitpix", 1)], {}, "voxel type code 1;"),
    "unknown type": ([("datatype", 999)], {}, "voxel type code 999"),
    "NaN intercept": ([("scl_slope", 2.0), ("scl_inter", np.nan)], {}, "intercept nan"),
    "voxels beyond the end": ([("vox_offset", 100000.0)], {}, "voxels cannot be read"),
    "negative offset": ([("vox_offset", -5.0)], {}, "too low"),
    "wrong magic": ([("magic", b"xxx")], {}, "not a readable NIfTI"),
    "too large": ([("dim", i, 32767) for i in (1, 2, 3)], {}, "voxels cannot be read"),
    "cut": ([], {"cut": 10}, "Expected 48 bytes"),
    "complex": ([], {"data": VOXELS.astype("c8")}, "complex voxels"),
    "colour": ([], {"data": np.zeros((4, 3, 2), COLOUR)}, "RGB colours"),
    "one axis": ([], {"data": VOXELS[:, 0, 0]}, "three axes"),
    "two axes": ([], {"data": VOXELS[..., 0]}, "three axes"),
    "five axes": ([], {"data": np.zeros((4, 3, 2, 2, 2), "i2")}, "5D data"),
    "beyond float32": ([], {"data": np.full((4, 3, 2), 1e300)}, "24 Inf voxels"),
}


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_headers_give_one_line(case, name, tmp_path, capfd, caplog):
    changes, settings, fragment = BROKEN[case]
    refused(write(tmp_path / name, changes, **settings), fragment)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("a.nii", b"", "Empty file"),
        ("a.nii.gz", b"", "not a readable NIfTI"),
        ("a.nii", b"hello " * 200, "not a readable NIfTI"),
        ("a.nii.gz", b"hello", "no gzip data under a name that ends in .gz"),
        ("a.nii", gzip.compress(bytes(400), mtime=0), "does not end in .gz; rename"),
        ("a.nii.gz", gzip.compress(bytes(400), mtime=0)[:12], "not a readable NIfTI"),
        ("a.gii", b"<xml>", "surface data"),
        ("a.mgz", b"", "unknown volume format"),
        ("a", b"", "unknown volume format"),
    ],
)
def test_files_that_are_not_nifti(name, content, fragment, tmp_path, capfd):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, fragment)
    assert capfd.readouterr() == ("", "")


def test_a_truncated_gzip_stream(tmp_path):
    data = np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16)
    path = write(tmp_path / "a.nii.gz", data=data)
    path.write_bytes(path.read_bytes()[:-500])
    refused(path, "voxels cannot be read")


def test_cifti_is_refused():
    refused(Path(data_path) / "row_major.dconn.nii", "CIFTI")


def test_missing_paths_are_refused(tmp_path, monkeypatch):
    refused(tmp_path / "none.nii", "no such file")
    refused(tmp_path / ("x" * 300 + ".nii"), "cannot be read (File name too long)")
    path = write(tmp_path / "a.nii")

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(path, "Permission denied")


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"assume_spacing": "foo"}, "assume_spacing must be a list or 'header', got 'foo'"),
        ({"assume_spacing": (1.0, 0.0, 1.0)}, "three positive numbers"),
        (
            {"nonfinite": "zero"},
            "nonfinite must be a number or 'error', 'min' or 'keep', got 'zero'",
        ),
        ({"nonfinite": float("nan")}, "nonfinite must be finite"),
    ],
)
def test_options_are_checked(options, fragment):
    with pytest.raises(MedarError, match=re.escape(fragment)):
        ReadOptions(**options)


@pytest.mark.parametrize(
    ("spacing", "unit"),
    [
        ((0.001, 0.001, 0.002), "metres"),
        ((1000, 1000, 3000), "micrometres"),
        ((1, 1, 0.005), "metres"),
        ((0.02, 0.02, 0.02), None),
        ((0.5, 0.5, 10), None),
        ((20, 20, 60), None),
    ],
)
def test_voxels_unlike_a_scans_give_a_warning(tmp_path, spacing, unit):
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.diag([*spacing, 1.0]))
    nib.save(image, tmp_path / "a.nii")
    notes = read_header(tmp_path / "a.nii").notes
    assert len(notes) == (unit is not None)
    if unit:
        assert f"is the header in {unit}?" in notes[0]


def test_zeros_behind_the_voxels_take_no_memory(tmp_path):
    plain = write(tmp_path / "a.nii").read_bytes()
    few, many = plain + bytes(1000), plain + bytes(100_000_000)
    (tmp_path / "few.nii.gz").write_bytes(gzip.compress(few))
    expected = read_volume(tmp_path / "a.nii").array
    assert np.array_equal(read_volume(tmp_path / "few.nii.gz").array, expected)
    (tmp_path / "many.nii.gz").write_bytes(gzip.compress(many, 1))
    tracemalloc.start()
    try:
        refused(tmp_path / "many.nii.gz", "bytes follow the voxels")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_header_of_more_voxels_than_the_file_can_hold(tmp_path):
    content = bytearray(write(tmp_path / "a.nii").read_bytes())
    content[42:48] = np.array([30_000] * 3, "<i2").tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(content)))
    refused(tmp_path / "a.nii.gz", "more voxels than the file can hold")


@pytest.mark.parametrize("pair", [True, False])
def test_a_flipped_bit_in_a_compressed_file_is_noticed(tmp_path, pair):
    data = np.random.default_rng(0).integers(0, 50, (12, 11, 10)).astype(np.int16)
    image = (nib.Nifti1Pair if pair else nib.Nifti1Image)(data, AFFINE)
    nib.save(image, tmp_path / ("a.img.gz" if pair else "a.nii.gz"))
    path = tmp_path / ("a.img.gz" if pair else "a.nii.gz")
    expected, good = read_volume(path).array, path.read_bytes()
    places = np.random.default_rng(1).choice(8 * (len(good) - 12), 60, replace=False) + 80
    noticed = 0
    for place in map(int, places):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with contextlib.suppress(MedarError):
            assert np.array_equal(read_volume(path).array, expected)
            noticed -= 1
        noticed += 1
    assert noticed > 57  # a name or a time in the header means nothing
