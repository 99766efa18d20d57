"""Words for distances between sets of volumes and for the grid artifact, shared by sections."""

from collections.abc import Sequence

from medar.evaluation.distances import Interval
from medar.evaluation.frechet import Contribution
from medar.report.blocks import KeyFigure
from medar.report.formatting import format_fixed, format_percent, format_range


def largest_contributions(contributions: Sequence[Contribution]) -> str:
    """A sentence that names the features behind a Frechet distance; empty without any."""
    if not contributions:
        return ""
    parts = (
        f"{one.feature} ({format_percent(one.fraction)}, shifted by "
        f"{format_fixed(one.shift, 1)} standard deviations)"
        for one in contributions
    )
    return f"Features that contribute most: {', '.join(parts)}."


def grid_figure(value: float | None, interval: Interval | None) -> list[KeyFigure]:
    """The grid artifact as a figure; none if it was not measured."""
    if value is None:
        return []
    return [
        KeyFigure(
            "grid artifact",
            format_fixed(value, 2),
            f"1 for real volumes; 95 % {format_range(interval)}",
        )
    ]
