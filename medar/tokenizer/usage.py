"""How much of the codebook each scale uses, counted over batches, with a warning in words.

K scales, V codes.
"""

from collections.abc import Sequence
from math import exp

import torch
from torch import Tensor

from medar.tokenizer.schedule import ScaleSchedule

SMALL_SCALE = 64
"""Scales with fewer tokens are not expected to use many codes."""
LEAST_USAGE = 0.25
"""Share of the codes below which a scale's usage is called collapsed."""

REMEDIES = {
    "ema": (
        "switch on restarts of the EMA codebook, lower decay or raise dead_below so that dead "
        "codes come back sooner"
    ),
    "gradient": "choose an EMA codebook (kind: ema), whose dead codes come back",
    "fsq": "lower the learning rate",
    "bsq": "raise entropy_weight, which asks for all codes to be used",
}
"""What brings codes back, by the kind of codebook."""


class CodeUsage:
    """Counts of codes by scale.

    Args:
        schedule: the grids of the pyramids counted.
        codes: V.
    """

    def __init__(self, schedule: ScaleSchedule, codes: int) -> None:
        self.schedule = schedule
        self.counts = torch.zeros(len(schedule), codes, dtype=torch.int64)

    def update(self, indices: Sequence[Tensor]) -> None:
        """Count a batch: per scale (B, T), coarse to fine."""
        codes = self.counts.shape[1]
        for counts, one in zip(self.counts, indices, strict=False):
            counts += torch.bincount(one.reshape(-1), minlength=codes).cpu()

    @property
    def usage(self) -> list[float]:
        """Per scale, the share of the codes that were used at all."""
        return [float(share) for share in (self.counts > 0).double().mean(dim=1)]

    @property
    def total_usage(self) -> float:
        """The share of the codes that any scale used."""
        return float((self.counts.sum(dim=0) > 0).double().mean())

    @property
    def perplexity(self) -> list[float]:
        """Per scale, the number of equally likely codes with the same entropy; 1 where none."""
        shares = self.counts.double() / self.counts.sum(dim=1, keepdim=True).clamp(min=1)
        return [exp(float(entropy)) for entropy in torch.special.entr(shares).sum(dim=1)]

    def warnings(self, kind: str = "ema") -> list[str]:
        """A sentence for each collapsed scale: what was seen and what to change.

        A scale that held fewer tokens than there are codes is judged by the codes it could use.

        Args:
            kind: of the codebook, see `CodebookSettings`.
        """
        codes = self.counts.shape[1]
        found = []
        for k, tokens in enumerate(self.schedule.tokens):
            used = int((self.counts[k] > 0).sum())
            possible = min(codes, int(self.counts[k].sum()))
            if tokens >= SMALL_SCALE and used < LEAST_USAGE * possible:
                grid = "x".join(map(str, self.schedule.grids[k]))
                found.append(
                    f"scale {k} ({grid}, {tokens} tokens) uses {used} of {possible} codes "
                    f"({used / possible:.0%}): its codebook has collapsed; {REMEDIES[kind]}, or "
                    "take fewer codes"
                )
        return found
