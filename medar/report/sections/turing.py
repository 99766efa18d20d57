"""Whether a network can tell the synthetic volumes from real ones."""

from medar.evaluation.generation.turing import TuringReport
from medar.report.blocks import Block, Notes, Table, Text
from medar.report.formatting import format_count, format_fixed

CERTAIN = 0.9
"""AUC from which the verdict is that the volumes give themselves away."""


def turing_blocks(report: TuringReport) -> list[Block]:
    """The area under the ROC curve, beside that of two halves of the real volumes."""
    rows = [
        (name, str(count), format_fixed(area, 2), _range(ends))
        for name, count, area, ends in (
            ("synthetic and real volumes", report.volumes, report.auc, report.interval),
            (
                "two halves of the real volumes",
                report.floor_volumes,
                report.floor,
                report.floor_interval,
            ),
        )
    ]
    return [
        Text(
            "Turing test: small networks were trained to tell synthetic from real volumes, and "
            f"tested on volumes that they were not trained on. {verdict(report)} Two halves of the "
            "real volumes, tested in the same way, show how far from 0.5 chance leads."
        ),
        Table("Turing test", ("told apart", "volumes each", "AUC", "95 %"), rows),
        *([Notes(report.notes)] if report.notes else []),
    ]


def verdict(report: TuringReport) -> str:
    """What the area says, in a sentence."""
    low, high = report.interval
    area = f"the AUC is {format_fixed(report.auc, 2)} ({_range(report.interval)})"
    volumes = format_count(report.volumes, "volume")
    if low <= 0.5 <= high:
        return f"They cannot, with {volumes} of each kind: {area}; 0.5 is chance."
    if high < 0.5:
        return f"They are wrong more often than chance explains: {area}."
    if report.auc >= CERTAIN:
        return f"Synthetic volumes give themselves away: {area}; 1 means all of them."
    return f"They can, to some degree: {area}; 0.5 is chance, 1 certainty."


def _range(ends: tuple[float, float] | None) -> str:
    return " to ".join(format_fixed(end, 2) for end in ends) if ends else format_fixed(None, 2)
