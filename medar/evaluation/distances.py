"""Frechet and kernel distances between sets of volumes, over features.

Features are standardised by the mean and standard deviation of the reference (real training
volumes), so that no feature dominates because of its unit. A deviation counts as at least a given
noticeable difference (`medar.evaluation.extractors.features`), so that none dominates because real
volumes hardly vary in it.

- Frechet distance (arXiv 1706.08500): both sets are modelled as Gaussians. Covariances are shrunk
  towards a multiple of the identity (Ledoit and Wolf, "A well-conditioned estimator for
  large-dimensional covariance matrices", J. Multivariate Analysis 88, 2004), which keeps them
  invertible with fewer volumes than features. The estimate is biased upwards, more so with fewer
  volumes (arXiv 1911.07023), so only values at equal numbers of volumes can be compared. It is the
  mean squared distance between volumes of one set and their partners in the other under the best
  coupling of the two Gaussians, hence a sum over features: each one's part says what makes the
  sets differ.
- Kernel distance (KID, arXiv 1801.01401): the unbiased estimate of the squared maximum mean
  discrepancy with the kernel k(x, y) = (x y / F + 1)^3. Its expectation does not depend on the
  number of volumes; it is about 0, and as often negative, for sets of the same distribution.

Each value is reported with a floor: the distance of real held-out volumes from the same reference,
which a perfect generator would reach.

N volumes, M volumes of the reference, F features, R bootstrap draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError

Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]

FEW = 20
"""Sets with fewer volumes are reported with a note."""

RESAMPLES = 100
"""Bootstrap draws."""

SUBSETS = 20
"""Random subsets of the larger set over which a Frechet distance is averaged."""

MAX_FEATURES = 1024
"""Above this number of features a Frechet distance gets no interval and no contributions, which
would take minutes."""

SHOWN = 3
"""Features that are named beside a Frechet distance."""

DEGREE = 3
"""Of the polynomial kernel."""

ROWS = 1024
"""Rows of the kernel matrix that are in memory at once."""

PROTOCOL = {
    "frechet": "Gaussians over standardised features, covariance shrunk (Ledoit-Wolf), at "
    f"`frechet_samples` volumes; mean over {SUBSETS} random subsets where there are more",
    "kernel": "unbiased squared MMD, (x y / F + 1)^3 over standardised features, all volumes",
    "contributions": "each feature's part of the mean squared distance under the optimal coupling",
    "floor": "held-out real volumes against the same reference",
    "interval": f"95 %, {RESAMPLES} bootstrap draws of the generated volumes, centred",
}
"""How each value is computed, for reports."""


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
        _check(features)
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
        _check(features)
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


class KernelReference:
    """Real volumes that other sets are compared with by the kernel distance.

    Args:
        features: (M, F), standardised.

    Raises:
        MedarError: fewer than two volumes.
    """

    def __init__(self, features: Floats) -> None:
        _check(features)
        self._features = features
        count = len(features)
        parts = [features[start : start + ROWS] for start in range(0, count, ROWS)]
        total = sum(_kernel(part, features).sum() for part in parts)
        diagonal = ((np.square(features).mean(axis=1) + 1) ** DEGREE).sum()
        self._within = float(total - diagonal) / (count * (count - 1))

    def distance(self, features: Floats) -> float:
        """The squared discrepancy of (N, F) standardised features from the reference.

        Raises:
            MedarError: fewer than two volumes.
        """
        return float(self.resampled(features, np.ones((1, len(features))))[0])

    def resampled(self, features: Floats, counts: npt.NDArray[np.floating]) -> Floats:
        """The distances of R resampled sets, in which volume i occurs `counts[r, i]` times.

        Pairs of a volume with itself are left out however often it was drawn.

        Args:
            features: (N, F), standardised.
            counts: (R, N).

        Returns:
            (R,).

        Raises:
            MedarError: fewer than two volumes.
        """
        _check(features)
        kernel = _kernel(features, features)
        np.fill_diagonal(kernel, 0.0)
        cross = _kernel(features, self._features).mean(axis=1)
        drawn = counts.sum(axis=1)
        pairs = np.square(drawn) - np.square(counts).sum(axis=1)
        within = np.einsum("ri,ij,rj->r", counts, kernel, counts, optimize=True) / pairs
        distances: Floats = within + self._within - 2 * counts @ cross / drawn
        return distances


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """A feature's part of a Frechet distance."""

    feature: str
    share: float
    """Fraction of the distance."""
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
        Contribution(feature=names[k], share=float(parts[k]) / total, shift=float(shift[k]))
        for k in np.argsort(-parts, kind="stable")[:SHOWN]
    ]


