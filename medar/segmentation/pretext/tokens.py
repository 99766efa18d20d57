"""What the pretext tasks share that predict a tokenizer's tokens.

    features -> averages over the parts of each site -> norm, MLP with the scale -> logits

A code is predicted digit by digit where the codebook is made of digits: the bits of BSQ, the levels
of FSQ; codes of the others are one digit of V values. Cross-entropies of the digits add up to that
of the code, in nats. How often each digit occurs at each scale is counted beforehand. The head says
how a site differs from that, and its loss stands beside that of the frequencies alone: what can be
known without looking.

B batch, C channels, X Y Z voxels, W features a voxel, T tokens of one scale, K scales, V codes,
N digits of a code, R values of all digits.
"""

from abc import ABC
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from medar.generator.data import PRIOR
from medar.segmentation.backbones import Backbone
from medar.segmentation.pretext.base import Figure, Judged, Pretext, View
from medar.segmentation.pretext.frozen import FrozenTokenizer
from medar.segmentation.pretext.settings import PretextSettings
from medar.segmentation.pretext.sites import PARTS, Sites, parts_of, site_features
from medar.tokenizer.codebooks import BinarySphericalCodebook, Codebook, FiniteScalarCodebook
from medar.tokenizer.schedule import ScaleSchedule

INNER = 256
"""Features of a head's hidden layer."""

FIRST = 0.01
"""Deviation of a head's last weights at first: it begins by saying next to nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenView(View):
    """What is seen, and which tokens are to be predicted."""

    tokens: tuple[Tensor, ...]
    """(B, T) int64 of each scale."""
    weights: list[Tensor | None] = field(default_factory=list)
    """(B, T) of each scale, which sum to 1 over the scales of an item; 0 where nothing is to be
    predicted, None for a scale at which no item is."""


class TokenPretext(Pretext, ABC):
    """A pretext task that predicts tokens.

    Args:
        backbone: what is to be pretrained.
        channels: C.
        settings: `balance` is used.
        tokenizer: whose tokens.
    """

    frequencies: Tensor

    def __init__(
        self,
        backbone: Backbone,
        channels: int,
        settings: PretextSettings,
        tokenizer: FrozenTokenizer,
    ) -> None:
        super().__init__(backbone, channels)
        self.settings, self.tokenizer = settings, tokenizer
        self.schedule = tokenizer.schedule
        self.digits = Digits(digits_of(tokenizer.tokenizer.quantiser.codebook))
        self.head = SiteHead(backbone.width, self.digits.values, len(self.schedule))
        shape = len(self.schedule), self.digits.values
        self.register_buffer("frequencies", torch.zeros(shape))

    def look_at(self, volumes: Iterable[Tensor]) -> None:
        """Count how often each digit occurs, at each scale."""
        counts = torch.full_like(self.frequencies, PRIOR)
        for volume in volumes:
            tokens = self.tokenizer.tokens(self.tokenizer.latent(volume[None]))
            for row, one in zip(counts, tokens, strict=True):
                places = self.digits.places(one.cpu()).flatten()
                row += torch.bincount(places, minlength=self.digits.values)
        self.frequencies.copy_(self.digits.log_shares(counts))

    def judge(self, features: Tensor, view: TokenView) -> Judged:
        """Weighted cross-entropy of an item's tokens; figures of all tokens and by scale."""
        parts = parts_of(features, self.schedule.latent)
        losses = torch.zeros(len(features), device=features.device)
        figures: dict[str, Figure] = {}
        for k, (tokens, weights) in enumerate(zip(view.tokens, view.weights, strict=True)):
            if weights is None:
                continue
            number = int((weights > 0).sum())
            weights = weights.to(features.device, non_blocking=True)
            alone = self.frequencies[k]
            logits = self.head(site_features(parts, self.schedule.grids[k]), k).float() + alone
            each = self.digits.cross_entropy(logits, tokens)
            losses = losses + (weights * each).sum(1)
            found = {
                "cross_entropy": each.detach(),
                "accuracy": self.digits.right(logits, tokens),
                "marginal": self.digits.cross_entropy(alone.expand_as(logits), tokens),
            }
            for name, values in found.items():
                figure = (values * (weights > 0)).sum(), number
                figures[f"{name}/scale_{k}"] = figure
                before = figures.get(name, (torch.zeros((), device=features.device), 0))
                figures[name] = before[0] + figure[0], before[1] + number
        return Judged(losses=losses, figures=figures)


