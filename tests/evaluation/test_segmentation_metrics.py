"""Dice, HD95, NSD, calibration and statistics of label maps, against reference values."""

import warnings
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from small_volumes import cubes, smooth

from medar.evaluation.segmentation.metrics import BINS, CalibrationMeter, score_labels
from medar.evaluation.segmentation.statistics import Bootstrap, compare, mean, volume_agreement

SPACING = (1.0, 2.0, 3.0)
ML = 0.006


def score(truth: Any, predicted: Any, tolerance: float = 1.0, label: int = 1) -> dict[str, Any]:
    return score_labels(truth, predicted, [1, 4], SPACING, ML, tolerance)[label]


def surface(mask: Any) -> Any:
    """Surface voxels of a mask, in mm: those with a neighbour outside it."""
    padded = np.pad(mask, 1)
    found = []
    for index in np.argwhere(mask):
        steps = [s * np.eye(3, dtype=int)[axis] for axis, s in product(range(3), (1, -1))]
        if not all(padded[tuple(index + 1 + step)] for step in steps):
            found.append(index * SPACING)
    return np.array(found)


def brute(truth: Any, predicted: Any, tolerance: float) -> tuple[float, float, float]:
    a, b = surface(truth), surface(predicted)
    apart = np.linalg.norm(a[:, None] - b[None], axis=-1)
    distances = apart.min(axis=1), apart.min(axis=0)
    dice = 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum())
    hd95 = max(np.percentile(distance, 95) for distance in distances)
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
    truth, predicted = (volume > 0.2 for volume in volumes)
    found = score(truth.astype(np.uint8), predicted.astype(np.int16), tolerance)
    expected = brute(truth, predicted, tolerance)
    assert (found["dice"], found["hd95"], found["nsd"]) == pytest.approx(expected)
    batch = [torch.from_numpy(mask)[None, None].float() for mask in (predicted, truth)]
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
    truth, predicted = (volume.astype(np.uint8) for volume in volumes)
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


def test_labels_missing_on_one_side() -> None:
    truth, other = cubes(four=0), cubes(one=0)
    assert score(truth, truth, label=4) == {"state": "absent", "truth_ml": 0, "predicted_ml": 0}
    missed, extra = score(truth, other), score(truth, other, label=4)
    assert (missed["state"], missed["dice"], missed["nsd"]) == ("missed", 0, 0)
    assert (extra["state"], extra["dice"], extra["nsd"]) == ("false_positive", 0, 0)
    assert "hd95" not in missed
    assert "hd95" not in extra
    assert (missed["truth_ml"], missed["predicted_ml"]) == (64 * ML, 0)


def test_disjoint_labels_have_zero_dice() -> None:
    truth, far = np.zeros((2, 20, 5, 5), np.uint8)
    truth[0, 0, 0], far[19, 0, 0] = 1, 1
    found = score(truth, far)
    assert (found["state"], found["dice"], found["hd95"], found["nsd"]) == ("both", 0, 19, 0)


NAN = float("nan")


def names(count: int) -> list[str]:
    return [f"s{k}" for k in range(count)]


def test_means_are_over_cases_then_labels() -> None:
    values = np.array([[1.0, NAN], [0.0, NAN], [0.5, 0.2]])
    assert mean(values) == pytest.approx((0.5 + 0.2) / 2)
    assert mean(np.full((2, 2), NAN)) is None


def test_intervals_match_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, (400, 1))
    interval = Bootstrap(names(400), seed=0).interval(values)
    assert interval is not None
    error = 1.96 * values.std() / 20
    assert interval == pytest.approx((values.mean() - error, values.mean() + error), abs=2e-3)


def test_draws_are_determined_by_the_seed() -> None:
    values = np.random.default_rng(0).random((10, 2))
    first, again, other = (Bootstrap(names(10), seed).interval(values) for seed in (0, 0, 1))
    assert first == again != other


def test_the_bootstrap_draws_subjects_not_cases() -> None:
    """Ten scans of each of two patients carry no more information than two scans."""
    values = np.array([0.0] * 10 + [1.0] * 10)[:, None]
    assert Bootstrap(["a"] * 10 + ["b"] * 10, 0).interval(values) == (0, 1)
    narrow = Bootstrap(names(20), 0).interval(values)
    assert narrow is not None
    assert 0.2 < narrow[0] < narrow[1] < 0.8


