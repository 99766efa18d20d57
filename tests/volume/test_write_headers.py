"""NRRD and MetaImage: what is written is read again, by medar and by ITK, in the same place."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medar.errors import MedarError
from medar.volume import Volume, description_of, read_header, read_volume, write_nifti, write_volume

ENDINGS = [".nrrd", ".mha"]
TYPES = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32"]


def in_itk(path):
    """Voxels (X, Y, Z) and the affine in RAS+ by ITK."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = direction * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image)
    return np.moveaxis(array, (0, 1, 2), (2, 1, 0)), np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", TYPES)
def test_voxels_and_axes(tmp_path, voxels, oblique, ending, dtype):
    array = voxels - 20 if dtype in ("int8", "int16", "int32", "int64", "float32") else voxels
    volume = Volume.from_array(array.astype(dtype), oblique)
    path = tmp_path / f"a{ending}"
    write_volume(path, volume)
    assert read_header(path).dtype == dtype
    read = read_volume(path, labels=dtype != "float32")
    assert np.array_equal(read.array, volume.array)
    assert read.affine == pytest.approx(volume.affine, abs=1e-9)
    assert read.provenance.notes == ()
    stored, affine = in_itk(path)
    assert stored.dtype == dtype
    assert np.array_equal(stored, volume.array[0])
    assert affine == pytest.approx(volume.affine, abs=1e-6)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_source_grid(tmp_path, voxels, affine_of, orientation, ending):
    write_nifti(tmp_path / "a.nii", Volume.from_array(voxels, affine_of("RAS")))
    image = sitk.ReadImage(str(tmp_path / "a.nii"))
    sitk.WriteImage(sitk.DICOMOrient(image, itk_code(orientation)), str(tmp_path / "b.nii"))
    volume = read_volume(tmp_path / "b.nii")
    path = tmp_path / f"c{ending}"
    write_volume(path, volume, grid="source")
    header, source = read_header(path), read_header(tmp_path / "b.nii")
    assert header.grid.affine == pytest.approx(source.grid.affine, abs=1e-5)
    assert np.array_equal(header.load(), source.load())


def itk_code(orientation):
    """ITK names where an axis comes from, nibabel where it leads."""
    return orientation.translate(str.maketrans("RLAPSI", "LRPAIS"))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.filterwarnings("ignore::medar.errors.GeometryWarning")
def test_sheared_axes(tmp_path, voxels, oblique, ending):
    oblique[:3, 2] += [0.0, 0.8, 0.0]
    volume = Volume.from_array(voxels, oblique)
    path = tmp_path / f"a{ending}"
    write_volume(path, volume)
    read = read_volume(path)
    assert read.grid.is_sheared
    assert read.affine == pytest.approx(volume.affine, abs=1e-9)
    assert np.array_equal(read.array, volume.array)


@pytest.mark.parametrize("ending", ENDINGS)
def test_channels(tmp_path, oblique, ending):
    array = np.random.default_rng(0).normal(size=(2, 4, 3, 5)).astype(np.float32)
    path = tmp_path / f"a{ending}"
    write_volume(path, Volume(array=array, affine=oblique))
    read = read_volume(path, channels=True)
    assert np.array_equal(read.array, array)
    stored, _ = in_itk(path)
    assert np.array_equal(np.moveaxis(stored, -1, 0), array)


@pytest.mark.parametrize("ending", [*ENDINGS, ".nii", ".nii.gz"])
def test_the_description(tmp_path, voxels, oblique, ending):
    path = tmp_path / f"a{ending}"
    write_volume(path, Volume.from_array(voxels, oblique), description="synthetic, medar 1")
    assert description_of(path) == "synthetic, medar 1"
    write_volume(path, Volume.from_array(voxels, oblique))
    assert not description_of(path)
    assert description_of(tmp_path / f"absent{ending}") is None
    assert read_volume(path).shape == (4, 3, 5)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_description_cannot_break_the_header(tmp_path, voxels, oblique, ending):
    path = tmp_path / f"a{ending}"
    volume = Volume.from_array(voxels, oblique)
    write_volume(path, volume, description="a\n\ntype: int8\r\nNDims = 1 é")
    assert description_of(path) == "a type: int8 NDims = 1 ?"
    assert np.array_equal(read_volume(path).array, volume.array)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_volume_gives_the_same_bytes(tmp_path, voxels, oblique, ending):
    volume = Volume.from_array(voxels, oblique)
    for name in "ab":
        write_volume(tmp_path / f"{name}{ending}", volume)
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_many_planes(tmp_path, ending, monkeypatch):
    """Planes are compressed in parts."""
    monkeypatch.setattr("medar.volume.write_headers.PLANES", 40)
    volume = Volume.from_array(np.arange(600, dtype=np.int16).reshape(4, 5, 30), np.eye(4))
    path = tmp_path / f"a{ending}"
    write_volume(path, volume)
    assert np.array_equal(read_volume(path, labels=True).array, volume.array)


@pytest.mark.parametrize("name", ["a", "a.nhdr", "a.mhd", "a.img", "a.dcm"])
def test_other_endings_are_refused(tmp_path, voxels, name):
    with pytest.raises(MedarError, match=r"written as \.nii, \.nii\.gz, \.nrrd, \.mha$"):
        write_volume(tmp_path / name, Volume.from_array(voxels, np.eye(4)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_cannot_be_written(tmp_path, voxels, ending):
    (tmp_path / "file").write_text("x")
    volume = Volume.from_array(voxels, np.eye(4))
    with pytest.raises(MedarError, match=r"cannot be written \("):
        write_volume(tmp_path / "file" / f"a{ending}", volume)
    with pytest.raises(MedarError, match="no source grid"):
        write_volume(tmp_path / f"a{ending}", volume, grid="source")
