"""Montages of slices as PNG: contact sheets, previews, reconstructions and worst cases.

All pictures of one montage have the same scale in mm. The patient's right is on the left of coronal
and axial slices.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medar.errors import MedarError
from medar.report.formatting import shorten
from medar.report.orthoslices import (
    PLANES,
    Plane,
    draw_plane,
    middle_voxel,
    new_figure,
    require_png,
    save_png,
    select_plane,
)
from medar.volume import Volume
from medar.volume.display import Range, display_range

if TYPE_CHECKING:
    from medar.evaluation.reconstruction.cases import Example
    from medar.evaluation.segmentation.worst import Slice, WorstCase

COLUMNS = 8
"""Volumes side by side on a contact sheet; further ones continue below."""
PREVIEW_ROWS = 4
"""Maximum number of samples in a preview."""
SMALL, MEDIUM, LARGE = 1.3, 1.7, 2.2
"""Size of a slice in inches: contact sheets and previews, reconstructions, worst cases."""
TITLE = 0.2
"""Height of a title on a contact sheet or preview, in inches."""
GAPS = {"left": 0, "right": 1, "bottom": 0, "wspace": 0.03, "hspace": 0.03}
ERROR_RANGE = 0.25
"""Limit of the error map, as a fraction of the width of the display range."""
LETTER = 0.062
"""Width of a letter of titles and names in inches, at a size of 7 points."""
READABLE = 0.85
"""Points of letters per inch of a figure: 10 pixels in the column of a report."""
TRUTH, PREDICTION = "#4fc3f7", "#ff9f40"


def contact_sheet(
    volumes: Sequence[Volume],
    path: str | Path,
    *,
    titles: Sequence[str] | None = None,
    real: Sequence[Volume] = (),
    real_titles: Sequence[str] | None = None,
) -> None:
    """Draw the middle slices of volumes to a PNG, one column per volume, real volumes below.

    All slices share one display range: that of the real volumes if there are any.

    Args:
        volumes: at least one generated volume; the first channel of each is drawn.
        path: the PNG.
        titles: one per volume; default "0", "1", ...
        real: real volumes for comparison.
        real_titles: one per real volume; default "real 0", "real 1", ...

    Raises:
        MedarError: the path does not end in .png, there is no volume, or the file cannot be
            written.
    """
    require_png(path)
    if not volumes:
        raise MedarError(f"{path}: no volume to draw")
    generated = list(zip(titles or map(str, range(len(volumes))), volumes, strict=True))
    compared = list(zip(real_titles or [f"real {k}" for k in range(len(real))], real, strict=True))
    columns = min(COLUMNS, max(len(generated), len(compared)))
    bands = [
        group[start : start + columns]
        for group in (generated, compared)
        for start in range(0, len(group), columns)
    ]
    ranges = [display_range(volume) for volume in real or volumes]
    window = min(low for low, _ in ranges), max(high for _, high in ranges)
    extents = [volume.grid.extent for volume in (*volumes, *real)]
    x, y, z = (max(extent[axis] for extent in extents) for axis in range(3))
    inches = SMALL / max(x, y, z)
    letters = _letters(max(x, y) * inches)
    heights = [TITLE, z * inches, z * inches, y * inches] * len(bands)
    figure = new_figure((columns * max(x, y) * inches, sum(heights)), facecolor="black")
    axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    figure.subplots_adjust(top=1, **GAPS)
    for ax in axes.flat:
        ax.set_axis_off()
    for top, band in zip(range(0, len(heights), 4), bands, strict=True):
        for column, (title, volume) in enumerate(band):
            head, *cells = axes[top : top + 4, column]
            head.text(
                0.5,
                0.5,
                shorten(title, letters),
                fontsize=7,
                color="white",
                ha="center",
                va="center",
            )
            for ax, plane in zip(cells, PLANES, strict=True):
                draw_plane(ax, volume, plane, middle_voxel(volume), window)
    save_png(figure, path)


class ScalePreview:
    """Draws a batch of samples again after each scale: one row per sample, one column per scale.

    Pass an instance as the `preview` of a synthesizer. Of several batches, the last one remains.

    Args:
        path: the PNG.
        plane: "sagittal", "coronal" or "axial"; the slice runs through the middle.

    Raises:
        MedarError: the path does not end in .png, or the plane is unknown.
    """

    def __init__(self, path: str | Path, *, plane: str = "coronal") -> None:
        require_png(path)
        self.path = Path(path)
        self._plane = select_plane(plane)
        self._columns: dict[int, list[Volume]] = {}

    def __call__(self, scales: int, volumes: Sequence[Volume]) -> None:
        """Add a column with a batch decoded from its first `scales` scales, and write the PNG.

        Raises:
            MedarError: the file cannot be written.
        """
        if self._columns and scales <= max(self._columns):
            self._columns = {}  # a new batch
        self._columns[scales] = list(volumes[:PREVIEW_ROWS])
        save_png(self._figure(), self.path)

    def _figure(self) -> object:
        """All scales so far; the slices of a row share the display range of the newest one."""
        rows = list(zip(*self._columns.values(), strict=True))
        width, height = _sides(rows[0][0], self._plane)
        inches = SMALL / max(width, height)
        size = (len(self._columns) * width * inches, len(rows) * height * inches + TITLE)
        figure = new_figure(size, facecolor="black")
        axes = figure.subplots(len(rows), len(self._columns), squeeze=False)
        figure.subplots_adjust(top=1 - TITLE / size[1], **GAPS)
        for line, row in zip(axes, rows, strict=True):
            window = display_range(row[-1])
            for ax, volume in zip(line, row, strict=True):
                draw_plane(ax, volume, self._plane, middle_voxel(volume), window)
                ax.set_axis_off()
        for ax, scales in zip(axes[0], self._columns, strict=True):
            ax.set_title(_scales(scales), color="white", fontsize=7)
        return figure


def save_reconstructions(
    path: str | Path, examples: "Sequence[Example]", *, plane: str = "axial", unit: str = ""
) -> None:
    """Draw the middle slice of cases and of their reconstructions to a PNG, one row per case.

    Columns: the original; the reconstruction from the coarsest 1, 2, ... K scales; that with
    detail, if there is a detail decoder; and the error of the one from all scales (reconstruction
    minus original; red is too bright, blue too dark) with a colour bar. All grey slices of a row
    share one display range.

    Args:
        path: the PNG.
        examples: at least one; all with the same number of prefixes.
        plane: "sagittal", "coronal" or "axial".
        unit: unit of the intensities, for the colour bar.

    Raises:
        MedarError: the path does not end in .png, there is no example, the plane is unknown, or
            the file cannot be written.
    """
    require_png(path)
    if not examples:
        raise MedarError(f"{path}: no case to draw")
    cut = select_plane(plane)
    scales = len(examples[0].prefixes)
    width, height = _sides(examples[0].original, cut)
    inches = MEDIUM * min(max(height / width, 0.3), 3.0)
    last = f"all {scales} scales" if scales > 1 else "reconstruction"
    titles = ["original", *(_scales(k) for k in range(1, scales)), last]
    titles += ["error"] if examples[0].detailed is None else ["with detail", "error"]
    size = (MEDIUM * len(titles) + 1.3, (inches + 0.1) * len(examples) + 0.5)
    letters = max(8.0, READABLE * size[0])
    figure = new_figure(size, layout="constrained", facecolor="black")
    axes = figure.subplots(len(examples), len(titles), squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        _draw_example(figure, row, example, cut, unit, letters)
        name = shorten(example.name, _letters(inches * 7 / letters))
        row[0].set_ylabel(name, fontsize=letters, color="white")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=letters, color="white")
    save_png(figure, path)


def _draw_example(
    figure: Any, row: Any, example: "Example", plane: Plane, unit: str, letters: float
) -> None:
    """One row of a montage of reconstructions."""
    original, reconstruction = example.original, example.prefixes[-1]
    window, centre = display_range(original), middle_voxel(original)
    shown = [original, *example.prefixes]
    if example.detailed is not None:
        shown.append(example.detailed)
    for ax, volume in zip(row, shown, strict=False):
        draw_plane(ax, volume, plane, centre, window)
    error = original.with_array(np.subtract(reconstruction.array, original.array))
    limit = ERROR_RANGE * (window[1] - window[0])
    image = draw_plane(row[-1], error, plane, centre, (-limit, limit), "RdBu_r")
    bar = figure.colorbar(
        image, ax=row[-1], extend="both", shrink=0.9, ticks=(-limit, 0, limit), format="%.3g"
    )
    bar.ax.tick_params(labelsize=0.8 * letters, colors="white")
    bar.set_label(unit, fontsize=0.8 * letters, color="white")
    bar.outline.set_edgecolor("white")
    for ax in row:
        ax.set(xticks=[], yticks=[])


def save_worst_cases(path: str | Path, cases: "Sequence[WorstCase]") -> None:
    """Draw slices of the worst cases of a segmentation to a PNG, one row per case.

    Columns: sagittal, coronal, axial. The true label is outlined solid, the prediction dashed.

    Args:
        path: the PNG.
        cases: at least one.

    Raises:
        MedarError: the path does not end in .png, there is no case, or the file cannot be written.
    """
    from matplotlib.lines import Line2D

    require_png(path)
    if not cases:
        raise MedarError(f"{path}: no case to draw")
    size = (LARGE * len(PLANES) + 0.6, LARGE * len(cases) + 0.5)
    figure = new_figure(size, layout="constrained", facecolor="black")
    axes = figure.subplots(len(cases), len(PLANES), squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        for ax, one in zip(row, case.slices, strict=True):
            _draw_outlined(ax, one, case.window)
        name = shorten(case.name, _letters(LARGE))
        row[0].set_ylabel(f"{name}\nDice {case.dice:.3f}", fontsize=7, color="white")
    for ax, plane in zip(axes[0], PLANES, strict=True):
        ax.set_title(plane.name, fontsize=8, color="white")
    lines = [
        Line2D([], [], color=TRUTH, label="truth"),
        Line2D([], [], color=PREDICTION, linestyle="--", label="prediction"),
    ]
    figure.legend(
        handles=lines, loc="outside lower center", ncols=2, fontsize=8, frameon=False,
        labelcolor="white",
    )  # fmt: skip
    save_png(figure, path)


def _draw_outlined(ax: Any, one: "Slice", window: Range) -> None:
    """One slice with the outlines of both label maps."""
    extent = draw_plane(ax, one.image, PLANES[one.axis], (0, 0, 0), window).get_extent()
    limits = ax.get_xlim(), ax.get_ylim()
    for label, colour, style in (
        (one.truth, TRUTH, "solid"),
        (one.predicted, PREDICTION, "dashed"),
    ):
        flat = np.take(label.array[0], 0, axis=one.axis).T
        for value in np.unique(flat[flat > 0]):
            _draw_outline(ax, flat == value, extent, colour, style)
    ax.set(xlim=limits[0], ylim=limits[1], xticks=[], yticks=[])


def _draw_outline(ax: Any, mask: Any, extent: Sequence[float], colour: str, style: str) -> None:
    """The outline of a mask (rows bottom to top), closed where it touches the edge of the slice."""
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


def _sides(volume: Volume, plane: Plane) -> tuple[float, float]:
    """Width and height of a slice in mm."""
    width, height = (side for axis, side in enumerate(volume.grid.extent) if axis != plane.axis)
    return width, height


def _letters(inches: float) -> int:
    """Letters that fit into a width."""
    return max(6, int(inches / LETTER) - 1)


def _scales(count: int) -> str:
    return f"{count} scale{'s' if count > 1 else ''}"
