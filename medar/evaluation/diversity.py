"""Diversity: how alike two volumes of a set are, by multi-scale structural similarity (MS-SSIM).

The mean over random pairs (Wang et al., Asilomar 2003; for generated volumes arXiv 1908.02498).
Volumes that are all alike have a high value; it is read beside that of real pairs, and neither
above (too alike) nor far below it (implausible) is good. The usual five scales with a window of 11
voxels need 176 voxels a side; here the number of scales follows from the sides, and the window is
smaller, as its cost grows with its volume.

C channels, X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

PAIRS = 30
"""Pairs at most."""

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, fine to coarse; fewer scales take the first of them, scaled to the sum 1."""

COARSEST = 8
"""Voxels that the shortest side keeps at the coarsest scale, if there is more than one scale."""

SIDE = 5
"""Voxels along the largest window."""


@dataclass(frozen=True, kw_only=True)
class MsSsim:
    """Settings of the similarity."""

    window: int
    """Voxels along the side of the Gaussian window, deviation 1.5."""
    weights: tuple[float, ...]

    @classmethod
    def of(cls, sides: Sequence[int]) -> "MsSsim":
        """What fits volumes of these sides."""
        shortest = min(sides)
        scales = 1
        while scales < len(WEIGHTS) and shortest >> scales >= COARSEST:
            scales += 1
        # The largest odd window that MONAI allows for so many scales.
        room = min(SIDE, shortest // max(1, scales - 1) ** 2)
        total = sum(WEIGHTS[:scales])
        return cls(
            window=max(room - (room % 2 == 0), 1),
            weights=tuple(weight / total for weight in WEIGHTS[:scales]),
        )


def similarity(volumes: Sequence[Tensor], seed: int) -> float:
    """Mean MS-SSIM over random pairs.

    Args:
        volumes: two or more, (C, X, Y, Z) each, in [-1, 1], sides from 8 voxels.
        seed: of the pairs.
    """
    from monai.metrics import MultiScaleSSIMMetric

    pairs = list(combinations(range(len(volumes)), 2))
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:PAIRS]
    settings = MsSsim.of(volumes[0].shape[1:])
    metric = MultiScaleSSIMMetric(
        spatial_dims=3, data_range=2.0, kernel_size=settings.window, weights=settings.weights,
        reduction="none",
    )  # fmt: skip
    with torch.no_grad():
        values = [
            metric(volumes[first][None].float(), volumes[second][None].float())
            for first, second in (pairs[place] for place in chosen)
        ]
    return float(torch.cat(values).double().mean())
