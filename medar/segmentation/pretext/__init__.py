"""Pretext tasks: what a backbone learns from volumes alone, all kinds behind `Pretext`."""

from math import prod

from medar.data.plan import Plan
from medar.errors import MedarError
from medar.segmentation.backbones import Backbone
from medar.segmentation.pretext.base import Judged, Pretext, View
from medar.segmentation.pretext.frozen import FrozenTokenizer
from medar.segmentation.pretext.settings import PretextSettings
from medar.segmentation.pretext.sites import blocks_of

__all__ = ["FrozenTokenizer", "Judged", "Pretext", "PretextSettings", "View", "make_pretext"]


def make_pretext(
    settings: PretextSettings, backbone: Backbone, plan: Plan, tokenizer: FrozenTokenizer | None
) -> Pretext:
    """The pretext task that the settings name, on a backbone.

    Args:
        settings: which, and how hard.
        backbone: what is to be pretrained.
        plan: of the volumes.
        tokenizer: what "next_scale", "mixture" and "semantic_order" learn from.

    Raises:
        MedarError: a kind that needs a tokenizer, and none; a block that would hide everything.
    """
    channels = len(plan.channels) or 1
    if settings.kind == "masked":
        from medar.segmentation.pretext.masked import MaskedPretext

        if prod(blocks_of(plan.size, settings.block)) == 1:
            raise MedarError(
                f"pretext.block {list(settings.block)}: a volume of {list(plan.size)} voxels is a "
                "single block, of which nothing would be seen; a smaller one is needed"
            )
        return MaskedPretext(backbone, channels, settings)
    if tokenizer is None:
        raise MedarError(
            f"pretext.kind {settings.kind}: a tokenizer is needed; name the folder that `medar "
            "tokenizer train` left (--tokenizer, pretext.tokenizer), or take pretext.kind masked"
        )
    if settings.kind == "mixture":
        from medar.segmentation.pretext.mixture import MixturePretext

        return MixturePretext(backbone, channels, settings, tokenizer)
    if settings.kind == "semantic_order":
        from medar.segmentation.pretext.semantic_order import SemanticOrderPretext

        return SemanticOrderPretext(backbone, channels, settings, tokenizer)
    from medar.segmentation.pretext.next_scale import NextScalePretext

    return NextScalePretext(backbone, channels, settings, tokenizer)
