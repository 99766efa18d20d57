"""Similarity between volumes: PSNR, SSIM and spectral errors of reconstructions, MS-SSIM of pairs.

`FidelityMeter` compares reconstructions with their originals, batch by batch. It knows tensors
only: anything that returns volumes can be measured.

`pairwise_ms_ssim` measures how varied a set of volumes is: the mean multi-scale structural
similarity over random pairs (Wang et al., Asilomar 2003; for generated volumes arXiv 1908.02498).
It is read beside that of real pairs: above it, the volumes are too alike; far below it, they are
implausible. The usual five scales with a window of 11 voxels need 176 voxels per side; here the
number of scales follows from the size, and the window is smaller, as its cost grows with its
volume.

B batch, C channels, X Y Z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from medar.tokenizer.spectrum import TINY, high_frequency_error, third_powers
from medar.tokenizer.validation import RANGE, psnr

SSIM_WINDOW = 7
"""Side of SSIM's Gaussian window (standard deviation 1.5) in voxels; smaller in thinner volumes."""

PROTOCOL = {
    "psnr": "10 log10(2^2 / mean squared error) of each volume in [-1, 1], then averaged",
    "ssim": f"Gaussian window of {SSIM_WINDOW} voxels, deviation 1.5, data range 2, 3D (MONAI)",
    "mae": "mean absolute error of each volume, then averaged",
    "high_frequencies": "beyond 2/3 of each axis' Nyquist frequency (radius), Hann window",
    "power_ratio": "total power of all reconstructions over that of their originals, in the "
    "highest third of the frequencies and in each third",
}
"""How each value is computed, for reports."""

PAIRS = 30
"""Maximum number of pairs for MS-SSIM."""

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of MS-SSIM's scales, fine to coarse; fewer scales use the first ones, scaled to sum to 1."""

COARSEST = 8
"""Minimum shortest side, in voxels, at the coarsest of several scales."""

MAX_WINDOW = 5
"""Largest side of MS-SSIM's window, in voxels."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Means over volumes."""

    psnr: float
    """dB."""
    ssim: float
    mae: float
    """In the unit whose factors `FidelityMeter.update` gets."""
    high_frequency_error: float
    power_ratio: float
    """In the highest third of the frequencies."""
    power_ratio_thirds: list[float]
    """In the lowest, the middle and the highest third."""


class FidelityMeter:
    """Accumulates the fidelity of reconstructions; every volume counts the same."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._power: list[Tensor] = []

    @torch.no_grad()
    def update(self, volumes: Tensor, reconstruction: Tensor, unit: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            volumes: (B, C, X, Y, Z) in [-1, 1].
            reconstruction: the same shape.
            unit: (B, C), intensity difference per unit, for the mean absolute error;
                default 1.
        """
        real, decoded = volumes.float(), reconstruction.float()
        absolute = (decoded - real).abs().mean(dim=(2, 3, 4))
        if unit is not None:
            absolute = absolute * unit.to(absolute)
        row = (psnr(decoded, real), ssim(decoded, real), absolute.mean(dim=1))
        self._rows.append(torch.stack([*row, high_frequency_error(decoded, real)], dim=1).cpu())
        self._power.append(torch.stack([third_powers(decoded), third_powers(real)], dim=1).cpu())

    def result(self) -> Fidelity:
        """The means so far; needs at least one batch."""
        means = torch.cat(self._rows).double().mean(dim=0).tolist()
        decoded, real = torch.cat(self._power).double().mean(dim=0)
        ratios: list[float] = (decoded / real.clamp(min=TINY)).tolist()
        return Fidelity(
            psnr=means[0],
            ssim=means[1],
            mae=means[2],
            high_frequency_error=means[3],
            power_ratio=ratios[-1],
            power_ratio_thirds=ratios,
        )


def ssim(reconstruction: Tensor, real: Tensor) -> Tensor:
    """Structural similarity of each volume: (B, C, X, Y, Z) -> (B,), by MONAI."""
    from monai.metrics import SSIMMetric

    side = min(SSIM_WINDOW, *real.shape[2:])
    metric = SSIMMetric(
        spatial_dims=3, data_range=RANGE, win_size=side - (side % 2 == 0), kernel_sigma=1.5
    )
    values: Tensor = metric(reconstruction, real)
    return values[:, 0]


@dataclass(frozen=True, kw_only=True)
class MsSsim:
    """Window and scales of MS-SSIM."""

    window: int
    """Side of the Gaussian window (standard deviation 1.5) in voxels."""
    weights: tuple[float, ...]

    @classmethod
    def of(cls, sides: Sequence[int]) -> "MsSsim":
        """The settings for volumes with these sides, in voxels."""
        shortest = min(sides)
        scales = 1
        while scales < len(WEIGHTS) and shortest >> scales >= COARSEST:
            scales += 1
        # The largest odd window that MONAI allows for this number of scales.
        largest = min(MAX_WINDOW, shortest // max(1, scales - 1) ** 2)
        total = sum(WEIGHTS[:scales])
        return cls(
            window=max(largest - (largest % 2 == 0), 1),
            weights=tuple(weight / total for weight in WEIGHTS[:scales]),
        )


def pairwise_ms_ssim(volumes: Sequence[Tensor], seed: int) -> float:
    """Mean MS-SSIM over random pairs.

    Args:
        volumes: two or more, (C, X, Y, Z) each, in [-1, 1], sides of at least 8 voxels.
        seed: of the choice of pairs.
    """
    from monai.metrics import MultiScaleSSIMMetric

    pairs = list(combinations(range(len(volumes)), 2))
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:PAIRS]
    settings = MsSsim.of(volumes[0].shape[1:])
    metric = MultiScaleSSIMMetric(
        spatial_dims=3, data_range=RANGE, kernel_size=settings.window, weights=settings.weights,
        reduction="none",
    )  # fmt: skip
    with torch.no_grad():
        values = [
            metric(volumes[first][None].float(), volumes[second][None].float())
            for first, second in (pairs[index] for index in chosen)
        ]
    return float(torch.cat(values).double().mean())
