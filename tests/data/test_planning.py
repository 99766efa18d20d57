"""The rules that derive a plan from a fingerprint, one by one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.data.fingerprint import QUANTILES, CaseFingerprint, Fingerprint
from medar.data.manifest import Case, Manifest
from medar.data.plan import IntensityRule
from medar.data.plan_rules import downsampling, fit_spacing, target_spacing
from medar.data.planning import make_plan
from medar.errors import MedarError

MR = IntensityRule(kind="percentiles", low=0.5, high=99.5)


def found(
    shapes: Sequence[tuple[int, int, int]],
    spacings: Sequence[tuple[float, float, float]] = ((1.0, 1.0, 1.0),),
    *,
    modality: str | None = "MR",
    top: float = 0.0,
    channels: int = 1,
    label_ml: dict[int, float] | None = None,
) -> Fingerprint:
    """A fingerprint of volumes with these shapes; the last spacing is used for the rest."""
    quantiles = tuple(top if q == 99.9 else 0.0 for q in QUANTILES)
    cases = tuple(
        CaseFingerprint(
            id=str(k),
            key=str(k),
            modality=modality,
            shape=shape,
            spacing=spacings[min(k, len(spacings) - 1)],
            quantiles=(quantiles,) * channels,
            label_ml=label_ml or {},
        )
        for k, shape in enumerate(shapes)
    )
    return Fingerprint(cases=cases)


def manifest(**changes: Any) -> Manifest:
    cases = (Case(id="a", images=(Path("a.nii"),)),)
    return Manifest(**{"root": Path(), "source": "MSD", "cases": cases, **changes})


def test_a_small_data_set_keeps_its_spacing_and_covers_95_percent() -> None:
    # As in the hippocampus data: shapes differ by case, 95 of 100 fit into 40x56x40.
    shapes = [(30 + k % 10, 45 + k % 11, 28 + k % 12) for k in range(95)] + [(60, 80, 60)] * 5
    plan = make_plan(found(shapes), manifest(labels={1: "anterior"}))
    assert plan.spacing == (1, 1, 1)
    assert (plan.mode, plan.size, plan.downsampling) == ("volume", (40, 56, 40), (8, 8, 8))
    assert plan.latent == (5, 7, 5)
    assert plan.labels == {1: "anterior"}
    assert plan.intensity == {"MR": MR}


def test_the_spacing_is_the_median() -> None:
    spacings = [(0.7, 0.7, 1.0), (0.8, 0.8, 1.0), (0.97656, 0.97656, 2.0)]
    assert target_spacing(found([(9, 9, 9)] * 3, spacings)) == (0.8, 0.8, 1.0)


def test_a_much_coarser_axis_is_resampled_finer() -> None:
    spacings = [(1.0, 1.0, z) for z in (4.0, 4.0, 8.0, 8.0, 8.0, 8.0, 8.0)]
    assert target_spacing(found([(9, 9, 9)] * 7, spacings)) == (1, 1, 4)
    spacings = [(1.0, 1.0, z) for z in (2.0, 2.0, 2.9, 2.9, 2.9, 2.9, 2.9)]
    assert target_spacing(found([(9, 9, 9)] * 7, spacings)) == (1, 1, 2.9)


@pytest.mark.parametrize(
    ("spacing", "shape", "factors"),
    [
        ((1.0, 1.0, 1.0), (64, 64, 64), (8, 8, 8)),
        ((1.0, 1.0, 2.0), (64, 64, 64), (8, 8, 4)),
        ((1.0, 1.0, 1.9), (64, 64, 64), (8, 8, 8)),
        ((0.5, 0.5, 4.0), (64, 64, 64), (8, 8, 1)),
        ((0.5, 0.5, 40.0), (64, 64, 64), (8, 8, 1)),
        ((1.0, 1.0, 1.0), (64, 15, 3), (8, 4, 1)),
        ((1.0, 1.0, 1.0), (1, 1, 1), (1, 1, 1)),
    ],
)
def test_downsampling_follows_spacing_and_size(
    spacing: Any, shape: Any, factors: tuple[int, int, int]
) -> None:
    assert downsampling(spacing, shape) == factors


@pytest.mark.parametrize("voxels", [1000, 4096, 50_000, 128**3])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9765625, 0.9765625, 5.0)])
def test_the_budget_makes_the_finest_axes_coarser(
    spacing: tuple[float, float, float], voxels: int
) -> None:
    extent = np.array([300.0, 280.0, 330.0])
    fitted = fit_spacing(spacing, extent, voxels)
    assert 0.97 * voxels <= np.prod(extent / fitted) <= voxels
    grown = [n for n, s in zip(fitted, spacing, strict=True) if n > s]
    assert all(n == s or n == grown[0] == min(fitted) for n, s in zip(fitted, spacing, strict=True))
    assert fit_spacing(spacing, np.array([5.0, 5.0, 5.0]), voxels) == spacing


def test_whole_volumes_are_coarsened_at_most_twofold() -> None:
    plan = make_plan(found([(128, 128, 128)]), manifest(), voxels=80**3)
    assert plan.mode == "volume"
    assert plan.spacing == pytest.approx((1.6, 1.6, 1.6), rel=0.02)
    assert plan.size == (80, 80, 80)


def test_larger_volumes_use_patches() -> None:
    plan = make_plan(found([(256, 256, 64)], [(1.0, 1.0, 3.0)]), manifest(), voxels=64 * 64 * 32)
    assert (plan.mode, plan.spacing) == ("patch", (1, 1, 3))
    # As near to a cube in mm as the multiples of the downsampling allow.
    assert plan.size == (72, 72, 24)
    assert plan.downsampling == (8, 8, 4)


def test_a_patch_is_no_longer_than_the_volume() -> None:
    plan = make_plan(found([(512, 512, 16)]), manifest(), voxels=64**3, overrides={"mode": "patch"})
    assert plan.size == (128, 128, 16)


@pytest.mark.parametrize(
    ("top", "high"), [(87.0, 500), (1234.5, 1300), (1300.0, 1300), (9e9, 3000)]
)
def test_ct_window(top: float, high: float) -> None:
    plan = make_plan(found([(16, 16, 16)], modality="CT", top=top), manifest())
    assert plan.intensity == {"CT": IntensityRule(kind="window", low=-1000, high=high)}


def test_rules_by_modality_or_by_channel() -> None:
    both = Fingerprint(
        cases=(
            *found([(16, 16, 16)], modality="CT").cases,
            *found([(16, 16, 16)], modality=None).cases,
        )
    )
    assert set(make_plan(both, manifest()).intensity) == {"CT", "other"}
    assert make_plan(both, manifest()).intensity["other"] == MR
    two = found([(16, 16, 16)], channels=2, top=700.0)
    plan = make_plan(two, manifest(channels=("PET", "CT")))
    ct = IntensityRule(kind="window", low=-1000, high=700)
    assert plan.intensity == {"PET": MR, "CT": ct}
    assert plan.channels == ("PET", "CT")
    assert plan.reading.channels


def test_labels_without_names_are_named_by_value() -> None:
    plan = make_plan(found([(16, 16, 16)], label_ml={7: 1.0, 2: 0.5}), manifest(ignore_label=9))
    assert plan.labels == {2: "label_2", 7: "label_7"}
    assert plan.ignore_label == 9


def test_dependent_values_follow_an_override() -> None:
    cases = found([(128, 128, 64)])
    plan = make_plan(cases, manifest(), overrides={"spacing": (2, 2, 4)})
    assert (plan.spacing, plan.size, plan.downsampling) == ((2, 2, 4), (64, 64, 16), (8, 8, 4))
    plan = make_plan(cases, manifest(), overrides={"size": (16, 16, 8)})
    assert (plan.spacing, plan.size, plan.downsampling) == ((8.04,) * 3, (16, 16, 8), (8, 8, 4))
    plan = make_plan(cases, manifest(), overrides={"downsampling": (4, 4, 32)})
    assert (plan.size, plan.latent) == ((128, 128, 64), (32, 32, 2))
    plan = make_plan(cases, manifest(), voxels=32**3, overrides={"mode": "volume"})
    assert plan.mode == "volume"
    assert min(plan.spacing) > 2
    given = {"other": {"kind": "window", "low": 0, "high": 1}}
    plan = make_plan(cases, manifest(), overrides={"intensity": given, "centre": "foreground"})
    assert plan.intensity == {"other": IntensityRule(kind="window", low=0, high=1)}
    assert plan.centre == "foreground"


def test_a_fixed_spacing_and_the_budget_are_both_kept() -> None:
    plan = make_plan(
        found([(128, 128, 128)]), manifest(), voxels=80**3, overrides={"spacing": (1, 1, 1)}
    )
    assert (plan.mode, plan.spacing, plan.size) == ("patch", (1, 1, 1), (80, 80, 80))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"spacin": 1}, "unknown key 'spacin'; did you mean 'spacing'"),
        ({"spacing": (1, 2)}, r"key 'spacing\.2' is missing"),
        ({"spacing": (1, 2, 0)}, r"spacing\.2 must be greater than 0, got 0"),
        ({"size": (8, 8)}, r"key 'size\.2' is missing"),
        ({"size": (8, 8, 9)}, r"size must be a multiple of .* got \[8, 8, 9\]"),
        ({"size": (8.5, 8, 8)}, r"size.*8\.5"),
        ({"downsampling": "x"}, "downsampling must be a list, got 'x'"),
        ({"mode": "slices"}, "'slices'"),
    ],
)
def test_invalid_overrides_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(MedarError, match=message):
        make_plan(found([(64, 64, 64)]), manifest(), overrides=overrides)


def test_the_spacing_follows_a_fixed_size() -> None:
    plan = make_plan(found([(100, 100, 50)]), manifest(), overrides={"size": (48, 96, 48)})
    assert plan.mode == "volume"
    assert plan.spacing == (2.09, 1, 1)
    patch = make_plan(
        found([(100, 100, 50)]), manifest(), overrides={"size": (48, 48, 48), "mode": "patch"}
    )
    assert patch.spacing == (1, 1, 1)
