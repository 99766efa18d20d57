"""Writing NIfTI: exact round trips and atomic files."""

import errno
import io
import tracemalloc
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medar.errors import MedarError
from medar.volume import Grid, Volume, read_volume, resample, write, write_nifti


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_files_round_trip(name, tmp_path, voxels, oblique):
    volume = Volume.from_array(voxels, oblique)
    write_nifti(tmp_path / name, volume)
    back = read_volume(tmp_path / name)
    assert np.array_equal(back.array, volume.array)
    assert back.affine == pytest.approx(volume.affine, abs=1e-5)
    write_nifti(tmp_path / f"again-{name}", back)
    assert np.array_equal(read_volume(tmp_path / f"again-{name}").affine, back.affine)


def test_writing_restores_the_source_orientation(orientation, affine_of, tmp_path, voxels):
    source = nib.Nifti1Image(voxels, affine_of(orientation))
    source.to_filename(tmp_path / "source.nii")
    volume = read_volume(tmp_path / "source.nii")
    assert volume.provenance.grid.orientation == orientation
    write_nifti(tmp_path / "out.nii", volume, grid="source")
    out = nib.load(tmp_path / "out.nii")
    assert np.array_equal(np.asarray(out.dataobj), voxels)
    assert np.array_equal(out.affine, source.affine)


def test_writing_restores_an_oblique_source(tmp_path, voxels, oblique):
    turned = oblique[:, [2, 0, 1, 3]]
    nib.Nifti1Image(voxels, turned).to_filename(tmp_path / "source.nii")
    volume = read_volume(tmp_path / "source.nii")
    write_nifti(tmp_path / "out.nii", volume, grid="source")
    out = nib.load(tmp_path / "out.nii")
    assert np.array_equal(np.asarray(out.dataobj), voxels)
    assert out.affine == pytest.approx(turned, abs=1e-5)


def test_writing_restores_the_source_grid_after_resampling(tmp_path, voxels):
    nib.Nifti1Image(voxels, np.diag([-1.0, 1.0, 1.0, 1.0])).to_filename(tmp_path / "source.nii")
    volume = read_volume(tmp_path / "source.nii")
    finer = resample(volume, volume.grid.at_spacing((0.5, 0.5, 0.5)))
    write_nifti(tmp_path / "out.nii", finer, grid="source")
    out = nib.load(tmp_path / "out.nii")
    assert out.shape == voxels.shape
    assert np.array_equal(out.affine, np.diag([-1.0, 1.0, 1.0, 1.0]))


def test_orthogonal_axes_have_qform_and_sform(tmp_path, voxels, oblique):
    write_nifti(tmp_path / "a.nii", Volume.from_array(voxels, oblique))
    header = nib.load(tmp_path / "a.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_qform() == pytest.approx(header.get_sform(), abs=1e-4)
    assert header.get_xyzt_units()[0] == "mm"


def test_sheared_axes_have_only_the_sform(tmp_path, voxels):
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    write_nifti(tmp_path / "a.nii", Volume.from_array(voxels, sheared))
    header = nib.load(tmp_path / "a.nii").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 0)
    assert header.get_sform() == pytest.approx(sheared)


def test_a_sheared_source_is_written_sheared(tmp_path, voxels):
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    image = nib.Nifti1Image(voxels, sheared)
    image.set_qform(None, 0)
    image.to_filename(tmp_path / "source.nii")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = read_volume(tmp_path / "source.nii")
    straight = resample(volume, Grid(shape=(4, 3, 5), affine=np.eye(4)))
    write_nifti(tmp_path / "out.nii", straight, grid="source")
    header = nib.load(tmp_path / "out.nii").header
    assert int(header["qform_code"]) == 0
    assert header.get_sform() == pytest.approx(sheared)


def test_channels_become_the_fourth_axis(tmp_path, voxels):
    volume = Volume.from_array(np.stack([voxels, -voxels]), np.eye(4))
    write_nifti(tmp_path / "a.nii", volume)
    assert nib.load(tmp_path / "a.nii").shape == (4, 3, 5, 2)
    assert np.array_equal(read_volume(tmp_path / "a.nii", channels=True).array, volume.array)


def test_labels_keep_their_type(tmp_path):
    labels = Volume.from_array(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.eye(4))
    write_nifti(tmp_path / "a.nii", labels)
    assert nib.load(tmp_path / "a.nii").get_data_dtype() == np.uint8
    assert np.array_equal(read_volume(tmp_path / "a.nii", labels=True).array, labels.array)


