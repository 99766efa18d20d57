"""Three orthogonal slices of a volume as PNG, with orientation letters, mm ticks and labels.

As in a radiologist's view, the patient's right is on the left of coronal and axial slices.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.files import atomic_path
from medar.report.formatting import shorten
from medar.volume import Volume
from medar.volume.display import Range, display_range, labelled_middle

Voxel = tuple[int, ...]


class Plane(NamedTuple):
    """An anatomical plane."""

    name: str
    axis: int
    """The array axis perpendicular to it."""
    across: str
    """Where the first of the other two axes points, as an orientation letter."""
    up: str
    """Where the second one points."""


PLANES = (
    Plane("sagittal", 0, "A", "S"),
    Plane("coronal", 1, "R", "S"),
    Plane("axial", 2, "R", "A"),
)
OPPOSITE = {"R": "L", "A": "P", "S": "I"}
WIDTH = 12.0
"""Width of the figure in inches."""
DPI = 110
LETTER = 0.083
"""Width of a letter of titles in inches."""
LEGEND_COLUMNS, LEGEND_NAME = 6, 22
"""Labels per row of the legend, and characters of their names."""


def save_orthoslices(
    path: str | Path,
    volumes: Sequence[Volume],
    *,
    titles: Sequence[str],
    label: Volume | None = None,
    names: dict[int, str] | None = None,
    windows: Sequence[Range | None] = (),
) -> None:
    """Draw volumes of one grid to a PNG, one row per volume and one column per plane.

    The planes cross in the middle of the label map if there is one, else of the volume.

    Args:
        path: the PNG.
        volumes: images (1, X, Y, Z); the first channel of each is drawn.
        titles: one per volume.
        label: label map (1, X, Y, Z), drawn over the first volume.
        names: names of label values, for the legend.
        windows: display range of each volume, in its units; default `display_range`.

    Raises:
        MedarError: the path does not end in .png, the shapes differ, or the file cannot be
            written.
    """
    require_png(path)
    if any(v.shape != volumes[0].shape for v in (*volumes, *([label] if label else []))):
        raise MedarError("orthogonal slices: all volumes and the label must have the same shape")
    centre = _centre(volumes[0], label)
    x, y, z = volumes[0].grid.extent
    widths = (y, x, x)
    inches = (WIDTH - 1.5) / sum(widths)  # of a mm, in all slices
    shown = [] if label is None else [int(v) for v in np.unique(label.array) if v > 0]
    legend = 0.3 + 0.17 * -(-len(shown) // LEGEND_COLUMNS) if label is not None else 0.0
    height = (max(y, z) * inches + 0.8) * len(volumes) + legend
    figure = new_figure((WIDTH, height), layout="constrained", facecolor="black")
    axes = figure.subplots(len(volumes), len(PLANES), squeeze=False, width_ratios=widths)
    for row, (volume, title) in enumerate(zip(volumes, titles, strict=True)):
        window = (windows[row] if windows else None) or display_range(volume)
        for column, plane in enumerate(PLANES):
            ax = axes[row][column]
            draw_plane(ax, volume, plane, centre, window)
            if label is not None and row == 0:
                _draw_label(ax, label, plane, centre)
            _annotate(ax, plane, _extent(volume, plane, centre))
            name = plane.name
            if column == 0:
                name = f"{shorten(title, max(6, int(widths[0] * inches / LETTER)))}\n{name}"
            ax.set_title(name, fontsize=10, loc="left", color="white", parse_math=False)
    if label is not None:
        _draw_legend(figure, shown, names or {})
    save_png(figure, path)


def require_png(path: str | Path) -> None:
    """Check the suffix of a picture's path.

    Raises:
        MedarError: it is not .png.
    """
    if Path(path).suffix.lower() != ".png":
        raise MedarError(f"{path}: pictures are written as .png")


def new_figure(size: tuple[float, float], **options: Any) -> Any:
    """A matplotlib figure of a size in inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=DPI, **options)
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Any, path: str | Path) -> None:
    """Write a figure as PNG, atomically.

    Raises:
        MedarError: the file cannot be written.
    """
    for text in _texts(figure):
        text.set_parse_math(False)  # case names may contain "$"
    try:
        with warnings.catch_warnings(), atomic_path(path) as temporary:
            # Letters that are missing from the font are drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(temporary, format="png")
    except OSError as error:
        raise MedarError(f"{path}: cannot be written ({error.strerror or error})") from error


def _texts(figure: Any) -> Iterator[Any]:
    """Everything written on a figure but the numbers of axes, which would be laid out for it."""
    yield from figure.texts
    for ax in figure.axes:
        yield from ax.texts
        yield from (ax.title, ax.xaxis.label, ax.yaxis.label)
    for legend in figure.legends:
        yield from legend.get_texts()


