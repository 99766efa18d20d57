"""The three planes through the middle of a volume as HTML, for notebooks.

As in a radiologist's view, the patient's right is on the left of coronal and axial slices.
"""

from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.notebook import html_picture
from medar.volume.grey_levels import grey_range

PIXELS = 180
"""Width or height on the screen of the longest side of a volume."""
MOST_VOXELS = 360
"""Longest side of a picture in voxels: larger slices are thinned."""
THINNED = 96
"""Voxels per side that grey levels are measured on."""
COLOURS = (
    (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
    (213, 94, 0), (204, 121, 167),
)  # fmt: skip
"""RGB of label 0 and of the others, which take turns."""
PLANES = (("sagittal", 0, "P", "A"), ("coronal", 1, "R", "L"), ("axial", 2, "R", "L"))
"""Name, perpendicular axis, and what lies on the left and on the right."""


def planes_html(
    array: npt.NDArray[Any],
    spacing: tuple[float, float, float],
    modality: str | None,
    caption: str,
) -> str:
    """The middle slices of a volume, in one scale of mm.

    Args:
        array: (X, Y, Z) along RAS+ axes; integers are labels.
        spacing: voxel sides in mm.
        modality: "CT", "MR" or None, which decides the grey levels.
        caption: text above.
    """
    extent = [n * side for n, side in zip(array.shape, spacing, strict=True)]
    scale = PIXELS / max(extent)
    figures = []
    for name, axis, left, right in PLANES:
        across, up = (one for one in range(3) if one != axis)
        pixels = _slice(array, axis, modality)
        width, height = (max(1, round(extent[one] * scale)) for one in (across, up))
        picture = html_picture(pixels, width, height, f"{name} slice")
        text = f"{left} &nbsp;{name}&nbsp; {right}"
        figures.append(f'<div style="text-align:center">{picture}<br><small>{text}</small></div>')
    row = "display:flex;flex-wrap:wrap;gap:0.8em;align-items:end"
    return f'<div>{escape(caption)}<div style="{row}">{"".join(figures)}</div></div>'


def _slice(array: npt.NDArray[Any], axis: int, modality: str | None) -> npt.NDArray[np.uint8]:
    """The middle slice as pixels from the top left."""
    step = [max(1, -(-side // MOST_VOXELS)) for side in array.shape]
    cut = np.take(array, array.shape[axis] // 2, axis=axis)
    across, up = (step[one] for one in range(3) if one != axis)
    shown = cut[::across, ::up].T[::-1]
    if axis != 0:
        shown = shown[:, ::-1]
    if array.dtype.kind in "iu":
        index = np.where(shown > 0, 1 + (shown - 1) % (len(COLOURS) - 1), 0)
        coloured: npt.NDArray[np.uint8] = np.array(COLOURS, np.uint8)[index]
        return coloured
    thinned = array[tuple(slice(None, None, max(1, side // THINNED)) for side in array.shape)]
    low, high = grey_range(thinned, modality)
    finite = np.nan_to_num(shown.astype(np.float64), nan=low, posinf=high, neginf=low)
    grey: npt.NDArray[np.uint8] = np.rint(
        np.clip((finite - low) / (high - low), 0, 1) * 255
    ).astype(np.uint8)
    return grey
