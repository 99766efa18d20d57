"""Dice, HD95, NSD and volume of each label of one case.

The surface of a label is made of its voxels that have a face neighbour outside it, or lie at the
volume's border. Distances from each surface to the other, in mm between voxel centres, come from
MONAI:

    Dice   2 |A and B| / (|A| + |B|)
    HD95   the larger of the two 95th percentiles of distances, A's surface to B's and B's to A's
    NSD    share of the voxels of both surfaces that lie within the tolerance of the other surface

A label that truth or prediction lacks is treated as nnU-Net does: absent from both, it has no
scores; present in one alone, Dice is 0. NSD is 0 then too, and HD95 undefined.

X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import find_objects

from medar.volume import Spacing

Array = npt.NDArray[Any]
State = Literal["both", "missed", "invented", "absent", "unknown"]

HELD: tuple[State, ...] = ("both", "missed", "invented")
"""States of a label that truth or prediction holds."""

ROUNDING = 1e-4
"""Share of the tolerance by which a distance in float32 may exceed it."""


@dataclass(frozen=True, kw_only=True)
class CaseScore:
    """One label of one case; None is undefined."""

    case: str
    subject: str
    label: int
    name: str
    state: State
    """What holds the label: truth and prediction, truth alone (missed), the prediction alone
    (invented), neither (absent); or nobody looked for it (unknown)."""
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
    found = {}
    for label in labels:
        box = _around([one[label - 1] for one in boxes if one[label - 1] is not None])
        masks = [(array[box] == label) if box else None for array in (truth, predicted)]
        found[label] = _score(masks[0], masks[1], spacing, millilitres, tolerance)
    return found


def _around(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...] | None:
    """The smallest box around boxes; None of none."""
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
    """The scores of one label, by its masks in the box around both; None where there is no box."""
    if truth is None or predicted is None:
        return {"state": "absent", "truth_ml": 0.0, "predicted_ml": 0.0}
    a, b = int(truth.sum()), int(predicted.sum())
    volumes = {"truth_ml": a * millilitres, "predicted_ml": b * millilitres}
    if not a or not b:
        return {"state": "missed" if a else "invented", "dice": 0.0, "nsd": 0.0, **volumes}
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
    """In mm, of each voxel of either surface to the other surface; neither mask is empty."""
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    surfaces = get_mask_edges(predicted, truth, crop=False)
    pairs = (surfaces, surfaces[::-1])
    return [np.asarray(get_surface_distance(*pair, spacing=list(spacing))) for pair in pairs]
