"""Dice, HD95 and NSD of known shapes, beside a brute-force reference and MONAI's own functions."""

import warnings
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from small_maps import cubes
from small_volumes import smooth

from medar.evaluation.segmentation.metrics import score_labels

SPACING = (1.0, 2.0, 3.0)
ML = 0.006


def score(truth: Any, predicted: Any, tolerance: float = 1.0, label: int = 1) -> dict[str, Any]:
    return score_labels(truth, predicted, [1, 4], SPACING, ML, tolerance)[label]


def surface(mask: Any) -> Any:
    """In mm, voxel by voxel: those with a neighbour outside the mask."""
    padded = np.pad(mask, 1)
    found = []
    for place in np.argwhere(mask):
        steps = [s * np.eye(3, dtype=int)[axis] for axis, s in product(range(3), (1, -1))]
        if not all(padded[tuple(place + 1 + step)] for step in steps):
            found.append(place * SPACING)
    return np.array(found)


def brute(truth: Any, predicted: Any, tolerance: float) -> tuple[float, float, float]:
    a, b = surface(truth), surface(predicted)
    apart = np.linalg.norm(a[:, None] - b[None], axis=-1)
    distances = apart.min(axis=1), apart.min(axis=0)
    dice = 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum())
    hd95 = max(np.percentile(one, 95) for one in distances)
    return dice, hd95, np.mean(np.concatenate(distances) <= tolerance)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [1, 2])
def test_a_cube_that_is_moved(axis: int, voxels: int) -> None:
    truth = np.zeros((12, 12, 12), np.uint8)
    truth[3:7, 3:7, 3:7] = 1
    moved = np.roll(truth, voxels, axis)
    found = score(truth, moved, tolerance=voxels * SPACING[axis])
    assert found["state"] == "both"
    assert found["dice"] == pytest.approx((4 - voxels) / 4)
    assert found["hd95"] == pytest.approx(voxels * SPACING[axis])
    assert found["nsd"] == 1
    assert found["truth_ml"] == pytest.approx(found["predicted_ml"]) == 64 * ML
    assert score(truth, moved, tolerance=voxels * SPACING[axis] - 0.01)["nsd"] < 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tolerance", [0.5, 2.0, 3.7])
def test_shapes_as_brute_force_and_monai_score_them(seed: int, tolerance: float) -> None:
    volumes = [smooth(1, 9, 8, 7, seed=seed + k)[0, 0].numpy() for k in (0, 9)]
    truth, predicted = (one > 0.2 for one in volumes)
    found = score(truth.astype(np.uint8), predicted.astype(np.int16), tolerance)
    expected = brute(truth, predicted, tolerance)
    assert (found["dice"], found["hd95"], found["nsd"]) == pytest.approx(expected)
    batch = [torch.from_numpy(one)[None, None].float() for one in (predicted, truth)]
    settings: dict[str, Any] = {"include_background": True, "spacing": list(SPACING)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of MONAI's functions warns of another
        monai = [
            compute_hausdorff_distance(*batch, percentile=95, **settings).item(),
            compute_surface_dice(*batch, class_thresholds=[tolerance], **settings).item(),
        ]
    assert [found["hd95"], found["nsd"]] == pytest.approx(monai, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_the_same_both_ways_and_nsd_grows_with_its_tolerance(seed: int) -> None:
    volumes = [smooth(1, 9, 8, 7, seed=seed + k)[0, 0].numpy() > 0.3 for k in (0, 5)]
    truth, predicted = (one.astype(np.uint8) for one in volumes)
    ways = score(truth, predicted), score(predicted, truth)
    assert [ways[0][k] for k in ("dice", "hd95", "nsd")] == pytest.approx(
        [ways[1][k] for k in ("dice", "hd95", "nsd")]
    )
    growing = [score(truth, predicted, tolerance)["nsd"] for tolerance in (0.1, 1, 2, 3, 4, 60)]
    assert growing == sorted(growing)
    assert growing[0] < growing[-1] == 1


def test_a_perfect_label_map() -> None:
    for label in (1, 4):
        found = score(cubes(), cubes(), label=label)
        assert (found["dice"], found["hd95"], found["nsd"]) == (1, 0, 1)


def test_labels_that_one_side_lacks() -> None:
    truth, other = cubes(four=0), cubes(one=0)
    assert score(truth, truth, label=4) == {"state": "absent", "truth_ml": 0, "predicted_ml": 0}
    missed, invented = score(truth, other), score(truth, other, label=4)
    assert (missed["state"], missed["dice"], missed["nsd"]) == ("missed", 0, 0)
    assert (invented["state"], invented["dice"], invented["nsd"]) == ("invented", 0, 0)
    assert "hd95" not in missed
    assert "hd95" not in invented
    assert (missed["truth_ml"], missed["predicted_ml"]) == (64 * ML, 0)


def test_labels_that_do_not_meet_are_both_there() -> None:
    truth, far = np.zeros((2, 20, 5, 5), np.uint8)
    truth[0, 0, 0], far[19, 0, 0] = 1, 1
    found = score(truth, far)
    assert (found["state"], found["dice"], found["hd95"], found["nsd"]) == ("both", 0, 19, 0)
