"""The picture of the worst cases: outlines where truth and prediction lie."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from medar.errors import MedarError
from medar.evaluation.segmentation.worst import WorstCase, WorstCases
from medar.report import contours
from medar.report.contours import PREDICTION, TRUTH, save_worst_cases
from medar.volume import Volume


def worst_cases() -> list[WorstCase]:
    """One case: a box of 4 x 3 x 3 voxels, and a prediction that lies one voxel to the right."""
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    image = np.random.default_rng(0).normal(size=(1, 14, 9, 8)).astype(np.float32)
    label = np.zeros((1, 14, 9, 8), np.uint8)
    label[:, 4:8, 3:6, 3:6] = 2
    found = WorstCases()
    volumes = [Volume(array=one, affine=affine) for one in (image, label, np.roll(label, 1, 1))]
    found.update("one", *volumes, 0.75)
    return found.kept


def test_outlines_lie_where_the_labels_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Figure] = []
    monkeypatch.setattr(contours, "save_png", lambda figure, _: seen.append(figure))
    save_worst_cases(tmp_path / "x.png", worst_cases())
    axial = seen[0].axes[2]
    assert axial.xaxis_inverted(), "the patient's right is on the left"
    spans = {}
    for one in axial.collections:
        corners = np.concatenate([path.vertices for path in one.get_paths()])
        spans[to_hex(one.get_edgecolor()[0])] = corners.min(axis=0), corners.max(axis=0)
    # Voxel centres lie at whole millimetres; an outline runs half a voxel around them.
    for colour, (low, high) in {TRUTH: (3.5, 7.5), PREDICTION: (4.5, 8.5)}.items():
        np.testing.assert_allclose(spans[colour][0], (low, 5), atol=1e-6)
        np.testing.assert_allclose(spans[colour][1], (high, 11), atol=1e-6)
    assert "Dice 0.750" in seen[0].axes[0].get_ylabel()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MedarError, match="no case to draw"):
        save_worst_cases(tmp_path / "x.png", [])
    with pytest.raises(MedarError, match=r"written as \.png"):
        save_worst_cases(tmp_path / "x.jpg", worst_cases())
