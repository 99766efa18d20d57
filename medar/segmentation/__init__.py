"""Segmentation: backbones, pretraining, fine-tuning with few labels, prediction on any file."""

from typing import TYPE_CHECKING

from medar.lazy import lazy

if TYPE_CHECKING:
    from medar.segmentation.backbones import Backbone as Backbone
    from medar.segmentation.backbones import BackboneSettings as BackboneSettings
    from medar.segmentation.backbones import make_backbone as make_backbone
    from medar.segmentation.backbones import register_backbone as register_backbone
    from medar.segmentation.prediction import segment as segment
    from medar.segmentation.segmenter import Segmenter as Segmenter
    from medar.segmentation.settings import SegmentationSettings as SegmentationSettings
    from medar.segmentation.training import train_segmenter as train_segmenter

__getattr__ = lazy(
    "medar.segmentation",
    (
        "medar.segmentation.backbones:Backbone",
        "medar.segmentation.backbones:BackboneSettings",
        "medar.segmentation.backbones:make_backbone",
        "medar.segmentation.backbones:register_backbone",
        "medar.segmentation.prediction:segment",
        "medar.segmentation.segmenter:Segmenter",
        "medar.segmentation.settings:SegmentationSettings",
        "medar.segmentation.training:train_segmenter",
    ),
)
