"""Do chances mean what they say? Expected calibration error (arXiv 1706.04599) of voxels.

Most of a volume is background that no network doubts, and would make any network look calibrated.
Voxels are taken by what the network says, never by the truth, which would bias the result: those
where some label has a chance, LEAST or more in all. What a network overlooks is told apart, as the
share of labelled voxels that were not taken.

K labels, X Y Z voxels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medar.data.loading import UNKNOWN

BINS = 15
LEAST = 0.05
"""Chance of all labels together from which a voxel is taken."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Of all voxels that were taken, over all cases annotated for every label."""

    error: float
    """Mean over bins of |accuracy - confidence|, weighted by their voxels."""
    voxels: int
    overlooked: float | None
    """Share of labelled voxels where all labels together have a chance below `LEAST`."""
    confidence: list[float]
    """Mean chance of the likeliest class, in each bin that holds a voxel."""
    accuracy: list[float]
    """Share of its voxels where that class is the true one."""
    share: list[float]
    """Of the voxels."""


class CalibrationMeter:
    """Gathers voxels by the chance of their likeliest class, in bins of equal width."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, BINS))
        self._labelled = self._overlooked = 0

    def update(self, chances: Tensor, classes: Tensor) -> None:
        """Take in a volume or a part of one.

        Args:
            chances: (1, K + 1, X, Y, Z), background first.
            classes: (1, X, Y, Z) the true ones, 0 the background, -1 unknown.
        """
        taken = (1 - chances[:, 0] >= LEAST) & (classes != UNKNOWN)
        self._labelled += int((classes > 0).sum())
        self._overlooked += int(((classes > 0) & ~taken).sum())
        confidence, likeliest = chances.movedim(1, -1)[taken].double().max(dim=-1)
        right = (likeliest == classes[taken]).double()
        places = (confidence * BINS).long().clamp(max=BINS - 1)
        for row, weights in zip(
            self._sums, (torch.ones_like(right), confidence, right), strict=True
        ):
            row += torch.bincount(places, weights, BINS).numpy()

    def result(self) -> Calibration | None:
        """What was found; None without a voxel."""
        counts, confidence, right = self._sums[:, self._sums[0] > 0]
        total = counts.sum()
        if not total:
            return None
        return Calibration(
            error=float(np.abs(right - confidence).sum() / total),
            voxels=int(total),
            overlooked=self._overlooked / self._labelled if self._labelled else None,
            confidence=(confidence / counts).tolist(),
            accuracy=(right / counts).tolist(),
            share=(counts / total).tolist(),
        )
