"""Prediction from easier to harder regions, after SemAIM (arXiv 2312.10457).

    volume -> latent -> its sites ordered from easy to hard, divided into stages
    the stages up to g, the rest masked -> backbone -> the features of the sites of stage g + 1

As in the paper, the order of prediction comes from the image and its features instead of a raster,
and features are predicted instead of voxels. The paper orders patches by the similarity of the
network's own features, from the main object outwards, and predicts them one by one with masked
attention. A convolution has no such mask: here one of several stages is drawn per item. The
features, for the order and as targets, are the latent of a frozen tokenizer, so that the order
depends on the volume only. A site is hard if the coarser half of the scales leaves much of its
feature ("residual"), or if its feature is unlike the mean of the volume ("similarity", closer to
the paper).

B batch, C channels, X Y Z voxels, W features per voxel, D code width, x y z sites of the latent,
T = x y z.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, layer_norm

from medar.data.plan import Plan
from medar.devices import send
from medar.segmentation.backbones import Backbone
from medar.segmentation.pretext.base import Generators, Pretext, PretextLoss, View
from medar.segmentation.pretext.frozen import FrozenTokenizer
from medar.segmentation.pretext.masked import site_voxels
from medar.segmentation.pretext.settings import PretextSettings
from medar.segmentation.pretext.tokens import SiteHead, pool_parts, site_features


@dataclass(frozen=True, kw_only=True, eq=False)
class OrderView(View):
    """The visible part, and the features to predict."""

    target: Tensor
    """(B, T, D): features of all sites, normalised to mean 0 and variance 1."""
    predicted: Tensor
    """(B, T) bool: the sites of the next stage."""
    visible: Tensor
    """(B, T) bool: the sites that are seen."""


class SemanticOrderPretext(Pretext):
    """Predict the features of harder sites from the easier ones.

    Args:
        backbone: to be pretrained.
        plan: of the volumes.
        settings: uses `stages` and `difficulty`.
        tokenizer: its features are predicted.
    """

    needs_tokenizer: ClassVar[bool] = True
    masks: ClassVar[bool] = True

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
        self.head = SiteHead(backbone.width, tokenizer.width, scales=1)

    def view(self, volumes: Tensor, random: Generators) -> OrderView:
        """(B, C, X, Y, Z) with the sites of later stages masked; the next stage is predicted."""
        latent = self.tokenizer.latent(volumes)
        ranks = ranks_of(self.difficulty(latent))
        number, stages = ranks.shape[1], min(self.settings.stages, ranks.shape[1])
        bounds = [number * stage // stages for stage in range(stages + 1)]
        drawn = torch.tensor([int(one.integers(1, stages)) for one in random])[:, None]
        first, last = (send(torch.tensor(bounds)[drawn + ahead], ranks.device) for ahead in (0, 1))
        visible = ranks < first
        masked = [self._voxels(~one, volumes.shape[2:]) for one in visible]
        features = latent.flatten(2).transpose(1, 2)
        return OrderView(
            seen=volumes,
            masked=torch.stack(masked)[:, None],
            target=layer_norm(features, features.shape[-1:]),
            predicted=(ranks >= first) & (ranks < last),
            visible=visible,
        )

    def _voxels(self, sites: Tensor, shape: Sequence[int]) -> Tensor:
        """(X, Y, Z): the voxels of a selection (T,) of sites."""
        cube = sites.view(self.tokenizer.schedule.latent)
        return site_voxels(cube, self.tokenizer.factors, shape)

    def difficulty(self, latent: Tensor) -> Tensor:
        """(B, D, x, y, z) to (B, T): the difficulty of each site."""
        if self.settings.difficulty == "residual":
            tokens = self.tokenizer.tokens(latent)
            half = len(self.tokenizer.schedule) // 2
            rest = latent - self.tokenizer.sums(tokens, [half] * len(latent))
            return rest.square().sum(1).flatten(1)
        centre = latent.mean((2, 3, 4), keepdim=True)
        return -cosine_similarity(latent, centre, dim=1).flatten(1)

    def compute_loss(self, features: Tensor, view: OrderView) -> PretextLoss:
        """Mean squared error of the features; `constant_error`: of the mean visible feature."""
        grid = self.tokenizer.schedule.latent
        predicted = self.head(site_features(pool_parts(features, grid), grid), 0).float()
        losses = _mean_error(predicted, view)
        weights = view.visible.float()[..., None]
        constant = (view.target * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        metrics = {
            "error": (losses.detach().sum(), len(losses)),
            "constant_error": (_mean_error(constant, view).sum(), len(losses)),
        }
        return PretextLoss(losses=losses, metrics=metrics)


def ranks_of(difficulty: Tensor) -> Tensor:
    """(B, T): the rank of each site, 0 the easiest; ties are broken by position in the grid."""
    return difficulty.argsort(dim=1, stable=True).argsort(dim=1)


def _mean_error(predicted: Tensor, view: OrderView) -> Tensor:
    """(B,): mean squared error over the predicted sites."""
    errors = (predicted - view.target).square().mean(-1)
    weights = view.predicted.float()
    return (errors * weights).sum(1) / weights.sum(1)
