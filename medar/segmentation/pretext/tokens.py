"""`TokenPretext`: common base of the pretext tasks that predict a tokenizer's tokens.

    features -> averages over the parts of each site -> norm, MLP with the scale -> logits

A code is predicted digit by digit if the codebook has digits: the bits of BSQ, the levels of FSQ,
the halves of a product. Other codes are a single digit of V values. The cross-entropies of the
digits add up to that of the code, in nats. The frequencies of digits at each scale are counted
before training. The head predicts the difference from their logarithms, and the cross-entropy under
the frequencies alone is logged for comparison, as the best value without looking at the image.

B batch, C channels, X Y Z voxels, W features per voxel, x y z sites of a grid, T = x y z tokens of
one scale (z fastest), P parts of a site, K scales, V codebook size, N digits of a code, R values of
all digits.
"""

from abc import ABC
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool3d, cross_entropy

from medar.data.plan import Plan
from medar.devices import send
from medar.generator.data import PRIOR
from medar.segmentation.backbones import Backbone
from medar.segmentation.pretext.base import Pretext, PretextLoss, SumAndCount, View
from medar.segmentation.pretext.frozen import FrozenTokenizer
from medar.segmentation.pretext.masked import Sites
from medar.segmentation.pretext.settings import PretextSettings
from medar.tokenizer.schedule import ScaleSchedule
from medar.volume import Shape3

HIDDEN_WIDTH = 256
"""Features of a head's hidden layer."""
INIT_STD = 0.01
"""Initial standard deviation of a head's last weights, so that its output is almost 0 at first."""
PARTS = 2
"""Parts of a site per axis; concatenating their features preserves positions within the site."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenView(View):
    """The visible part, and the tokens to predict."""

    tokens: tuple[Tensor, ...]
    """(B, T) int64 of each scale."""
    weights: list[Tensor | None] = field(default_factory=list)
    """(B, T) of each scale, with sum 1 over the scales of an item; 0 for tokens that are not
    predicted, None for a scale without any."""


class TokenPretext(Pretext, ABC):
    """A pretext task that predicts tokens.

    Args:
        backbone: to be pretrained.
        plan: of the volumes.
        settings: uses `scale_exponent`.
        tokenizer: its tokens are predicted.
    """

    needs_tokenizer: ClassVar[bool] = True
    log_frequencies: Tensor

    def __init__(
        self,
        backbone: Backbone,
        plan: Plan,
        settings: PretextSettings,
        tokenizer: FrozenTokenizer | None,
    ) -> None:
        super().__init__(backbone, plan, settings, tokenizer)
        assert tokenizer is not None, "make_pretext checks this"
        self.tokenizer = tokenizer
        self.schedule = tokenizer.schedule
        self.digits = Digits(tokenizer.tokenizer.quantiser.codebook.radices)
        self.head = SiteHead(backbone.width, self.digits.values, len(self.schedule))
        shape = len(self.schedule), self.digits.values
        self.register_buffer("log_frequencies", torch.zeros(shape))

    def fit_statistics(self, volumes: Iterable[Tensor]) -> None:
        """Count the digits at each scale."""
        counts = torch.full_like(self.log_frequencies, PRIOR)
        for volume in volumes:
            tokens = self.tokenizer.tokens(self.tokenizer.latent(volume[None]))
            for row, one in zip(counts, tokens, strict=True):
                indices = self.digits.indices(one.cpu()).flatten()
                row += torch.bincount(indices, minlength=self.digits.values)
        self.log_frequencies.copy_(self.digits.log_frequencies(counts))

    def compute_loss(self, features: Tensor, view: TokenView) -> PretextLoss:
        """Weighted cross-entropy of each item's tokens; metrics of all tokens and by scale."""
        parts = pool_parts(features, self.schedule.latent)
        losses = torch.zeros(len(features), device=features.device)
        metrics: dict[str, SumAndCount] = {}
        for k, (tokens, weights) in enumerate(zip(view.tokens, view.weights, strict=True)):
            if weights is None:
                continue
            number = int((weights > 0).sum())
            weights = send(weights, features.device)
            prior = self.log_frequencies[k]
            logits = self.head(site_features(parts, self.schedule.grids[k]), k).float() + prior
            each = self.digits.cross_entropy(logits, tokens)
            losses = losses + (weights * each).sum(1)
            values = {
                "cross_entropy": each.detach(),
                "accuracy": self.digits.correct(logits, tokens),
                "marginal": self.digits.cross_entropy(prior.expand_as(logits), tokens),
            }
            for name, value in values.items():
                metric = (value * (weights > 0)).sum(), number
                metrics[f"{name}/scale_{k}"] = metric
                before = metrics.get(name, (torch.zeros((), device=features.device), 0))
                metrics[name] = before[0] + metric[0], before[1] + number
        return PretextLoss(losses=losses, metrics=metrics)


class SiteHead(nn.Module):
    """Predict values at each site of a grid from the average features of its parts.

    Args:
        width: W.
        out: values to predict.
        scales: K; each has an embedding.
    """

    def __init__(self, width: int, out: int, scales: int) -> None:
        super().__init__()
        inner = PARTS**3 * width
        self.norm = nn.LayerNorm(inner)
        self.hidden = nn.Linear(inner, HIDDEN_WIDTH)
        self.scale = nn.Embedding(scales, HIDDEN_WIDTH)
        self.out = nn.Linear(HIDDEN_WIDTH, out)
        nn.init.normal_(self.out.weight, std=INIT_STD)
        nn.init.zeros_(self.out.bias)

    def forward(self, sites: Tensor, k: int) -> Tensor:
        """(B, T, P * W) of scale k to (B, T, out)."""
        hidden = self.hidden(self.norm(sites)) + self.scale.weight[k]
        values: Tensor = self.out(nn.functional.gelu(hidden))
        return values


