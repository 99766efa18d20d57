"""Product quantisation: each half of a vector has a codebook of its own.

Both are EMA codebooks of sqrt(V) codes (VQ-VAE, arXiv 1711.00937); ImageFolder (arXiv 2410.01756)
quantises the scales of an image by two such codebooks. Two of 256 codes make 65,536, 16 bits per
token, with the memory and the search of 512, and each code is chosen often enough to be learned.
The index has two digits, that of the first half lower. ImageFolder's semantic branch is left out.
"""

from dataclasses import replace
from math import isqrt

import torch
from torch import Tensor

from medar.tokenizer.codebooks.base import Codebook, CodebookSettings
from medar.tokenizer.codebooks.learned import EMACodebook


class ProductCodebook(Codebook):
    """An EMA codebook for the first half of the features and one for the second."""

    collapse_advice = EMACodebook.collapse_advice

    def __init__(self, settings: CodebookSettings) -> None:
        super().__init__(settings.size, settings.width)
        half = replace(settings, kind="ema", size=isqrt(settings.size), width=settings.width // 2)
        self.first, self.second = EMACodebook(half), EMACodebook(half)

    @property
    def radices(self) -> tuple[int, ...]:
        return self.first.size, self.second.size

    def quantise(self, vectors: Tensor) -> Tensor:
        first, second = halves(vectors)
        return self.first.quantise(first) + self.first.size * self.second.quantise(second)

    def lookup(self, indices: Tensor) -> Tensor:
        first, second = self._digits(indices)
        return torch.cat([self.first.lookup(first), self.second.lookup(second)], dim=-1)

    def needs_start(self) -> bool:
        return self.first.needs_start() or self.second.needs_start()

    def start(self, vectors: Tensor) -> None:
        first, second = halves(vectors)
        self.first.start(first)
        self.second.start(second)

    def learn(self, vectors: Tensor, indices: Tensor) -> None:
        first, second = halves(vectors)
        first_digit, second_digit = self._digits(indices)
        self.first.learn(first, first_digit)
        self.second.learn(second, second_digit)

    def _digits(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return indices % self.first.size, indices // self.first.size


def halves(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(..., D) to two (..., D / 2)."""
    first, second = vectors.chunk(2, dim=-1)
    return first.contiguous(), second.contiguous()
