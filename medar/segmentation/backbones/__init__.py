"""Segmentation backbones behind one interface, `Backbone`, chosen by name."""

from medar.segmentation.backbones.base import Backbone
from medar.segmentation.backbones.settings import (
    BACKBONES,
    BackboneSettings,
    TrunkSettings,
    make_backbone,
    register_backbone,
)

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneSettings",
    "TrunkSettings",
    "make_backbone",
    "register_backbone",
]
