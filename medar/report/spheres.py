"""A montage of inserted spheres and of what reconstructions make of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medar.errors import MedarError
from medar.report.orthoslices import new_figure, require_png, save_png

if TYPE_CHECKING:
    from medar.evaluation.reconstruction.panel_meters import Shown

SIDE = 1.7
"""Width of a slice in inches."""
RING = "#ff9f40"


def save_spheres(path: str | Path, shown: "Sequence[Shown]") -> None:
    """Draw axial slices through spheres to a PNG: a column per diameter, a row per method.

    The first row is the original with the sphere. Rings mark the spheres, 2 voxels outside their
    surface. All slices share the range of the intensity window.

    Args:
        path: the PNG.
        shown: at least one, all with the same methods.

    Raises:
        MedarError: the path does not end in .png, there is nothing to draw, or the file cannot be
            written.
    """
    from matplotlib.patches import Circle

    require_png(path)
    if not shown:
        raise MedarError(f"{path}: no structure to draw")
    names = list(shown[0].slices)
    wide, high = shown[0].slices[names[0]].shape
    size = (SIDE * len(shown) + 0.4, (SIDE * high / wide + 0.05) * len(names) + 0.3)
    figure = new_figure(size, layout="constrained", facecolor="black")
    axes = figure.subplots(len(names), len(shown), squeeze=False)
    for row, name in zip(axes, names, strict=True):
        for ax, one in zip(row, shown, strict=True):
            ax.imshow(one.slices[name].numpy().T, cmap="gray", vmin=-1, vmax=1, origin="lower")
            centre, radius = one.structure.centre[:2], one.structure.size / 2 + 2
            ax.add_patch(Circle(centre, radius, fill=False, color=RING, linewidth=0.8))
            ax.invert_xaxis()  # the patient's right is on the left
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=7, color="white")
    for ax, one in zip(axes[0], shown, strict=True):
        ax.set_title(f"{one.structure.size:g} voxels", fontsize=8, color="white")
    save_png(figure, path)
