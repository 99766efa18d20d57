"""Multi-scale residual quantisation (VAR, arXiv 2404.02905, algorithm 1), in 3D.

    for k = 1 ... K, coarse to fine:
        v_k = down(latent - total, grid_k) / gain_k      average to the grid of scale k
        i_k = nearest code of each site of v_k
        total += phi_k(up(gain_k * codes[i_k]))          trilinear, to the latent grid

All scales share one codebook. phi(x) = (1 - r) x + r conv(x) corrects what interpolation blurs;
neighbouring scales share one. All computations are in fp32. Beyond VAR: phi is initialised to the
identity; each scale has a gain, the typical magnitude of what it quantises, so that every scale can
use every code (gain-shape quantisation); and scale dropout, so that each prefix of scales decodes
to a sensible volume.

B batch, D code width, X Y Z latent sites, T tokens of one scale, K scales.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d, mse_loss

from medar.errors import MedarError
from medar.settings import Fraction, FractionBelowOne, NonNegativeFloat, PositiveInt, settings
from medar.tokenizer import collectives
from medar.tokenizer.codebooks import Codebook
from medar.tokenizer.schedule import ScaleSchedule
from medar.tokenizer.upsampling import resize

GAIN_FADE = 0.02
"""The fraction of a gain that each batch replaces."""

CODED = 0.5
"""The fraction of its vectors that a scale is assumed to code when gains and codes are initialised.
A later scale of the same grid has the rest."""

RENAMED = {
    "beta": "commitment_weight",
    "phis": "phi_count",
    "phi_share": "phi_ratio",
    "gains": "scale_gains",
    "start": "start_fraction",
    "dropout": "scale_dropout",
    "bypass": "bypass_probability",
}


@settings(renamed=RENAMED)
class QuantiserSettings:
    """How scales are quantised one after the other."""

    commitment_weight: NonNegativeFloat = 0.25
    """Weight of the commitment loss, which keeps the latent near its codes; VAR's beta."""
    phi_count: PositiveInt = 4
    """Number of convolutions phi, each shared by neighbouring scales."""
    phi_ratio: Fraction = 0.5
    """r in phi(x) = (1 - r) x + r conv(x); 0 leaves phi out."""
    scale_gains: bool = True
    """Divide what each scale quantises by its typical magnitude, and multiply the codes by it."""
    start_fraction: FractionBelowOne = 0.0
    """Fraction of a run after which quantisation starts. Before, encoder and decoder train alone,
    so that the codes are initialised from a meaningful latent."""
    scale_dropout: Fraction = 0.1
    """Probability that a training item is decoded from a random prefix of the scales."""
    bypass_probability: Fraction = 0.0
    """Probability that a training item is decoded from the latent without quantisation (Moshi,
    arXiv 2410.00037)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantisation:
    """A latent after quantisation."""

    latent: Tensor
    """(B, D, X, Y, Z): the sum over scales; its gradient passes straight to the input."""
    indices: tuple[Tensor, ...]
    """Per scale (B, T) int64; all scales, regardless of dropout."""
    loss: Tensor
    """Commitment and codebook terms, averaged over scales; a scalar."""
    residual_energy: Tensor
    """(K,): mean square of the residual after each scale, relative to the latent's."""


