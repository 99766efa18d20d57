"""How good label maps are: those of networks, or any finished files, on held-out cases."""

from medar.evaluation.segmentation.evaluate import evaluate_segmentation as evaluate_segmentation
from medar.evaluation.segmentation.report import SegmentationReport as SegmentationReport
