"""Words for distances between sets of volumes and for the grid artifact, shared by sections."""

from collections.abc import Sequence

from medar.evaluation.distances import Interval
from medar.evaluation.frechet import Contribution
from medar.report.blocks import KeyFigure
from medar.report.formatting import format_fixed, format_percent, format_range

KINDS = {
    "intensity_": "brightness",
    "gradient_": "edges",
    "power_": "spectral power",
    "detail_": "fine detail",
    "texture_": "local texture",
    "difference_": "differences between voxels",
    "octant_": "brightness of an eighth of the volume",
    **dict.fromkeys(("contrast_", "dissimilarity_", "homogeneity_", "ASM_", "correlation_"),
                    "grey-level co-occurrence"),
}  # fmt: skip
"""What the features of radiomics and texture describe, by the start of their names."""


def largest_contributions(contributions: Sequence[Contribution]) -> str:
    """A sentence that names the features behind a Frechet distance; empty without any."""
    if not contributions:
        return ""
    parts = (
        f"{one.feature} ({_kind(one.feature)}{format_percent(one.fraction)} of the distance, "
        f"{format_fixed(abs(one.shift), 1)} standard deviations too "
        f"{'low' if one.shift < 0 else 'high'})"
        for one in contributions
    )
    return f"Features that contribute most: {', '.join(parts)}."


def _kind(feature: str) -> str:
    """What a hand-crafted feature describes, and a comma; empty for other features."""
    kind = next((kind for start, kind in KINDS.items() if feature.startswith(start)), "")
    return f"{kind}, " if kind else ""


def grid_figure(value: float | None, interval: Interval | None) -> list[KeyFigure]:
    """The grid artifact as a figure; none if it was not measured."""
    if value is None:
        return []
    return [
        KeyFigure(
            "grid artifact",
            format_fixed(value, 2),
            f"1 for real volumes; 95\u00a0% interval {format_range(interval)}",
        )
    ]