class MultiScaleQuantiser(nn.Module):
    """Latents to token indices and back.

    The buffer `gains`, (K,), holds the root mean square of what each scale quantises, a moving
    average over batches.

    Args:
        codebook: shared by all scales.
        schedule: the grids; the last is the latent's.
        settings: see `QuantiserSettings`.

    Attributes:
        active: if False, `forward` returns the latent unchanged and learns nothing.
    """

    gains: Tensor
    started: Tensor

    def __init__(
        self,
        codebook: Codebook,
        schedule: ScaleSchedule,
        settings: QuantiserSettings | None = None,
    ) -> None:
        super().__init__()
        self.codebook = codebook
        self.schedule = schedule
        self.settings = settings or QuantiserSettings()
        scales = range(len(schedule))
        chosen = [nearest_phi(k, len(schedule), self.settings.phi_count) for k in scales]
        used = sorted(set(chosen))  # a phi without a scale would be a parameter without gradient
        self._phi_of = [used.index(phi) for phi in chosen]
        self.phis = nn.ModuleList(Phi(codebook.width, self.settings.phi_ratio) for _ in used)
        self.register_buffer("gains", torch.ones(len(schedule)))
        self.register_buffer("started", torch.tensor(not self.settings.scale_gains))
        self._has_started = False
        self.active = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._has_started = False

    def forward(self, latent: Tensor) -> Quantisation:
        """Quantise (B, D, X, Y, Z); in training, the codebook learns from it.

        Raises:
            MedarError: the latent does not have the shape of codebook and schedule.
        """
        self._check(latent)
        if not self.active:
            return self._unquantised(latent)
        with _fp32(latent):
            latent = latent.float()
            if self.training:
                self._start(latent)
            kept = self._draw_kept_scales(latent)
            power = latent.detach().square().mean().clamp(min=torch.finfo(torch.float32).tiny)
            gains = self.gains.clone()  # the backward pass needs them unchanged
            total = torch.zeros_like(latent)
            decoded = torch.zeros_like(latent)
            vectors, indices, losses, energies = [], [], [], []
            for k in range(len(self.schedule)):
                v = self._tokens(k, latent - total.detach()) / gains[k]
                quantised = self.codebook(v.flatten(0, 1))
                total = total + self._spread(k, gains[k] * quantised.vectors.view_as(v))

                codebook_loss = mse_loss(total, latent.detach())
                commitment_loss = mse_loss(latent, total.detach())
                commitment_loss = self.settings.commitment_weight * commitment_loss
                losses.append(codebook_loss + commitment_loss + quantised.loss)
                energies.append(codebook_loss.detach() / power)
                decoded = torch.where(kept > k, total.detach(), decoded)
                vectors.append(v.detach())
                indices.append(quantised.indices.view(v.shape[:2]))
            decoded = torch.where(kept > len(self.schedule), latent.detach(), decoded)
            if self.training:
                self.codebook.learn(torch.cat(vectors, dim=1), torch.cat(indices, dim=1))
                if self.settings.scale_gains:
                    self.gains.lerp_(self.gains * magnitudes(vectors), GAIN_FADE)
            return Quantisation(
                latent=latent + (decoded - latent).detach(),
                indices=tuple(indices),
                loss=torch.stack(losses).mean(),
                residual_energy=torch.stack(energies),
            )

    @torch.no_grad()
    def encode(self, latent: Tensor) -> tuple[Tensor, ...]:
        """The indices of (B, D, X, Y, Z), per scale (B, T).

        Raises:
            MedarError: the latent does not have the shape of codebook and schedule.
        """
        self._check(latent)
        with _fp32(latent):
            latent, indices = latent.float(), []
            total = torch.zeros_like(latent)
            for k in range(len(self.schedule)):
                indices.append(self.encode_scale(k, latent - total))
                total = total + self.contribution(k, indices[k])
            return tuple(indices)

    @torch.no_grad()
    def encode_scale(self, k: int, residual: Tensor) -> Tensor:
        """The indices of scale k, (B, T), for a residual on the latent grid, (B, D, X, Y, Z)."""
        with _fp32(residual):
            v = self._tokens(k, residual.float()) / self.gains[k]
            return self.codebook.quantise(v.flatten(0, 1)).view(v.shape[:2])

    def decode(self, indices: Sequence[Tensor], upto: int | None = None) -> Tensor:
        """The latent of indices, (B, D, X, Y, Z).

        Args:
            indices: per scale (B, T), coarse to fine.
            upto: use the coarsest `upto` scales only.

        Raises:
            MedarError: `upto` is not from 1 to the number of scales in `indices`.
        """
        *_, latent = self._totals(indices, upto)
        return latent

    def contributions(self, indices: Sequence[Tensor]) -> list[Tensor]:
        """What each scale in `indices` adds to the latent, (B, D, X, Y, Z) each.

        Raises:
            MedarError: no scale, or more than the schedule has.
        """
        if not 1 <= len(indices) <= len(self.schedule):
            raise MedarError(
                f"{len(indices)} scales of tokens; 1 to {len(self.schedule)} are possible"
            )
        return [self.contribution(k, one) for k, one in enumerate(indices)]

    def contribution(self, k: int, indices: Tensor) -> Tensor:
        """Contribution of the indices of scale k, (B, T), to the latent, (B, D, X, Y, Z)."""
        with _fp32(indices):
            return self._spread(k, self.gains[k] * self.codebook.lookup(indices))

    def seen(self, k: int, total: Tensor) -> Tensor:
        """A sum of contributions, (B, D, X, Y, Z), averaged to scale k's grid, (B, D, x, y, z)."""
        grid = self.schedule.grids[k]
        return total if tuple(total.shape[2:]) == grid else adaptive_avg_pool3d(total, grid)

    def inputs(self, indices: Sequence[Tensor], upto: int | None = None) -> tuple[Tensor, ...]:
        """Input of a generator for each scale but the first: the sum so far, on its grid.

        Args:
            indices: per scale (B, T), coarse to fine; during sampling, those drawn so far.
            upto: use the coarsest `upto` scales only.

        Returns:
            (B, D, x, y, z) of scales 1 to n, where n scales are in `indices`; at most K - 1.

        Raises:
            MedarError: `upto` is not from 1 to the number of scales in `indices`.
        """
        totals = self._totals(indices, upto)
        scales = range(1, len(self.schedule))
        return tuple(self.seen(k, total) for k, total in zip(scales, totals, strict=False))

    def _totals(self, indices: Sequence[Tensor], upto: int | None) -> Iterator[Tensor]:
        """The running sum of the contributions of the first scales."""
        upto = len(indices) if upto is None else upto
        if not 1 <= upto <= len(indices):
            raise MedarError(f"upto must be from 1 to {len(indices)}, got {upto}")
        return accumulate(self.contributions(indices[:upto]))

    def _tokens(self, k: int, residual: Tensor) -> Tensor:
        """A residual, (B, D, X, Y, Z), averaged to the sites of scale k, (B, T, D)."""
        return self.seen(k, residual).flatten(2).transpose(1, 2)

    def _spread(self, k: int, codes: Tensor) -> Tensor:
        """Codes of scale k, (B, T, D), interpolated to the latent grid and through phi."""
        grid = self.schedule.grids[k]
        on_grid = resize(codes.reshape(len(codes), *grid, -1), self.schedule.latent)
        spread: Tensor = self.phis[self._phi_of[k]](on_grid.movedim(-1, 1))
        return spread

    @torch.no_grad()
    def _start(self, latent: Tensor) -> None:
        """Initialise gains and codes, as if each scale coded the same fraction of its vectors."""
        if not self._has_started:  # read from the device once, not at every step
            self._has_started = bool(self.started)
        if self._has_started and not self.codebook.needs_start():
            return
        total, vectors = torch.zeros_like(latent), []
        for k in range(len(self.schedule)):
            vectors.append(self._tokens(k, latent - total))
            # Contiguous, as codes are in `forward`: the layout decides how interpolation rounds.
            total = total + CODED * self._spread(k, vectors[k].contiguous())
        if not self._has_started:
            self.gains.copy_(magnitudes(vectors))
            self.started.fill_(True)
            self._has_started = True
        if self.codebook.needs_start():
            scaled = [v / gain for v, gain in zip(vectors, self.gains, strict=True)]
            self.codebook.start(torch.cat(scaled, dim=1))

    def _draw_kept_scales(self, latent: Tensor) -> Tensor:
        """How many scales of each item are decoded, (B, 1, 1, 1, 1); K + 1: the latent itself."""
        scales = len(self.schedule)
        kept = torch.full((len(latent),), scales, device=latent.device)
        if self.training and self.settings.scale_dropout and scales > 1:
            drawn = collectives.draw_uniform(len(latent), latent.device)
            prefix = 1 + collectives.draw_uniform(len(latent), latent.device) * (scales - 1)
            kept = torch.where(drawn < self.settings.scale_dropout, prefix.long(), kept)
        if self.training and self.settings.bypass_probability:
            drawn = collectives.draw_uniform(len(latent), latent.device)
            kept = torch.where(drawn < self.settings.bypass_probability, scales + 1, kept)
        return kept.view(-1, 1, 1, 1, 1)

    def _unquantised(self, latent: Tensor) -> Quantisation:
        return Quantisation(
            latent=latent.float(),
            indices=(),
            loss=latent.new_zeros((), dtype=torch.float32),
            residual_energy=torch.zeros(len(self.schedule), device=latent.device),
        )

    def _check(self, latent: Tensor) -> None:
        if latent.ndim != 5 or latent.shape[1] != self.codebook.width:
            raise MedarError(
                f"latent must have shape (batch, {self.codebook.width}, x, y, z), got "
                f"{list(latent.shape)}"
            )
        self.schedule.check_latent(latent.shape[2:])


class Phi(nn.Module):
    """phi(x) = (1 - r) x + r conv(x), initialised to the identity.

    Args:
        width: channels, D.
        ratio: r.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv3d(width, width, kernel_size=3, padding=1)
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x.lerp(self.conv(x), self.ratio)


def nearest_phi(scale: int, scales: int, count: int) -> int:
    """Which of VAR's partially shared phis a scale uses: the one nearest to k / (K - 1)."""
    edge = 1 / (3 if count == 4 else 2) / count
    ticks = [edge + (1 - 2 * edge) * i / max(count - 1, 1) for i in range(count)]
    position = scale / max(scales - 1, 1)
    return min(range(count), key=lambda i: abs(ticks[i] - position))


def magnitudes(vectors: Sequence[Tensor]) -> Tensor:
    """Root mean square of each scale's vectors, (B, T, D) each, over all ranks: (K,)."""
    squares = torch.stack([v.square().mean() for v in vectors])
    mean = collectives.all_reduce_sum(squares) / collectives.world_size()
    return mean.clamp(min=1e-12).sqrt()


def _fp32(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)