class SiteHead(nn.Module):
    """Predicts at each site of a grid, from the averages over its parts.

    Args:
        width: W.
        out: values to predict.
        scales: K; the head is told which one it is at.
    """

    def __init__(self, width: int, out: int, scales: int) -> None:
        super().__init__()
        inner = PARTS**3 * width
        self.norm = nn.LayerNorm(inner)
        self.hidden = nn.Linear(inner, INNER)
        self.scale = nn.Embedding(scales, INNER)
        self.out = nn.Linear(INNER, out)
        nn.init.normal_(self.out.weight, std=FIRST)
        nn.init.zeros_(self.out.bias)

    def forward(self, sites: Tensor, k: int) -> Tensor:
        """(B, T, P * W) of scale k to (B, T, out)."""
        hidden = self.hidden(self.norm(sites)) + self.scale.weight[k]
        values: Tensor = self.out(nn.functional.gelu(hidden))
        return values


class Digits(nn.Module):
    """Codes as numbers of mixed radix, the first digit being the lowest.

    Args:
        radices: (N,) values of each digit, whose product is V.
    """

    basis: Tensor
    radix: Tensor
    begin: Tensor

    def __init__(self, radices: Sequence[int]) -> None:
        super().__init__()
        self.radices, self.values = list(radices), sum(radices)
        radix = torch.tensor(self.radices)
        ones = torch.ones(1, dtype=torch.int64)
        self.register_buffer("radix", radix, persistent=False)
        self.register_buffer("basis", torch.cat([ones, radix[:-1].cumprod(0)]), persistent=False)
        self.register_buffer("begin", radix.cumsum(0) - radix, persistent=False)

    def of(self, codes: Tensor) -> Tensor:
        """(...) to (..., N)."""
        return codes[..., None] // self.basis % self.radix

    def places(self, codes: Tensor) -> Tensor:
        """(...) to (..., N): where among all R values each digit is."""
        return self.of(codes) + self.begin

    def log_shares(self, counts: Tensor) -> Tensor:
        """(..., R) counts to (..., R) logarithms of each value's share of its digit."""
        parts = torch.split(counts, self.radices, -1)
        return torch.cat([(one / one.sum(-1, keepdim=True)).log() for one in parts], -1)

    def cross_entropy(self, logits: Tensor, codes: Tensor) -> Tensor:
        """(B, T, R) and (B, T) to (B, T), in nats, the sum over digits."""
        parts = zip(torch.split(logits, self.radices, -1), self.of(codes).unbind(-1), strict=True)
        each = [
            cross_entropy(one.flatten(0, -2), digit.flatten(), reduction="none")
            for one, digit in parts
        ]
        return torch.stack(each).sum(0).view(codes.shape)

    def right(self, logits: Tensor, codes: Tensor) -> Tensor:
        """(B, T) 1 where each digit's likeliest value is the code's, else 0."""
        likeliest = [one.argmax(-1) for one in torch.split(logits, self.radices, -1)]
        return (torch.stack(likeliest, -1) == self.of(codes)).all(-1).float()


def digits_of(codebook: Codebook) -> list[int]:
    """Values of each digit of a codebook's codes; one digit where codes are not made of several."""
    if isinstance(codebook, BinarySphericalCodebook):
        return [2] * codebook.inner
    if isinstance(codebook, FiniteScalarCodebook):
        return [int(level) for level in codebook.levels]
    return [codebook.size]


def later(schedule: ScaleSchedule, first: int, last: int) -> list[Sites]:
    """Every site of the scales from `first` to before `last`, none of the others."""
    return [
        np.full(grid, first <= k < last, dtype=np.bool_) for k, grid in enumerate(schedule.grids)
    ]


def weights_of(items: Sequence[Sequence[Sites]], balance: float) -> list[Tensor | None]:
    """The weights of tokens that are to be predicted, see `TokenView`.

    Args:
        items: of each item and scale, which tokens.
        balance: a scale of T tokens weighs T to this power, shared by those of its tokens that are
            to be predicted.
    """
    found = []
    for scales in items:
        flat = [torch.from_numpy(sites).flatten().float() for sites in scales]
        shares = torch.tensor([float(len(f)) ** balance * bool(f.any()) for f in flat])
        shares = shares / shares.sum().clamp(min=1e-12)
        found.append([s * f / f.sum().clamp(min=1) for s, f in zip(shares, flat, strict=True)])
    by_scale = [torch.stack(rows) for rows in zip(*found, strict=True)]
    return [weights if weights.any() else None for weights in by_scale]


def draw_scale(schedule: ScaleSchedule, balance: float, random: np.random.Generator) -> int:
    """How many scales are seen, from 1 to K - 1; the one to predict is drawn by its tokens."""
    chances = np.array(schedule.tokens[1:], dtype=np.float64) ** balance
    return 1 + int(random.choice(len(chances), p=chances / chances.sum()))
