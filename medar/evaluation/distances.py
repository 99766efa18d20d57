"""Frechet and kernel distance of generated volumes, with floors and bootstrap intervals.

The floor is the distance of real held-out volumes from the same reference: what a perfect
generator would get. The Frechet distance falls with the number of volumes, so generated and
held-out volumes are compared at equal numbers: of the larger set, the mean over random subsets of
the smaller one's size. The kernel distance is unbiased and takes all.

Intervals are of the generated volumes' choice alone: percentiles of the distances of sets drawn
with replacement, shifted to have the estimate as their mean. Unshifted they would lie too high,
since a set with repetitions is less varied.

N volumes, F features.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medar.evaluation.frechet import Floats, Reference
from medar.evaluation.kernel import KernelReference

RESAMPLES = 100
SUBSETS = 20
WIDEST = 1024
"""Features beyond which the Frechet distance is given without interval: it would take minutes."""

PROTOCOL = {
    "frechet": "Gaussians over standardised features, covariance shrunk (Ledoit-Wolf), at "
    f"`frechet_samples` volumes; mean over {SUBSETS} random subsets where there are more",
    "kernel": "unbiased squared MMD, (x y / F + 1)^3 over standardised features, all volumes",
    "standardisation": "mean and deviation of the reference",
    "floor": "held-out real volumes against the same reference",
    "interval": f"95 %, {RESAMPLES} bootstrap draws of the generated volumes, centred",
}
"""How each figure is taken, for reports."""

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SetDistance:
    """Both distances over the features of one extractor. Floors are None for one held-out case."""

    features: int
    """F."""
    frechet: float
    frechet_interval: Interval | None
    frechet_floor: float | None
    frechet_samples: int
    """Volumes a set, generated and held-out."""
    kernel: float
    kernel_interval: Interval | None
    """Intervals are None for two volumes, which have no choice to vary."""
    kernel_floor: float | None


def set_distance(made: Floats, held_out: Floats, reference: Floats, seed: int) -> SetDistance:
    """Judge generated volumes by their features.

    Args:
        made: (N, F) of generated volumes.
        held_out: (N, F) of real volumes, for the floor.
        reference: (N, F) of the real volumes that both are compared with.
        seed: of subsets and bootstrap draws.

    Raises:
        MedarError: fewer than two generated volumes or two of the reference.
    """
    random = np.random.default_rng(seed)
    against = Reference(reference)
    kernel = KernelReference(against.standardise(reference))
    made_standard = against.standardise(made)
    floored = len(held_out) > 1
    samples = min(len(made), len(held_out)) if floored else len(made)
    frechet, distance = _at(against, made, samples, random), kernel.distance(made_standard)
    draws = random.integers(len(made), size=(RESAMPLES, len(made)))
    counts = np.stack([np.bincount(draw, minlength=len(made)) for draw in draws]).astype(float)
    varied = len(made) > 2
    narrow = varied and made.shape[1] <= WIDEST
    return SetDistance(
        features=made.shape[1],
        frechet=frechet,
        frechet_interval=_interval(
            frechet, _resampled(against, made, draws[:, :samples]), least=0.0
        )
        if narrow
        else None,
        frechet_floor=_at(against, held_out, samples, random) if floored else None,
        frechet_samples=samples,
        kernel=distance,
        kernel_interval=_interval(
            distance, kernel.resampled(made_standard, counts[(counts > 0).sum(axis=1) > 1])
        )
        if varied
        else None,
        kernel_floor=kernel.distance(against.standardise(held_out)) if floored else None,
    )


def _at(against: Reference, features: Floats, samples: int, random: np.random.Generator) -> float:
    """The Frechet distance of `samples` of the volumes: the mean over subsets if there are more."""
    if samples == len(features):
        return against.distance(features)
    subsets = (random.permutation(len(features))[:samples] for _ in range(SUBSETS))
    return float(np.mean([against.distance(features[chosen]) for chosen in subsets]))


def _resampled(against: Reference, features: Floats, draws: npt.NDArray[np.intp]) -> Floats:
    """The Frechet distance of each draw, (R, samples) places among the volumes: (R,)."""
    return np.array([against.distance(features[draw]) for draw in draws])


def _interval(estimate: float, values: Floats, least: float = -np.inf) -> Interval:
    """95 percent of the values, shifted so that their mean is the estimate; `least` or more."""
    low, high = estimate + np.quantile(values - values.mean(), [0.025, 0.975])
    return max(float(low), least), float(high)
