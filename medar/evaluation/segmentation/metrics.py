"""Metrics of label maps: Dice, HD95, NSD and volume of each label of a case; voxel calibration.

The surface of a label consists of its voxels that have a face neighbour outside it, or lie at the
volume's border. Distances from each surface to the other, in mm between voxel centres, come from
MONAI:

    Dice   2 |A and B| / (|A| + |B|)
    HD95   the larger of the two 95th percentiles of distances, A's surface to B's and B's to A's
    NSD    fraction of the voxels of both surfaces that lie within the tolerance of the other

A label that truth or prediction lacks is treated as in nnU-Net: absent from both, it has no scores;
present in only one, Dice is 0. NSD is then 0 too, and HD95 undefined.

Calibration is the expected calibration error (arXiv 1706.04599) of voxels. Most of a volume is
background that no network doubts, which would make any network look well calibrated. Voxels are
therefore selected by their predicted probabilities (not by the truth, which would bias the result):
those where all labels together have a probability of at least MIN_PROBABILITY. What a network
overlooks is reported separately, as the fraction of labelled voxels that were not selected.

K labels, X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import find_objects
from torch import Tensor

from medar.data.loading import UNKNOWN
from medar.volume import Spacing

Array = npt.NDArray[Any]
State = Literal["both", "missed", "false_positive", "absent", "unknown"]

HELD: tuple[State, ...] = ("both", "missed", "false_positive")
"""States of a label that truth or prediction holds."""

ROUNDING = 1e-4
"""Fraction of the tolerance by which a distance in float32 may exceed it."""

BINS = 15
"""Of confidence, equal width."""

MIN_PROBABILITY = 0.05
"""Of all labels together: below it a voxel is left out of the calibration."""


@dataclass(frozen=True, kw_only=True)
class CaseScore:
    """One label of one case; None is undefined."""

    case: str
    subject: str
    label: int
    name: str
    state: State
    """Where the label is present: in truth and prediction ("both"), only in the truth ("missed"),
    only in the prediction ("false_positive") or in neither ("absent"); "unknown" if the case is not
    annotated for it."""
    dice: float | None = None
    hd95: float | None = None
    """mm."""
    nsd: float | None = None
    truth_ml: float | None = None
    predicted_ml: float | None = None


def score_labels(
    truth: Array,
    predicted: Array,
    labels: Sequence[int],
    spacing: Spacing,
    millilitres: float,
    tolerance: float,
) -> dict[int, dict[str, Any]]:
    """The scores of each label, as `CaseScore` has them.

    Args:
        truth: (X, Y, Z) label values.
        predicted: the same.
        labels: values from 1.
        spacing: sides of a voxel in mm.
        millilitres: volume of a voxel.
        tolerance: of NSD, in mm.
    """
    boxes = [find_objects(array, max(labels)) for array in (truth, predicted)]
    scores = {}
    for label in labels:
        box = _around([one[label - 1] for one in boxes if one[label - 1] is not None])
        masks = [(array[box] == label) if box else None for array in (truth, predicted)]
        scores[label] = _score(masks[0], masks[1], spacing, millilitres, tolerance)
    return scores


def _around(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...] | None:
    """The smallest box around boxes; None without boxes."""
    if not boxes:
        return None
    return tuple(
        slice(min(one.start for one in axis), max(one.stop for one in axis))
        for axis in zip(*boxes, strict=True)
    )


def _score(
    truth: Array | None,
    predicted: Array | None,
    spacing: Spacing,
    millilitres: float,
    tolerance: float,
) -> dict[str, Any]:
    """The scores of one label, from its masks in the box around both; None if there is no box."""
    if truth is None or predicted is None:
        return {"state": "absent", "truth_ml": 0.0, "predicted_ml": 0.0}
    a, b = int(truth.sum()), int(predicted.sum())
    volumes = {"truth_ml": a * millilitres, "predicted_ml": b * millilitres}
    if not a or not b:
        return {"state": "missed" if a else "false_positive", "dice": 0.0, "nsd": 0.0, **volumes}
    distances = _surface_distances(predicted, truth, spacing)
    near = sum(int((one <= tolerance * (1 + ROUNDING)).sum()) for one in distances)
    return {
        "state": "both",
        "dice": 2 * int((truth & predicted).sum()) / (a + b),
        "hd95": float(max(np.percentile(one, 95) for one in distances)),
        "nsd": near / sum(len(one) for one in distances),
        **volumes,
    }


def _surface_distances(predicted: Array, truth: Array, spacing: Spacing) -> list[Array]:
    """Of each voxel of either surface to the other surface, in mm; neither mask is empty."""
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    surfaces = get_mask_edges(predicted, truth, crop=False)
    pairs = (surfaces, surfaces[::-1])
    return [np.asarray(get_surface_distance(*pair, spacing=list(spacing))) for pair in pairs]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Of all selected voxels, over all cases annotated for every label."""

    error: float
    """Mean over bins of |accuracy - confidence|, weighted by their voxels."""
    voxels: int
    overlooked: float | None
    """Fraction of labelled voxels where all labels together have a probability below
    `MIN_PROBABILITY`."""
    confidence: list[float]
    """Mean probability of the most likely class, in each bin that holds a voxel."""
    accuracy: list[float]
    """Fraction of its voxels where that class is the true one."""
    fraction: list[float]
    """Of the voxels."""


class CalibrationMeter:
    """Accumulates voxels by the probability of their most likely class."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, BINS))
        self._labelled = self._overlooked = 0

    def update(self, probabilities: Tensor, classes: Tensor) -> None:
        """Add a volume or a part of one.

        Args:
            probabilities: (1, K + 1, X, Y, Z), background first.
            classes: (1, X, Y, Z) the true ones, 0 for background, -1 for unknown.
        """
        selected = (1 - probabilities[:, 0] >= MIN_PROBABILITY) & (classes != UNKNOWN)
        self._labelled += int((classes > 0).sum())
        self._overlooked += int(((classes > 0) & ~selected).sum())
        confidence, predicted = probabilities.movedim(1, -1)[selected].double().max(dim=-1)
        correct = (predicted == classes[selected]).double()
        bins = (confidence * BINS).long().clamp(max=BINS - 1)
        weights = (torch.ones_like(correct), confidence, correct)
        for row, values in zip(self._sums, weights, strict=True):
            row += torch.bincount(bins, values, BINS).numpy()

    def add(self, other: "CalibrationMeter") -> None:
        """Add the voxels of another meter."""
        self._sums += other._sums
        self._labelled += other._labelled
        self._overlooked += other._overlooked

    def result(self) -> Calibration | None:
        """The calibration over all volumes; None without a voxel."""
        counts, confidence, correct = self._sums[:, self._sums[0] > 0]
        total = counts.sum()
        if not total:
            return None
        return Calibration(
            error=float(np.abs(correct - confidence).sum() / total),
            voxels=int(total),
            overlooked=self._overlooked / self._labelled if self._labelled else None,
            confidence=(confidence / counts).tolist(),
            accuracy=(correct / counts).tolist(),
            fraction=(counts / total).tolist(),
        )
