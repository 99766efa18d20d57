"""From easier to harder regions, after SemAIM (arXiv 2312.10457).

    volume -> latent -> order of its sites, the easiest first, cut into stages
    the stages up to g, the rest hidden -> backbone -> the features of the sites of stage g + 1

Taken from the paper: the order of prediction comes from the image and its features instead of a
raster, and what is predicted are features instead of voxels. What differs: the paper orders patches
by the similarity of features of the network itself, from the main object outwards, and predicts
them one after the other by a transformer whose attention is masked. A convolution has no such mask:
here sites come in stages, of which one is drawn for each item. The features, in the order and as
targets, are the latent of a frozen tokenizer, so that the order is a function of the volume alone.
A site is hard if the coarser half of the scales leaves much of its feature ("residual"), or if its
feature is unlike the mean of the volume's ("similarity", nearer to the paper).

B batch, C channels, X Y Z voxels, W features a voxel, D code width, x y z sites of the latent, T of
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, layer_norm

from medar.segmentation.backbones import Backbone
from medar.segmentation.pretext.base import Generators, Judged, Pretext, View
from medar.segmentation.pretext.frozen import FrozenTokenizer
from medar.segmentation.pretext.settings import PretextSettings
from medar.segmentation.pretext.sites import parts_of, site_features, voxels_of
from medar.segmentation.pretext.tokens import SiteHead


@dataclass(frozen=True, kw_only=True, eq=False)
class OrderView(View):
    """What is seen, and the features to predict."""

    target: Tensor
    """(B, T, D): features of all sites, each with mean 0 and variance 1."""
    wanted: Tensor
    """(B, T) bool: the sites of the next stage."""
    known: Tensor
    """(B, T) bool: the sites that are seen."""


class SemanticOrderPretext(Pretext):
    """From the easier sites of a volume to the features of the next harder ones.

    Args:
        backbone: what is to be pretrained.
        channels: C.
        settings: `stages` and `difficulty` are used.
        tokenizer: whose features.
    """

    hides: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        channels: int,
        settings: PretextSettings,
        tokenizer: FrozenTokenizer,
    ) -> None:
        super().__init__(backbone, channels)
        self.settings, self.tokenizer = settings, tokenizer
        self.head = SiteHead(backbone.width, tokenizer.width, scales=1)

    def view(self, volumes: Tensor, random: Generators) -> OrderView:
        """(B, C, X, Y, Z) with the sites of later stages hidden, one stage to be predicted."""
        latent = self.tokenizer.latent(volumes)
        ranks = ranks_of(self.difficulty(latent)).cpu()
        number, stages = ranks.shape[1], min(self.settings.stages, ranks.shape[1])
        bounds = [number * stage // stages for stage in range(stages + 1)]
        drawn = torch.tensor([int(one.integers(1, stages)) for one in random])[:, None]
        first, last = (torch.tensor(bounds)[drawn + ahead] for ahead in (0, 1))
        known = ranks < first
        hidden = [self._voxels(~one, volumes.shape[2:]) for one in known]
        features = latent.flatten(2).transpose(1, 2)
        return OrderView(
            seen=volumes,
            hidden=torch.stack(hidden)[:, None].to(volumes.device),
            target=layer_norm(features, features.shape[-1:]),
            wanted=((ranks >= first) & (ranks < last)).to(volumes.device),
            known=known.to(volumes.device),
        )

    def _voxels(self, sites: Tensor, shape: Sequence[int]) -> Tensor:
        """(X, Y, Z): the voxels of some of the T sites."""
        cube = sites.view(self.tokenizer.schedule.latent).numpy()
        return voxels_of(cube, self.tokenizer.factors, shape)

    def difficulty(self, latent: Tensor) -> Tensor:
        """(B, D, x, y, z) to (B, T): how hard each site is."""
        if self.settings.difficulty == "residual":
            tokens = self.tokenizer.tokens(latent)
            half = len(self.tokenizer.schedule) // 2
            rest = latent - self.tokenizer.sums(tokens, [half] * len(latent))
            return rest.square().sum(1).flatten(1)
        centre = latent.mean((2, 3, 4), keepdim=True)
        return -cosine_similarity(latent, centre, dim=1).flatten(1)

    def judge(self, features: Tensor, view: OrderView) -> Judged:
        """Mean square error of the features; `filling` is that of the mean of what is known."""
        grid = self.tokenizer.schedule.latent
        made = self.head(site_features(parts_of(features, grid), grid), 0).float()
        losses = _mean_error(made, view)
        share = view.known.float()[..., None]
        guess = (view.target * share).sum(1, keepdim=True) / share.sum(1, keepdim=True)
        figures = {
            "error": (losses.detach().sum(), len(losses)),
            "filling": (_mean_error(guess, view).sum(), len(losses)),
        }
        return Judged(losses=losses, figures=figures)


def ranks_of(difficulty: Tensor) -> Tensor:
    """(B, T): the place of each site in the order, 0 the easiest; ties by place in the grid."""
    return difficulty.argsort(dim=1, stable=True).argsort(dim=1)


def _mean_error(made: Tensor, view: OrderView) -> Tensor:
    """(B,): mean square error over the sites that are wanted."""
    each = (made - view.target).square().mean(-1)
    wanted = view.wanted.float()
    return (each * wanted).sum(1) / wanted.sum(1)
