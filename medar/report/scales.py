"""Samples while they are made: a row a sample, a column a scale, coarse to fine."""

from collections.abc import Sequence
from pathlib import Path

from medar.report.orthoslices import draw_plane, need_png, plane_named, save_png
from medar.volume import Volume
from medar.volume.display import display_range

ROWS = 4
"""Samples in the picture, at most."""

INCHES = 1.3
"""Longest side of a picture."""


class ScalePreview:
    """Draws a batch of samples anew after each scale; call it as a synthesizer's `preview`.

    The last of several batches stays.

    Args:
        path: the PNG.
        plane: "sagittal", "coronal" or "axial", through the middle.

    Raises:
        MedarError: another ending than .png, or an unknown plane.
    """

    def __init__(self, path: str | Path, *, plane: str = "coronal") -> None:
        need_png(path)
        self.path = Path(path)
        self._cut = plane_named(plane)
        self._columns: dict[int, list[Volume]] = {}

    def __call__(self, scales: int, volumes: Sequence[Volume]) -> None:
        """Take in a batch of which `scales` scales are done, and draw.

        Raises:
            MedarError: a file system that refuses.
        """
        if self._columns and scales <= max(self._columns):
            self._columns = {}  # another batch begins
        self._columns[scales] = list(volumes[:ROWS])
        save_png(self._figure(), self.path)

    def _figure(self) -> object:
        """All scales so far; all pictures of a row share the display range of its newest one."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        rows = list(zip(*self._columns.values(), strict=True))
        width, height = (
            side for axis, side in enumerate(rows[0][0].grid.extent) if axis != self._cut[1]
        )
        inches = INCHES / max(width, height)
        size = (len(self._columns) * width * inches, len(rows) * height * inches + 0.2)
        figure = Figure(figsize=size, dpi=110, facecolor="black")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(rows), len(self._columns), squeeze=False)
        top = 1 - 0.2 / size[1]
        figure.subplots_adjust(left=0, right=1, bottom=0, top=top, wspace=0.03, hspace=0.03)
        for line, row in zip(axes, rows, strict=True):
            window = display_range(row[-1])
            centre = tuple(side // 2 for side in row[-1].shape)
            for ax, volume in zip(line, row, strict=True):
                draw_plane(ax, volume, self._cut, centre, window)
                ax.set_axis_off()
        for ax, scales in zip(axes[0], self._columns, strict=True):
            ax.set_title(f"{scales} scale{'s' if scales > 1 else ''}", color="white", fontsize=7)
        return figure
