"""How far reconstructions lie, as a set, from real volumes that they were not made from.

The cases of a split are compared with the real volumes of the train split. Where the split is train
itself, or there is no train split, its cases are divided: reconstructions of every second case
against the real volumes of the others. The floor is always the distance of the reconstructed cases'
own originals from the same real volumes: the same number of volumes, without any reconstruction.
Both reconstructions and real volumes are judged as a file would hold them.

N volumes, F features.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medar.data.loading import PreparedDataset
from medar.data.prepared import Prepared
from medar.evaluation.distances import SetDistance, set_distance
from medar.evaluation.extractors.features import PROTOCOL, feature_set
from medar.evaluation.extractors.handcrafted import RADIOMICS, radiomics
from medar.evaluation.frechet import Floats
from medar.evaluation.reconstruction.cases import EvaluatedSplit, evenly_spaced
from medar.evaluation.written import as_written
from medar.progress import track

REFERENCE_LIMIT = 512
"""Maximum number of real volumes in the reference; more are thinned out evenly."""


@dataclass(frozen=True, kw_only=True)
class FrechetProtocol:
    """How a Frechet distance was computed: printed beside it."""

    extractor: str
    """Name and version of the features."""
    features: int
    """F."""
    samples: int
    """Reconstructions, and as many real volumes behind the floor."""
    reference: str
    """Which real volumes they were compared with."""
    reference_samples: int
    normalisation: str = PROTOCOL
    covariance: str = "shrunk, Ledoit-Wolf"
    floor: str = "the originals of the reconstructions against the same reference"

    def __str__(self) -> str:
        return (
            f"{self.extractor} ({self.features} features), {self.samples} volumes against "
            f"{self.reference_samples} real ones ({self.reference}); features standardised by "
            f"{self.normalisation}; covariance {self.covariance}; floor: {self.floor}"
        )


def real_features(
    folder: str | Path,
    split: EvaluatedSplit,
    *,
    step: Tensor,
    batch_size: int,
    device: torch.device,
) -> Floats | None:
    """Features of the train split's real volumes, (N, F); `step` as `file_step` returns it.

    None if `split` is the train split, or if there is no train split.
    """
    cases = Prepared(folder)
    if split == "train" or all(cases[index].split != "train" for index in range(len(cases))):
        return None
    subset = evenly_spaced(PreparedDataset(folder, split="train"), REFERENCE_LIMIT)
    loader = DataLoader(subset, batch_size=batch_size)
    batches = track(loader, total=len(loader), label="reference", unit="batch")
    written = (as_written(batch["image"].to(device), step) for batch in batches)
    return np.concatenate([radiomics(volumes).numpy() for volumes in written])


def measure_realism(
    decoded: Floats,
    real: Floats,
    reference: Floats | None,
    split: EvaluatedSplit,
    *,
    samples: int | None = None,
) -> tuple[SetDistance, FrechetProtocol] | None:
    """The distances of reconstructions and of their originals from other real volumes.

    Args:
        decoded: (N, F) features of reconstructions.
        real: (N, F) of their originals, in the same order.
        reference: as `real_features` returns it.
        split: name of the split that was reconstructed.
        samples: largest number of volumes per set; default N.

    Returns:
        The distances and how they were computed; None with too few volumes.
    """
    description = "train split"
    if reference is None:
        description = f"every second case of the {split} split"
        decoded, real, reference = decoded[::2], real[::2], real[1::2]
    if min(len(decoded), len(reference)) < 2:
        return None
    names, noticeable = feature_set(RADIOMICS, reference)
    distance = set_distance(
        decoded, real, reference, seed=0, names=names, noticeable=noticeable, samples=samples
    )
    return distance, FrechetProtocol(
        extractor=RADIOMICS,
        features=decoded.shape[1],
        samples=distance.frechet_samples,
        reference=description,
        reference_samples=len(reference),
    )
