"""Segmentation: backbones, pretraining, fine-tuning with few labels, prediction on any file."""

from medar.segmentation.backbones import Backbone as Backbone
from medar.segmentation.backbones import BackboneSettings as BackboneSettings
from medar.segmentation.backbones import make_backbone as make_backbone
from medar.segmentation.backbones import register_backbone as register_backbone
from medar.segmentation.prediction import segment as segment
from medar.segmentation.segmenter import Segmenter as Segmenter
from medar.segmentation.settings import SegmentationSettings as SegmentationSettings
from medar.segmentation.training import train_segmenter as train_segmenter
