"""What training looks at once in a while: how validation volumes come back, and by which codes.

B batch, C channels, X Y Z voxels, K scales.
"""

import torch
from torch import Tensor

from medar.tokenizer.spectrum import TINY, high_power, log_spectral_distance, mean_power
from medar.tokenizer.tokenizer import Reconstruction
from medar.tokenizer.usage import CodeUsage

RANGE = 2.0
"""Peak to peak of prepared intensities, [-1, 1]: the peak of PSNR."""

LEAST_ERROR = 1e-10
"""Mean squared error below which PSNR stays at its largest, 106 dB."""


class Validation:
    """Adds up batches of volumes and their reconstructions.

    Args:
        usage: counts the codes; None while nothing is quantised.
    """

    def __init__(self, usage: CodeUsage | None) -> None:
        self.usage = usage
        self._psnr: list[Tensor] = []
        self._power: list[tuple[Tensor, Tensor]] = []
        self._high: list[tuple[Tensor, Tensor]] = []

    def update(self, volume: Tensor, back: Reconstruction) -> None:
        """Take in (B, C, X, Y, Z) and what came back."""
        made = back.volume.float()
        self._psnr.append(psnr(made, volume))
        self._power.append((mean_power(made), mean_power(volume)))
        self._high.append((high_power(made), high_power(volume)))
        if self.usage is not None:
            self.usage.update(back.quantisation.indices)

    def result(self) -> dict[str, float]:
        """The figures that docs/reference/tokenizer.md explains, `score` not among them."""
        found = {
            "psnr": float(torch.cat(self._psnr).mean()),
            "power_ratio": self._power_ratio(),
            "spectral_distance": log_spectral_distance(*_means(self._power)),
        }
        if self.usage is None:
            return found
        return {
            **found,
            "codebook_usage": self.usage.total_usage,
            **{f"usage_scale_{k}": share for k, share in enumerate(self.usage.usage)},
        }

    def _power_ratio(self) -> float:
        made, real = _means(self._high)
        return float(made / real.clamp(min=TINY))


def psnr(made: Tensor, real: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each volume in dB: (B, C, X, Y, Z) -> (B,)."""
    error = (made - real).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(RANGE**2 / error.clamp(min=LEAST_ERROR))


def _means(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Means over volumes, of reconstructions and of originals."""
    made, real = zip(*pairs, strict=True)
    return torch.cat(made).mean(dim=0), torch.cat(real).mean(dim=0)
