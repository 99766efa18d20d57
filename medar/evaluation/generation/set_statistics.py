"""`SetStatistics`: statistics of a set of volumes, accumulated batch by batch.

The same class serves generated, held-out and training volumes. Whole volumes are kept of a small
random subset only; features, thumbnails and histograms cover all volumes.

B batch, C channels, X Y Z voxels, N volumes, F features.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.evaluation.extractors import Extractor
from medar.evaluation.extractors.handcrafted import SHAPE, shape_features
from medar.evaluation.frechet import Floats
from medar.evaluation.generation.memorisation import thumbnails
from medar.evaluation.grid import grid_spectra
from medar.evaluation.written import as_written
from medar.tokenizer.spectrum import third_powers

BINS = 256
"""Of the intensity histogram: equal steps of [-1, 1]."""

KEPT = 32
"""Maximum number of volumes that are kept whole."""


class SetStatistics:
    """Features, histogram, thumbnails and a few whole volumes of a set.

    Args:
        extractors: of features.
        plan: the volumes' size, labels and spacing.
        step: (C,), of the intensities in a file, see `medar.evaluation.written`.
        seed: of the choice of volumes that are kept whole.
        device: where features are computed.
    """

    def __init__(
        self,
        extractors: Sequence[Extractor],
        plan: Plan,
        step: Tensor,
        seed: int,
        device: torch.device,
    ) -> None:
        self._extractors = extractors
        self._step = step
        self._plan = plan
        self._device = device
        self._random = np.random.default_rng(seed)
        self._features: dict[str, list[Tensor]] = {one.name: [] for one in extractors}
        self._shapes: list[Floats] = []
        self._thumbnails: list[Tensor] = []
        channels = len(plan.channels) or 1
        self.histogram: Floats = np.zeros((channels, BINS))
        """(C, 256) voxels by intensity."""
        self.kept: list[Tensor] = []
        """(C, X, Y, Z) each, a random subset of all volumes."""
        self.grids = grid_spectra(plan.size)
        """By period."""
        self._powers: list[Tensor] = []
        self.count = 0
        """N."""

    def update(self, volumes: Tensor) -> None:
        """Add volumes, (B, C, X, Y, Z) in [-1, 1], as a file would hold them.

        Raises:
            MedarError: another shape than the plan's, or NaN and Inf.
        """
        expected = (len(self.histogram), *self._plan.size)
        if volumes.ndim != 5 or tuple(volumes.shape[1:]) != expected:
            raise MedarError(
                f"volumes must have the plan's shape (B, {', '.join(map(str, expected))}), got "
                f"{tuple(volumes.shape)}"
            )
        if not volumes.isfinite().all():
            raise MedarError(
                f"volumes {self.count} to {self.count + len(volumes) - 1} contain NaN or Inf; only "
                "finite volumes can be evaluated"
            )
        volumes = as_written(volumes.to(self._device, torch.float32), self._step)
        for extractor in self._extractors:
            self._features[extractor.name].append(extractor.compute(volumes))
        self._thumbnails.append(thumbnails(volumes))
        self._powers.append(third_powers(volumes).double().cpu())
        for spectrum in self.grids.values():
            spectrum.update(volumes)
        for row, channel in zip(self.histogram, volumes.unbind(1), strict=True):
            row += torch.histc(channel, BINS, -1, 1).double().cpu().numpy()
        for volume in volumes:
            self._keep(volume)

    def update_labels(self, labels: Tensor) -> None:
        """Add label maps, (B, 1, X, Y, Z) of the plan's label values."""
        values = labels[:, 0].cpu().numpy()
        self._shapes.append(shape_features(values, list(self._plan.labels), self._plan.spacing))

    def _keep(self, volume: Tensor) -> None:
        """Keep a volume whole, each with the same probability (reservoir sampling)."""
        self.count += 1
        if len(self.kept) < KEPT:
            self.kept.append(volume.cpu())
        elif (index := int(self._random.integers(self.count))) < KEPT:
            self.kept[index] = volume.cpu()

    @property
    def features(self) -> dict[str, Floats]:
        """(N, F) by extractor; with those of the label maps, if any were added."""
        features = {name: torch.cat(rows).numpy() for name, rows in self._features.items() if rows}
        if self._shapes:
            features[SHAPE] = np.concatenate(self._shapes)
        return features

    @property
    def thirds(self) -> Floats:
        """Mean power in the lowest, the middle and the highest third of the frequencies, (3,)."""
        powers: Floats = torch.cat(self._powers).mean(dim=0).numpy()
        return powers

    @property
    def thumbnails(self) -> Floats:
        """(N, D), see `medar.evaluation.generation.memorisation`."""
        rows: Floats = torch.cat(self._thumbnails).numpy()
        return rows
