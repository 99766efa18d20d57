"""Area under the ROC curve of cross-validated scores, with a confidence interval.

Scores of different folds come from different networks and are not comparable, so only pairs within
a fold are counted. The area is then 0.5 in expectation if both sets have the same distribution;
over pooled scores it would be lower, because a fold with more of one class leaves fewer of it to
train on.

The interval is Newcombe's (method 5 in Statistics in Medicine 25, 2006, pp. 559-573): it contains
every area whose distance from the estimate is at most 1.96 of the standard errors that Hanley and
McNeil's formula gives *at that area*. Unlike intervals from DeLong's variance or the bootstrap it
does not shrink to a point when the sets are separated completely.

Folds are not independent: each is tested by a network that was trained on the others. Their
variance is therefore multiplied by 1 + K n_test / n_train (Nadeau and Bengio, Machine Learning 52,
2003), 2.25 for 5 folds; without it, every eighth interval of sets that do not differ would exclude
0.5.

N volumes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]
Interval = tuple[float, float]

Z = 1.959964
"""Of the 95 % interval."""
STEPS = 60
"""Bisections for each end of the interval."""


@dataclass(frozen=True, kw_only=True)
class Area:
    """Area under the ROC curve, and its 95 % interval."""

    value: float
    interval: Interval


def area_under_roc(negatives: Floats, positives: Floats, folds: tuple[Integers, Integers]) -> Area:
    """The probability that a positive scores higher than a negative of its fold; ties count half.

    Args:
        negatives: (N,) scores.
        positives: (M,) scores.
        folds: (N,) and (M,), the fold of each score.

    Raises:
        MedarError: no fold holds scores of both.
    """
    pairs, wins, sizes = 0, 0.0, []
    for fold in np.intersect1d(*folds):
        low, high = negatives[folds[0] == fold], positives[folds[1] == fold]
        difference = high[:, None] - low[None]
        wins += float((difference > 0).sum() + 0.5 * (difference == 0).sum())
        pairs += difference.size
        sizes.append((len(low), len(high)))
    if not pairs:
        raise MedarError("area under the ROC curve: no fold holds volumes of both sets")
    value = wins / pairs
    return Area(value=value, interval=interval_at(value, sizes))


def interval_at(value: float, sizes: list[tuple[int, int]]) -> Interval:
    """The 95 % interval of an area.

    Args:
        value: the area, 0 to 1.
        sizes: number of negatives and of positives in each of K folds; a single one stands for
            scores that are independent of each other.
    """
    return _end(value, 0.0, sizes), _end(value, 1.0, sizes)


def _end(value: float, outside: float, sizes: list[tuple[int, int]]) -> float:
    """The end of the interval between the estimate and `outside`, by bisection."""
    inside = value
    for _ in range(STEPS):
        middle = (inside + outside) / 2
        if abs(middle - value) <= Z * _standard_error(middle, sizes):
            inside = middle
        else:
            outside = middle
    return inside


def _standard_error(area: float, sizes: list[tuple[int, int]]) -> float:
    """Of the mean over folds, weighted by pairs, if `area` is the true one."""
    total = sum(m * n for m, n in sizes)
    variances = ((m * n / total) ** 2 * _variance(area, m, n) for m, n in sizes)
    dependence = 1 + len(sizes) / (len(sizes) - 1) if len(sizes) > 1 else 1.0
    return float(np.sqrt(dependence * sum(variances)))


def _variance(area: float, negatives: int, positives: int) -> float:
    """Hanley and McNeil's variance (Radiology 143, 1982) with both sizes replaced by their mean."""
    mean = (negatives + positives) / 2 - 1
    both = (1 - area) / (2 - area) + area / (1 + area)
    return area * (1 - area) * (1 + mean * both) / (negatives * positives)
