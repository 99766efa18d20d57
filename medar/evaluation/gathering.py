"""`Gathered`: all that the evaluation of generated volumes keeps of a set, batch by batch.

The same pass serves generated, held-out and training volumes: whole volumes are kept of a random
few alone, numbers of all.

B batch, C channels, X Y Z voxels, F features.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.evaluation import shape
from medar.evaluation.extractors import Extractor
from medar.evaluation.frechet import Floats
from medar.evaluation.memorisation import thumbnails

BINS = 256
"""Of the intensity histogram, equal steps of [-1, 1]."""

KEPT = 32
"""Volumes kept whole, at most."""


class Gathered:
    """What is known of a set of volumes.

    Args:
        extractors: of features.
        plan: the volumes' size, labels and spacing.
        seed: which volumes are kept whole.
        device: where features are computed.
    """

    def __init__(
        self, extractors: Sequence[Extractor], plan: Plan, seed: int, device: torch.device
    ) -> None:
        self._extractors = extractors
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
        """(C, X, Y, Z) each, a random choice of all."""
        self.count = 0

    def update(self, volumes: Tensor) -> None:
        """Take in volumes, (B, C, X, Y, Z) in [-1, 1].

        Raises:
            MedarError: another shape than the plan's, or NaN and Inf.
        """
        expected = (len(self.histogram), *self._plan.size)
        if volumes.ndim != 5 or tuple(volumes.shape[1:]) != expected:
            raise MedarError(
                f"volumes of shape {tuple(volumes.shape)}: (B, {', '.join(map(str, expected))}) "
                "is needed, the size of the plan"
            )
        if not volumes.isfinite().all():
            raise MedarError(
                f"NaN or Inf among the volumes {self.count} to {self.count + len(volumes) - 1}: "
                "only finite volumes can be judged"
            )
        volumes = volumes.to(self._device, torch.float32)
        for one in self._extractors:
            self._features[one.name].append(one.compute(volumes))
        self._thumbnails.append(thumbnails(volumes))
        for row, channel in zip(self.histogram, volumes.clamp(-1, 1).unbind(1), strict=True):
            row += torch.histc(channel, BINS, -1, 1).double().cpu().numpy()
        for volume in volumes:
            self._keep(volume)

    def update_labels(self, labels: Tensor) -> None:
        """Take in label maps, (B, 1, X, Y, Z) of the plan's label values."""
        values = labels[:, 0].cpu().numpy()
        self._shapes.append(
            shape.shape_features(values, list(self._plan.labels), self._plan.spacing)
        )

    def _keep(self, volume: Tensor) -> None:
        """Keep a volume whole with the chance that all have alike (reservoir sampling)."""
        self.count += 1
        if len(self.kept) < KEPT:
            self.kept.append(volume.cpu())
        elif (place := int(self._random.integers(self.count))) < KEPT:
            self.kept[place] = volume.cpu()

    @property
    def features(self) -> dict[str, Floats]:
        """(N, F) by extractor; of label maps, if any were taken in, too."""
        found = {name: torch.cat(rows).numpy() for name, rows in self._features.items() if rows}
        if self._shapes:
            found[shape.NAME] = np.concatenate(self._shapes)
        return found

    @property
    def thumbnails(self) -> Floats:
        """(N, D), see `medar.evaluation.memorisation`."""
        rows: Floats = torch.cat(self._thumbnails).numpy()
        return rows
