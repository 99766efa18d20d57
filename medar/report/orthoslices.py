"""Three orthogonal planes of a volume, with orientation letters, mm ticks and labels on top."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.files import atomic_path
from medar.volume import Volume
from medar.volume.display import display_range, labelled_middle

Plane = tuple[str, int, str, str]

PLANES: tuple[Plane, ...] = (
    ("sagittal", 0, "A", "S"),
    ("coronal", 1, "R", "S"),
    ("axial", 2, "R", "A"),
)
"""Name, the axis that is cut, and where its two array axes point."""

OPPOSITE = {"R": "L", "A": "P", "S": "I"}


def save_orthoslices(
    path: str | Path,
    volumes: Sequence[Volume],
    *,
    titles: Sequence[str],
    label: Volume | None = None,
    names: dict[int, str] | None = None,
    windows: Sequence[tuple[float, float] | None] = (),
) -> None:
    """Draw volumes of one grid below each other, each in three planes, to a PNG.

    The planes cross in the middle of the label, where there is one, or of the volume. As in a
    radiologist's view the patient's right is on the left of coronal and axial pictures.

    Args:
        path: the PNG.
        volumes: images (1, X, Y, Z); the first channel of each is drawn.
        titles: one for each volume.
        label: drawn over the first volume; of the same grid.
        names: label values and names, for the legend.
        windows: display range of each volume, in its units; default `display_range`.

    Raises:
        MedarError: another ending than .png, volumes of different shapes, or a file system that
            refuses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    need_png(path)
    if any(v.shape != volumes[0].shape for v in (*volumes, *([label] if label else []))):
        raise MedarError("orthogonal slices: all volumes and the label need the same shape")
    centre = _centre(volumes[0], label)
    x, y, z = volumes[0].grid.extent
    widths, height = (y, x, x), max(y, z)
    # One scale for all planes: a millimetre is as long in each.
    inches = 10.5 / sum(widths)
    size = (12.0, (height * inches + 0.8) * len(volumes) + (0.5 if label is not None else 0.0))
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(volumes), len(PLANES), squeeze=False, width_ratios=widths)
    for row, (volume, title) in enumerate(zip(volumes, titles, strict=True)):
        low, high = (windows[row] if windows else None) or display_range(volume)
        for column, plane in enumerate(PLANES):
            ax = axes[row][column]
            draw_plane(ax, volume, plane, centre, (low, high))
            if label is not None and row == 0:
                _draw_label(ax, label, plane, centre)
            _mark(ax, plane, _extent(volume, plane, centre))
            name = f"{title}\n{plane[0]}" if column == 0 else plane[0]
            ax.set_title(name, fontsize=9, loc="left")
    if label is not None:
        _legend(figure, label, names or {})
    save_png(figure, path)


def need_png(path: str | Path) -> None:
    """Refuse another ending than .png.

    Raises:
        MedarError: it has another.
    """
    if Path(path).suffix.lower() != ".png":
        raise MedarError(f"{path}: pictures are written as .png")


def save_png(figure: Any, path: str | Path) -> None:
    """Write a figure as PNG, atomically.

    Raises:
        MedarError: a file system that refuses.
    """
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a "$" in the name of a case is a dollar
    try:
        with warnings.catch_warnings(), atomic_path(path) as temporary:
            # Letters that the font has not are drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(temporary, format="png")
    except OSError as error:
        raise MedarError(f"{path}: cannot be written ({error.strerror or error})") from error


def plane_named(name: str) -> Plane:
    """One of `PLANES`.

    Raises:
        MedarError: there is none of that name.
    """
    for plane in PLANES:
        if plane[0] == name:
            return plane
    raise MedarError(f"plane {name!r}: allowed are {', '.join(one[0] for one in PLANES)}")


