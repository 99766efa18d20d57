"""`Marginals`: how often each code occurs at each scale, the least that a generator must beat.

B batch, L tokens over all scales, K scales, V codes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medar.generator.positions import token_scales
from medar.tokenizer.tokens import TokenDataset

MOST = 512
"""Cases that are counted, at most, evenly over the data set."""

PRIOR = 0.2
"""Occurrences that each code has beforehand, so that one that was not met is not impossible. With
1, the coarsest scale of hippocampus tokens looks less certain than it is by 0.19 nats."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Marginals:
    """Frequencies of codes by scale, none of them zero."""

    frequencies: Tensor
    """(K, V); each row sums to 1."""
    levels: Tensor
    """(L,): the scale of each token."""

    @classmethod
    def of(cls, tokens: TokenDataset) -> "Marginals":
        """Of the tokens of training cases, all their variants."""
        schedule, codes = tokens.schedule, tokens.codebook_size
        counts = torch.full((len(schedule), codes), PRIOR)
        chosen = np.linspace(0, len(tokens) - 1, min(len(tokens), MOST)).round().astype(int)
        for place in chosen.tolist():
            for row, indices in zip(counts, tokens.pyramid(place).indices, strict=True):
                row += torch.bincount(indices.flatten(), minlength=codes)
        return cls(frequencies=counts / counts.sum(1, keepdim=True), levels=token_scales(schedule))

    def entropy(self, tokens: Tensor) -> Tensor:
        """Cross-entropy of tokens, (B, L) to (B, L), in nats."""
        return -self.frequencies[self.levels, tokens].log()
