"""Memorisation: are generated volumes nearer to training volumes than new real ones are?

For each generated volume the distance to its nearest training volume is set against the distances
of held-out real volumes to theirs. A generator that has learnt the population gives the same
distribution; one that repeats its training set gives far smaller distances. Two spaces, as each
sees copies that the other misses: standardised features (any place, any pose), and the correlation
of downsampled volumes, each less the mean training volume (the same anatomy, whatever the noise).

N volumes, D numbers a volume.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medar.evaluation.frechet import Floats

PERCENTILE = 1.0
"""Of the held-out distances: so many percent of fresh volumes are expected to lie nearer."""

COPY = 0.5
"""Share of that percentile below which a volume is named a suspected copy."""

SIDE = 16
"""Voxels along each side, at most, of the volumes that are correlated."""

PROTOCOL = {
    "features": "Euclidean distance of features standardised by the training volumes",
    "voxels": f"1 - correlation of volumes averaged to {SIDE} voxels a side at most, less the "
    "mean training volume",
    "nearer": f"below percentile {PERCENTILE:g} of the held-out volumes' distances",
    "suspects": f"below {COPY:g} times that percentile",
}
"""How the audit is done, for reports."""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A generated volume that looks copied."""

    index: int
    """Its place among the generated volumes, from 0."""
    case: str
    """The nearest training case."""
    distance: float


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Distances to the nearest training volume, in one space."""

    median: float
    median_held_out: float
    ratio: float | None
    """Median of the generated volumes over that of the held-out ones; None where that is 0."""
    percentile: float
    """The held-out distance that `PERCENTILE` percent lie below."""
    share_nearer: float
    """Generated volumes below it."""
    suspects: list[Suspect]
    """The nearest first."""


def audit_features(made: Floats, held_out: Floats, train: Floats, cases: Sequence[str]) -> Audit:
    """The audit over features, (N, D) each, standardised; `cases` names those of `train`."""
    from scipy.spatial.distance import cdist

    return _audit(cdist(made, train), cdist(held_out, train), cases)


def audit_voxels(made: Floats, held_out: Floats, train: Floats, cases: Sequence[str]) -> Audit:
    """The audit over `thumbnails`, (N, D) each."""
    mean = train.mean(axis=0)
    ours, others, known = (_directions(one - mean) for one in (made, held_out, train))
    return _audit((1 - ours @ known.T).clip(min=0.0), (1 - others @ known.T).clip(min=0.0), cases)


def thumbnails(volumes: Tensor) -> Tensor:
    """Volumes averaged to at most 16 voxels a side: (B, C, X, Y, Z) to (B, D) float64."""
    x, y, z = (min(side, SIDE) for side in volumes.shape[2:])
    small = torch.nn.functional.adaptive_avg_pool3d(volumes.float(), (x, y, z))
    return small.flatten(1).double().cpu()


def _directions(rows: Floats) -> Floats:
    """Rows less their means, of length 1; a constant one stays zero, and correlates with none."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    directions: Floats = centred / np.where(lengths > 1e-9, lengths, 1.0)
    return directions


def _audit(
    made: npt.NDArray[np.float64], held_out: npt.NDArray[np.float64], cases: Sequence[str]
) -> Audit:
    """Of distances to every training volume: (generated, train) and (held-out, train)."""
    nearest, places = made.min(axis=1), made.argmin(axis=1)
    others = held_out.min(axis=1)
    percentile = float(np.percentile(others, PERCENTILE))
    median, median_held_out = float(np.median(nearest)), float(np.median(others))
    near = [int(i) for i in np.argsort(nearest) if nearest[i] < COPY * percentile]
    return Audit(
        median=median,
        median_held_out=median_held_out,
        ratio=median / median_held_out if median_held_out > 0 else None,
        percentile=percentile,
        share_nearer=float((nearest < percentile).mean()),
        suspects=[
            Suspect(index=i, case=cases[int(places[i])], distance=float(nearest[i])) for i in near
        ],
    )