def _centre(volume: Volume, label: Volume | None) -> tuple[int, ...]:
    """The voxel where the planes cross: in the middle of the label, or of the volume."""
    middle = None if label is None else labelled_middle(label.array[0] > 0)
    return middle or tuple(n // 2 for n in volume.shape)


def _plane_of(array: npt.NDArray[Any], plane: Plane, centre: tuple[int, ...]) -> npt.NDArray[Any]:
    """A slice as rows from bottom to top and columns from left to right."""
    cut: npt.NDArray[Any] = np.take(array, centre[plane[1]], axis=plane[1])
    return cut.T


def draw_plane(
    ax: Any,
    volume: Volume,
    plane: Plane,
    centre: tuple[int, ...],
    window: tuple[float, float],
    colours: str = "gray",
) -> Any:
    """Draw one plane of a volume through the voxel `centre`, in mm; returns matplotlib's image.

    As in a radiologist's view the patient's right is on the left of coronal and axial pictures.
    """
    drawn = ax.imshow(
        _plane_of(volume.array[0], plane, centre),
        cmap=colours,
        vmin=window[0],
        vmax=window[1],
        origin="lower",
        extent=_extent(volume, plane, centre),
        interpolation="nearest",
    )
    if plane[2] == "R":
        ax.invert_xaxis()
    return drawn


def _mark(ax: Any, plane: Plane, extent: tuple[float, float, float, float]) -> None:
    """Orientation letters and mm ticks; the patient's right goes to the left of the picture."""
    _, _, end, top = plane
    left, right, bottom, up = extent
    mirrored = end == "R"
    # Each imshow resets the limits: they are set once everything is drawn.
    ax.set_xlim((right, left) if mirrored else (left, right))
    ax.set_ylim(bottom, up)
    left_letter, right_letter = (end, OPPOSITE[end]) if mirrored else (OPPOSITE[end], end)
    for x, y, letter in (
        (0.03, 0.5, left_letter),
        (0.97, 0.5, right_letter),
        (0.5, 0.96, top),
        (0.5, 0.04, OPPOSITE[top]),
    ):
        ax.text(
            x, y, letter, transform=ax.transAxes, color="yellow", fontsize=9,
            ha="center", va="center", weight="bold",
        )  # fmt: skip
    ax.set_anchor("N")  # the planes of a row begin at one height
    ax.set_xlabel("mm", fontsize=7, labelpad=1)
    ax.tick_params(labelsize=7)


def _extent(
    volume: Volume, plane: Plane, centre: tuple[int, ...]
) -> tuple[float, float, float, float]:
    """Left, right, bottom and top edges in mm along the plane's own axes."""
    edges = []
    for axis in (a for a in range(3) if a != plane[1]):
        at = np.array(centre, dtype=float)
        at[axis] = -0.5
        first = (volume.affine @ np.append(at, 1.0))[axis]
        edges += [first, first + volume.shape[axis] * volume.spacing[axis]]
    return edges[0], edges[1], edges[2], edges[3]


def _draw_label(ax: Any, label: Volume, plane: Plane, centre: tuple[int, ...]) -> None:
    cut = _plane_of(label.array[0], plane, centre)
    shown = np.ma.masked_where(cut <= 0, _colour(cut))
    ax.imshow(
        shown,
        cmap="tab20",
        vmin=0,
        vmax=19,
        alpha=0.45,
        origin="lower",
        extent=_extent(label, plane, centre),
        interpolation="nearest",
    )


def _colour(value: Any) -> Any:
    """A label's place in the "tab20" palette: its ten strong colours first, then the pale ones."""
    return (value - 1) % 10 * 2 + (value - 1) // 10 % 2


def _legend(figure: Any, label: Volume, names: dict[int, str]) -> None:
    import matplotlib
    from matplotlib.patches import Patch

    colours = matplotlib.colormaps["tab20"]
    values = [int(v) for v in np.unique(label.array) if v > 0]
    patches = [
        Patch(color=colours(int(_colour(v))), alpha=0.6, label=names.get(v, str(v))) for v in values
    ]
    if patches:
        figure.legend(
            handles=patches, loc="outside lower center", ncols=min(6, len(patches)), fontsize=7,
            frameon=False,
        )  # fmt: skip
