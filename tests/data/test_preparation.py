"""Preparing and restoring one volume: exact where nothing is interpolated."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medar.data.plan import IntensityRule, Plan
from medar.data.preparation import (
    VERSION,
    Trace,
    prepare_image,
    prepare_label,
    restore_image,
    restore_label,
)
from medar.errors import MedarError
from medar.volume import Volume, read_volume, write_nifti

MakePlan = Callable[..., Plan]
PERCENTILES = IntensityRule(kind="percentiles", low=0.5, high=99.5)


def affine_of(kind: str) -> Any:
    """The affine of an orientation code or of oblique axes, with spacing 1, 2 and 3 mm."""
    if kind == "oblique":
        turn = nib.eulerangles.euler2mat(z=np.radians(25), x=np.radians(15))
        return nib.affines.from_matvec(turn @ np.diag([1.0, 2.0, 3.0]), [-5.0, 6.0, 7.5])
    change = nib.orientations.axcodes2ornt(kind)
    affine = nib.orientations.inv_ornt_aff(change, (8, 7, 6)) @ np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = [11.0, -12.0, 13.0]
    return affine


def image_and_label(
    kind: str = "RAS", *, shape: Any = (8, 7, 6), channels: int = 1, modality: str = "CT"
) -> tuple[Volume, Volume]:
    rng = np.random.default_rng(0)
    array = rng.uniform(-1000, 1000, (channels, *shape)).astype(np.float32)
    values = rng.integers(0, 3, shape).astype(np.uint8)
    affine = affine_of(kind)
    return (
        Volume.from_array(array, affine, modality=modality),
        Volume.from_array(values, affine),
    )


@pytest.mark.parametrize("mode", ["volume", "patch"])
@pytest.mark.parametrize("centre", ["image", "foreground"])
@pytest.mark.parametrize("kind", ["RAS", "LPS", "PIR", "SAL", "oblique"])
def test_cropping_and_padding_round_trip_exactly(
    plan: MakePlan, kind: str, mode: str, centre: str
) -> None:
    image, label = image_and_label(kind)
    chosen = plan(spacing=image.spacing, mode=mode, centre=centre, size=(12, 12, 12))
    array, trace = prepare_image(image, chosen)
    values = prepare_label(label, trace.target, chosen)
    assert array.dtype == np.float32
    assert values.dtype == chosen.label_dtype
    assert array.shape == values.shape
    assert array.shape[1:] == (image.shape if mode == "patch" else (12, 12, 12))
    assert array.min() >= -1
    assert array.max() <= 1
    back, label_back = restore_image(array, trace), restore_label(values, trace)
    assert back.array == pytest.approx(image.array, abs=1e-3)
    assert np.array_equal(label_back.array, label.array)
    assert back.grid.matches(image.grid, tolerance=1e-9)
    assert label_back.grid.matches(image.grid, tolerance=1e-9)


@pytest.mark.parametrize("kind", ["RAS", "LPS", "PIR", "SAL", "oblique"])
def test_restored_files_have_their_original_orientation(
    plan: MakePlan, tmp_path: Path, kind: str
) -> None:
    stored = np.random.default_rng(1).integers(-1000, 1001, (8, 7, 6)).astype(np.int16)
    nib.save(nib.Nifti1Image(stored, affine_of(kind)), tmp_path / "a.nii.gz")
    image = read_volume(tmp_path / "a.nii.gz", modality="CT")
    array, trace = prepare_image(image, plan(spacing=image.spacing, size=(10, 10, 10)))
    again = Trace.from_dict(json.loads(json.dumps(trace.to_dict())))
    write_nifti(tmp_path / "b.nii.gz", restore_image(array, again), dtype="i2", grid="source")
    back = nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(np.asarray(back.dataobj), stored)
    assert back.affine == pytest.approx(affine_of(kind), abs=1e-5)


def test_values_outside_the_window_are_clipped(plan: MakePlan) -> None:
    image, _ = image_and_label()
    narrow = IntensityRule(kind="window", low=-160.0, high=240.0)
    chosen = plan(spacing=image.spacing, intensity={"CT": narrow})
    array, trace = prepare_image(image, chosen)
    back = restore_image(array, trace).array
    assert back == pytest.approx(image.array.clip(-160, 240), abs=1e-3)
    assert (np.abs(back - image.array) > 1).any()


def test_cropped_regions_are_restored_as_background(plan: MakePlan) -> None:
    image, label = image_and_label()
    chosen = plan(spacing=image.spacing, size=(4, 4, 4))
    array, trace = prepare_image(image, chosen)
    values = prepare_label(label, trace.target, chosen)
    inside = (slice(None), slice(2, 6), slice(2, 6), slice(1, 5))
    assert restore_image(array, trace).array[inside] == pytest.approx(image.array[inside], abs=1e-3)
    assert np.array_equal(restore_label(values, trace).array[inside], label.array[inside])
    outside = np.ones(image.array.shape, bool)
    outside[inside] = False
    assert restore_image(array, trace).array[outside] == pytest.approx(-1000, abs=1e-3)
    assert not restore_label(values, trace).array[outside].any()


@pytest.mark.parametrize("mode", ["volume", "patch"])
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.8, 1.0, 1.3)])
@pytest.mark.parametrize("interpolation", ["linear", "bspline"])
def test_another_spacing_loses_little_of_a_smooth_volume(
    plan: MakePlan, mode: str, spacing: Any, interpolation: str
) -> None:
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 16)] * 3, indexing="ij")
    image = Volume.from_array((800 * np.cos(x + 2 * y - z)).astype("f4"), np.eye(4), modality="CT")
    label = image.with_array((x**2 + y**2 + z**2 < 0.6)[None])
    chosen = plan(spacing=spacing, mode=mode, size=(20, 20, 20), interpolation=interpolation)
    array, trace = prepare_image(image, chosen)
    assert trace.target.spacing == pytest.approx(spacing)
    assert np.abs(array).max() <= 1
    core = (slice(None), *[slice(2, -2)] * 3)
    back = restore_image(array, trace).array
    error = np.abs(back - image.array)[core]
    assert error.max() < 40
    assert error.mean() < 20
    ball = restore_label(prepare_label(label, trace.target, chosen), trace).array
    dice = 2 * (ball & label.array).sum() / (ball.sum() + label.array.sum())
    assert dice > 0.92


def test_nearly_equal_spacing_is_not_resampled(plan: MakePlan) -> None:
    image, _ = image_and_label()
    affine = image.affine @ np.diag([1.0005, 1.0005, 1.0005, 1])
    almost = Volume(array=image.array, affine=affine, modality="CT")
    array, trace = prepare_image(almost, plan(spacing=image.spacing, mode="patch"))
    assert trace.target.spacing == almost.spacing
    assert restore_image(array, trace).array == pytest.approx(image.array, abs=1e-3)


def test_mr_preparation_does_not_depend_on_units(plan: MakePlan) -> None:
    array = np.random.default_rng(0).gamma(2.0, 40.0, (1, 8, 7, 6)).astype(np.float32)
    chosen = plan(intensity={"MR": PERCENTILES})
    volumes = [Volume(array=a, affine=np.eye(4), modality="MR") for a in (array, array * 15000)]
    (prepared, intensity), (rescaled, second) = (
        prepare_image(volume, chosen) for volume in volumes
    )
    assert prepared == pytest.approx(rescaled, abs=1e-5)
    assert second.windows[0].high == pytest.approx(15000 * intensity.windows[0].high, rel=1e-5)
    low, high = intensity.windows[0].low, intensity.windows[0].high
    assert restore_image(prepared, intensity).array == pytest.approx(
        array.clip(low, high), abs=1e-3
    )


def test_channels_have_separate_windows(plan: MakePlan) -> None:
    image, _ = image_and_label(channels=2, modality="MR")
    image = image.with_array(image.array * np.array([1, 100], "f4").reshape(2, 1, 1, 1))
    rules = {"T1": IntensityRule(kind="percentiles", low=0, high=100), "T2": PERCENTILES}
    chosen = plan(spacing=image.spacing, channels=("T1", "T2"), intensity=rules)
    array, trace = prepare_image(image, chosen)
    assert array.shape == (2, 8, 8, 8)
    back = restore_image(array, trace).array
    for channel, expected, window in zip(back, image.array, trace.windows, strict=True):
        inside = expected.clip(window.low, window.high)
        assert channel == pytest.approx(inside, abs=1e-6 * (window.high - window.low))
    assert trace.windows[1].high > 50 * trace.windows[0].high
    with pytest.raises(MedarError, match="1 channel; the plan has 2"):
        prepare_image(image_and_label()[0], chosen)


def test_the_crop_can_be_centred_on_the_foreground(plan: MakePlan) -> None:
    array = np.full((1, 16, 16, 16), -1000, np.float32)
    array[0, 12:15, 1:4, 5:8] = 50
    image = Volume(array=array, affine=np.eye(4), modality="CT")
    assert (prepare_image(image, plan(size=(4, 4, 4)))[0] > -1).sum() == 0
    centred, _ = prepare_image(image, plan(size=(4, 4, 4), centre="foreground"))
    assert (centred > -1).sum() == 27


def test_a_constant_volume_is_refused(plan: MakePlan) -> None:
    image = Volume(array=np.ones((1, 4, 4, 4), np.float32), affine=np.eye(4), modality="MR")
    with pytest.raises(MedarError, match="constant volume"):
        prepare_image(image, plan(intensity={"MR": PERCENTILES}))


def test_label_values_without_a_name_are_refused(plan: MakePlan) -> None:
    image, label = image_and_label()
    odd = label.with_array(np.where(label.array == 2, 9, label.array))
    with pytest.raises(MedarError, match="label values 9 are not among the plan's 0, 1, 2"):
        prepare_label(odd, image.grid, plan())
    kept = prepare_label(odd, image.grid, plan(ignore_label=9))
    assert np.array_equal(kept, odd.array)


def test_prepared_cases_round_trip(plan: MakePlan) -> None:
    """These numbers change only together with the contents of caches."""
    advice = "the prepared form has changed: raise medar.data.preparation.VERSION, then this test"
    voxels = (np.arange(336) * 37 % 2049 - 1024).reshape(8, 7, 6)
    image = Volume.from_array(voxels.astype("f4"), affine_of("PIR"), modality="CT")
    label = Volume.from_array((voxels % 3).astype(np.uint8), affine_of("PIR"))
    window = IntensityRule(kind="window", low=-1024.0, high=1024.0)
    chosen = plan(spacing=image.spacing, size=(8, 6, 8), intensity={"CT": window})
    array, trace = prepare_image(image, chosen)
    whole = np.rint(array * 1024).astype("<i2").tobytes()
    whole += prepare_label(label, trace.target, chosen).astype("<i2").tobytes()
    found = (VERSION, hashlib.blake2b(whole, digest_size=8).hexdigest())
    assert found == (2, "e2497e44d1cf4a75"), advice
    x, y, z = np.meshgrid(*[np.arange(8.0)] * 3, indexing="ij")
    ramp = Volume.from_array((x * y * 9 - z * z * 12).astype("f4"), np.eye(4), modality="CT")
    coarse, _ = prepare_image(ramp, plan(spacing=(1.5, 2, 2.5), size=(6, 6, 4)))
    some = [float(coarse.mean()), float(coarse.std()), *map(float, coarse[0, 1:5, 2, 1])]
    expected = [-0.62302, 0.46427, -0.11603, -0.08229, -0.04855, -0.01579]
    assert (VERSION, some) == (2, pytest.approx(expected, abs=2e-4)), advice


@pytest.mark.parametrize("spacing", [3.0, 4.3, 0.7])
def test_images_reach_the_volume_border(plan: MakePlan, spacing: float) -> None:
    bright = np.full((16, 10, 13), 900.0, np.float32)
    bright[8, 5, 6] = -900.0
    image = Volume.from_array(bright, np.diag([1, 0.7, 1.3, 1]), modality="CT")
    array, trace = prepare_image(image, plan(mode="patch", spacing=(spacing,) * 3))
    faces = np.ones(bright.shape, bool)
    faces[1:-1, 1:-1, 1:-1] = False
    assert restore_image(np.full_like(array, 0.9), trace).array[0][faces].min() > 0
