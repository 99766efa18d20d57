"""Segmentation: backbones, pretraining, fine-tuning with few labels, prediction on any file."""

from medar.segmentation.backbones import Backbone as Backbone
from medar.segmentation.backbones import make_backbone as make_backbone
from medar.segmentation.folder import load_segmenter as load_segmenter
from medar.segmentation.network import Segmenter as Segmenter
from medar.segmentation.prediction import segment as segment
