"""Backbones behind one interface, `Backbone`: MONAI's networks, wrapped, and medar's own."""

from medar.data.plan import Plan
from medar.segmentation.backbones.base import Backbone
from medar.segmentation.backbones.settings import BackboneSettings, TrunkSettings

__all__ = ["Backbone", "BackboneSettings", "TrunkSettings", "make_backbone"]


def make_backbone(settings: BackboneSettings, plan: Plan) -> Backbone:
    """An untrained backbone for the volumes of a plan.

    Args:
        settings: which, and its sizes.
        plan: channels, spacing, size and downsampling.

    Raises:
        MedarError: a plan that the kind does not take.
    """
    if settings.kind == "segresnet":
        from medar.segmentation.backbones.segresnet import SegResNetBackbone

        return SegResNetBackbone(settings, plan)
    if settings.kind == "swinunetr":
        from medar.segmentation.backbones.swinunetr import SwinUNETRBackbone

        return SwinUNETRBackbone(settings, plan)
    if settings.kind == "trunk":
        from medar.segmentation.backbones.trunk import TrunkBackbone

        return TrunkBackbone(settings, plan)
    from medar.segmentation.backbones.dynunet import DynUNetBackbone

    return DynUNetBackbone(settings, plan)
