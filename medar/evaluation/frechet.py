"""The Frechet distance between two sets of volumes, over features (arXiv 1706.08500).

Each set is taken for a Gaussian in feature space. Features are standardised by the mean and
deviation of the reference, real training volumes, so that none counts more for its unit.
Covariances are shrunk towards a multiple of the identity (Ledoit and Wolf, "A well-conditioned
estimator for large-dimensional covariance matrices", J. Multivariate Analysis 88, 2004), which
keeps them invertible with fewer volumes than features.

The estimate is biased upwards, the more so the fewer volumes there are (arXiv 1911.07023): figures
compare only at equal numbers of volumes, and each is read against its floor, the distance of as
many real volumes from the same reference.

N volumes, F features.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError

Floats = npt.NDArray[np.float64]

FEW = 20
"""Volumes below which a distance is called rough."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian:
    """Mean (F,) and covariance (F, F) of a set of features."""

    mean: Floats
    covariance: Floats

    @classmethod
    def fit(cls, features: Floats) -> "Gaussian":
        """Of (N, F) features, with the covariance shrunk after Ledoit and Wolf.

        Raises:
            MedarError: fewer than two volumes.
        """
        if len(features) < 2:
            raise MedarError(f"{len(features)} volumes: a Frechet distance needs 2 or more a set")
        mean = features.mean(axis=0)
        return cls(mean=mean, covariance=_shrunk(features - mean))

    def distance(self, other: "Gaussian") -> float:
        """|m - m'|^2 + tr(S + S' - 2 (S^1/2 S' S^1/2)^1/2), 0 or more."""
        root = _root(self.covariance)
        common = np.linalg.eigvalsh(root @ other.covariance @ root).clip(min=0.0)
        spread = np.trace(self.covariance) + np.trace(other.covariance) - 2 * np.sqrt(common).sum()
        shift = np.square(self.mean - other.mean).sum()
        return float(max(shift + spread, 0.0))


class Reference:
    """Real volumes that others are measured against.

    Args:
        features: (N, F) of the real volumes; their mean and deviation standardise every set. A
            feature that does not vary among them is only shifted.

    Raises:
        MedarError: fewer than two volumes.
    """

    def __init__(self, features: Floats) -> None:
        self.count = len(features)
        self._mean = features.mean(axis=0) if self.count else np.zeros(features.shape[1])
        deviation = features.std(axis=0) if self.count else np.zeros(features.shape[1])
        self._deviation = np.where(deviation > 1e-9, deviation, 1.0)
        self._gaussian = Gaussian.fit(self.standardise(features))

    def standardise(self, features: Floats) -> Floats:
        """(N, F) features in units of the reference's deviations from its mean."""
        standard: Floats = (features - self._mean) / self._deviation
        return standard

    def distance(self, features: Floats) -> float:
        """The Frechet distance of a set of volumes, (N, F), from the reference.

        Raises:
            MedarError: fewer than two volumes.
        """
        return Gaussian.fit(self.standardise(features)).distance(self._gaussian)


@dataclass(frozen=True, kw_only=True)
class FrechetProtocol:
    """How a Frechet distance was taken: printed beside it."""

    extractor: str
    """Name and version of the features."""
    features: int
    """F."""
    samples: int
    """Volumes judged, and real volumes behind the floor."""
    reference: str
    """Which real volumes they were compared with."""
    reference_samples: int
    normalisation: str = "mean and deviation of the reference"
    covariance: str = "shrunk, Ledoit-Wolf"
    floor: str = "as many real volumes, those that were reconstructed, against the same reference"

    def __str__(self) -> str:
        return (
            f"{self.extractor} ({self.features} features), {self.samples} volumes against "
            f"{self.reference_samples} real ones ({self.reference}); features standardised by "
            f"{self.normalisation}; covariance {self.covariance}; floor: {self.floor}"
        )


def _shrunk(centred: Floats) -> Floats:
    """The Ledoit-Wolf covariance of centred features, (N, F)."""
    count, width = centred.shape
    sample = centred.T @ centred / count
    target = np.trace(sample) / width * np.eye(width)
    spread = np.square(sample - target).sum()
    fourth = np.square(np.square(centred).sum(axis=1)).sum()
    noise = (fourth / count - np.square(sample).sum()) / count
    share = min(max(noise / spread, 0.0), 1.0) if spread > 0 else 0.0
    covariance: Floats = share * target + (1 - share) * sample
    return covariance


def _root(matrix: Floats) -> Floats:
    """The symmetric root of a covariance."""
    values, vectors = np.linalg.eigh(matrix)
    root: Floats = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    return root
