"""Real files that break naive readers: the correct volume or the correct error."""

import functools
import re
import warnings

import numpy as np
import pytest

from medar.errors import MedarError
from medar.volume import read_volume

READ = {
    "4d_with_slope.nii": ((20, 17, 21, 3), "LAS", (4, 4, 8), {"channels": True}),
    "analyze.hdr": ((1, 62, 41, 34), "RAS", (2.3852, 2.3898, 2.3665), {}),
    "analyze.img": ((1, 62, 41, 34), "RAS", (2.3852, 2.3898, 2.3665), {}),
    "dicom_mr_oblique": ((1, 256, 256, 20), "LPS", (0.8594, 0.8594, 7.0005), {}),
    "nan_voxels.nii": ((1, 17, 21, 3), "LAS", (4, 4, 8), {"nonfinite": "min"}),
    "nifti2.nii.gz": ((2, 32, 20, 12), "LAS", (2, 2, 2.2), {"channels": True}),
    "no_qform_no_sform.nii.gz": ((1, 64, 64, 10), "RAS", (3, 3, 3), {"assume_spacing": "header"}),
    "oblique.nrrd": ((1, 124, 160, 140), "RAS", (1, 1, 1), {}),
    "shear_qform_ne_sform.nii.gz": ((1, 306, 422, 54), "RAS", (0.4824, 0.4824, 2.3708), {}),
}
"""Name: (C, X, Y, Z), the orientation as stored, spacing in mm, and what has to be decided."""

REFUSED = {
    "4d_with_slope.nii": "20 volumes along a fourth axis",
    "complex64.nii.gz": "complex voxels",
    "nan_voxels.nii": "153 NaN and 0 Inf voxels of 1071",
    "nifti2.nii.gz": "2 volumes along a fourth axis",
    "no_qform_no_sform.nii.gz": "neither sform nor qform",
    "unreadable.mif.gz": "unknown volume format",
}
"""Name: what the error says when nothing was decided."""

SAID = {
    "no_qform_no_sform.nii.gz": ["neither sform nor qform"],
    "shear_qform_ne_sform.nii.gz": ["disagree by up to 35.6 mm", "sheared voxel axes"],
}
"""Name: the warnings that go with the volume; none for the others."""


@pytest.fixture(scope="module")
def awkward(shared_data):
    return shared_data / "awkward"


@pytest.fixture(scope="module")
def read(awkward):
    """Read a file of READ once: its volume and the warnings."""

    @functools.cache
    def reading(name):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            volume = read_volume(awkward / name, **READ[name][-1])
        return volume, [str(warning.message) for warning in caught]

    return reading


def test_every_file_is_in_a_table(awkward):
    assert {path.name for path in awkward.iterdir()} == set(READ) | set(REFUSED)


@pytest.mark.parametrize("name", READ)
def test_read(name, read):
    shape, orientation, spacing, _ = READ[name]
    volume, messages = read(name)
    assert volume.array.shape == shape
    assert volume.provenance.grid.orientation == orientation
    assert volume.spacing == pytest.approx(spacing, abs=1e-4)
    assert np.isfinite(volume.array).all()
    assert np.ptp(volume.array) > 0
    expected = SAID.get(name, [])
    assert len(messages) == len(expected)
    for message, fragment in zip(messages, expected, strict=True):
        assert fragment in message


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, awkward, capfd):
    with pytest.raises(MedarError, match=re.escape(REFUSED[name])) as caught:
        read_volume(awkward / name)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_the_dicom_series_whose_first_file_is_padded(read):
    """brain_001.dcm contains its slice, followed by zeros instead of nineteen more."""
    volume, _ = read("dicom_mr_oblique")
    assert volume.modality == "MR"
    slices = np.moveaxis(volume.array[0], -1, 0).reshape(20, -1)
    assert np.corrcoef(slices[0], slices[1])[0, 1] > 0.8
    # Positions of the first and the last slice, as their files state them, in RAS.
    corners = volume.affine @ np.array([[255, 255, 0, 1], [255, 255, 19, 1]]).T
    assert corners[:3, 0] == pytest.approx([110.5, 78.3063, -72.7575], abs=1e-3)
    assert corners[:3, 1] == pytest.approx([110.5, 96.2063, 59.0425], abs=1e-3)
