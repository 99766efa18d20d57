"""Intensity windows: exact inverses, and no dependence on a scanner's units."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medar.data.plan import SAMPLE, IntensityRule, Window, foreground
from medar.errors import MedarError

PERCENTILES = IntensityRule(kind="percentiles", low=0.5, high=99.5)


@given(low=st.floats(-2000, 2000), width=st.floats(1, 4000))
def test_a_window_inverts_inside_and_clips_outside(low: float, width: float) -> None:
    window = Window(low=low, high=low + width)
    inside = np.linspace(low, low + width, 101, dtype=np.float32)
    scaled = window.normalise(inside)
    assert scaled.min() == pytest.approx(-1, abs=1e-3)
    assert scaled.max() == pytest.approx(1, abs=1e-3)
    assert window.restore(scaled) == pytest.approx(inside, abs=1e-3)
    outside = np.array([low - 5000, low + width + 5000], dtype=np.float32)
    assert window.normalise(outside).tolist() == [-1, 1]


def test_integers_are_normalised_as_numbers() -> None:
    window = Window(low=-1000, high=1000)
    array = np.array([-1000, 0, 1000], dtype=np.int16)
    assert window.normalise(array).tolist() == [-1, 0, 1]
    assert array.tolist() == [-1000, 0, 1000]


def test_percentiles_do_not_depend_on_units() -> None:
    array = np.random.default_rng(0).gamma(2.0, 50.0, (9, 8, 7)).astype(np.float32)
    first, second = (
        PERCENTILES.fit(volume).normalise(volume) for volume in (array, array * np.float32(15000))
    )
    assert first == pytest.approx(second, abs=1e-5)
    assert (first.min(), first.max()) == (-1, 1)


def test_percentiles_ignore_the_background() -> None:
    array = np.random.default_rng(0).uniform(100, 200, (8, 8, 8)).astype(np.float32)
    padded = np.pad(array, 8)
    inside, outside = PERCENTILES.fit(array), PERCENTILES.fit(padded)
    assert inside.low == pytest.approx(outside.low, abs=1)
    assert inside.high == pytest.approx(outside.high, abs=1)


def test_a_sparse_volume_has_its_full_range() -> None:
    array = np.zeros((8, 8, 8), np.float32)
    array[4, 4, 4] = 3
    assert PERCENTILES.fit(array) == Window(low=0, high=3)


def test_a_constant_volume_has_no_range() -> None:
    with pytest.raises(MedarError, match="every voxel is 7: a constant volume"):
        PERCENTILES.fit(np.full((3, 3, 3), 7.0, np.float32))


def test_a_fixed_window_does_not_depend_on_the_volume() -> None:
    rule = IntensityRule(kind="window", low=-100, high=300)
    assert rule.fit(np.zeros((2, 2, 2))) == Window(low=-100, high=300)


def test_foreground() -> None:
    air = np.full((4, 4, 4), -1000.0)
    body = air.copy()
    body[0] = 40
    assert foreground(body, "CT").tolist() == [40] * 16
    assert foreground(body, "MR").tolist() == [40] * 16
    assert foreground(air, "CT").size == air.size
    assert foreground(np.arange(2 * SAMPLE + 4), None).size == pytest.approx(SAMPLE, abs=2)


@pytest.mark.parametrize(
    ("kind", "low", "high", "message"),
    [
        ("window", 5, 5, "high must be greater than low 5, got 5"),
        ("window", 5, 1, "high must be greater than low 5, got 1"),
        ("window", float("-inf"), 0, "low must be finite, got -inf"),
        ("window", 0, float("inf"), "high must be finite, got inf"),
        ("window", float("nan"), 1, "low must be finite, got nan"),
        ("percentiles", -1, 50, "must lie within 0 to 100, got -1 to 50"),
        ("percentiles", 0, 101, "must lie within 0 to 100, got 0 to 101"),
    ],
)
def test_impossible_rules_are_refused(kind: str, low: float, high: float, message: str) -> None:
    with pytest.raises(MedarError, match=message):
        IntensityRule(kind=kind, low=low, high=high)
    if kind == "window":
        with pytest.raises(MedarError, match=message):
            Window(low=low, high=high)
