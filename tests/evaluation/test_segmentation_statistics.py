"""Means, intervals, paired tests, volume agreement, calibration: against known answers."""

import numpy as np
import pytest
import torch

from medar.evaluation.segmentation.metrics import BINS, CalibrationMeter
from medar.evaluation.segmentation.statistics import (
    Bootstrap,
    compare,
    mean,
    volume_agreement,
)

NAN = float("nan")


def names(count: int) -> list[str]:
    return [f"s{k}" for k in range(count)]


def test_means_are_over_cases_then_labels() -> None:
    values = np.array([[1.0, NAN], [0.0, NAN], [0.5, 0.2]])
    assert mean(values) == pytest.approx((0.5 + 0.2) / 2)
    assert mean(np.full((2, 2), NAN)) is None


def test_intervals_are_those_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, (400, 1))
    interval = Bootstrap(names(400), seed=0).interval(values)
    assert interval is not None
    error = 1.96 * values.std() / 20
    assert interval == pytest.approx((values.mean() - error, values.mean() + error), abs=2e-3)


def test_draws_are_decided_by_the_seed() -> None:
    values = np.random.default_rng(0).random((10, 2))
    first, again, other = (Bootstrap(names(10), seed).interval(values) for seed in (0, 0, 1))
    assert first == again != other


def test_subjects_are_drawn_not_cases() -> None:
    """Ten scans of each of two patients say no more than two."""
    values = np.array([0.0] * 10 + [1.0] * 10)[:, None]
    assert Bootstrap(["a"] * 10 + ["b"] * 10, 0).interval(values) == (0, 1)
    narrow = Bootstrap(names(20), 0).interval(values)
    assert narrow is not None
    assert 0.2 < narrow[0] < narrow[1] < 0.8


def test_one_subject_has_no_interval() -> None:
    assert Bootstrap(["a", "a"], 0).interval(np.array([[0.1], [0.9]])) is None
    assert Bootstrap(["a", "b"], 0).interval(np.array([[0.1], [NAN]])) is None


def test_the_better_model_is_found_whichever_comes_first() -> None:
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


def test_models_that_are_alike_do_not_differ() -> None:
    values = np.random.default_rng(0).random((6, 2))
    same = compare(values, values.copy(), Bootstrap(names(6), 0))
    assert same is not None
    assert (same.difference, same.interval, same.p, same.effect) == (0, (0, 0), 1, 0)
    assert compare(values, np.full_like(values, NAN), Bootstrap(names(6), 0)) is None


def test_volume_agreement_of_known_differences() -> None:
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
    """Chances of three classes, and classes drawn by them; then the chances are sharpened."""
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 40, 40, 40) * 2
    drawn = torch.multinomial(logits[0].flatten(1).T.softmax(1), 1).view(1, 40, 40, 40)
    return (logits * sharpen).softmax(1), drawn


def test_chances_that_mean_what_they_say() -> None:
    meter = CalibrationMeter()
    meter.update(*predictor(1.0))
    found = meter.result()
    assert found is not None
    assert found.error < 0.01
    assert sum(found.fraction) == pytest.approx(1)
    assert len(found.confidence) == len(found.accuracy) <= BINS
    assert found.overlooked is not None
    assert 0 < found.overlooked < 0.01


def test_a_predictor_that_is_too_sure() -> None:
    meter = CalibrationMeter()
    meter.update(*predictor(3.0))
    found = meter.result()
    assert found is not None
    assert found.error > 0.1
    assert np.dot(found.fraction, found.confidence) > np.dot(found.fraction, found.accuracy) + 0.1


def test_calibration_by_parts_is_that_of_the_whole() -> None:
    chances, classes = predictor(1.0)
    whole, parts = CalibrationMeter(), CalibrationMeter()
    whole.update(chances, classes)
    for part in (slice(0, 7), slice(7, 40)):
        parts.update(chances[:, :, part], classes[:, part])
    a, b = whole.result(), parts.result()
    assert a is not None
    assert b is not None
    assert a.error == pytest.approx(b.error)
    assert (a.voxels, a.overlooked) == (b.voxels, b.overlooked)


def test_sure_background_and_unknown_voxels_do_not_count() -> None:
    chances = torch.zeros(1, 2, 1, 1, 4)
    chances[:, 0] = torch.tensor([0.99, 0.99, 0.5, 0.2])
    chances[:, 1] = 1 - chances[:, 0]
    meter = CalibrationMeter()
    assert meter.result() is None
    meter.update(chances, torch.tensor([0, 1, -1, 1]).view(1, 1, 1, 4))
    found = meter.result()
    assert found is not None
    assert (found.voxels, found.overlooked) == (1, 0.5)
    assert found.error == pytest.approx(0.2)
