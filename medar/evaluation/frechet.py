"""Frechet distance between sets of volumes, over features (arXiv 1706.08500).

Features are standardised by the mean and standard deviation of the reference (real training
volumes), so that no feature dominates because of its unit. A deviation counts as at least a given
noticeable difference (`medar.evaluation.extractors.features`), so that none dominates because real
volumes hardly vary in it.

Both sets are modelled as Gaussians. Covariances are shrunk towards a multiple of the identity
(Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", J.
Multivariate Analysis 88, 2004), which keeps them invertible with fewer volumes than features. The
estimate is biased upwards, more so with fewer volumes (arXiv 1911.07023), so only values at equal
numbers of volumes can be compared.

The distance is the mean squared distance between volumes of one set and their partners in the
other, under the best coupling of the two Gaussians, hence a sum over features: each one's part says
what makes the sets differ.

N volumes, M volumes of the reference, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError

Floats = npt.NDArray[np.float64]

MAX_FEATURES = 1024
"""Above this number of features a Frechet distance gets no interval and no contributions, which
would take minutes."""

SHOWN = 3
"""Features that are named beside a Frechet distance."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian:
    """Mean (F,) and covariance (F, F) of a set of features."""

    mean: Floats
    covariance: Floats

    @classmethod
    def fit(cls, features: Floats) -> "Gaussian":
        """Fit to (N, F) features, with the covariance shrunk as by Ledoit and Wolf.

        Raises:
            MedarError: fewer than two volumes.
        """
        check_volumes(features)
        mean = features.mean(axis=0)
        return cls(mean=mean, covariance=_shrunk(features - mean))

    def distance(self, other: "Gaussian") -> float:
        """|m - m'|^2 + tr(S + S' - 2 C), C = (S^1/2 S' S^1/2)^1/2; at least 0."""
        root = _root(self.covariance)
        common = np.linalg.eigvalsh(root @ other.covariance @ root).clip(min=0.0)
        traces = np.trace(self.covariance) + np.trace(other.covariance) - 2 * np.sqrt(common).sum()
        shift = np.square(self.mean - other.mean).sum()
        return float(max(shift + traces, 0.0))

    def contributions(self, other: "Gaussian") -> Floats:
        """Each feature's part of `distance`, (F,): they sum to it, and none is negative.

        The optimal coupling moves x to m' + T (x - m), T = S^-1/2 C S^-1/2. A feature's part is the
        mean of its squared movement, (m - m')^2 + diag(S + S' - 2 T S).
        """
        values, vectors = np.linalg.eigh(self.covariance)
        values = values.clip(min=0.0)
        least = 1e-12 * values.max(initial=0.0)
        inverse = np.where(values > least, 1 / np.sqrt(np.where(values > least, values, 1.0)), 0.0)
        root = (vectors * np.sqrt(values)) @ vectors.T
        moved = (vectors * inverse) @ vectors.T @ _root(root @ other.covariance @ root) @ root
        spread = np.diag(self.covariance) + np.diag(other.covariance) - 2 * np.diag(moved)
        parts: Floats = np.square(self.mean - other.mean) + spread.clip(min=0.0)
        return parts


class Reference:
    """Real volumes that other sets are compared with by the Frechet distance.

    Args:
        features: (M, F) of the real volumes; their mean and standard deviation standardise every
            set.
        noticeable: the least deviation of each feature, (F,) or one for all. A feature that is
            constant among the volumes and has 0 here is only shifted.

    Raises:
        MedarError: fewer than two volumes.
    """

    def __init__(self, features: Floats, noticeable: Floats | float = 0.0) -> None:
        check_volumes(features)
        self.count = len(features)
        deviation = np.maximum(features.std(axis=0), noticeable)
        self._mean = features.mean(axis=0)
        self._deviation = np.where(deviation > 1e-9, deviation, 1.0)
        self._gaussian = Gaussian.fit(self.standardise(features))

    def standardise(self, features: Floats) -> Floats:
        """(N, F) features less the reference's mean, over its standard deviation."""
        standard: Floats = (features - self._mean) / self._deviation
        return standard

    def distance(self, features: Floats) -> float:
        """The Frechet distance of a set of volumes, (N, F), from the reference.

        Raises:
            MedarError: fewer than two volumes.
        """
        return Gaussian.fit(self.standardise(features)).distance(self._gaussian)

    def contributions(self, features: Floats) -> Floats:
        """Each feature's part of that distance, (F,).

        Raises:
            MedarError: fewer than two volumes.
        """
        return Gaussian.fit(self.standardise(features)).contributions(self._gaussian)


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """A feature's part of a Frechet distance."""

    feature: str
    fraction: float
    """Of the distance."""
    shift: float
    """Mean of the set less that of the reference, in standardised units."""


def largest_contributions(
    reference: Reference, sets: Sequence[Floats], names: Sequence[str]
) -> list[Contribution]:
    """The features that contribute most to a Frechet distance, the largest first.

    Args:
        reference: real volumes.
        sets: (N, F) each; means are taken over them. None if there are more than `MAX_FEATURES`.
        names: of the features, F.
    """
    if len(names) > MAX_FEATURES:
        return []
    parts = np.mean([reference.contributions(one) for one in sets], axis=0)
    shift = np.mean([reference.standardise(one).mean(axis=0) for one in sets], axis=0)
    total = max(float(parts.sum()), 1e-12)
    return [
        Contribution(feature=names[k], fraction=float(parts[k]) / total, shift=float(shift[k]))
        for k in np.argsort(-parts, kind="stable")[:SHOWN]
    ]


def check_volumes(features: Floats) -> None:
    """Raise a `MedarError` unless there are at least two volumes."""
    if len(features) < 2:
        raise MedarError(
            f"a distance between sets needs at least 2 volumes per set, got {len(features)}"
        )


def _shrunk(centred: Floats) -> Floats:
    """The Ledoit-Wolf covariance of centred features, (N, F)."""
    count, width = centred.shape
    sample = centred.T @ centred / count
    target = np.trace(sample) / width * np.eye(width)
    difference = np.square(sample - target).sum()
    fourth = np.square(np.square(centred).sum(axis=1)).sum()
    noise = (fourth / count - np.square(sample).sum()) / count
    shrinkage = min(max(noise / difference, 0.0), 1.0) if difference > 0 else 0.0
    covariance: Floats = shrinkage * target + (1 - shrinkage) * sample
    return covariance


def _root(matrix: Floats) -> Floats:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(matrix)
    root: Floats = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    return root
