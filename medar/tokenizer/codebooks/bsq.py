"""Binary spherical quantisation (BSQ, arXiv 2406.07548): the signs of a unit vector.

log2(V) bits make a code, a corner of the cube inscribed in the unit sphere. No codes to learn; an
entropy loss asks each vector to be decided and all codes to be used. Both entropies are taken bit
by bit: exact for the vectors' own, the paper's approximation for that of the codes together.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from medar.tokenizer.codebooks.base import CodebookSettings, ProjectedCodebook, Quantised

SHARPNESS = 100.0
"""The paper's inverse temperature tau of the soft assignment."""


class BinarySphericalCodebook(ProjectedCodebook):
    """2^bits corners on the unit sphere, its width being the number of bits."""

    value: Tensor

    def __init__(self, settings: CodebookSettings) -> None:
        bits = settings.size.bit_length() - 1
        super().__init__(settings.size, settings.width, bits)
        self.entropy_weight = settings.entropy_weight
        self.side: float = bits**-0.5
        self.register_buffer("value", 2 ** torch.arange(bits), persistent=False)

    def quantise(self, vectors: Tensor) -> Tensor:
        return self._index(self.project_in(vectors))

    def lookup(self, indices: Tensor) -> Tensor:
        return self.project_out(self._corner(indices))

    def forward(self, vectors: Tensor) -> Quantised:
        sphere = normalize(self.project_in(vectors.detach()), dim=-1)
        indices = self._index(sphere)
        corner = sphere + (self._corner(indices) - sphere).detach()
        return Quantised(
            vectors=self.project_out(corner),
            indices=indices,
            loss=self.entropy_weight * self._entropy(self.project_in(vectors)),
        )

    def _index(self, inner: Tensor) -> Tensor:
        """The signs as bits of a whole number, the first dimension being the lowest bit."""
        return ((inner > 0) * self.value).sum(dim=-1)

    def _corner(self, indices: Tensor) -> Tensor:
        bits = indices[..., None] // self.value % 2
        return (2.0 * bits - 1) * self.side

    def _entropy(self, inner: Tensor) -> Tensor:
        """Mean entropy of the soft codes, less the entropy of their mean, in nats."""
        # Of the two values +-1/sqrt(bits) of a bit, softmax(tau * value * u) is this sigmoid.
        logits = 2 * SHARPNESS * self.side * normalize(inner, dim=-1)
        odds = logits.sigmoid()
        own = binary_cross_entropy_with_logits(logits, odds)
        share = odds.mean(dim=0).clamp(1e-6, 1 - 1e-6)  # the slope at 0 is infinite
        together = torch.special.entr(torch.cat([share, 1 - share])).sum()
        loss: Tensor = self.inner * own - together
        return loss
