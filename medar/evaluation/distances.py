"""Frechet and kernel distances between sets of volumes, over features.

- Frechet distance (`medar.evaluation.frechet`): biased upwards, more so with fewer volumes, so it
  is taken at equal numbers of volumes.
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
from medar.evaluation.frechet import (
    MAX_FEATURES,
    Contribution,
    Floats,
    Reference,
    check_volumes,
    largest_contributions,
)

Interval = tuple[float, float]

FEW = 20
"""Sets with fewer volumes are reported with a note."""

RESAMPLES = 100
"""Bootstrap draws."""

SUBSETS = 20
"""Random subsets of the larger set over which a Frechet distance is averaged."""

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


class KernelReference:
    """Real volumes that other sets are compared with by the kernel distance.

    Args:
        features: (M, F), standardised.

    Raises:
        MedarError: fewer than two volumes.
    """

    def __init__(self, features: Floats) -> None:
        check_volumes(features)
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
        check_volumes(features)
        kernel = _kernel(features, features)
        np.fill_diagonal(kernel, 0.0)
        cross = _kernel(features, self._features).mean(axis=1)
        drawn = counts.sum(axis=1)
        pairs = np.square(drawn) - np.square(counts).sum(axis=1)
        within = np.einsum("ri,ij,rj->r", counts, kernel, counts, optimize=True) / pairs
        distances: Floats = within + self._within - 2 * counts @ cross / drawn
        return distances


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


def _kernel(first: Floats, second: Floats) -> Floats:
    """The kernel of (N, F) and (M, F): (N, M)."""
    values: Floats = (first @ second.T / first.shape[1] + 1) ** DEGREE
    return values
