"""Codebooks whose codes are learned: by moving averages (EMA) or by gradients.

EMA (VQ-VAE, arXiv 1711.00937, appendix A): each code is a moving average of the vectors that chose
it. Three measures keep all codes in use: k-means on the first batch initialises them; codes that
are hardly ever chosen are moved onto vectors of the batch (as in Jukebox, arXiv 2005.00341); counts
are Laplace-smoothed. Counts, sums and draws are shared by all ranks, so that several ranks learn
what one would.

Gradient (VAR, arXiv 2404.02905, and VQ-VAE): codes are a parameter. The loss that moves codes
towards vectors and vectors towards codes is that of `MultiScaleQuantiser`, which holds the running
sum over scales. There are no restarts.
"""

from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from medar.tokenizer import collectives
from medar.tokenizer.codebooks.base import Codebook, CodebookSettings, nearest

SMOOTHING = 1e-5
LLOYD_STEPS = 10
VECTORS_PER_CODE = 64
"""The k-means initialisation uses at most this many vectors per code."""


class EMACodebook(Codebook):
    """V codes as moving averages; everything learned is in the buffers."""

    collapse_advice = (
        "enable restart_dead_codes, or restart dead codes sooner with a lower ema_decay or a "
        "higher dead_code_threshold"
    )

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
        self._has_started = False

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._has_started = False

    def quantise(self, vectors: Tensor) -> Tensor:
        return nearest(vectors, self.codes)

    def lookup(self, indices: Tensor) -> Tensor:
        return embedding(indices, self.codes)

    def set_codes(self, codes: Tensor, counts: Tensor | None = None) -> None:
        """Replace all codes.

        Args:
            codes: (V, D).
            counts: (V,) vectors that chose each code; None: 1 per code.
        """
        self.codes.copy_(codes)
        self.counts.copy_(torch.ones_like(self.counts) if counts is None else counts)
        self.sums.copy_(self.codes * self.counts[:, None])
        self.started.fill_(True)

    def needs_start(self) -> bool:
        if not self._has_started:  # read from the device once, not at every step
            self._has_started = bool(self.started)
        return not self._has_started

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        """K-means on the vectors of all ranks, (B, L, D) each, computed on rank 0."""
        available = vectors.shape[0] * vectors.shape[1] * collectives.world_size()
        number = min(available, VECTORS_PER_CODE * self.size)
        sample = collectives.draw_vectors(vectors, number, replacement=False)
        if collectives.rank() == 0:
            codes, counts = kmeans(sample, self.size)
            self.set_codes(codes, counts * (available / number))
        for buffer in (self.codes, self.counts, self.sums, self.started):
            collectives.broadcast(buffer)

    @torch.no_grad()
    def learn(self, vectors: Tensor, indices: Tensor) -> None:
        """Update the averages by a batch, (B, L, D) and (B, L), and restart dead codes."""
        chosen = gather(vectors.reshape(-1, self.width), indices.reshape(-1), self.size)
        collectives.all_reduce_sum(chosen)
        fade = 1 - self.settings.ema_decay
        self.counts.lerp_(chosen[:, 0], fade)
        self.sums.lerp_(chosen[:, 1:], fade)
        if self.settings.restart_dead_codes:
            self._restart(vectors)
        number = self.counts.sum()
        smooth = (self.counts + SMOOTHING) / (number + self.size * SMOOTHING) * number
        self.codes.copy_(self.sums / smooth[:, None])

    def _restart(self, vectors: Tensor) -> None:
        """Move the least used codes, if they count as dead, onto vectors of the batch."""
        mean = self.counts.mean()
        limit = ceil(self.settings.max_restart_fraction * self.size)
        fresh = collectives.draw_vectors(vectors, limit, replacement=True)
        counts, least = self.counts.topk(limit, largest=False)
        dead = counts < self.settings.dead_code_threshold * mean
        self.counts[least] = torch.where(dead, mean, counts)
        self.sums[least] = torch.where(dead[:, None], fresh * mean, self.sums[least])


class GradientCodebook(Codebook):
    """V codes as a parameter, initialised small and uniform."""

    collapse_advice = "choose an EMA codebook (kind: ema), whose dead codes come back"

    def __init__(self, settings: CodebookSettings) -> None:
        super().__init__(settings.size, settings.width)
        self.codes = nn.Parameter(torch.empty(self.size, self.width))
        nn.init.uniform_(self.codes, -1 / self.size, 1 / self.size)

    def quantise(self, vectors: Tensor) -> Tensor:
        return nearest(vectors.detach(), self.codes.detach())

    def lookup(self, indices: Tensor) -> Tensor:
        return embedding(indices, self.codes)


def gather(vectors: Tensor, indices: Tensor, size: int) -> Tensor:
    """How often each code was chosen, and the sum of what chose it: (V, 1 + D)."""
    chosen = vectors.new_zeros(size, 1 + vectors.shape[1])
    chosen[:, 0].index_add_(0, indices, torch.ones_like(vectors[:, 0]))
    chosen[:, 1:].index_add_(0, indices, vectors)
    return chosen


def kmeans(vectors: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Centres after a few Lloyd steps, (V, D), and the sizes of their clusters, (V,).

    The first vectors are the initial centres, so they should be in random order. Centres of empty
    clusters do not move. If there are fewer vectors than centres, they are repeated with a little
    noise.
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
