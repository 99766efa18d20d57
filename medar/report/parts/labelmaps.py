"""Label maps beside the truth: the sections of an evaluation's own page, from its report.json."""

from medar.evaluation.segmentation.report import SegmentationReport
from medar.report import segmentation
from medar.report.blocks import Block
from medar.report.folder import RunFolder
from medar.settings import from_dict

JUDGED = "evaluation/report.json"
WORST = "evaluation/report/worst.png"


def judged(run: RunFolder) -> SegmentationReport:
    """What the evaluation found.

    Raises:
        LeftOut: there was none.
        MedarError: its file is damaged.
    """
    values = run.object(JUDGED, "evaluate")
    own = {name: values[name] for name in SegmentationReport.__dataclass_fields__}
    return from_dict(SegmentationReport, own, str(run.path / JUDGED))


def overlap(run: RunFolder) -> list[Block]:
    """Means, labels and cases."""
    report = judged(run)
    return [
        *segmentation.in_short(report),
        *map(segmentation.by_label, report.models),
        *segmentation.by_case(report),
    ]


def worst(run: RunFolder) -> list[Block]:
    """Outlines of the worst cases."""
    return segmentation.worst_cases(judged(run), run.png(WORST, "evaluate"))


def agreement(run: RunFolder) -> list[Block]:
    """Volumes of prediction and truth."""
    return segmentation.volume_agreement(judged(run))


def calibration(run: RunFolder) -> list[Block]:
    """What the network's chances are worth."""
    return segmentation.calibration(judged(run))
