"""A mixture of three token predictions, after TokenUnify (arXiv 2405.16847).

    random   the volume itself, blocks of it hidden -> backbone -> the tokens of what is hidden
    next     the scales up to k                     -> backbone -> the tokens of scale k + 1
    all      the scales up to k                     -> backbone -> the tokens of all later scales

The paper mixes random-token, next-token and next-all-token prediction, over sequences of patches
of electron microscopy. Here the sequence is that of the scales (medar.segmentation.pretext
.next_scale), and a token may be hidden at any scale: at those sites of which half or more is
hidden. Each item is drawn one of the three, so that a step costs what the other pretext tasks' do.
The random part shows the volume itself, as fine-tuning will.

B batch, C channels, X Y Z voxels, K scales.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from medar.segmentation.pretext.base import Generators
from medar.segmentation.pretext.sites import Sites, draw_sites, on_grids, voxels_of
from medar.segmentation.pretext.tokens import (
    TokenPretext,
    TokenView,
    draw_scale,
    later,
    weights_of,
)


class MixturePretext(TokenPretext):
    """Random, next and next-all tokens; see `TokenPretext`."""

    hides: ClassVar[bool] = True

    def view(self, volumes: Tensor, random: Generators) -> TokenView:
        """(B, C, X, Y, Z), each item as the part shows it that was drawn for it."""
        tokens = self.tokenizer.tokens(self.tokenizer.latent(volumes))
        sites, scales, wanted = [], [], []
        for one in random:
            hidden, k, asked = self._draw(one)
            sites.append(hidden)
            scales.append(k)
            wanted.append(asked)
        seen = volumes.clone()
        rows = [row for row, hidden in enumerate(sites) if not hidden.any()]
        if rows:
            prefix = self.tokenizer.prefix([t[rows] for t in tokens], [scales[r] for r in rows])
            seen[rows] = prefix.to(seen.dtype)
        voxels = [voxels_of(one, self.tokenizer.factors, volumes.shape[2:]) for one in sites]
        return TokenView(
            seen=seen,
            hidden=torch.stack(voxels)[:, None].to(volumes.device),
            tokens=tokens,
            weights=weights_of(wanted, self.settings.balance),
        )

    def _draw(self, random: np.random.Generator) -> tuple[Sites, int, list[Sites]]:
        """Of one item: the hidden sites, none for a prefix; its scales; the tokens to predict."""
        schedule, settings = self.schedule, self.settings
        weights = np.array([settings.mixture.random, settings.mixture.next, settings.mixture.all])
        part = random.choice(3, p=weights / weights.sum())
        if part == 0:
            hidden = draw_sites(schedule.latent, settings.hidden, random)
            return hidden, len(schedule), on_grids(hidden, schedule.grids)
        k = draw_scale(schedule, settings.balance, random)
        last = k + 1 if part == 1 else len(schedule)
        return np.zeros(schedule.latent, dtype=np.bool_), k, later(schedule, k, last)