class Digits(nn.Module):
    """Codes as mixed-radix numbers, lowest digit first.

    Args:
        radices: (N,) number of values of each digit; their product is V.
    """

    basis: Tensor
    radix: Tensor
    offsets: Tensor

    def __init__(self, radices: Sequence[int]) -> None:
        super().__init__()
        self.radices, self.values = list(radices), sum(radices)
        radix = torch.tensor(self.radices)
        ones = torch.ones(1, dtype=torch.int64)
        self.register_buffer("radix", radix, persistent=False)
        self.register_buffer("basis", torch.cat([ones, radix[:-1].cumprod(0)]), persistent=False)
        self.register_buffer("offsets", radix.cumsum(0) - radix, persistent=False)

    def split(self, codes: Tensor) -> Tensor:
        """(...) to (..., N)."""
        return codes[..., None] // self.basis % self.radix

    def indices(self, codes: Tensor) -> Tensor:
        """(...) to (..., N): index of each digit's value among all R values."""
        return self.split(codes) + self.offsets

    def log_frequencies(self, counts: Tensor) -> Tensor:
        """(..., R) counts to (..., R) logarithms of each value's frequency within its digit."""
        parts = torch.split(counts, self.radices, -1)
        return torch.cat([(one / one.sum(-1, keepdim=True)).log() for one in parts], -1)

    def cross_entropy(self, logits: Tensor, codes: Tensor) -> Tensor:
        """(B, T, R) and (B, T) to (B, T): the sum over digits, in nats."""
        parts = zip(
            torch.split(logits, self.radices, -1), self.split(codes).unbind(-1), strict=True
        )
        each = [
            cross_entropy(one.flatten(0, -2), digit.flatten(), reduction="none")
            for one, digit in parts
        ]
        return torch.stack(each).sum(0).view(codes.shape)

    def correct(self, logits: Tensor, codes: Tensor) -> Tensor:
        """(B, T): 1 where the most probable value of every digit is the code's, else 0."""
        most_probable = [one.argmax(-1) for one in torch.split(logits, self.radices, -1)]
        return (torch.stack(most_probable, -1) == self.split(codes)).all(-1).float()


def sites_of_scales(schedule: ScaleSchedule, first: int, last: int) -> list[Sites]:
    """All sites of the scales in [first, last), none of the others."""
    return [
        np.full(grid, first <= k < last, dtype=np.bool_) for k, grid in enumerate(schedule.grids)
    ]


def token_weights(items: Sequence[Sequence[Sites]], exponent: float) -> list[Tensor | None]:
    """Weights of the predicted tokens, see `TokenView`.

    Args:
        items: for each item and scale, the predicted tokens.
        exponent: a scale of T tokens has a weight of T to this power, divided among its predicted
            tokens.
    """
    rows = []
    for scales in items:
        flat = [torch.from_numpy(sites).flatten().float() for sites in scales]
        scale_weights = torch.tensor([float(len(f)) ** exponent * bool(f.any()) for f in flat])
        scale_weights = scale_weights / scale_weights.sum().clamp(min=1e-12)
        rows.append(
            [s * f / f.sum().clamp(min=1) for s, f in zip(scale_weights, flat, strict=True)]
        )
    by_scale = [torch.stack(items) for items in zip(*rows, strict=True)]
    return [weights if weights.any() else None for weights in by_scale]


def draw_scale(schedule: ScaleSchedule, exponent: float, random: np.random.Generator) -> int:
    """Draw the number of visible scales, 1 to K - 1, weighted by the tokens of the next scale."""
    weights = np.array(schedule.tokens[1:], dtype=np.float64) ** exponent
    return 1 + int(random.choice(len(weights), p=weights / weights.sum()))


def pool_parts(features: Tensor, latent: Shape3) -> Tensor:
    """(B, W, X, Y, Z) averaged over the parts of the sites of the finest grid."""
    x, y, z = (PARTS * side for side in latent)
    return adaptive_avg_pool3d(features, (x, y, z))


def site_features(parts: Tensor, grid: Shape3) -> Tensor:
    """The output of `pool_parts` on a grid: (B, T, P * W)."""
    for axis, sites in enumerate(grid, start=2):
        if parts.shape[axis] != PARTS * sites:
            weights = _part_weights(parts.shape[axis] // PARTS, sites, parts.device)
            weights = weights.to(parts.dtype)
            parts = torch.tensordot(parts, weights, dims=([axis], [1])).movedim(-1, axis)
    return rearrange(
        parts, "b w (x i) (y j) (z l) -> b (x y z) (i j l w)", i=PARTS, j=PARTS, l=PARTS
    )


@cache
def _part_weights(finest: int, sites: int, device: torch.device) -> Tensor:
    """Weights of the finest grid's parts in a grid's parts along an axis: (parts, finest parts).

    A site covers the latent's sites that the quantiser averages for it; those of neighbouring sites
    overlap where the grid does not divide the latent.
    """
    weights = torch.zeros(PARTS * sites, PARTS * finest)
    for site in range(sites):
        first, last = site * finest // sites, -(-(site + 1) * finest // sites)
        wide = last - first
        for part in range(PARTS):
            start = PARTS * first + part * wide
            weights[PARTS * site + part, start : start + wide] = 1 / wide
    return weights.to(device)
