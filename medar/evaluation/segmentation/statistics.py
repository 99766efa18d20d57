"""Means over cases and labels, their bootstrap intervals, paired tests, volume agreement.

A mean is taken over cases for each label, then over labels. The bootstrap draws subjects, not
cases: two scans of one patient carry less information than those of two. All values use the same
draws, so that differences between models are paired.

N cases, K labels, R draws, S subjects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 2000
LEVEL = (0.025, 0.975)


class Bootstrap:
    """Subjects drawn with replacement.

    Args:
        subjects: of each of the N cases.
        seed: of the draws.
    """

    def __init__(self, subjects: Sequence[str], seed: int) -> None:
        names, self.subject_indices = np.unique(np.asarray(subjects), return_inverse=True)
        self.subjects = len(names)
        draws = np.random.default_rng(seed).multinomial(
            self.subjects, np.full(self.subjects, 1 / self.subjects), size=RESAMPLES
        )
        self._weights: Floats = draws[:, self.subject_indices].astype(float)

    def interval(self, values: Floats) -> Interval | None:
        """The 95 % interval of the mean of (N, K) values; None if fewer than two subjects have any.

        Undefined values are NaN.
        """
        with_value = self.subject_indices[np.isfinite(values).any(axis=1)]
        if len(np.unique(with_value)) < 2:
            return None
        means = _means(values, self._weights)
        low, high = np.quantile(means[np.isfinite(means)], LEVEL)
        return float(low), float(high)

    def by_subject(self, values: Floats) -> Floats:
        """The mean of each subject's defined values, (S,); subjects without any are left out."""
        defined = np.isfinite(values)
        totals = np.where(defined, values, 0.0).sum(axis=1)
        sums = np.bincount(self.subject_indices, totals, self.subjects)
        counts = np.bincount(self.subject_indices, defined.sum(axis=1), self.subjects)
        means: Floats = sums[counts > 0] / counts[counts > 0]
        return means


def mean(values: Floats) -> float | None:
    """Over cases, then labels, of (N, K) values; NaN is left out, None if nothing is left."""
    value = float(_means(values, np.ones((1, len(values))))[0])
    return value if np.isfinite(value) else None


def _means(values: Floats, weights: Floats) -> Floats:
    """The mean under each row of (R, N) weights: (R,), NaN where nothing is defined."""
    defined = np.isfinite(values)
    sums, counts = weights @ np.where(defined, values, 0.0), weights @ defined
    by_label = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    labels = (counts > 0).sum(axis=1)
    total = by_label.sum(axis=1)
    means: Floats = np.divide(total, labels, out=np.full(len(total), np.nan), where=labels > 0)
    return means


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A second model less a first one, over cases and labels that have a value for both."""

    difference: float
    interval: Interval | None
    """95 %, by bootstrap; None with fewer than two subjects."""
    p: float
    """Two-sided Wilcoxon signed-rank test over the subjects' mean differences; 1 if all are 0."""
    effect: float
    """Matched-pairs rank-biserial correlation: 1 if the second model is higher for every subject,
    -1 if it is lower."""
    subjects: int


def compare(first: Floats, second: Floats, bootstrap: Bootstrap) -> Paired | None:
    """Compare two models' (N, K) values; None if no case has a value for both."""
    differences = second - first
    difference, interval = mean(differences), bootstrap.interval(differences)
    if difference is None:
        return None
    # Equal values summed in another order differ in the last digits.
    by_subject = bootstrap.by_subject(differences).round(12)
    p, effect = _signed_ranks(by_subject[by_subject != 0])
    return Paired(
        difference=difference, interval=interval, p=p, effect=effect, subjects=len(by_subject)
    )


def _signed_ranks(differences: Floats) -> tuple[float, float]:
    """p and rank-biserial correlation of nonzero differences."""
    from scipy.stats import rankdata, wilcoxon

    if not len(differences):
        return 1.0, 0.0
    ranks = rankdata(np.abs(differences))
    effect = float((ranks * np.sign(differences)).sum() / ranks.sum())
    test: Any = wilcoxon(differences)
    return float(test.pvalue), effect


@dataclass(frozen=True, kw_only=True)
class VolumeAgreement:
    """Bland and Altman's bias and limits of agreement, in ml, prediction less truth."""

    cases: int
    bias: float
    limits: Interval | None
    """Bias -+ 1.96 standard deviations; None for a single case."""


def volume_agreement(truth: Floats, predicted: Floats) -> VolumeAgreement | None:
    """Of (N,) volumes in ml; None without a case."""
    differences = predicted - truth
    if not len(differences):
        return None
    bias, limits = float(differences.mean()), None
    if len(differences) > 1:
        margin = 1.96 * float(differences.std(ddof=1))
        limits = (bias - margin, bias + margin)
    return VolumeAgreement(cases=len(differences), bias=bias, limits=limits)
