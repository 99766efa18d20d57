"""A codebook of moving averages (VQ-VAE, arXiv 1711.00937, appendix A) that does not collapse.

Each code is the average of the vectors that chose it, old ones fading. Three things keep all codes
in use: a start by k-means on the first batch; codes that hardly anything chooses are put where a
vector drawn from the batch lies (as Jukebox does, arXiv 2005.00341); Laplace smoothing of the
counts. Counts, sums and draws are shared between processes, so several learn what one would.
"""

from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from medar.tokenizer import across
from medar.tokenizer.codebooks.base import Codebook, CodebookSettings, nearest

SMOOTHING = 1e-5
LLOYD_STEPS = 10
VECTORS_PER_CODE = 64
"""At most so many vectors for each code take part in the k-means start."""


class EMACodebook(Codebook):
    """V codes as averages; all that it has learnt is in its buffers."""

    codes: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(self, settings: CodebookSettings) -> None:
        super().__init__(settings.size, settings.width)
        self.settings = settings
        self.register_buffer("codes", torch.randn(self.size, self.width))
        self.register_buffer("counts", torch.ones(self.size))
        self.register_buffer("sums", self.codes.clone())
        self.register_buffer("started", torch.tensor(False))
        self._known_started = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_started = False

    def quantise(self, vectors: Tensor) -> Tensor:
        return nearest(vectors, self.codes)

    def lookup(self, indices: Tensor) -> Tensor:
        return embedding(indices, self.codes)

    def place(self, codes: Tensor, counts: Tensor | None = None) -> None:
        """Begin from given codes.

        Args:
            codes: (V, D).
            counts: (V,) vectors that chose each; None for one each.
        """
        self.codes.copy_(codes)
        self.counts.copy_(torch.ones_like(self.counts) if counts is None else counts)
        self.sums.copy_(self.codes * self.counts[:, None])
        self.started.fill_(True)

    def needs_start(self) -> bool:
        if not self._known_started:  # read from the device once, not at every step
            self._known_started = bool(self.started)
        return not self._known_started

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        """K-means on vectors of all processes, (B, L, D) each, done by the first of them."""
        available = vectors.shape[0] * vectors.shape[1] * across.world()
        number = min(available, VECTORS_PER_CODE * self.size)
        sample = across.draw_vectors(vectors, number, replacement=False)
        if across.rank() == 0:
            codes, counts = kmeans(sample, self.size)
            self.place(codes, counts * (available / number))
        for buffer in (self.codes, self.counts, self.sums, self.started):
            across.from_first(buffer)

    @torch.no_grad()
    def learn(self, vectors: Tensor, indices: Tensor) -> None:
        """Move the averages by a batch, (B, L, D) and (B, L), and restart dead codes."""
        chosen = gather(vectors.reshape(-1, self.width), indices.reshape(-1), self.size)
        across.total(chosen)
        fade = 1 - self.settings.decay
        self.counts.lerp_(chosen[:, 0], fade)
        self.sums.lerp_(chosen[:, 1:], fade)
        if self.settings.restarts:
            self._restart(vectors)
        number = self.counts.sum()
        smooth = (self.counts + SMOOTHING) / (number + self.size * SMOOTHING) * number
        self.codes.copy_(self.sums / smooth[:, None])

    def _restart(self, vectors: Tensor) -> None:
        """Put the least used codes, where they count as dead, onto vectors of the batch."""
        mean = self.counts.mean()
        limit = ceil(self.settings.restart_limit * self.size)
        fresh = across.draw_vectors(vectors, limit, replacement=True)
        counts, least = self.counts.topk(limit, largest=False)
        dead = counts < self.settings.dead_below * mean
        self.counts[least] = torch.where(dead, mean, counts)
        self.sums[least] = torch.where(dead[:, None], fresh * mean, self.sums[least])


def gather(vectors: Tensor, indices: Tensor, size: int) -> Tensor:
    """How often each code was chosen, and the sum of what chose it: (V, 1 + D)."""
    chosen = vectors.new_zeros(size, 1 + vectors.shape[1])
    chosen[:, 0].index_add_(0, indices, torch.ones_like(vectors[:, 0]))
    chosen[:, 1:].index_add_(0, indices, vectors)
    return chosen


def kmeans(vectors: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Centres of a few Lloyd steps, (V, D), and their clusters' sizes, (V,).

    The first vectors are the first centres, so they should be in random order. Empty clusters
    stay where they are. Where there are fewer vectors than centres, they are used again with a
    little noise.
    """
    repeats = ceil(size / len(vectors))
    centres = vectors.repeat(repeats, 1)[:size].clone()
    if repeats > 1:
        noise = torch.randn(centres.shape).to(centres.device)
        centres += 1e-3 * vectors.std(dim=0, correction=0) * noise
    counts = torch.zeros_like(centres[:, 0])
    for _ in range(LLOYD_STEPS):
        chosen = gather(vectors, nearest(vectors, centres), size)
        counts = chosen[:, 0]
        centres = torch.where(
            counts[:, None] > 0, chosen[:, 1:] / counts.clamp(min=1)[:, None], centres
        )
    return centres, counts
