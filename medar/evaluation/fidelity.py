"""`FidelityMeter`: how near reconstructions come to their volumes, gathered batch by batch.

Knows tensors alone, no tokenizer: anything that gives volumes back can be measured.

B batch, C channels, X Y Z voxels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from medar.tokenizer.spectrum import TINY, high_frequency_error, high_power
from medar.tokenizer.validation import RANGE, psnr

SSIM_WINDOW = 7
"""Voxels along the side of SSIM's Gaussian window (deviation 1.5), fewer in a thinner volume."""

PROTOCOL = {
    "psnr": "10 log10(2^2 / mean squared error) of each volume in [-1, 1], then averaged",
    "ssim": f"Gaussian window of {SSIM_WINDOW} voxels, deviation 1.5, data range 2, 3D (MONAI)",
    "mae": "mean absolute error of each volume, then averaged",
    "high_frequencies": "beyond 2/3 of each axis' Nyquist frequency (radius), Hann window",
    "power_ratio": "total power of all reconstructions over that of their originals",
}
"""How each figure is taken, for reports."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Means over volumes."""

    psnr: float
    """dB."""
    ssim: float
    mae: float
    """In the unit that `update` was given the factors for."""
    high_frequency_error: float
    power_ratio: float


class FidelityMeter:
    """Gathers the fidelity of reconstructions; every volume counts the same."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._power: list[Tensor] = []

    @torch.no_grad()
    def update(self, volumes: Tensor, reconstruction: Tensor, unit: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            volumes: (B, C, X, Y, Z) in [-1, 1].
            reconstruction: the same shape.
            unit: (B, C), what a difference of 1 is in the unit of the mean absolute error;
                default 1.
        """
        real, made = volumes.float(), reconstruction.float()
        apart = made - real
        absolute = apart.abs().mean(dim=(2, 3, 4))
        if unit is not None:
            absolute = absolute * unit.to(absolute)
        row = (psnr(made, real), ssim(made, real), absolute.mean(dim=1))
        self._rows.append(torch.stack([*row, high_frequency_error(made, real)], dim=1).cpu())
        self._power.append(torch.stack([high_power(made), high_power(real)], dim=1).cpu())

    def result(self) -> Fidelity:
        """The means so far; at least one batch is needed."""
        means = torch.cat(self._rows).double().mean(dim=0).tolist()
        made, real = torch.cat(self._power).double().mean(dim=0).tolist()
        return Fidelity(
            psnr=means[0],
            ssim=means[1],
            mae=means[2],
            high_frequency_error=means[3],
            power_ratio=made / max(real, TINY),
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
