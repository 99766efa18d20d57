"""How good label maps are: networks, or anybody's files, on held-out cases."""

from medar.evaluation.segmentation.judging import evaluate_segmentation
from medar.evaluation.segmentation.report import SegmentationReport

__all__ = ["SegmentationReport", "evaluate_segmentation"]
