"""Volumes as stacks of slices for the page: one JPEG per volume, together within a budget."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.report.blocks import Stack
from medar.volume import Volume
from medar.volume.display import Range, display_range

BUDGET = 8_000_000
"""Bytes of all stacks in the page, as base64. With the other pictures, which have 1 to 3 MB, a
report stays below 15 MB."""
MAX_SIDE = 256
"""Voxels per side; larger volumes are averaged."""
QUALITIES = ((95, 1), (88, 1), (75, 1), (60, 1), (75, 2), (60, 2), (60, 4))
"""JPEG quality, and the factor by which volumes are reduced: the first that fits is taken."""
BLOCK = 8
"""Pixels of a JPEG block: tiles of whole blocks do not bleed into each other."""

Grey = npt.NDArray[np.uint8]


def make_stacks(
    volumes: Sequence[tuple[str, bool, Volume]], *, budget: int = BUDGET
) -> tuple[list[Stack], str]:
    """Encode volumes, with lower quality, then fewer voxels, then fewer volumes to fit a budget.

    All share one display range, the widest of all.

    Args:
        volumes: name, whether it is real, and the volume, whose first channel is shown.
        budget: bytes of all stacks as base64.

    Returns:
        The stacks, and a sentence about what was reduced; empty if nothing was.

    Raises:
        MedarError: there is no volume, or the first does not fit.
    """
    if not volumes:
        raise MedarError("no volume to show")
    ranges = [display_range(volume) for _, _, volume in volumes]
    window = min(low for low, _ in ranges), max(high for _, high in ranges)
    whole = [_grey(volume.array[0], window) for _, _, volume in volumes]
    fit = max(-(-max(array.shape) // MAX_SIDE) for array in whole)
    best: list[Stack] = []
    quality, factor = QUALITIES[0]
    for quality, factor in QUALITIES:
        best = []
        spent = 0
        for (name, real, volume), array in zip(volumes, whole, strict=True):
            stack = _encode(name, real, volume, array, quality, factor * fit)
            spent += _encoded_size(stack)
            if spent > budget:
                break
            best.append(stack)
        if len(best) == len(volumes):
            break
    if not best:
        raise MedarError(f"not even one volume fits into {budget:,} bytes")
    return best, _remark(len(volumes) - len(best), factor * fit)


def _remark(left_out: int, factor: int) -> str:
    parts = []
    if factor > 1:
        parts.append(f"Voxels are averages of {factor} × {factor} × {factor}.")
    if left_out:
        parts.append(f"{left_out} more would make the page too large.")
    return " ".join(parts)


def _grey(array: npt.NDArray[Any], window: Range) -> npt.NDArray[np.float32]:
    """(X, Y, Z) from 0 for black to 255 for white."""
    low, high = window
    scaled = (np.nan_to_num(array.astype(np.float32)) - low) * (255 / max(high - low, 1e-6))
    clipped: npt.NDArray[np.float32] = scaled.clip(0, 255)
    return clipped


def _encode(
    name: str,
    real: bool,
    volume: Volume,
    array: npt.NDArray[np.float32],
    quality: int,
    factor: int,
) -> Stack:
    from PIL import Image

    small = _averaged(array, factor)
    x, y, z = small.shape
    width, height = (-(-side // BLOCK) * BLOCK for side in (x, y))
    columns = math.ceil(math.sqrt(z * height / width)) or 1
    rows = -(-z // columns)
    tiles = small.transpose(2, 1, 0)[:, ::-1, ::-1]  # (slice, anterior to posterior, right to left)
    margin = ((0, rows * columns - z), (0, height - y), (0, width - x))
    padded = np.pad(tiles, margin, mode="edge").reshape(rows, columns, height, width)
    picture = padded.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=quality, optimize=True)
    spacing = tuple(float(f"{side * factor:.4g}") for side in volume.spacing)
    return Stack(
        name, real, data.getvalue(), columns, (width, height), (x, y, z), spacing  # type: ignore[arg-type]
    )  # fmt: skip


def _averaged(array: npt.NDArray[np.float32], factor: int) -> Grey:
    """Means of cubes of voxels; the last ones are repeated to fill the outermost."""
    margin = [(0, -side % factor) for side in array.shape]
    x, y, z = (-(-side // factor) for side in array.shape)
    cubes = np.pad(array, margin, mode="edge").reshape(x, factor, y, factor, z, factor)
    small: Grey = cubes.mean(axis=(1, 3, 5)).round().astype(np.uint8)
    return small


def _encoded_size(stack: Stack) -> int:
    """Bytes as base64."""
    return 4 * -(-len(stack.jpeg) // 3)
