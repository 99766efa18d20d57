"""The worst cases of a segmentation: outlines of truth and prediction over the image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medar.errors import MedarError
from medar.evaluation.segmentation.worst import Slice, WorstCase
from medar.report.orthoslices import PLANES, draw_plane, need_png, save_png

INCHES = 2.2
"""Height of a picture."""

TRUTH, PREDICTION = "#4fc3f7", "#ff9f40"


def save_worst_cases(path: str | Path, cases: Sequence[WorstCase]) -> None:
    """Draw the slices of some cases to a PNG, a row a case: sagittal, coronal, axial.

    Truth is outlined solid, the prediction dashed. The patient's right is on the left of coronal
    and axial pictures.

    Args:
        path: the PNG.
        cases: at least one.

    Raises:
        MedarError: another ending than .png, no case, or a file system that refuses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    need_png(path)
    if not cases:
        raise MedarError(f"{path}: no case to draw")
    size = (INCHES * len(PLANES) + 0.6, INCHES * len(cases) + 0.5)
    figure = Figure(figsize=size, layout="constrained", dpi=110, facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cases), len(PLANES), squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        for ax, one in zip(row, case.slices, strict=True):
            _draw(ax, one, case)
        row[0].set_ylabel(f"{case.name}\nDice {case.dice:.3f}", fontsize=7, color="white")
    for ax, plane in zip(axes[0], PLANES, strict=True):
        ax.set_title(plane[0], fontsize=8, color="white")
    lines = [
        Line2D([], [], color=TRUTH, label="truth"),
        Line2D([], [], color=PREDICTION, linestyle="--", label="prediction"),
    ]
    figure.legend(
        handles=lines, loc="outside lower center", ncols=2, fontsize=8, frameon=False,
        labelcolor="white",
    )  # fmt: skip
    save_png(figure, path)


def _draw(ax: Any, one: Slice, case: WorstCase) -> None:
    """One slice with its outlines."""
    drawn = draw_plane(ax, one.image, PLANES[one.axis], (0, 0, 0), case.window)
    limits = ax.get_xlim(), ax.get_ylim()
    ax.set_xticks([])
    ax.set_yticks([])
    maps = {TRUTH: (one.truth, "solid"), PREDICTION: (one.predicted, "dashed")}
    for colour, (label, style) in maps.items():
        flat = np.take(label.array[0], 0, axis=one.axis).T
        for value in np.unique(flat[flat > 0]):
            _outline(ax, flat == value, drawn.get_extent(), colour, style)
    ax.set_xlim(limits[0])
    ax.set_ylim(limits[1])


def _outline(ax: Any, mask: Any, extent: Sequence[float], colour: str, style: str) -> None:
    """The outline of a mask of rows from bottom to top; whole too where it ends with the slice."""
    left, right, bottom, top = extent
    rows, columns = mask.shape
    wide, high = (right - left) / columns, (top - bottom) / rows
    ax.contour(
        left + (np.arange(-1, columns + 1) + 0.5) * wide,
        bottom + (np.arange(-1, rows + 1) + 0.5) * high,
        np.pad(mask.astype(float), 1),
        levels=[0.5],
        colors=[colour],
        linestyles=[style],
        linewidths=1.0,
    )
