"""The kernel distance between two sets of volumes (KID, arXiv 1801.01401).

The unbiased estimate of the squared maximum mean discrepancy, with the polynomial kernel
k(x, y) = (x y / F + 1)^3 over features standardised by the reference. Unlike the Frechet distance
it does not depend on the number of volumes, and it is about 0, and as often negative, where both
sets are drawn alike.

N volumes, M volumes of the reference, F features.
"""

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.evaluation.frechet import Floats

DEGREE = 3

ROWS = 1024
"""Of the kernel's matrix that are in memory at once."""


class KernelReference:
    """Real volumes that others are measured against.

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
        own = ((np.square(features).mean(axis=1) + 1) ** DEGREE).sum()
        self._within = float(total - own) / (count * (count - 1))

    def distance(self, features: Floats) -> float:
        """The squared discrepancy of (N, F) standardised features from the reference.

        Raises:
            MedarError: fewer than two volumes.
        """
        return float(self.resampled(features, np.ones((1, len(features))))[0])

    def resampled(self, features: Floats, counts: npt.NDArray[np.floating]) -> Floats:
        """The same where volume i occurs `counts[r, i]` times: (R, N) counts to (R,).

        Pairs of a volume with itself are left out however often it was drawn.

        Raises:
            MedarError: fewer than two volumes.
        """
        _check(features)
        between = _kernel(features, features)
        np.fill_diagonal(between, 0.0)
        across = _kernel(features, self._features).mean(axis=1)
        drawn = counts.sum(axis=1)
        pairs = np.square(drawn) - np.square(counts).sum(axis=1)
        within = np.einsum("ri,ij,rj->r", counts, between, counts, optimize=True) / pairs
        distances: Floats = within + self._within - 2 * counts @ across / drawn
        return distances


def _kernel(first: Floats, second: Floats) -> Floats:
    """(N, F) and (M, F) to (N, M)."""
    values: Floats = (first @ second.T / first.shape[1] + 1) ** DEGREE
    return values


def _check(features: Floats) -> None:
    if len(features) < 2:
        raise MedarError(f"{len(features)} volumes: a kernel distance needs 2 or more a set")
