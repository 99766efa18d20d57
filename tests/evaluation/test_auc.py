"""Area under the ROC curve within folds, and its interval."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from medar.errors import MedarError
from medar.evaluation.auc import area_under_roc, interval_at


def test_in_one_fold_it_is_the_normalised_rank_sum() -> None:
    random = np.random.default_rng(0)
    low, high = random.integers(5, size=12).astype(float), random.integers(7, size=9).astype(float)
    folds = np.zeros(12, int), np.zeros(9, int)
    expected = mannwhitneyu(high, low).statistic / (12 * 9)
    assert area_under_roc(low, high, folds).value == pytest.approx(expected)
    assert area_under_roc(high, low, folds[::-1]).value == pytest.approx(1 - expected)


def test_only_pairs_of_one_fold_count() -> None:
    """Fold 1 scores everything 10 higher, which says nothing about its volumes."""
    folds = np.array([0, 0, 1]), np.array([0, 1, 1])
    area = area_under_roc(np.array([1.0, 2.0, 11.0]), np.array([1.5, 12.0, 10.0]), folds)
    assert area.value == pytest.approx((1 + 1) / 4)
    with pytest.raises(MedarError, match="no fold holds volumes of both sets"):
        area_under_roc(np.ones(2), np.ones(2), (np.zeros(2, int), np.ones(2, int)))


@pytest.mark.parametrize("shift", [0.0, 0.8, 2.0])
def test_the_interval_covers_the_true_area(shift: float) -> None:
    random, true = np.random.default_rng(1), norm.cdf(shift / np.sqrt(2))
    folds = np.zeros(20, int), np.zeros(20, int)
    intervals = [
        area_under_roc(random.normal(size=20), random.normal(shift, size=20), folds).interval
        for _ in range(400)
    ]
    assert 0.92 <= np.mean([low <= true <= high for low, high in intervals]) <= 0.985


def test_the_interval_allows_for_folds_that_train_each_other() -> None:
    """Sets of one distribution, told apart by the difference of their means in other folds."""
    random, folds = np.random.default_rng(2), np.arange(20) % 5
    covered, narrow = [], []
    for _ in range(400):
        sets = random.normal(size=(2, 20, 10))
        values = np.zeros((2, 20))
        for fold in range(5):
            low, high = sets[:, folds != fold].mean(axis=1)
            values[:, folds == fold] = sets[:, folds == fold] @ (high - low)
        area = area_under_roc(values[0], values[1], (folds, folds))
        covered.append(area.interval[0] <= 0.5 <= area.interval[1])
        half = (area.interval[1] - area.interval[0]) / 2 / 1.5
        narrow.append(abs(area.value - 0.5) <= half)
    assert 0.92 <= np.mean(covered) <= 0.99
    assert np.mean(narrow) < 0.9  # without the allowance


def test_complete_separation_leaves_doubt_and_more_with_fewer_volumes() -> None:
    few, more = interval_at(1.0, [(2, 2)] * 2), interval_at(1.0, [(20, 20)] * 5)
    assert few[1] == more[1] == 1
    assert few[0] < 0.6 < 0.95 < more[0] < 1
    low, high = interval_at(0.5, [(10, 10)])
    assert low + high == pytest.approx(1)
    assert interval_at(0.0, [(10, 10)])[0] == 0
