"""A codebook learnt by gradients, as VAR's (arXiv 2404.02905) and VQ-VAE's (arXiv 1711.00937).

The loss that teaches it, codes towards vectors and vectors towards codes with weight beta, is that
of `MultiScaleQuantiser`, which holds the running sum over scales. No restarts.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from medar.tokenizer.codebooks.base import Codebook, CodebookSettings, nearest


class GradientCodebook(Codebook):
    """V codes as a parameter, small and uniform at first."""

    def __init__(self, settings: CodebookSettings) -> None:
        super().__init__(settings.size, settings.width)
        self.codes = nn.Parameter(torch.empty(self.size, self.width))
        nn.init.uniform_(self.codes, -1 / self.size, 1 / self.size)

    def quantise(self, vectors: Tensor) -> Tensor:
        return nearest(vectors.detach(), self.codes.detach())

    def lookup(self, indices: Tensor) -> Tensor:
        return embedding(indices, self.codes)
