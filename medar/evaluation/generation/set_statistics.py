"""`SetStatistics`: statistics of a set of volumes, accumulated batch by batch.

The same class serves generated, held-out and training volumes. Whole volumes are kept of a small
random subset only; features, thumbnails and histograms cover all volumes. What a `Meter` measures
on a batch may come from another process, as long as batches are added in their order.

B batch, C channels, X Y Z voxels, N volumes, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from medar.data.plan import Plan
from medar.devices import any_device
from medar.errors import MedarError
from medar.evaluation.extractors import Extractor
from medar.evaluation.extractors.handcrafted import SHAPE, shape_features
from medar.evaluation.frechet import Floats
from medar.evaluation.generation.memorisation import thumbnails
from medar.evaluation.grid import GridSpectrum, grid_spectra
from medar.evaluation.written import as_written
from medar.tokenizer.spectrum import third_powers
from medar.volume import Shape3

BINS = 256
"""Of the intensity histogram: equal steps of [-1, 1]."""

KEPT = 32
"""Maximum number of volumes that are kept whole."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What a `Meter` measures on a batch."""

    count: int
    """B."""
    features: dict[str, Tensor]
    """(B, F) by extractor."""
    thumbnails: Tensor
    powers: Tensor
    spectra: dict[int, tuple[Floats, Floats]]
    """See `GridSpectrum.measure`, by period."""
    histogram: Floats
    """(C, 256)."""
    shapes: Floats | None
    """Features of label maps; None without any."""
    whole: dict[int, Tensor]
    """(C, X, Y, Z) by index in the batch, of those that were asked for."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Meter:
    """Measures batches of volumes, in this process or in others."""

    extractors: Sequence[Extractor]
    """Of features."""
    plan: Plan
    """The volumes' size, labels and spacing."""
    step: Tensor
    """(C,), of the intensities in a file, see `medar.evaluation.written`."""
    device: str
    """Where features are computed, also "auto"."""

    @property
    def channels(self) -> int:
        """C."""
        return len(self.plan.channels) or 1

    def measure(
        self, volumes: Tensor, labels: Tensor | None, *, first: int, whole: Sequence[int]
    ) -> Measured:
        """Measure volumes as a file would hold them.

        Args:
            volumes: (B, C, X, Y, Z) in [-1, 1].
            labels: (B, 1, X, Y, Z) of the plan's label values, of some of them; or None.
            first: index of the first volume in its set, for messages.
            whole: indices in the batch of the volumes to return.

        Raises:
            MedarError: another shape than the plan's, or NaN and Inf.
        """
        expected = (self.channels, *self.plan.size)
        if volumes.ndim != 5 or tuple(volumes.shape[1:]) != expected:
            raise MedarError(
                f"volumes must have the plan's shape (B, {', '.join(map(str, expected))}), got "
                f"{tuple(volumes.shape)}"
            )
        if not volumes.isfinite().all():
            raise MedarError(
                f"volumes {first} to {first + len(volumes) - 1} contain NaN or Inf; only finite "
                "volumes can be evaluated"
            )
        volumes = as_written(volumes.to(any_device(self.device), torch.float32), self.step)
        counts = [torch.histc(channel, BINS, -1, 1) for channel in volumes.unbind(1)]
        return Measured(
            count=len(volumes),
            features={one.name: one.compute(volumes) for one in self.extractors},
            thumbnails=thumbnails(volumes),
            powers=third_powers(volumes).double().cpu(),
            spectra={p: one.measure(volumes) for p, one in _spectra(self.plan.size).items()},
            histogram=torch.stack(counts).double().cpu().numpy(),
            shapes=None if labels is None else self._shapes(labels),
            whole={index: volumes[index].cpu() for index in whole},
        )

    def _shapes(self, labels: Tensor) -> Floats:
        values = labels[:, 0].cpu().numpy()
        return shape_features(values, list(self.plan.labels), self.plan.spacing)


@lru_cache(maxsize=2)
def _spectra(size: Shape3) -> dict[int, GridSpectrum]:
    """Empty ones, to measure with."""
    return grid_spectra(size)


class SetStatistics:
    """Features, histogram, thumbnails and a few whole volumes of a set.

    Args:
        meter: measures its volumes.
        seed: of the choice of volumes that are kept whole.
    """

    def __init__(self, meter: Meter, seed: int) -> None:
        self.meter = meter
        self._random = np.random.default_rng(seed)
        self._drawn = 0
        self._features: dict[str, list[Tensor]] = {one.name: [] for one in meter.extractors}
        self._shapes: list[Floats] = []
        self._thumbnails: list[Tensor] = []
        self.histogram: Floats = np.zeros((meter.channels, BINS))
        """(C, 256) voxels by intensity."""
        self.kept: list[Tensor] = []
        """(C, X, Y, Z) each, a random subset of all volumes."""
        self.grids = grid_spectra(meter.plan.size)
        """By period."""
        self._powers: list[Tensor] = []
        self.count = 0
        """N."""

    def update(self, volumes: Tensor, labels: Tensor | None = None) -> None:
        """Measure and add a batch; see `Meter.measure`."""
        slots = self.draw(len(volumes))
        whole = [index for index, slot in enumerate(slots) if slot is not None]
        self.add(self.meter.measure(volumes, labels, first=self.count, whole=whole), slots)

    def draw(self, count: int) -> list[int | None]:
        """Where the next volumes are kept whole, each with the same probability (reservoir
        sampling): an index in `kept`, or None."""
        slots: list[int | None] = []
        for _ in range(count):
            self._drawn += 1
            slot = self._drawn - 1
            if self._drawn > KEPT:
                slot = int(self._random.integers(self._drawn))
            slots.append(slot if slot < KEPT else None)
        return slots

    def add(self, measured: Measured, slots: Sequence[int | None]) -> None:
        """Add a batch that was measured.

        Args:
            measured: with the volumes that are kept.
            slots: as `draw` returned them for the batch.
        """
        for name, rows in measured.features.items():
            self._features[name].append(rows)
        self._thumbnails.append(measured.thumbnails)
        self._powers.append(measured.powers)
        for period, (powers, peaks) in measured.spectra.items():
            self.grids[period].add(powers, peaks)
        self.histogram += measured.histogram
        if measured.shapes is not None:
            self._shapes.append(measured.shapes)
        for index, slot in enumerate(slots):
            if slot is not None:
                self.kept[slot : slot + 1] = [measured.whole[index]]
        self.count += measured.count

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