def select_plane(name: str) -> Plane:
    """The plane of a name.

    Raises:
        MedarError: the name is unknown.
    """
    for plane in PLANES:
        if plane.name == name:
            return plane
    raise MedarError(f"unknown plane {name!r}; known: {', '.join(one.name for one in PLANES)}")


def middle_voxel(volume: Volume) -> Voxel:
    """The voxel in the middle of a volume."""
    return tuple(side // 2 for side in volume.shape)


def draw_plane(
    ax: Any,
    volume: Volume,
    plane: Plane,
    centre: Voxel,
    window: Range,
    colours: str = "gray",
) -> Any:
    """Draw the slice of a volume through a voxel, with axes in mm; returns matplotlib's image."""
    image = ax.imshow(
        _slice(volume.array[0], plane, centre),
        cmap=colours,
        vmin=window[0],
        vmax=window[1],
        origin="lower",
        extent=_extent(volume, plane, centre),
        interpolation="nearest",
    )
    if plane.across == "R":
        ax.invert_xaxis()
    return image


def _centre(volume: Volume, label: Volume | None) -> Voxel:
    """The voxel where the planes cross."""
    middle = None if label is None else labelled_middle(label.array[0] > 0)
    return middle or middle_voxel(volume)


def _slice(array: npt.NDArray[Any], plane: Plane, centre: Voxel) -> npt.NDArray[Any]:
    """A slice of (X, Y, Z): rows from bottom to top, columns along the first remaining axis."""
    cut: npt.NDArray[Any] = np.take(array, centre[plane.axis], axis=plane.axis)
    return cut.T


def _extent(volume: Volume, plane: Plane, centre: Voxel) -> tuple[float, float, float, float]:
    """Start and end of both axes of a slice in mm: of the horizontal one, then the vertical one."""
    edges = []
    for axis in (a for a in range(3) if a != plane.axis):
        corner = np.array(centre, dtype=float)
        corner[axis] = -0.5
        start = (volume.affine @ np.append(corner, 1.0))[axis]
        edges += [start, start + volume.shape[axis] * volume.spacing[axis]]
    return edges[0], edges[1], edges[2], edges[3]


def _annotate(ax: Any, plane: Plane, extent: tuple[float, float, float, float]) -> None:
    """Orientation letters and ticks in mm."""
    start, end, bottom, top = extent
    mirrored = plane.across == "R"
    # Each imshow resets the limits, so they are set after all drawing.
    ax.set_xlim((end, start) if mirrored else (start, end))
    ax.set_ylim(bottom, top)
    sides = (OPPOSITE[plane.across], plane.across)
    left, right = reversed(sides) if mirrored else sides
    for x, y, letter in (
        (0.03, 0.5, left),
        (0.97, 0.5, right),
        (0.5, 0.96, plane.up),
        (0.5, 0.04, OPPOSITE[plane.up]),
    ):
        ax.text(
            x, y, letter, transform=ax.transAxes, color="yellow", fontsize=9,
            ha="center", va="center", weight="bold",
        )  # fmt: skip
    ax.set_anchor("N")  # aligns the slices of a row at the top
    ax.set_xlabel("mm", fontsize=8, labelpad=1, color="white")
    ax.tick_params(labelsize=8, colors="white")
    ax.spines[:].set_color("white")


def _draw_label(ax: Any, label: Volume, plane: Plane, centre: Voxel) -> None:
    cut = _slice(label.array[0], plane, centre)
    ax.imshow(
        np.ma.masked_where(cut <= 0, _colour_index(cut)),
        cmap="tab20",
        vmin=0,
        vmax=19,
        alpha=0.45,
        origin="lower",
        extent=_extent(label, plane, centre),
        interpolation="nearest",
    )


def _colour_index(value: Any) -> Any:
    """Index of a label value in the palette "tab20": the ten strong colours before the pale."""
    return (value - 1) % 10 * 2 + (value - 1) // 10 % 2


def _draw_legend(figure: Any, values: Sequence[int], names: dict[int, str]) -> None:
    import matplotlib
    from matplotlib.patches import Patch

    colours = matplotlib.colormaps["tab20"]
    patches = [
        Patch(
            color=colours(int(_colour_index(v))),
            alpha=0.6,
            label=shorten(names.get(v, str(v)), LEGEND_NAME),
        )
        for v in values
    ]
    if patches:
        figure.legend(
            handles=patches, loc="outside lower center", fontsize=8, frameon=False,
            labelcolor="white",
            ncols=min(LEGEND_COLUMNS, len(patches)),
        )  # fmt: skip
