"""Validation during training: reconstruction quality and codebook usage.

B batch, C channels, X Y Z voxels, K scales, V codes.
"""

from collections.abc import Sequence
from math import exp

import torch
from torch import Tensor

from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.spectrum import TINY, high_power, log_spectral_distance, mean_power
from medar.tokenizer.tokenizer import Reconstruction

RANGE = 2.0
"""Peak to peak of prepared intensities, [-1, 1]: the peak of PSNR."""

LEAST_ERROR = 1e-10
"""Mean squared error below which PSNR stays at its largest, 106 dB."""


SMALL_SCALE = 64
"""Scales with fewer tokens are not expected to use many codes."""

LEAST_USAGE = 0.25
"""Fraction of the codes below which a scale counts as collapsed."""


class CodeUsage:
    """Counts how often each scale uses each code.

    Args:
        schedule: the grids of the pyramids.
        codebook_size: V.
    """

    def __init__(self, schedule: ScaleSchedule, codebook_size: int) -> None:
        self.schedule = schedule
        self.counts = torch.zeros(len(schedule), codebook_size, dtype=torch.int64)

    def update(self, indices: Sequence[Tensor]) -> None:
        """Count a batch: per scale (B, T), coarse to fine."""
        codebook_size = self.counts.shape[1]
        for counts, one in zip(self.counts, indices, strict=False):
            counts += torch.bincount(one.reshape(-1), minlength=codebook_size).cpu()

    @property
    def usage(self) -> list[float]:
        """Per scale, the fraction of the codes that were used at all."""
        return [float(used) for used in (self.counts > 0).double().mean(dim=1)]

    @property
    def total_usage(self) -> float:
        """The fraction of the codes that any scale used."""
        return float((self.counts.sum(dim=0) > 0).double().mean())

    @property
    def perplexity(self) -> list[float]:
        """Per scale, the number of equally likely codes with the same entropy; 1 if none."""
        frequencies = self.counts.double() / self.counts.sum(dim=1, keepdim=True).clamp(min=1)
        return [exp(float(entropy)) for entropy in torch.special.entr(frequencies).sum(dim=1)]

    def warnings(self, advice: str) -> list[str]:
        """A sentence for each collapsed scale: the codes it used, and what to change.

        A scale with fewer tokens than codes is compared with the number of codes it could use.

        Args:
            advice: `Codebook.collapse_advice`.
        """
        codebook_size = self.counts.shape[1]
        sentences = []
        for k, tokens in enumerate(self.schedule.tokens):
            used = int((self.counts[k] > 0).sum())
            possible = min(codebook_size, int(self.counts[k].sum()))
            if tokens >= SMALL_SCALE and used < LEAST_USAGE * possible:
                grid = "x".join(map(str, self.schedule.grids[k]))
                sentences.append(
                    f"scale {k} ({grid}, {tokens} tokens) uses {used} of {possible} codes "
                    f"({used / possible:.0%}): its codebook has collapsed; {advice}, or "
                    "reduce the codebook size"
                )
        return sentences


class Validation:
    """Accumulates the metrics of volumes and their reconstructions over batches.

    Args:
        usage: counts the codes; None while quantisation has not started.
    """

    def __init__(self, usage: CodeUsage | None) -> None:
        self.usage = usage
        self._psnr: list[Tensor] = []
        self._power: list[tuple[Tensor, Tensor]] = []
        self._high: list[tuple[Tensor, Tensor]] = []

    def update(self, volume: Tensor, reconstruction: Reconstruction) -> None:
        """Add a batch, (B, C, X, Y, Z), and its reconstruction."""
        decoded = reconstruction.volume.float()
        self._psnr.append(psnr(decoded, volume))
        self._power.append((mean_power(decoded), mean_power(volume)))
        self._high.append((high_power(decoded), high_power(volume)))
        if self.usage is not None:
            self.usage.update(reconstruction.quantisation.indices)

    def result(self) -> dict[str, float]:
        """The metrics that docs/reference/tokenizer.md explains, without `score`."""
        metrics = {
            "psnr": float(torch.cat(self._psnr).mean()),
            "power_ratio": self._power_ratio(),
            "spectral_distance": log_spectral_distance(*_means(self._power)),
        }
        if self.usage is None:
            return metrics
        return {
            **metrics,
            "codebook_usage": self.usage.total_usage,
            **{f"usage_scale_{k}": used for k, used in enumerate(self.usage.usage)},
        }

    def _power_ratio(self) -> float:
        decoded, real = _means(self._high)
        return float(decoded / real.clamp(min=TINY))


def psnr(decoded: Tensor, real: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each volume in dB: (B, C, X, Y, Z) -> (B,)."""
    error = (decoded - real).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(RANGE**2 / error.clamp(min=LEAST_ERROR))


def _means(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Means over volumes, of reconstructions and of originals."""
    decoded, real = zip(*pairs, strict=True)
    return torch.cat(decoded).mean(dim=0), torch.cat(real).mean(dim=0)
