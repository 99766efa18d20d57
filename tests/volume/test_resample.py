"""Resampling volumes onto other grids, against SciPy and exact results."""

import numpy as np
import pytest
from scipy.ndimage import affine_transform

from medar.errors import MedarError
from medar.volume import Grid, Volume, resample


def noise(shape=(12, 11, 10), affine=None):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return Volume.from_array(array, np.eye(4) if affine is None else affine)


def turned(degrees, shape=(10, 10, 10), spacing=1.0):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = [2.0, 0.5, 0.25]
    return Grid(shape=shape, affine=affine)


@pytest.mark.parametrize("interpolation", ["linear", "bspline", "nearest"])
def test_the_same_grid_changes_nothing(interpolation, oblique):
    volume = noise(affine=oblique)
    same = resample(volume, volume.grid, interpolation=interpolation)
    assert np.array_equal(same.array, volume.array)


def test_shifts_by_whole_voxels_crop_and_pad():
    volume = noise()
    moved = resample(volume, volume.grid.window((2, -1, 3), (4, 5, 20)), fill=-7.0)
    assert np.array_equal(moved.array[0, :, 1:, :7], volume.array[0, 2:6, :4, 3:])
    assert (moved.array[0, :, 0] == -7).all()
    assert (moved.array[0, :, :, 7:] == -7).all()


def test_a_ramp_stays_exact_inside(ramp):
    grid = turned(30, shape=(5, 5, 5), spacing=0.7)
    out = resample(ramp, grid)
    index = np.stack(np.meshgrid(*[np.arange(5.0)] * 3, indexing="ij"), axis=-1)
    points = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    inside = ((points >= 0) & (points <= 11)).all(axis=-1)
    expected = points @ [1, 10, -3]
    assert inside.sum() > 60
    assert out.array[0][inside] == pytest.approx(expected[inside], abs=1e-3)


@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("nearest", 0)])
def test_agrees_with_scipy_on_an_oblique_target(interpolation, order, oblique):
    volume = noise(affine=oblique)
    affine = turned(25).affine.copy()
    affine[:3, 3] = (oblique @ [5.5, 5, 4.5, 1])[:3] - affine[:3, :3] @ [4.5, 4.5, 4.5]
    grid = Grid(shape=(10, 10, 10), affine=affine)
    to_source = np.linalg.solve(volume.affine, grid.affine)
    actual = resample(volume, grid, interpolation=interpolation, antialias=False, fill=0.0).array[0]
    expected = affine_transform(
        volume.array[0],
        to_source[:3, :3],
        to_source[:3, 3],
        output_shape=grid.shape,
        order=order,
        mode="nearest",
    )
    index = np.stack(np.meshgrid(*[np.arange(10.0)] * 3, indexing="ij"))
    at = np.einsum("ij,jxyz->ixyz", to_source[:3, :3], index) + to_source[:3, 3, None, None, None]
    last = np.array(volume.shape)[:, None, None, None] - 1
    inside = ((at >= 0) & (at <= last)).all(axis=0)
    assert inside.sum() > 100
    assert actual[inside] == pytest.approx(expected[inside], abs=1e-4)


def test_outside_is_filled():
    volume = noise()
    away = np.eye(4)
    away[:3, 3] = 1000.5
    far = resample(volume, Grid(shape=(3, 3, 3), affine=away))
    assert (far.array == volume.array.min()).all()


def test_a_checkerboard_is_smoothed_before_shrinking():
    pattern = np.indices((24, 24, 24)).sum(axis=0) % 2
    volume = Volume.from_array(pattern.astype(np.float32), np.eye(4))
    coarse = volume.grid.at_spacing((3.0, 3.0, 3.0))
    inside = (0, slice(2, -2), slice(2, -2), slice(2, -2))
    assert resample(volume, coarse).array[inside] == pytest.approx(0.5, abs=0.1)
    assert np.ptp(resample(volume, coarse, antialias=False).array[inside]) == pytest.approx(1.0)


@pytest.mark.parametrize("side", [1.3, 1.7, 2.0])
def test_shrinking_sharp_edges_stays_within_their_range(side):
    block = np.full((24, 24, 24), -1.0, np.float32)
    block[8:16, 8:16, 8:16] = 1.0
    volume = Volume.from_array(block, np.eye(4))
    shrunk = resample(volume, volume.grid.at_spacing((side, side, side))).array
    assert -1.0 <= shrunk.min() < shrunk.max() <= 1.0


def test_axis_permutations_do_not_blur():
    volume = noise()
    blurred = resample(volume, turned(45))
    plain = resample(volume, turned(45), antialias=False)
    assert np.array_equal(blurred.array, plain.array)


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_resampled_labels_keep_their_values(interpolation):
    labels = np.random.default_rng(1).choice([0, 3, 7, 200], size=(9, 9, 9)).astype(np.uint8)
    volume = Volume.from_array(labels, np.eye(4))
    out = resample(volume, turned(33, spacing=0.6), interpolation=interpolation)
    assert out.array.dtype == np.uint8
    assert set(np.unique(out.array)) <= {0, 3, 7, 200}
    assert len(np.unique(out.array)) > 2


def test_a_label_block_keeps_its_size():
    labels = np.zeros((20, 20, 20), np.int16)
    labels[5:15, 5:15, 5:15] = 2
    volume = Volume.from_array(labels, np.eye(4))
    finer = resample(volume, volume.grid.at_spacing((0.5, 0.5, 0.5)))
    assert (finer.array == 2).sum() / 8 == pytest.approx(1000, rel=0.02)


def test_channels_are_resampled_equally():
    volume = noise()
    both = Volume(array=np.concatenate([volume.array, 2 * volume.array]), affine=volume.affine)
    out = resample(both, turned(20), fill=0.0)
    assert out.array[1] == pytest.approx(2 * out.array[0], abs=1e-5)


def test_invalid_arguments_are_refused():
    image = noise()
    labels = Volume.from_array(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    with pytest.raises(MedarError, match="one of linear"):
        resample(image, image.grid, interpolation="cubic")
    with pytest.raises(MedarError, match="interpolation of labels must be"):
        resample(labels, labels.grid, interpolation="bspline")
    with pytest.raises(MedarError, match="got -1"):
        resample(labels, labels.grid, fill=-1)
    with pytest.raises(MedarError, match="orientation must be RAS"):
        resample(image, Grid(shape=(3, 3, 3), affine=np.diag([-1.0, -1.0, 1.0, 1.0])))