def test_one_subject_has_no_interval() -> None:
    assert Bootstrap(["a", "a"], 0).interval(np.array([[0.1], [0.9]])) is None
    assert Bootstrap(["a", "b"], 0).interval(np.array([[0.1], [NAN]])) is None


def test_the_better_model_is_found_in_either_order() -> None:
    random = np.random.default_rng(0)
    first = random.random((12, 2))
    second = first + 0.05 + 0.04 * random.random((12, 2))
    second[3] = NAN
    bootstrap = Bootstrap(names(12), 0)
    up, down = compare(first, second, bootstrap), compare(second, first, bootstrap)
    assert up is not None
    assert down is not None
    assert up.difference == pytest.approx(-down.difference)
    assert 0.05 < up.difference < 0.09
    assert up.interval is not None
    assert 0.05 < up.interval[0] < up.difference < up.interval[1]
    assert (up.effect, down.effect) == (1, -1)
    assert up.p == down.p == pytest.approx(2 / 2**11)
    assert up.subjects == 11


def test_similar_models_do_not_differ_significantly() -> None:
    values = np.random.default_rng(0).random((6, 2))
    same = compare(values, values.copy(), Bootstrap(names(6), 0))
    assert same is not None
    assert (same.difference, same.interval, same.p, same.effect) == (0, (0, 0), 1, 0)
    assert compare(values, np.full_like(values, NAN), Bootstrap(names(6), 0)) is None


def test_volume_agreement_of_constructed_differences() -> None:
    truth = np.array([10.0, 20.0, 30.0])
    found = volume_agreement(truth, truth + np.array([1.0, 2.0, 3.0]))
    assert found is not None
    assert (found.cases, found.bias) == (3, 2)
    assert found.limits == pytest.approx((2 - 1.96, 2 + 1.96))
    single = volume_agreement(truth[:1], truth[:1])
    assert single is not None
    assert single.limits is None
    assert volume_agreement(truth[:0], truth[:0]) is None


def predictor(sharpen: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of three classes, sharpened after classes were drawn from them."""
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 40, 40, 40) * 2
    drawn = torch.multinomial(logits[0].flatten(1).T.softmax(1), 1).view(1, 40, 40, 40)
    return (logits * sharpen).softmax(1), drawn


def test_calibrated_probabilities() -> None:
    meter = CalibrationMeter()
    meter.update(*predictor(1.0))
    found = meter.result()
    assert found is not None
    assert found.error < 0.01
    assert sum(found.fraction) == pytest.approx(1)
    assert len(found.confidence) == len(found.accuracy) <= BINS
    assert found.overlooked is not None
    assert 0 < found.overlooked < 0.01


def test_overconfident_predictions() -> None:
    meter = CalibrationMeter()
    meter.update(*predictor(3.0))
    found = meter.result()
    assert found is not None
    assert found.error > 0.1
    assert np.dot(found.fraction, found.confidence) > np.dot(found.fraction, found.accuracy) + 0.1


def test_calibration_merges_over_batches() -> None:
    probabilities, classes = predictor(1.0)
    whole, parts = CalibrationMeter(), CalibrationMeter()
    whole.update(probabilities, classes)
    for part in (slice(0, 7), slice(7, 40)):
        parts.update(probabilities[:, :, part], classes[:, part])
    a, b = whole.result(), parts.result()
    assert a is not None
    assert b is not None
    assert a.error == pytest.approx(b.error)
    assert (a.voxels, a.overlooked) == (b.voxels, b.overlooked)


def test_certain_background_and_unknown_voxels_are_ignored() -> None:
    probabilities = torch.zeros(1, 2, 1, 1, 4)
    probabilities[:, 0] = torch.tensor([0.99, 0.99, 0.5, 0.2])
    probabilities[:, 1] = 1 - probabilities[:, 0]
    meter = CalibrationMeter()
    assert meter.result() is None
    meter.update(probabilities, torch.tensor([0, 1, -1, 1]).view(1, 1, 1, 4))
    found = meter.result()
    assert found is not None
    assert (found.voxels, found.overlooked) == (1, 0.5)
    assert found.error == pytest.approx(0.2)