@dataclass(frozen=True, kw_only=True)
class SetDistance:
    """Both distances over the features of one extractor. Floors are None for one held-out case."""

    features: int
    """F."""
    frechet: float
    frechet_interval: Interval | None
    frechet_floor: float | None
    frechet_samples: int
    """Volumes per set, generated and held-out."""
    contributions: list[Contribution]
    """Of the features that contribute most to `frechet`; empty above 1024 features."""
    kernel: float
    kernel_interval: Interval | None
    """Intervals are None for only two volumes, which cannot be resampled."""
    kernel_floor: float | None


def set_distance(
    generated: Floats,
    held_out: Floats,
    reference: Floats,
    seed: int,
    *,
    names: Sequence[str],
    noticeable: Floats | float = 0.0,
    samples: int | None = None,
) -> SetDistance:
    """Compare generated volumes with real ones by their features.

    The Frechet distance and its floor are taken at equal numbers of volumes: of the larger set, the
    mean over random subsets of the smaller one's size. The kernel distance uses all volumes.

    Intervals reflect the choice of the generated volumes alone: percentiles of the distances of
    sets drawn with replacement, shifted to have the estimate as their mean. Unshifted they would
    lie too high, since a set with repetitions is less varied.

    Args:
        generated: (N, F) of generated volumes.
        held_out: (N, F) of real volumes, for the floor.
        reference: (M, F) of the real volumes that both are compared with.
        seed: of subsets and bootstrap draws.
        names: of the features, F.
        noticeable: see `Reference`.
        samples: largest number of volumes per set for the Frechet distance; default: no limit.

    Raises:
        MedarError: `samples` below 2, or fewer than two generated volumes or two of the reference.
    """
    if samples is not None and samples < 2:
        raise MedarError(f"a Frechet distance needs at least 2 volumes per set, got {samples}")
    # The floor has draws of its own: the same for any set that it stands beside.
    random, apart = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    gaussian = Reference(reference, noticeable)
    kernel = KernelReference(gaussian.standardise(reference))
    standard = gaussian.standardise(generated)
    has_floor = len(held_out) > 1
    most = len(generated) if samples is None else samples
    samples = min(len(generated), len(held_out) if has_floor else most, most)
    subsets = _subsets(generated, samples, random)
    frechet, distance = _mean_distance(gaussian, subsets), kernel.distance(standard)
    draws = random.integers(len(generated), size=(RESAMPLES, len(generated)))
    frechet_interval = kernel_interval = None
    if len(generated) > 2:
        counts = np.stack([np.bincount(draw, minlength=len(generated)) for draw in draws])
        counts = counts[(counts > 0).sum(axis=1) > 1].astype(float)
        kernel_interval = _interval(distance, kernel.resampled(standard, counts))
        if generated.shape[1] <= MAX_FEATURES:
            values = [gaussian.distance(generated[draw]) for draw in draws[:, :samples]]
            frechet_interval = _interval(frechet, np.array(values), least=0.0)
    return SetDistance(
        features=generated.shape[1],
        frechet=frechet,
        frechet_interval=frechet_interval,
        frechet_floor=(
            _mean_distance(gaussian, _subsets(held_out, samples, apart)) if has_floor else None
        ),
        frechet_samples=samples,
        contributions=largest_contributions(gaussian, subsets, names),
        kernel=distance,
        kernel_interval=kernel_interval,
        kernel_floor=kernel.distance(gaussian.standardise(held_out)) if has_floor else None,
    )


def _subsets(features: Floats, samples: int, random: np.random.Generator) -> list[Floats]:
    """The set itself if it has `samples` volumes, else random subsets of that size."""
    if samples == len(features):
        return [features]
    return [features[random.permutation(len(features))[:samples]] for _ in range(SUBSETS)]


def _mean_distance(reference: Reference, sets: Sequence[Floats]) -> float:
    return float(np.mean([reference.distance(one) for one in sets]))


def _interval(estimate: float, values: Floats, least: float = -np.inf) -> Interval:
    """The central 95 % of the values, shifted to have the estimate as their mean; from `least`."""
    low, high = estimate + np.quantile(values - values.mean(), [0.025, 0.975])
    return max(float(low), least), float(high)


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


def _kernel(first: Floats, second: Floats) -> Floats:
    """The kernel of (N, F) and (M, F): (N, M)."""
    values: Floats = (first @ second.T / first.shape[1] + 1) ** DEGREE
    return values


def _check(features: Floats) -> None:
    if len(features) < 2:
        raise MedarError(
            f"a distance between sets needs at least 2 volumes per set, got {len(features)}"
        )
