"""Interpolation by slabs, against SimpleITK on whole arrays; voxels in order; counts."""

import tracemalloc
from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medar.volume import Grid, Volume, interpolation, resample
from medar.volume.counts import value_counts
from medar.volume.geometry import contiguous, reorient
from medar.volume.interpolation import FWHM, NARROW, interpolate

SHAPE = (23, 14, 11)


def noise(seed=0):
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def axis_aligned(factors, offset=(0.3, -1.2, 0.0)):
    """From target to source indices."""
    matrix = np.diag([*factors, 1.0])
    matrix[:3, 3] = offset
    return matrix


def turned(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.eye(4)
    matrix[:3, :3] = [[c, 0.1, -s], [0, 1, 0], [s, 0, c]]
    matrix[:3, 3] = [1.5, 0.0, 2.0]
    return matrix


def by_itk(array, to_source, shape, kind, fill):
    """The whole array at once, blurred first along each axis that shrinks."""
    image = sitk.GetImageFromArray(array)
    for axis, width in enumerate(np.linalg.norm(to_source[:3, :3], axis=1)[::-1]):
        sigma = float(np.sqrt(max(0.0, width**2 - 1.0)) / FWHM)
        if sigma >= NARROW:
            image = sitk.RecursiveGaussian(image, sigma=sigma, direction=axis)
    matrix, offset = to_source[:3, :3][::-1, ::-1], to_source[:3, 3][::-1]
    made = sitk.Resample(
        image,
        shape[::-1],
        sitk.AffineTransform(matrix.ravel().tolist(), offset.tolist()),
        {"linear": sitk.sitkLinear, "bspline": sitk.sitkBSpline}[kind],
        [0.0] * 3,
        [1.0] * 3,
        np.eye(3).ravel().tolist(),
        fill,
    )
    found = sitk.GetArrayFromImage(made)
    return found.clip(min(array.min(), fill), max(array.max(), fill)) if kind == "linear" else found


@pytest.mark.parametrize("kind", ["linear", "bspline"])
@pytest.mark.parametrize(
    "factors", [(0.75, 0.6, 1.0), (2.0, 1.7, 0.4), (1.333, 1.333, 1.0), (-1.4, 1.0, 1.5)]
)
def test_slabs_equal_the_whole(factors, kind, monkeypatch):
    array, shape = noise(), (31, 20, 13)
    to_source = axis_aligned(factors, (22.0 if factors[0] < 0 else 0.3, -1.2, 0.0))
    expected = by_itk(array, to_source, shape, kind, -5.0)
    assert len(np.unique(expected)) > 100
    for voxels in (1, 3 * 20 * 13, 1 << 30):
        monkeypatch.setattr(interpolation, "SLAB", voxels)
        given, made = array.copy(), np.empty(shape, np.float32)
        interpolate(given, to_source, made, kind, -5.0, antialias=True)
        assert np.array_equal(made, expected)
        assert np.array_equal(given, array)


@pytest.mark.parametrize("degrees", [3, 40])
def test_slabs_of_a_turned_grid_equal_the_whole_up_to_rounding(degrees, monkeypatch):
    array, shape = noise(), (31, 20, 13)
    expected = by_itk(array, turned(degrees), shape, "linear", -5.0)
    monkeypatch.setattr(interpolation, "SLAB", 1)
    made = np.empty(shape, np.float32)
    interpolate(array, turned(degrees), made, "linear", -5.0, antialias=False)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)


def test_a_slab_reads_only_the_planes_that_it_reaches(monkeypatch):
    monkeypatch.setattr(interpolation, "SLAB", 4 * 20 * 13)
    cuts = interpolation._slabs(axis_aligned((0.5, 1, 1)), (40, 20, 13), SHAPE, "linear")
    assert [planes.start for planes, _ in cuts] == list(range(0, 40, 4))
    assert max(reached.stop - reached.start for _, reached in cuts) <= 2 + 2 + 2 * 2
    whole = [(slice(0, 40), slice(0, 23))]
    assert interpolation._slabs(np.eye(4), (40, 20, 13), SHAPE, "bspline") == whole
    monkeypatch.setattr(interpolation, "SLAB", 4 * 20 * 99)
    whole = [(slice(0, 40), slice(0, 99))]
    assert interpolation._slabs(turned(-80), (40, 20, 99), (99, 9, 9), "linear") == whole