def test_a_long_axis_is_written_as_nifti2(tmp_path):
    volume = Volume.from_array(np.zeros((40000, 1, 1), np.uint8), np.eye(4))
    write_nifti(tmp_path / "a.nii", volume)
    assert read_volume(tmp_path / "a.nii").provenance.format == "NIfTI-2"


def test_values_beyond_the_type_are_refused(tmp_path, voxels):
    volume = Volume.from_array(voxels * 1000, np.eye(4))
    with pytest.raises(MedarError, match="do not fit int16"):
        write_nifti(tmp_path / "a.nii", volume, dtype="int16")
    with pytest.raises(MedarError, match="do not fit uint8"):
        write_nifti(tmp_path / "a.nii", volume, dtype="uint8", slope=2.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16"])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.05, 4.0), (3e4, -1e5)])
def test_automatic_slope_is_within_half_a_step(dtype, scale, shift, tmp_path):
    array = np.random.default_rng(0).normal(shift, scale, (6, 6, 6)).astype(np.float32)
    write_nifti(tmp_path / "a.nii", Volume.from_array(array, np.eye(4)), dtype=dtype, slope="auto")
    image = nib.load(tmp_path / "a.nii")
    step = image.dataobj.slope
    error = np.abs(np.asarray(image.dataobj) - array.astype(np.float64)).max()
    assert error <= step * 0.51
    room = np.iinfo(dtype)
    assert step == pytest.approx(np.ptp(array) / (float(room.max) - float(room.min)), rel=1e-3)


def test_a_constant_image_round_trips_with_the_automatic_slope(tmp_path):
    volume = Volume.from_array(np.full((3, 3, 3), 2.5, np.float32), np.eye(4))
    write_nifti(tmp_path / "a.nii", volume, dtype="int16", slope="auto")
    assert np.array_equal(read_volume(tmp_path / "a.nii").array, volume.array)


@pytest.mark.parametrize("dtype", ["float32", "float64", ">i2", "uint8", "int64"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_few_planes_at_a_time_are_the_file_that_nibabel_writes(
    dtype, channels, tmp_path, monkeypatch
):
    monkeypatch.setattr(write, "PLANES", 2 * 5 * 4)
    array = np.random.default_rng(0).integers(0, 99, (channels, 5, 4, 7)).astype(np.float32)
    write_nifti(tmp_path / "a.nii", Volume(array=array, affine=np.eye(4)), dtype=dtype)
    header = nib.load(tmp_path / "a.nii").header
    stored = np.moveaxis(array, 0, -1).squeeze()
    image = nib.Nifti1Image(stored.astype(dtype), np.eye(4), header, dtype=dtype)
    assert (tmp_path / "a.nii").read_bytes() == image.to_bytes()


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_no_second_volume_is_in_memory(name, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "PLANES", 1 << 12)
    volume = Volume(array=np.full((1, 64, 64, 512), 7, np.float32), affine=np.eye(4))
    tracemalloc.start()
    write_nifti(tmp_path / name, volume, dtype=dtype)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < volume.array.nbytes / 4


@pytest.mark.parametrize(
    ("name", "options", "fragment"),
    [
        ("a.mha", {}, "written as .nii"),
        ("a.nii", {"grid": "source"}, "no source grid"),
        ("a.nii", {"dtype": "float16"}, "float32 or float64"),
        ("a.nii", {"dtype": "nonsense"}, "float32 or float64"),
        ("a.nii", {"dtype": "int16", "slope": 0.0}, "must be finite"),
        ("a.nii", {"slope": 2.0}, "need an integer type"),
    ],
)
def test_invalid_arguments_write_nothing(name, options, fragment, tmp_path, voxels):
    with pytest.raises(MedarError, match=fragment):
        write_nifti(tmp_path / name, Volume.from_array(voxels, np.eye(4)), **options)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_old_file(tmp_path, voxels, monkeypatch):
    volume = Volume.from_array(voxels, np.eye(4))
    write_nifti(tmp_path / "a.nii", volume)
    before = (tmp_path / "a.nii").read_bytes()

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(self, mode):
        self.touch()
        return Full()

    with monkeypatch.context() as patched, pytest.raises(MedarError, match="No space left"):
        patched.setattr(Path, "open", full)
        write_nifti(tmp_path / "a.nii", volume.with_array(volume.array + 1))
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii"]
    assert (tmp_path / "a.nii").read_bytes() == before


def test_nan_cannot_be_written_as_integers(tmp_path, voxels):
    voxels[0, 0, 0] = np.nan
    with pytest.raises(MedarError, match="NaN or Inf"):
        write_nifti(tmp_path / "a.nii", Volume.from_array(voxels, np.eye(4)), dtype="int16")
