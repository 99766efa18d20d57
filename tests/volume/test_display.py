"""Display windows and slice positions."""

import numpy as np
import pytest

from medar.volume import Volume
from medar.volume.display import display_range, labelled_middle


def volume(array: object, modality: str | None = None) -> Volume:
    return Volume.from_array(np.asarray(array, np.float32), np.eye(4), modality=modality)


def test_ct_uses_a_window_and_others_percentiles() -> None:
    ramp = np.linspace(0, 1000, 1001).reshape(7, 11, 13)
    assert display_range(volume(ramp, "CT")) == (-160.0, 240.0)
    assert display_range(volume(ramp, "MR")) == pytest.approx((5.0, 995.0))
    some = np.where(ramp < 500, np.nan, ramp)
    assert display_range(volume(some))[0] == pytest.approx(502.5)
    assert display_range(volume(np.full((2, 2, 2), np.inf))) == (0.0, 1.0)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e20, -1e30])
def test_a_constant_volume_has_a_window_distinct_in_float32(value: float) -> None:
    low, high = display_range(volume(np.full((3, 3, 3), value)))
    assert low == pytest.approx(value)
    assert np.float32(high) > np.float32(low)
    assert (high - low) >= 1e-6 * abs(value)


def test_the_centre_of_a_label_is_inside_it() -> None:
    label = np.zeros((5, 6, 7), np.int16)
    assert labelled_middle(label) is None
    label[0], label[4] = 3, -2
    assert label[labelled_middle(label)] != 0
    assert labelled_middle(label == -2) == (4, 2, 3)
