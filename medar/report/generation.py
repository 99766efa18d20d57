"""A contact sheet: many volumes at a glance, each in three planes, generated above real ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medar.errors import MedarError
from medar.report.orthoslices import PLANES, draw_plane, need_png, save_png
from medar.volume import Volume
from medar.volume.display import display_range

COLUMNS = 8
"""Volumes beside each other; more go on below."""

INCHES = 1.3
"""Longest side of a picture."""

TITLE = 0.2
"""Inches above each volume."""


def contact_sheet(
    volumes: Sequence[Volume],
    path: str | Path,
    *,
    titles: Sequence[str] | None = None,
    real: Sequence[Volume] = (),
    real_titles: Sequence[str] | None = None,
) -> None:
    """Draw the middle planes of volumes to a PNG, a column a volume, real ones below.

    All pictures share one display range, that of the real volumes where there are any, and one
    scale. The patient's right is on the left of coronal and axial pictures.

    Args:
        volumes: generated, at least one; the first channel of each is drawn.
        path: the PNG.
        titles: one for each; default their numbers, from 0.
        real: to compare with.
        real_titles: one for each; default "real 0", "real 1" ...

    Raises:
        MedarError: another ending than .png, no volume, or a file system that refuses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    need_png(path)
    if not volumes:
        raise MedarError(f"{path}: no volume to draw")
    named = list(zip(titles or [str(k) for k in range(len(volumes))], volumes, strict=True))
    others = list(zip(real_titles or [f"real {k}" for k in range(len(real))], real, strict=True))
    columns = min(COLUMNS, max(len(named), len(others)))
    bands = [one[k : k + columns] for one in (named, others) for k in range(0, len(one), columns)]
    window = _common_range(real or volumes)
    extents = [volume.grid.extent for volume in (*volumes, *real)]
    sides = [max(one[axis] for one in extents) for axis in range(3)]
    inches = INCHES / max(sides)
    heights = [TITLE, *(side * inches for side in (sides[2], sides[2], sides[1]))] * len(bands)
    size = (columns * max(sides[:2]) * inches, sum(heights))
    figure = Figure(figsize=size, dpi=110, facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.03, hspace=0.03)
    for ax in axes.flat:
        ax.set_axis_off()
    for first, band in zip(range(0, len(heights), 4), bands, strict=True):
        for column, (title, volume) in enumerate(band):
            _draw(list(axes[first : first + 4, column]), title, volume, window)
    save_png(figure, path)


def _common_range(volumes: Sequence[Volume]) -> tuple[float, float]:
    """One display range for all."""
    ranges = [display_range(volume) for volume in volumes]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _draw(cells: Sequence[Any], title: str, volume: Volume, window: tuple[float, float]) -> None:
    """A title and the three planes of a volume, below each other."""
    head, *pictures = cells
    head.text(0.5, 0.5, title, fontsize=7, color="white", ha="center", va="center")
    centre = tuple(side // 2 for side in volume.shape)
    for ax, plane in zip(pictures, PLANES, strict=True):
        draw_plane(ax, volume, plane, centre, window)
