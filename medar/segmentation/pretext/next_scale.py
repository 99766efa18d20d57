"""Pretext tasks along the scales of a tokenizer: next-scale prediction, and a mixture.

    volume -> tokens -> the volume that scales 1 to k decode to -> backbone -> tokens of scale k + 1

Next-scale prediction follows VAR (arXiv 2404.02905). Every prefix of a tokenizer's scales decodes
to a volume, from a blurred one to full detail. The backbone sees such a volume, with k drawn per
item, and predicts the token at each site of the next grid. A generator answers the same question
from features of the tokens; here the input is a volume, as in fine-tuning, so that any segmentation
backbone can be used. The decoder is trained too, as tokens are predicted from its output.

The mixture follows TokenUnify (arXiv 2405.16847), which mixes random-token, next-token and
next-all-token prediction over patches of electron microscopy:

    random   the volume itself, with blocks masked -> backbone -> the tokens of masked sites
    next     the scales up to k                    -> backbone -> the tokens of scale k + 1
    all      the scales up to k                    -> backbone -> the tokens of all later scales

Here the sequence is that of the scales, and "random" masks a site of any scale if at least half of
it is masked. One of the three is drawn per item, so that a step costs as much as in other tasks.

B batch, C channels, X Y Z voxels, K scales.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from medar.devices import send
from medar.segmentation.pretext.base import Generators
from medar.segmentation.pretext.masked import Sites, draw_sites, resample_sites, site_voxels
from medar.segmentation.pretext.tokens import (
    TokenPretext,
    TokenView,
    draw_scale,
    sites_of_scales,
    token_weights,
)


class NextScalePretext(TokenPretext):
    """Predict the tokens of scale k + 1 from the scales up to k; see `TokenPretext`."""

    masks: ClassVar[bool] = False

    def view(self, volumes: Tensor, random: Generators) -> TokenView:
        """(B, C, X, Y, Z) decoded from their first scales, k drawn per item."""
        exponent, schedule = self.settings.scale_exponent, self.schedule
        tokens = self.tokenizer.tokens(self.tokenizer.latent(volumes))
        scales = [draw_scale(schedule, exponent, one) for one in random]
        predicted = [sites_of_scales(schedule, k, k + 1) for k in scales]
        return TokenView(
            seen=self.tokenizer.prefix(tokens, scales),
            tokens=tokens,
            weights=token_weights(predicted, exponent),
        )


class MixturePretext(TokenPretext):
    """Predict random, next or all later tokens; see `TokenPretext`."""

    masks: ClassVar[bool] = True

    def view(self, volumes: Tensor, random: Generators) -> TokenView:
        """(B, C, X, Y, Z), each item masked or decoded as the prediction drawn for it requires."""
        tokens = self.tokenizer.tokens(self.tokenizer.latent(volumes))
        sites, scales, predicted = [], [], []
        for one in random:
            masked, k, asked = self._draw(one)
            sites.append(masked)
            scales.append(k)
            predicted.append(asked)
        seen = volumes.clone()
        rows = [row for row, masked in enumerate(sites) if not masked.any()]
        if rows:
            at = send(torch.tensor(rows), seen.device)
            prefix = self.tokenizer.prefix(
                [t.index_select(0, at) for t in tokens], [scales[row] for row in rows]
            )
            seen.index_copy_(0, at, prefix.to(seen.dtype))
        voxels = [site_voxels(one, self.tokenizer.factors, volumes.shape[2:]) for one in sites]
        return TokenView(
            seen=seen,
            masked=send(torch.stack(voxels)[:, None], volumes.device),
            tokens=tokens,
            weights=token_weights(predicted, self.settings.scale_exponent),
        )

    def _draw(self, random: np.random.Generator) -> tuple[Sites, int, list[Sites]]:
        """Draw masked sites (none for a prefix), number of visible scales, and predicted sites."""
        schedule, settings = self.schedule, self.settings
        weights = np.array([settings.mixture.random, settings.mixture.next, settings.mixture.all])
        part = random.choice(3, p=weights / weights.sum())
        if part == 0:
            masked = draw_sites(schedule.latent, settings.mask_ratio, random)
            return masked, len(schedule), resample_sites(masked, schedule.grids)
        k = draw_scale(schedule, settings.scale_exponent, random)
        last = k + 1 if part == 1 else len(schedule)
        return np.zeros(schedule.latent, dtype=np.bool_), k, sites_of_scales(schedule, k, last)
