"""Memorisation: are generated volumes nearer to training volumes than new real ones are?

The distance of each generated volume to its nearest training volume is compared with the distances
of held-out real volumes to theirs. A generator that has learnt the population gives the same
distribution; one that repeats its training set gives far smaller distances. Distances are taken in
two spaces, as each sees copies that the other misses: standardised features (independent of
position and pose), and the correlation of downsampled volumes after subtraction of the mean
training volume (the same anatomy, independent of noise).

B batch, C channels, X Y Z voxels, N volumes, D numbers per volume.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from medar.evaluation.frechet import Floats

PERCENTILE = 1.0
"""Of the held-out distances: this percentage of new real volumes is expected to lie nearer."""

COPY = 0.5
"""Below this fraction of the percentile a volume is a suspected copy."""

SIDE = 16
"""Maximum side, in voxels, of the volumes that are correlated."""

PROTOCOL = {
    "features": "Euclidean distance of features standardised by the training volumes",
    "voxels": f"1 - correlation of volumes averaged to at most {SIDE} voxels per side, less the "
    "mean training volume",
    "nearer": f"below percentile {PERCENTILE:g} of the held-out volumes' distances",
    "suspects": f"below {COPY:g} times that percentile",
}
"""How the audit is done, for reports."""


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A generated volume that looks like a copy."""

    index: int
    """Among the generated volumes, from 0."""
    case: str
    """The nearest training case."""
    distance: float


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The training volume that is nearest to a generated volume."""

    case: str
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
    fraction_nearer: float
    """Fraction of the generated volumes below it."""
    suspects: list[Suspect]
    """The nearest first."""
    nearest: list[Nearest] = field(default_factory=list)
    """One per generated volume, in order; empty in reports of earlier versions."""


def audit_features(
    generated: Floats, held_out: Floats, train: Floats, cases: Sequence[str]
) -> Audit:
    """The audit over standardised features, (N, D) each; `cases` names those of `train`."""
    from scipy.spatial.distance import cdist

    return _audit(cdist(generated, train), cdist(held_out, train), cases)


def audit_voxels(generated: Floats, held_out: Floats, train: Floats, cases: Sequence[str]) -> Audit:
    """The audit over `thumbnails`, (N, D) each."""
    mean = train.mean(axis=0)
    directions = _unit_vectors(train - mean)

    def distances(rows: Floats) -> Floats:
        distances: Floats = (1 - _unit_vectors(rows - mean) @ directions.T).clip(min=0.0)
        return distances

    return _audit(distances(generated), distances(held_out), cases)


def thumbnails(volumes: Tensor) -> Tensor:
    """Volumes averaged to at most 16 voxels per side: (B, C, X, Y, Z) to (B, D) float64."""
    x, y, z = (min(side, SIDE) for side in volumes.shape[2:])
    small = torch.nn.functional.adaptive_avg_pool3d(volumes.float(), (x, y, z))
    return small.flatten(1).double().cpu()


def _unit_vectors(rows: Floats) -> Floats:
    """Rows less their means, of length 1; constant ones stay zero and correlate with none."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    vectors: Floats = centred / np.where(lengths > 1e-9, lengths, 1.0)
    return vectors


def _audit(generated: Floats, held_out: Floats, cases: Sequence[str]) -> Audit:
    """Of distances to every training volume: (generated, train) and (held-out, train)."""
    nearest, indices = generated.min(axis=1), generated.argmin(axis=1)
    nearest_held_out = held_out.min(axis=1)
    percentile = float(np.percentile(nearest_held_out, PERCENTILE))
    median, median_held_out = float(np.median(nearest)), float(np.median(nearest_held_out))
    near = [int(i) for i in np.argsort(nearest) if nearest[i] < COPY * percentile]
    return Audit(
        median=median,
        median_held_out=median_held_out,
        ratio=median / median_held_out if median_held_out > 0 else None,
        percentile=percentile,
        fraction_nearer=float((nearest < percentile).mean()),
        suspects=[
            Suspect(index=i, case=cases[int(indices[i])], distance=float(nearest[i])) for i in near
        ],
        nearest=[
            Nearest(case=cases[int(index)], distance=float(distance))
            for index, distance in zip(indices, nearest, strict=True)
        ],
    )
