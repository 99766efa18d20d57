"""`grid_artifact`: how much of a pattern with the decoder's patch period volumes show.

A decoder that makes p^3 voxels from one site can leave a grid of period p. It shows at the
harmonics of 1 / p cycles per voxel along each axis and their combinations: as power above that of
neighbouring frequencies in the volume itself (a pattern, such as a checkerboard), or in the
absolute difference of neighbouring voxels along an axis (blocks: steps between patches and none
within). The latter is how resampled images are detected (Gallagher, Canadian Conference on Computer
and Robot Vision, 2005).

1. The power spectra (Hann window) of a volume and of its three absolute differences are each
   divided by their mean over all frequencies near a harmonic, so that every volume counts the same,
   and averaged over the set.
2. Around each harmonic, the frequencies two to four steps away predict the power at the harmonic:
   least squares of the logarithm on the distances along the axes. Spectra fall steeply, and at the
   Nyquist frequency, where period 2 has its harmonics, all neighbours lie on one side: a plain mean
   of the neighbours would confuse blur with a grid.
3. The power within one step of the harmonic over the predicted one is divided by the same ratio of
   real volumes, and averaged over harmonics: of the volumes, of the differences, and over both.
   Real volumes have 1.

N volumes, H harmonics, B batch, C channels, X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medar.evaluation.distances import Interval
from medar.evaluation.frechet import Floats
from medar.tokenizer.spectrum import power_spectrum

PERIODS = (2, 4, 8)
"""Voxels: the usual patch size of decoders, and the strides behind it."""

REACH = 4
"""Steps from a harmonic within which frequencies are its neighbours."""

LEAST_STEPS = 2 * REACH
"""Steps between harmonics; periods for which a side has fewer are left out."""

DRAWS = 1000
"""Bootstrap draws of an interval."""

PROTOCOL = (
    "power at the harmonics of the period along all axes, of volumes and of their absolute voxel "
    f"differences, over that predicted from the frequencies 2 to {REACH} steps away; divided by "
    f"the same ratio of real volumes; interval: 95 %, {DRAWS} bootstrap draws of both sets"
)
"""How the value is computed, for reports."""

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class GridArtifact:
    """Of a set of volumes, for one period: 1 for real volumes, above it for a visible grid."""

    value: float
    """Mean of `pattern` and `blocks`."""
    interval: Interval
    """95 %."""
    pattern: float
    """Of the volumes' own spectra."""
    blocks: float
    """Of the spectra of absolute differences."""


