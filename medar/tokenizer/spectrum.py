"""How power is spread over spatial frequencies: what blur takes away and over-sharpening adds.

B batch, C channels, X Y Z voxels, N bands.
"""

import torch
from torch import Tensor

BANDS = 12
"""Bands of equal width from 0 to the Nyquist frequency; the highest third are the last four."""


def band_power(volumes: Tensor, bands: int = BANDS) -> Tensor:
    """Mean spectral power in each band of frequencies, (B, bands), of (B, C, X, Y, Z).

    A Hann window along each axis keeps the jump between opposite faces out of the high bands. The
    frequency of a coefficient is its distance from 0 where each axis' Nyquist frequency is 1;
    corners beyond 1 are left out.
    """
    volumes = volumes.float()
    sides = volumes.shape[2:]
    for axis, side in enumerate(sides, start=2):
        shape = [side if place == axis else 1 for place in range(5)]
        window = torch.hann_window(side + 2, periodic=False, device=volumes.device)[1:-1]
        volumes = volumes * window.view(shape)
    power = torch.fft.rfftn(volumes, dim=(2, 3, 4)).abs().square().mean(dim=1)
    device = volumes.device
    x, y = (torch.fft.fftfreq(side, 0.5, device=device) for side in sides[:2])
    z = torch.fft.rfftfreq(sides[2], 0.5, device=device)
    distance = (x[:, None, None] ** 2 + y[None, :, None] ** 2 + z[None, None, :] ** 2).sqrt()
    band = (distance * bands).long().flatten()
    inside = band < bands
    sums = torch.zeros(len(volumes), bands, device=device)
    sums.index_add_(1, band[inside], power.flatten(1)[:, inside])
    numbers = torch.bincount(band[inside], minlength=bands).clamp(min=1)
    return sums / numbers


def power_ratio(made: Tensor, real: Tensor) -> float:
    """Power in the highest third of frequencies, of `made` relative to `real`; 1 is right.

    Args:
        made: (N,), mean over volumes of `band_power`.
        real: (N,), likewise.
    """
    highest = len(made) - len(made) // 3
    return float(made[highest:].sum() / real[highest:].sum().clamp(min=1e-30))


def log_spectral_distance(made: Tensor, real: Tensor) -> float:
    """Root mean square over bands of the difference in power, in dB; 0 is right.

    Args:
        made: (N,), mean over volumes of `band_power`.
        real: (N,), likewise.
    """
    apart = 10 * (made.clamp(min=1e-30).log10() - real.clamp(min=1e-30).log10())
    return float(apart.square().mean().sqrt())
