"""Plans: YAML round trips, and errors that name the key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medar.data.plan import IntensityRule, Plan
from medar.errors import MedarError
from medar.settings import from_dict, to_dict
from medar.volume import ReadOptions

MakePlan = Callable[..., Plan]
CT = IntensityRule(kind="window", low=-1000.0, high=1000.0)
T1 = IntensityRule(kind="percentiles", low=0.5, high=99.5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spacing": (0.9765625, 0.1, 1e-3)},
        {"mode": "patch", "centre": "foreground", "interpolation": "bspline"},
        {"channels": ("T1", "T2"), "ignore_label": 255, "labels": {1: "Größe: #1", 7: "b"}},
        {"reading": ReadOptions(assume_spacing=(1.0, 2.0, 3.0), nonfinite=-1000.0, channels=True)},
        {"reading": ReadOptions(assume_spacing="header", nonfinite="min", series="1.2.3")},
    ],
)
def test_yaml_round_trip(tmp_path: Path, plan: MakePlan, changes: dict[str, Any]) -> None:
    before = plan(**changes)
    before.save(tmp_path / "plan.yaml")
    after = Plan.load(tmp_path / "plan.yaml")
    assert after == before
    assert after.digest == before.digest
    assert (
        (tmp_path / "plan.yaml").read_text().startswith("# The form that medar brings every volume")
    )


def test_every_value_is_in_the_digest(plan: MakePlan) -> None:
    changed = (
        {"spacing": (1.0, 1.0, 2.0)}, {"mode": "patch"}, {"size": (8, 8, 4)},
        {"downsampling": (1, 2, 2)}, {"centre": "foreground"}, {"intensity": {"CT": T1}},
        {"interpolation": "bspline"}, {"label_interpolation": "nearest"}, {"channels": ("CT",)},
        {"labels": {1: "a"}}, {"ignore_label": 9}, {"reading": ReadOptions(nonfinite="min")},
    )  # fmt: skip
    assert len({plan(**change).digest for change in ({}, *changed)}) == len(changed) + 1
    assert {key for change in changed for key in change} == set(to_dict(plan()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacin": 1}, "unknown key 'spacin'; did you mean 'spacing'?"),
        ({"reading": {"chanels": True}}, "unknown key 'reading.chanels'; did you mean 'channels'?"),
        ({"size": [8, 8]}, "key 'size.2' is missing"),
        ({"size": [8, 8, "x"]}, "size.2 must be an integer, got 'x'"),
        ({"mode": "slices"}, "mode must be 'volume' or 'patch', got 'slices'"),
        ({"intensity": {"CT": {"kind": "window", "low": 1}}}, "key 'intensity.CT.high' is missing"),
        (
            {"intensity": {"CT": {"kind": "window", "low": 1, "high": 0}}},
            "intensity.CT: high must be greater than low 1, got 0",
        ),
        ({"size": [8, 8, 9]}, "size must be a multiple of downsampling [2, 2, 2], got [8, 8, 9]"),
        ({"size": [8, 8, 0]}, "size.2 must be at least 1, got 0"),
        ({"spacing": [1, 1, -1]}, "spacing.2 must be greater than 0, got -1"),
        ({"spacing": [1, 1, float("nan")]}, "spacing.2 must be finite, got nan"),
        (
            {"size": [2048, 2048, 1024]},
            "size must be at most 2147483648 voxels together, got [2048, 2048, 1024]",
        ),
        ({"size": [10**30, 8, 8]}, "size.0 must be at most 9223372036854775807, got 1000"),
        ({"labels": {0: "background"}}, "labels.0 must be at least 1, got 0"),
    ],
)
def test_errors_name_the_key(plan: MakePlan, change: dict[str, Any], message: str) -> None:
    with pytest.raises(MedarError) as caught:
        from_dict(Plan, {**to_dict(plan()), **change}, "plan.yaml")
    assert str(caught.value).startswith(f"plan.yaml: {message}")
    assert "\n" not in str(caught.value)


def test_latent_grid(plan: MakePlan) -> None:
    assert plan(size=(40, 56, 8), downsampling=(8, 8, 2)).latent == (5, 7, 4)


@pytest.mark.parametrize(
    ("labels", "ignore", "dtype"),
    [({}, None, "i1"), ({127: "a"}, None, "i1"), ({128: "a"}, None, "i2"), ({1: "a"}, 255, "i2")],
)
def test_labels_and_unknown_fit_their_type(
    plan: MakePlan, labels: dict[int, str], ignore: int | None, dtype: str
) -> None:
    assert plan(labels=labels, ignore_label=ignore).label_dtype == np.dtype(dtype)


def test_rules_by_modality_and_by_channel(plan: MakePlan) -> None:
    assert plan().rules(1, "CT") == (CT,)
    assert plan(intensity={"CT": CT, "other": T1}).rules(1, "MR") == (T1,)
    assert plan(intensity={"other": T1}).rules(1, None) == (T1,)
    two = plan(channels=("PET", "CT"), intensity={"CT": CT, "PET": T1})
    assert two.rules(2, "MR") == (T1, CT)
    with pytest.raises(MedarError, match="no intensity rule for 'MR'; the plan has: CT"):
        plan().rules(1, "MR")
    with pytest.raises(MedarError, match="1 channel; the plan has 2"):
        two.rules(1, "CT")