class GridSpectrum:
    """Spectra of a set of volumes around the harmonics of one period.

    Harmonics that half the period has too are left out; they belong to it.

    Args:
        size: sides of the volumes, multiples of the period.
        period: in voxels.
    """

    def __init__(self, size: Sequence[int], period: int) -> None:
        self._size = tuple(size)
        self._offsets = np.array(list(product(range(-REACH, REACH + 1), repeat=3)))
        self._peak = (abs(self._offsets) <= 1).all(axis=1)
        steps = [n // period for n in size]
        frequencies = (np.array(_harmonics(period)) * steps)[:, None] + self._offsets
        self._flat = self._index(frequencies)
        self._mean: Floats = np.zeros((4, *self._flat.shape))
        self._peaks: list[Floats] = []

    def _index(self, frequencies: npt.NDArray[np.int_]) -> Indices:
        """Where frequencies lie in a flattened `power_spectrum`, which holds half of them."""
        x, y, z = np.moveaxis(frequencies % self._size, -1, 0)
        half = self._size[2] // 2
        mirrored = z > half
        x, y, z = (
            np.where(mirrored, (-k) % n, k) for k, n in zip((x, y, z), self._size, strict=True)
        )
        flat: Indices = (x * self._size[1] + y) * (half + 1) + z
        return flat

    def update(self, volumes: Tensor) -> None:
        """Add volumes, (B, C, X, Y, Z)."""
        self.add(*self.measure(volumes))

    @torch.no_grad()
    def measure(self, volumes: Tensor) -> tuple[Floats, Floats]:
        """What `add` takes: power around the harmonics, summed over (B, C, X, Y, Z) volumes
        (4, H, frequencies), and at the harmonics of each (B, 4, H)."""
        volumes = volumes.float()
        parts = [volumes, *((volumes.roll(-1, axis) - volumes).abs() for axis in (2, 3, 4))]
        flat = torch.from_numpy(self._flat).to(volumes.device)
        powers = [power_spectrum(part).mean(dim=1).flatten(1)[:, flat] for part in parts]
        rows = torch.stack(powers, dim=1).double().cpu().numpy()  # (B, 4, H, frequencies)
        usual = rows[..., ~self._peak].mean(axis=(2, 3), keepdims=True)
        rows = rows / np.maximum(usual, 1e-30)
        return rows.sum(axis=0), rows[..., self._peak].mean(axis=-1)

    def add(self, powers: Floats, peaks: Floats) -> None:
        """Add what `measure` returned, of this or an equal `GridSpectrum`."""
        self._mean += powers
        self._peaks += list(peaks)

    def ratios(self) -> Floats:
        """Power at each harmonic over the predicted one, of each volume: (N, 4, H)."""
        from scipy.special import digamma

        count = len(self._peaks)
        logs = np.log(np.maximum(self._mean / count, 1e-30)) - digamma(count) + np.log(count)
        terms = np.concatenate([np.ones((len(self._offsets), 1)), abs(self._offsets)], axis=1)
        fit = np.linalg.pinv(terms[~self._peak])
        predicted = np.exp(logs[..., ~self._peak] @ fit.T @ terms[self._peak].T).mean(axis=-1)
        ratios: Floats = np.stack(self._peaks) / predicted
        return ratios


def grid_spectra(size: Sequence[int]) -> dict[int, GridSpectrum]:
    """An empty `GridSpectrum` for each period that fits the sides of volumes."""
    return {
        period: GridSpectrum(size, period)
        for period in PERIODS
        if all(n % period == 0 and n // period >= LEAST_STEPS for n in size)
    }


def grid_artifact(
    volumes: GridSpectrum, real: GridSpectrum, seed: int = 0, *, paired: bool = False
) -> GridArtifact:
    """The grid artifact of a set, relative to real volumes.

    Args:
        volumes: of the set; at least one.
        real: of real volumes; at least one.
        seed: of the interval.
        paired: the real volumes are the originals of the set, in the same order: they are drawn
            together.
    """
    reference = real.ratios().mean(axis=0)
    parts, own = (
        _pattern_and_blocks(one.ratios() / reference).T for one in (volumes, real)
    )  # (2, N)
    random = np.random.default_rng(seed)
    draws = random.integers(parts.shape[1], size=(DRAWS, parts.shape[1]))
    others = draws if paired else random.integers(own.shape[1], size=(DRAWS, own.shape[1]))
    made, truth = parts.mean(axis=0)[draws].mean(axis=1), own.mean(axis=0)[others].mean(axis=1)
    low, high = np.quantile(made / truth, [0.025, 0.975])
    pattern, blocks = parts.mean(axis=1).tolist()
    return GridArtifact(
        value=(pattern + blocks) / 2,
        interval=(float(low), float(high)),
        pattern=pattern,
        blocks=blocks,
    )


def _harmonics(period: int) -> list[tuple[int, ...]]:
    """Multiples of 1 / period along three axes: without those of half the period, and one of each
    pair of mirror images."""
    every = [k for k in product(range(period), repeat=3) if any(one % 2 for one in k)]
    return [k for k in every if k <= tuple(-one % period for one in k)]


def _pattern_and_blocks(ratios: Floats) -> Floats:
    """(N, 4, H) to (N, 2): means over harmonics, of the volumes and of the three differences."""
    means = ratios.mean(axis=2)
    return np.stack([means[:, 0], means[:, 1:].mean(axis=1)], axis=1)
