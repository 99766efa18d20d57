"""Grids: orientation, spacing, and validation."""

from itertools import product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.eulerangles import euler2mat

from medar.errors import MedarError
from medar.volume import Grid, Volume
from medar.volume.geometry import LPS_TO_RAS, orientation_of, reorient


def test_orientation_and_spacing(orientation, affine_of):
    grid = Grid(shape=(4, 3, 5), affine=affine_of(orientation))
    assert grid.orientation == orientation
    assert grid.spacing == (1.0, 2.0, 3.0)
    assert grid.to_ras().orientation == "RAS"


def test_reorienting_to_ras_moves_no_voxel(orientation, affine_of, voxels):
    affine = affine_of(orientation)
    volume = Volume.from_array(voxels, affine)
    for index in ((0, 0, 0), (3, 1, 4), (1, 2, 0)):
        point = affine @ (*index, 1)
        i, j, k, _ = np.rint(np.linalg.solve(volume.affine, point)).astype(int)
        assert volume.array[0, i, j, k] == voxels[index]


def test_reorient_round_trip(orientation, affine_of, voxels):
    affine = affine_of(orientation)
    volume = Volume.from_array(voxels, affine)
    assert np.array_equal(reorient(volume.array, volume.affine, orientation)[0], voxels)


@given(angles=st.tuples(*[st.floats(-30, 30)] * 3))
def test_axes_near_the_patient_axes_agree_with_nibabel(angles):
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(*np.radians(angles)) @ np.diag([-1.0, 2.0, 3.0])
    affine = affine[:, [2, 0, 1, 3]]
    assert orientation_of(affine) == "".join(nib.aff2axcodes(affine))


@given(angles=st.tuples(*[st.floats(-180, 180)] * 3))
def test_every_rotation_is_reoriented_to_ras(angles):
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(*np.radians(angles)) * [1.0, 1.5, 4.0]
    assert Grid(shape=(2, 3, 4), affine=affine).to_ras().orientation == "RAS"


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 2.0, 3.0)])
def test_axes_at_45_degrees_round_trip_through_ras(spacing, voxels):
    for angles in product(range(-180, 180, 45), repeat=3):
        affine = np.eye(4)
        affine[:3, :3] = euler2mat(*np.radians(angles)) * spacing
        volume = Volume.from_array(voxels, affine)
        back = reorient(volume.array, volume.affine, orientation_of(affine))
        assert np.array_equal(back[0], voxels)


def test_at_spacing_keeps_the_box(oblique):
    grid = Grid(shape=(20, 10, 8), affine=oblique)
    finer = grid.at_spacing((0.5, 1.0, 1.5))
    assert finer.shape == (40, 20, 16)
    assert finer.spacing == pytest.approx((0.5, 1.0, 1.5))
    assert finer.extent == pytest.approx(grid.extent)
    centre = grid.affine @ [9.5, 4.5, 3.5, 1]
    assert finer.affine @ [19.5, 9.5, 7.5, 1] == pytest.approx(centre)


def test_window_starts_at_its_voxel(oblique):
    grid = Grid(shape=(9, 9, 9), affine=oblique)
    window = grid.window((2, -3, 4), (3, 3, 3))
    assert window.affine[:, 3] == pytest.approx(oblique @ [2, -3, 4, 1])


def test_matches_within_a_tenth_of_a_voxel():
    grid = Grid(shape=(3, 3, 3), affine=np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 0.09
    assert grid.matches(Grid(shape=(3, 3, 3), affine=moved))
    moved[0, 3] = 0.11
    assert not grid.matches(Grid(shape=(3, 3, 3), affine=moved))
    assert not grid.matches(Grid(shape=(3, 3, 4), affine=np.eye(4)))


def test_shear_is_detected(oblique):
    assert not Grid(shape=(2, 2, 2), affine=oblique).is_sheared
    sheared = np.eye(4)
    sheared[0, 1] = 0.1
    assert Grid(shape=(2, 2, 2), affine=sheared).is_sheared


def test_dictionary_round_trip(oblique):
    grid = Grid(shape=(4, 5, 6), affine=oblique)
    back = Grid.from_dict(grid.to_dict())
    assert back.shape == grid.shape
    assert np.array_equal(back.affine, grid.affine)


def test_lps_to_ras_flips_two_axes():
    assert orientation_of(LPS_TO_RAS) == "LPS"


@pytest.mark.parametrize(
    ("affine", "fragment"),
    [
        (np.eye(3), "4x4"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "NaN"),
        (np.diag([1.0, 0.0, 1.0, 1.0]), "singular"),
        (np.diag([1.0, 1.0, 1.0, 2.0]), "last row"),
    ],
)
def test_invalid_affines_are_refused(affine, fragment):
    with pytest.raises(MedarError, match=fragment):
        Grid(shape=(2, 2, 2), affine=affine)


def test_an_empty_grid_and_a_zero_spacing_are_refused():
    with pytest.raises(MedarError, match="at least 1 voxel"):
        Grid(shape=(2, 0, 2), affine=np.eye(4))
    with pytest.raises(MedarError, match="three positive numbers"):
        Grid(shape=(2, 2, 2), affine=np.eye(4)).at_spacing((1.0, 0.0, 1.0))


def test_invalid_volumes_are_refused(voxels):
    with pytest.raises(MedarError, match="orientation must be RAS"):
        Volume(array=voxels[None], affine=LPS_TO_RAS)
    with pytest.raises(MedarError, match="one channel"):
        Volume(array=np.zeros((2, 3, 3, 3), np.uint8), affine=np.eye(4))
    with pytest.raises(MedarError, match="real numbers"):
        Volume(array=np.zeros((1, 3, 3, 3), complex), affine=np.eye(4))
    with pytest.raises(ValueError, match="read-only"):
        Volume(array=voxels[None], affine=np.eye(4)).array[0, 0, 0, 0] = 1


def test_a_spacing_that_no_memory_holds_is_refused():
    grid = Grid(shape=(100, 100, 100), affine=np.eye(4))
    for side in (1e-3, 1e-200):
        with pytest.raises(MedarError, match=r"would make .* voxels of 1000000 of 1 x 1 x 1 mm"):
            grid.at_spacing((side,) * 3)
