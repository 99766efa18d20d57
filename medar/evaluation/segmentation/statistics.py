"""Means over cases and labels, their bootstrap intervals, paired tests, volume agreement.

A mean is taken over cases for each label, then over labels. Subjects, not cases, are drawn with
replacement: two scans of one patient say less than those of two. All figures are taken of the same
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
        names, self.places = np.unique(np.asarray(subjects), return_inverse=True)
        self.subjects = len(names)
        draws = np.random.default_rng(seed).multinomial(
            self.subjects, np.full(self.subjects, 1 / self.subjects), size=RESAMPLES
        )
        self._weights: Floats = draws[:, self.places].astype(float)

    def interval(self, values: Floats) -> Interval | None:
        """95 % of the mean of (N, K) values; None where fewer than two subjects have any.

        Undefined values are NaN.
        """
        with_value = self.places[np.isfinite(values).any(axis=1)]
        if len(np.unique(with_value)) < 2:
            return None
        means = _means(values, self._weights)
        low, high = np.quantile(means[np.isfinite(means)], LEVEL)
        return float(low), float(high)

    def by_subject(self, values: Floats) -> Floats:
        """The mean of each subject's defined values, (S,); subjects without any are left out."""
        known = np.isfinite(values)
        sums = np.bincount(self.places, np.where(known, values, 0.0).sum(axis=1), self.subjects)
        counts = np.bincount(self.places, known.sum(axis=1), self.subjects)
        means: Floats = sums[counts > 0] / counts[counts > 0]
        return means


def mean(values: Floats) -> float | None:
    """Over cases, then labels, of (N, K) values; NaN is left out, None where nothing is left."""
    found = float(_means(values, np.ones((1, len(values))))[0])
    return found if np.isfinite(found) else None


def _means(values: Floats, weights: Floats) -> Floats:
    """The mean under each row of (R, N) weights: (R,), NaN where nothing is defined."""
    known = np.isfinite(values)
    sums, counts = weights @ np.where(known, values, 0.0), weights @ known
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
    """Two-sided Wilcoxon signed-rank test over the subjects' mean differences; 1 where none
    differs."""
    effect: float
    """Matched-pairs rank-biserial correlation: 1 where the second model is higher for each subject,
    -1 where it is lower."""
    subjects: int


def compare(first: Floats, second: Floats, bootstrap: Bootstrap) -> Paired | None:
    """Compare two models' (N, K) values; None where no case has one for both."""
    apart = second - first
    difference, interval = mean(apart), bootstrap.interval(apart)
    if difference is None:
        return None
    # Sums in another order differ in the last digits.
    by_subject = bootstrap.by_subject(apart).round(12)
    p, effect = _signed_ranks(by_subject[by_subject != 0])
    return Paired(
        difference=difference, interval=interval, p=p, effect=effect, subjects=len(by_subject)
    )


def _signed_ranks(differences: Floats) -> tuple[float, float]:
    """p and rank-biserial correlation of differences that are not 0."""
    from scipy.stats import rankdata, wilcoxon

    if not len(differences):
        return 1.0, 0.0
    ranks = rankdata(np.abs(differences))
    effect = float((ranks * np.sign(differences)).sum() / ranks.sum())
    found: Any = wilcoxon(differences)
    return float(found.pvalue), effect


@dataclass(frozen=True, kw_only=True)
class VolumeAgreement:
    """Bland and Altman's bias and limits of agreement, in ml, prediction less truth."""

    cases: int
    bias: float
    limits: Interval | None
    """Bias less and plus 1.96 deviations; None for a single case."""


def volume_agreement(truth: Floats, predicted: Floats) -> VolumeAgreement | None:
    """Of (N,) volumes in ml; None of no case."""
    apart = predicted - truth
    if not len(apart):
        return None
    bias = float(apart.mean())
    spread = 1.96 * float(apart.std(ddof=1)) if len(apart) > 1 else None
    return VolumeAgreement(
        cases=len(apart),
        bias=bias,
        limits=None if spread is None else (bias - spread, bias + spread),
    )
