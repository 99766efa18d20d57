"""Shape features: a box of known sides, and labels that are absent."""

import numpy as np
import pytest

from medar.evaluation.shape import ABSENT, FEATURES, shape_features


def described(labels: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> list[dict]:
    rows = shape_features(labels[None], [1, 2], spacing).reshape(2, len(FEATURES))
    return [dict(zip(FEATURES, row, strict=True)) for row in rows]


def test_a_box_is_described() -> None:
    labels = np.zeros((8, 10, 12), np.uint8)
    labels[2:4, 1:9, 0:4] = 1
    box, absent = described(labels)
    assert box["size"] ** 3 == pytest.approx(2 * 8 * 4 / labels.size)
    assert [box[f"extent_{axis}"] for axis in "xyz"] == pytest.approx([2 / 8, 8 / 10, 4 / 12])
    assert [box[f"centre_{axis}"] for axis in "xyz"] == pytest.approx([3 / 8, 5 / 10, 2 / 12])
    # Deviations along the axes are as the sides, 8 to 4 to 2.
    assert np.exp([box["elongation"], box["flatness"]]) == pytest.approx([2, 2])
    assert tuple(absent.values()) == ABSENT


def test_forms_are_measured_in_millimetres() -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:6, 2:6, 2:6] = 2
    labels[0, 0, 0] = 1
    voxel, cube = described(labels)
    assert (cube["elongation"], cube["flatness"]) == pytest.approx((0, 0))
    assert np.isfinite(list(voxel.values())).all()
    assert np.exp(described(labels, (1, 1, 3))[1]["elongation"]) == pytest.approx(3)
