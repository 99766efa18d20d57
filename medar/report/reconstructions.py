"""A montage of reconstructions: each case as it was, from each prefix of scales, and the error."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medar.errors import MedarError
from medar.evaluation.examples import Example
from medar.report.orthoslices import Plane, draw_plane, need_png, plane_named, save_png
from medar.volume.display import display_range

INCHES = 1.7
"""Width of one picture."""

ERROR_SHARE = 0.25
"""The error map ends at this share of the display range."""


def save_reconstructions(
    path: str | Path, examples: Sequence[Example], *, plane: str = "axial", unit: str = ""
) -> None:
    """Draw one plane through the middle of each case to a PNG, a row a case.

    Columns: the original, the reconstruction from the coarsest 1, 2 ... K scales, and the error of
    the last (reconstruction less original; red too bright, blue too dark), which has a colour bar.
    All grey pictures of a row share one display range.

    Args:
        path: the PNG.
        examples: at least one; all with as many prefixes.
        plane: "sagittal", "coronal" or "axial".
        unit: of the intensities, for the colour bar.

    Raises:
        MedarError: another ending than .png, no example, an unknown plane, or a file system that
            refuses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    need_png(path)
    if not examples:
        raise MedarError(f"{path}: no case to draw")
    cut = plane_named(plane)
    columns = len(examples[0].prefixes) + 2
    sides = [side for axis, side in enumerate(examples[0].original.grid.extent) if axis != cut[1]]
    height = INCHES * min(max(sides[1] / sides[0], 0.3), 3.0)
    size = (INCHES * columns + 1.0, (height + 0.1) * len(examples) + 0.4)
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(examples), columns, squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        _draw_row(figure, row, example, cut, unit)
    for ax, title in zip(axes[0], _titles(columns - 2), strict=True):
        ax.set_title(title, fontsize=8)
    save_png(figure, path)


def _titles(scales: int) -> list[str]:
    """Of the columns."""
    parts = ["1 scale", *(f"{k} scales" for k in range(2, scales))][: scales - 1]
    last = f"all {scales} scales" if scales > 1 else "reconstruction"
    return ["original", *parts, last, "error"]


def _draw_row(figure: Any, row: Any, example: Example, cut: Plane, unit: str) -> None:
    original, full = example.original, example.prefixes[-1]
    window = display_range(original)
    most = ERROR_SHARE * (window[1] - window[0])
    centre = tuple(side // 2 for side in original.shape)
    for ax, volume in zip(row, (original, *example.prefixes), strict=False):
        draw_plane(ax, volume, cut, centre, window)
    error = original.with_array(np.subtract(full.array, original.array))
    drawn = draw_plane(row[-1], error, cut, centre, (-most, most), "RdBu_r")
    bar = figure.colorbar(drawn, ax=row[-1], extend="both", shrink=0.9)
    bar.ax.tick_params(labelsize=6)
    bar.set_label(unit, fontsize=7)
    for ax in row:
        ax.set_xticks([])
        ax.set_yticks([])
    row[0].set_ylabel(example.name, fontsize=7)