@pytest.mark.parametrize("fill", [0, 9])
@pytest.mark.parametrize("spacing", [(0.6, 0.7, 1.0), (1.9, 1.0, 1.4)], ids=str)
@pytest.mark.parametrize("outside", [False, True])
def test_labels_by_slabs_equal_the_whole(fill, spacing, outside, monkeypatch):
    labels = np.random.default_rng(1).choice([0, 3, 7], size=SHAPE).astype(np.int8)
    labels[4:15, 3:9, 2:8] = 5
    volume = Volume.from_array(labels, np.eye(4))
    grid = volume.grid.at_spacing(spacing)
    if outside:
        grid = grid.window((-3, 2, -1), (grid.shape[0] + 5, grid.shape[1], grid.shape[2]))
    found = []
    for voxels in (1, 500, 1 << 30):
        monkeypatch.setattr(interpolation, "SLAB", voxels)
        found.append(resample(volume, grid, fill=fill).array)
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[1], found[2])
    assert set(np.unique(found[0])) == {0, 3, 5, 7} | ({9} if fill and outside else set())


def test_labels_are_the_largest_fractions():
    """Against each label's own 0-1 image, the whole at once."""
    labels = np.random.default_rng(1).choice([0, 3, 7], size=SHAPE).astype(np.int8)
    volume = Volume.from_array(labels, np.eye(4))
    grid = Grid(shape=(30, 17, 12), affine=axis_aligned((0.71, 0.8, 0.9), (0.2, 0.1, 0.3)))
    shares = [
        by_itk((labels == value).astype(np.float32), grid.affine, grid.shape, "linear", 0.0)
        for value in (0, 3, 7)
    ]
    expected = np.array([0, 3, 7])[np.argmax(shares, axis=0)]
    clear = np.sort(shares, axis=0)[-1] - np.sort(shares, axis=0)[-2] > 1e-5
    assert clear.mean() > 0.9
    assert np.array_equal(resample(volume, grid).array[0][clear], expected[clear])


@pytest.mark.parametrize(("labels", "most"), [(False, 9), (True, 13)])
def test_memory_for_each_voxel_of_the_target(labels, most, monkeypatch):
    """Of an image, itself and a blurred copy; of labels, two float32, a byte and two masks."""
    monkeypatch.setattr(interpolation, "SLAB", 1 << 13)
    array = np.zeros((60, 60, 60), np.int8 if labels else np.float32)
    array[2:58, 2:58, 2:58] = 3  # a label whose box is nearly all
    volume = Volume.from_array(array, np.eye(4))
    grid = volume.grid.at_spacing((0.6, 0.6, 0.6) if labels else (1.2, 1.2, 1.2))
    tracemalloc.start()
    resample(volume, grid, fill=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most * max(np.prod(grid.shape), array.size)


def test_voxels_in_any_order_become_contiguous():
    array = np.random.default_rng(0).integers(0, 99, size=(2, 35, 33, 70)).astype(np.int16)
    for order, flips in product(permutations((1, 2, 3)), ((1, 1, 1), (-1, 1, -1), (1, -1, -1))):
        stored = np.ascontiguousarray(array.transpose(0, *order)[:, :: flips[0]])
        back = [0, *(1 + order.index(axis) for axis in (1, 2, 3))]
        given = stored[:, :: flips[0]].transpose(back)
        made = contiguous(given)
        assert made.flags.c_contiguous
        assert np.array_equal(made, array)
    for shape in ((1, 1, 1, 1), (3, 1, 40, 1), (1, 5, 1, 1)):
        given = np.asfortranarray(np.arange(np.prod(shape)).reshape(shape))
        assert np.array_equal(contiguous(given), given)
        assert contiguous(given).flags.c_contiguous
    assert contiguous(array) is array


def test_a_file_order_volume_is_turned_without_change():
    array = np.asfortranarray(noise())
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    volume = Volume.from_array(array, affine)
    assert np.array_equal(volume.array[0], reorient(array, affine, "RAS"))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32])
def test_values_are_counted(dtype):
    array = np.random.default_rng(0).integers(-3, 90, size=(1, 9, 8, 70)).astype(dtype)
    if dtype == np.int32:
        array[0, 0, 0, 0] = 1 << 30
    values, counts = np.unique(array, return_counts=True)
    assert value_counts(array) == dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert list(value_counts(array)) == values.tolist()
