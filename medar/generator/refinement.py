"""Refinement: the tokens of one scale are drawn in several passes, not all at once.

Tokens drawn in one pass are independent of each other given the coarser scales, so that together
they need not make sense. With several passes, each pass sees the tokens drawn before it (MaskGIT,
arXiv 2202.04200; within the scales of next-scale prediction: HMAR, arXiv 2506.04421):

    training   some items reveal a random part of one scale; the rest of the scale is predicted
    sampling   pass 0 sees no token of the scale; each pass draws some tokens and reveals them

Revealed tokens enter the network as known ones do (`medar.generator.known`). The order is random
and given by the sample's seed. MaskGIT draws the most certain tokens first, which costs variety.

B batch, L tokens over all scales, T tokens of one scale, K scales.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medar.generator.positions import token_scales
from medar.generator.settings import SamplingSettings
from medar.tokenizer.schedule import ScaleSchedule

ONE_BY_ONE = 12
"""Largest number of tokens of a scale that "auto" draws one by one."""
PASSES = ((36, 6), (80, 4))
"""Passes of "auto" up to these numbers of tokens; beyond, `LARGE`."""
LARGE = 2
"""Passes of "auto" in larger scales, except the last, which takes one: its errors do not spread."""


def auto_passes(schedule: ScaleSchedule) -> tuple[int, ...]:
    """The default number of passes of each scale: many where there are few tokens."""
    *coarser, last = schedule.tokens
    return (*(_auto(tokens) for tokens in coarser), _auto(last) if last <= ONE_BY_ONE else 1)


def passes_by_scale(
    settings: SamplingSettings, schedule: ScaleSchedule, refinement: bool
) -> tuple[int, ...]:
    """The number of passes of each scale, from 1 to its number of tokens.

    Args:
        settings: of the sampler.
        schedule: the generator's.
        refinement: whether the generator was trained for several passes.
    """
    passes = settings.passes
    if passes == "auto":
        return auto_passes(schedule) if refinement else (1,) * len(schedule)
    given = passes if isinstance(passes, tuple) else (passes,) * len(schedule)
    return tuple(map(min, given, schedule.tokens))


def _auto(tokens: int) -> int:
    if tokens <= ONE_BY_ONE:
        return tokens
    return next((passes for most, passes in PASSES if tokens <= most), LARGE)


def draw_revealed(
    schedule: ScaleSchedule, batch: int, fraction: float, generator: torch.Generator
) -> Tensor:
    """Draw which tokens of a training batch are revealed, (B, L) bool on the CPU.

    Args:
        schedule: the grids.
        batch: B.
        fraction: fraction of the items that reveal tokens, each at one scale, chosen with
            probability proportional to T ** 0.5 among those that "auto" draws in several passes.
            Each number of tokens from 0 to T - 1 is equally likely, and so is each set of them.
            Revealing tokens of all scales would take half of the plain objective's tokens away.
        generator: on the CPU.
    """
    refined = torch.rand(batch, 1, generator=generator) < fraction
    several = torch.tensor(auto_passes(schedule)) > 1
    weights = torch.tensor(schedule.tokens).sqrt() * (several | ~several.any())
    scale = torch.multinomial(weights.expand(batch, -1), 1, generator=generator)
    chosen = refined & (token_scales(schedule) == scale)
    orders = torch.rand(batch, schedule.length, generator=generator)
    parts = torch.rand(batch, len(schedule), generator=generator)
    return _first(schedule, orders, parts) & chosen


def chain_draws(
    schedule: ScaleSchedule, seeds: Sequence[int], draws: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Masks and weights that estimate the cross-entropy of drawing each scale one by one.

    The chain rule over a random order gives the negative log-likelihood of a scale's T tokens as a
    sum over the number r of revealed tokens, from 0 to T - 1, of the cross-entropy of a token that
    is hidden. Each draw takes one r per volume and scale, stratified over the draws, a random set
    of r tokens, and the mean over all T - r hidden ones. The estimate is unbiased.

    Args:
        schedule: the grids.
        seeds: one per volume.
        draws: number of draws.

    Yields:
        (B, L) bool, the revealed tokens; and (B, L) weights of the cross-entropies of all tokens,
        whose mean over a scale is that scale's estimate in nats per token. Compared with a plain
        pass, both at the same tokens, it has a much smaller variance.
    """
    scales = len(schedule)
    numbers = draw_orders(seeds, draws * (schedule.length + scales)).view(len(seeds), draws, -1)
    for index, row in enumerate(numbers.unbind(dim=1)):
        parts = (row[:, -scales:] + index) / draws
        revealed = _first(schedule, row[:, :-scales], parts)
        hidden = schedule.split((~revealed).float())
        weights = [part * part.shape[1] / part.sum(1, keepdim=True) for part in hidden]
        yield revealed, torch.cat(weights, dim=1)


def draw_orders(seeds: Sequence[int], tokens: int) -> Tensor:
    """(B, tokens) random numbers that order the tokens of each scale.

    Each row is the second draw from its seed: the first draw chooses the tokens
    (`medar.generator.sampling.draw_numbers`), and both must be independent.
    """
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        torch.rand(tokens, generator=generator)
        rows.append(torch.rand(tokens, generator=generator))
    return torch.stack(rows)


def reveal(order: Tensor, passes: int, known: Tensor | None = None) -> list[Tensor]:
    """The tokens of a scale that are drawn by the end of each pass but the last.

    `hidden_after` of the tokens stay hidden, rounded down; but each pass draws at least one token,
    as long as there are any.

    Args:
        order: (B, T) random numbers; tokens with smaller ones are drawn first.
        passes: S, 1 or more.
        known: (B, T) bool, tokens that need not be drawn.

    Returns:
        S - 1 masks, (B, T) bool each, without the known tokens.
    """
    if known is None:
        known = torch.zeros_like(order, dtype=torch.bool)
    position = ranks(order.masked_fill(known, math.inf))
    free = hidden = (~known).sum(dim=1, keepdim=True)
    masks = []
    for i in range(1, passes):
        left = (free.double() * hidden_after(i, passes)).long()
        hidden = torch.minimum(left, hidden - 1).clamp(min=0)
        masks.append((position < free - hidden) & ~known)
    return masks


def hidden_after(passes: int, total: int) -> float:
    """The fraction of tokens still hidden after some of `total` passes: MaskGIT's cosine."""
    return math.cos(math.pi * passes / (2 * total))


def _first(schedule: ScaleSchedule, orders: Tensor, parts: Tensor) -> Tensor:
    """(B, L) bool: of each scale the first part in order; orders (B, L), parts (B, K) below 1."""
    masks = [
        ranks(order) < (parts[:, k : k + 1] * order.shape[1]).long()
        for k, order in enumerate(schedule.split(orders))
    ]
    return torch.cat(masks, dim=1)


def ranks(order: Tensor) -> Tensor:
    """(B, T) positions of the elements of each row if it were sorted, from 0."""
    return order.argsort(dim=1, stable=True).argsort(dim=1)
