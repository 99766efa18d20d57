"""How far reconstructions lie, as a set, from real volumes that they were not made from.

The cases of a split are compared with the real volumes of the train split. Where the split is train
itself, or there is no train split, they are divided: reconstructions of every second case against
the real volumes of the others. The floor is always the distance of the reconstructed cases'
own originals from the same real volumes: as many volumes, drawn alike, without any reconstruction.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from medar.data.loading import Item, PreparedDataset
from medar.data.manifest import Split
from medar.data.prepared import Prepared
from medar.evaluation import features
from medar.evaluation.frechet import Floats, FrechetProtocol, Reference
from medar.progress import track

REFERENCE_LIMIT = 512
"""Real volumes that a distance refers to, at most; more are thinned out evenly."""


@dataclass(frozen=True, kw_only=True)
class Realism:
    """Both distances, and how they were taken; None where too few volumes or voxels are there."""

    distance: float | None = None
    floor: float | None = None
    protocol: FrechetProtocol | None = None


def spread(dataset: PreparedDataset, limit: int | None) -> Subset[Item]:
    """At most `limit` items of a data set, evenly over its order."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    places = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    return Subset(dataset, places.tolist())


def real_features(
    folder: str | Path, split: Split, *, batch_size: int, device: torch.device
) -> Floats | None:
    """Features of the train split's real volumes, (N, F); None where `split` has no other side."""
    every = Prepared(folder)
    if split == "train" or all(every[place].split != "train" for place in range(len(every))):
        return None
    chosen = spread(PreparedDataset(folder, split="train"), REFERENCE_LIMIT)
    loader = DataLoader(chosen, batch_size=batch_size)
    batches = track(loader, total=len(loader), label="reference", unit="batch")
    return np.concatenate(
        [features.radiomics(batch["image"].to(device)).numpy() for batch in batches]
    )


def judge(made: Floats, real: Floats, reference: Floats | None, split: Split) -> Realism:
    """The distances of reconstructions and of their originals from other real volumes.

    Args:
        made: (N, F) features of reconstructions.
        real: (N, F) of their originals, in the same order.
        reference: what `real_features` gave.
        split: the name of the split that was reconstructed.
    """
    described = "train split"
    if reference is None:
        described = f"every second case of the {split} split"
        made, real, reference = made[::2], real[::2], real[1::2]
    if min(len(made), len(reference)) < 2:
        return Realism()
    against = Reference(reference)
    protocol = FrechetProtocol(
        extractor=features.NAME,
        features=made.shape[1],
        samples=len(made),
        reference=described,
        reference_samples=len(reference),
    )
    return Realism(distance=against.distance(made), floor=against.distance(real), protocol=protocol)
