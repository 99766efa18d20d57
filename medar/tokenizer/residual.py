"""Residual quantisation over scales (VAR, arXiv 2404.02905, algorithm 1), in 3D.

At each scale, coarse to fine: what is left of the latent is averaged down to the scale's grid, each
site takes its nearest code, the codes are brought up to the latent grid (trilinear), pass phi, and
are subtracted. phi(x) = (1 - r) x + r conv(x) mends what interpolation blurs; neighbouring scales
share one. All scales share one codebook. Everything is fp32. Beyond VAR: phi starts as the
identity; each scale has a gain, the usual magnitude of what it quantises, so that all scales can
use all codes (gain-shape quantisation); quantiser dropout, so that each prefix of scales decodes to
something sensible.

B batch, D code width, X Y Z latent sites, T tokens of one scale, L of all, K scales, V codes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d, interpolate, mse_loss

from medar.errors import MedarError
from medar.settings import STRICT
from medar.tokenizer import collectives
from medar.tokenizer.codebooks import Codebook, Quantised
from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Shape3

GAIN_FADE = 0.02
"""How much of a gain each batch replaces."""


@dataclass(frozen=True, kw_only=True)
class QuantiserSettings:
    """How scales are quantised one after the other.

    Raises:
        MedarError: a value beyond what its field allows.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    beta: float = 0.25
    """Weight of the commitment loss, which keeps the latent near its codes."""
    phis: int = 4
    """Number of convolutions phi, each shared by neighbouring scales."""
    phi_share: float = 0.5
    """r: 0 leaves phi out, 1 leaves the convolution alone."""
    gains: bool = True
    """Divide what each scale quantises by its usual magnitude, and multiply the codes by it."""
    start: float = 0.0
    """Share of a run after which quantisation begins; before it, encoder and decoder train
    alone, and the codes then start from latents that hold something."""
    dropout: float = 0.1
    """Share of training items that are decoded from a random prefix of the scales."""
    bypass: float = 0.0
    """Share of training items that are decoded from the latent as it is (Moshi, arXiv 2410.00037):
    the encoder learns from a decoder that sees what it says, and quantisation costs less."""

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise MedarError(f"beta {self.beta}: 0 or more is needed")
        if self.phis < 1:
            raise MedarError(f"phis {self.phis}: a whole number from 1 is needed")
        if not 0 <= self.start < 1:
            raise MedarError(f"start {self.start}: a share from 0 to below 1 is needed")
        for name in ("phi_share", "dropout", "bypass"):
            if not 0 <= getattr(self, name) <= 1:
                raise MedarError(f"{name} {getattr(self, name)}: a share from 0 to 1 is needed")


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantisation:
    """A latent after quantisation."""

    latent: Tensor
    """(B, D, X, Y, Z): the sum over scales; its gradient passes straight to the input."""
    indices: tuple[Tensor, ...]
    """Per scale (B, T) int64; all scales, dropout or not."""
    loss: Tensor
    """Commitment and codebook terms, mean over scales; a scalar."""
    residual_energy: Tensor
    """(K,): mean square of what is left after each scale, relative to the latent's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    vectors: Tensor
    """(B, T, D): what was quantised."""
    taken: Quantised
    total: Tensor
    """(B, D, X, Y, Z): the sum of the contributions so far."""


class MultiScaleQuantiser(nn.Module):
    """Latents to token indices and back.

    Its buffer `gains`, (K,), holds the root mean square of what each scale quantises, an average
    over past batches.

    Args:
        codebook: shared by all scales.
        schedule: the grids; the last is the latent's.
        settings: see `QuantiserSettings`.
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
        wanted = [nearest_tick(k, len(schedule), self.settings.phis) for k in range(len(schedule))]
        used = sorted(set(wanted))  # one that no scale takes would be a dead weight
        self._phi_of = [used.index(tick) for tick in wanted]
        self.phis = nn.ModuleList(
            Phi(codebook.width, self.settings.phi_share) for _ in range(len(used))
        )
        self.register_buffer("gains", torch.ones(len(schedule)))
        self.register_buffer("started", torch.tensor(not self.settings.gains))
        self._has_started = False
        self.resting = False
        """While this is set, `forward` passes the latent on as it is, and nothing is learnt."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._has_started = False

    def forward(self, latent: Tensor) -> Quantisation:
        """Quantise (B, D, X, Y, Z); in training the codebook learns from it.

        Raises:
            MedarError: the latent's shape is not that of codebook and schedule.
        """
        self._check(latent)
        if self.resting:
            return Quantisation(
                latent=latent.float(),
                indices=(),
                loss=latent.new_zeros((), dtype=torch.float32),
                residual_energy=torch.zeros(len(self.schedule), device=latent.device),
            )
        with _fp32(latent):
            latent = latent.float()
            if self.training:
                self._start(latent)
            kept = self._draw_kept(latent)
            energy = latent.detach().square().mean().clamp(min=torch.finfo(torch.float32).tiny)
            steps, result, losses, left = [], torch.zeros_like(latent), [], []
            for k, step in enumerate(self._walk(latent, self.codebook)):
                steps.append(step)
                apart = mse_loss(step.total, latent.detach())
                commitment = mse_loss(latent, step.total.detach())
                losses.append(apart + self.settings.beta * commitment + step.taken.loss)
                left.append(apart.detach() / energy)
                result = torch.where(kept > k, step.total.detach(), result)
            result = torch.where(kept > len(steps), latent.detach(), result)
            if self.training:
                vectors = [step.vectors.detach() for step in steps]
                self.codebook.learn(torch.cat(vectors, dim=1), torch.cat(_indices(steps), dim=1))
                if self.settings.gains:
                    self.gains.lerp_(self.gains * magnitudes(vectors), GAIN_FADE)
            return Quantisation(
                latent=latent + (result - latent).detach(),
                indices=_indices(steps),
                loss=torch.stack(losses).mean(),
                residual_energy=torch.stack(left),
            )

    @torch.no_grad()
    def encode(self, latent: Tensor) -> tuple[Tensor, ...]:
        """The indices of (B, D, X, Y, Z), per scale (B, T).

        Raises:
            MedarError: the latent's shape is not that of codebook and schedule.
        """
        self._check(latent)
        with _fp32(latent):
            return _indices(list(self._walk(latent.float(), self.codebook)))

    def contributions(self, indices: Sequence[Tensor]) -> list[Tensor]:
        """What each of the given scales adds to the latent, (B, D, X, Y, Z) each.

        Raises:
            MedarError: no scale, or more than the schedule has.
        """
        if not 1 <= len(indices) <= len(self.schedule):
            raise MedarError(
                f"{len(indices)} scales of tokens: 1 to {len(self.schedule)} are possible"
            )
        with _fp32(indices[0]):
            return [self.contribution(k, one) for k, one in enumerate(indices)]

    def contribution(self, k: int, indices: Tensor) -> Tensor:
        """What the indices of scale k, (B, T), add to the latent, (B, D, X, Y, Z)."""
        with _fp32(indices):
            return self._contribution(k, self.gains[k] * self.codebook.lookup(indices))

    def seen(self, k: int, total: Tensor) -> Tensor:
        """A sum of contributions, (B, D, X, Y, Z), on the grid of scale k, (B, D, x, y, z)."""
        return _down(total, self.schedule.grids[k])

    @torch.no_grad()
    def encode_scale(self, k: int, rest: Tensor) -> Tensor:
        """The indices of scale k, (B, T), for what is left of a latent, (B, D, X, Y, Z)."""
        with _fp32(rest):
            vectors = self._vectors(k, rest.float(), self.gains)
            return self.codebook.quantise(vectors.flatten(0, 1)).view(vectors.shape[:2])

    def decode(self, indices: Sequence[Tensor], upto: int | None = None) -> Tensor:
        """The latent that indices stand for, (B, D, X, Y, Z).

        Args:
            indices: per scale (B, T), coarse to fine.
            upto: use the coarsest `upto` scales only.

        Raises:
            MedarError: `upto` is below 1 or above the number of scales given.
        """
        *_, latent = self._sums(indices, upto)
        return latent

    def inputs(self, indices: Sequence[Tensor], upto: int | None = None) -> tuple[Tensor, ...]:
        """What a generator sees before each scale but the first: the sum so far, on its grid.

        Args:
            indices: per scale (B, T), coarse to fine; a prefix while sampling.
            upto: use the coarsest `upto` scales only.

        Returns:
            (B, D, x, y, z) of scales 1 to n, n scales being given; to K - 1 when all K are.

        Raises:
            MedarError: `upto` is below 1 or above the number of scales given.
        """
        sums = self._sums(indices, upto)
        scales = range(1, len(self.schedule))
        return tuple(self.seen(k, total) for k, total in zip(scales, sums, strict=False))

    def _sums(self, indices: Sequence[Tensor], upto: int | None) -> Iterator[Tensor]:
        """The running sum of the contributions of the first scales."""
        upto = len(indices) if upto is None else upto
        if not 1 <= upto <= len(indices):
            raise MedarError(f"upto {upto}: the tokens given allow 1 to {len(indices)}")
        return accumulate(self.contributions(indices[:upto]))

    def _walk(self, latent: Tensor, quantise: Callable[[Tensor], Quantised]) -> Iterator[_Step]:
        """Quantise what is left of a latent, scale by scale."""
        total = torch.zeros_like(latent)
        gains = self.gains.clone()  # the backward pass needs them as they were
        for k in range(len(self.schedule)):
            vectors = self._vectors(k, latent - total.detach(), gains)
            taken = quantise(vectors.reshape(-1, vectors.shape[-1]))
            total = total + self._contribution(k, gains[k] * taken.vectors.view(vectors.shape))
            yield _Step(vectors=vectors, taken=taken, total=total)

    def _vectors(self, k: int, rest: Tensor, gains: Tensor) -> Tensor:
        """What scale k quantises, (B, T, D), of what is left of a latent."""
        return self.seen(k, rest).flatten(2).transpose(1, 2) / gains[k]

    def _contribution(self, k: int, codes: Tensor) -> Tensor:
        """Codes of scale k times its gain, (B, T, D), on the latent grid and through phi."""
        grid = self.schedule.grids[k]
        spread = codes.transpose(1, 2).reshape(len(codes), -1, *grid)
        if grid != self.schedule.latent:
            spread = interpolate(spread, self.schedule.latent, mode="trilinear")
        mended: Tensor = self.phis[self._phi_of[k]](spread)
        return mended

    @torch.no_grad()
    def _start(self, latent: Tensor) -> None:
        """The first gains and codes: from what each scale holds if none is quantised."""
        if not self._has_started:  # read from the device once, not at every step
            self._has_started = bool(self.started)
        fresh = not self._has_started
        if not (fresh or self.codebook.needs_start()):
            return
        vectors = [step.vectors for step in self._walk(latent, _unquantised)]
        if fresh:
            gains = magnitudes(vectors)
            self.gains.copy_(gains)
            vectors = [one / gain for one, gain in zip(vectors, gains, strict=True)]
            self.started.fill_(True)
            self._has_started = True
        if self.codebook.needs_start():
            self.codebook.start(torch.cat(vectors, dim=1))

    def _draw_kept(self, latent: Tensor) -> Tensor:
        """How many scales of each item are decoded, (B, 1, 1, 1, 1); K + 1: nothing quantised."""
        scales = len(self.schedule)
        kept = torch.full((len(latent),), scales, device=latent.device)
        if self.training and self.settings.dropout and scales > 1:
            dropped = collectives.draw_uniform(len(latent), latent.device) < self.settings.dropout
            prefix = 1 + collectives.draw_uniform(len(latent), latent.device) * (scales - 1)
            kept = torch.where(dropped, prefix.long(), kept)
        if self.training and self.settings.bypass:
            passed = collectives.draw_uniform(len(latent), latent.device) < self.settings.bypass
            kept = torch.where(passed, scales + 1, kept)
        return kept.view(-1, 1, 1, 1, 1)

    def _check(self, latent: Tensor) -> None:
        if latent.ndim != 5 or latent.shape[1] != self.codebook.width:
            raise MedarError(
                f"latent of shape {list(latent.shape)}: (batch, {self.codebook.width}, x, y, z) "
                "is needed"
            )
        self.schedule.check_latent(latent.shape[2:])


class Phi(nn.Module):
    """phi(x) = (1 - r) x + r conv(x), the identity at first.

    Args:
        width: channels, D.
        share: r.
    """

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.conv = nn.Conv3d(width, width, kernel_size=3, padding=1)
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x.lerp(self.conv(x), self.share)


def nearest_tick(scale: int, scales: int, phis: int) -> int:
    """Which of VAR's partially shared phis a scale takes: the one nearest to k / (K - 1)."""
    edge = 1 / (3 if phis == 4 else 2) / phis
    ticks = [edge + (1 - 2 * edge) * i / max(phis - 1, 1) for i in range(phis)]
    place = scale / max(scales - 1, 1)
    return min(range(phis), key=lambda i: abs(ticks[i] - place))


def magnitudes(vectors: Sequence[Tensor]) -> Tensor:
    """Root mean square of each scale's vectors, (B, T, D) each, over all processes: (K,)."""
    squares = torch.stack([one.square().mean() for one in vectors])
    return (collectives.all_reduce_sum(squares) / collectives.world_size()).clamp(min=1e-12).sqrt()


def _down(latent: Tensor, grid: Shape3) -> Tensor:
    """Averages over the sites of a coarser grid."""
    return latent if tuple(latent.shape[2:]) == grid else adaptive_avg_pool3d(latent, grid)


def _indices(steps: Sequence[_Step]) -> tuple[Tensor, ...]:
    return tuple(step.taken.indices.view(step.vectors.shape[:2]) for step in steps)


def _unquantised(vectors: Tensor) -> Quantised:
    none = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    return Quantised(vectors=vectors, indices=none, loss=vectors.new_zeros(()))


def _fp32(tensor: Tensor) -> torch.autocast:
    return torch.autocast(tensor.device.type, enabled=False)
