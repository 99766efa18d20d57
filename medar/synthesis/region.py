"""The part of a volume that is to be filled: a label map, or a box; and the volume without it.

What the region holds must not reach the model, so it is replaced before anything else is done with
the volume: no interpolation carries it out of the region, no percentile is measured on it. It is
replaced by the mean of the voxels around it rather than by the background: the encoder sees a patch
of tissue there instead of a hole of air, whose edges would change the latents beside it most.

X Y Z voxels of the volume's own grid, RAS+.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation

from medar.errors import MedarError
from medar.volume import Grid, Volume

Mask = npt.NDArray[np.bool_]

RIM = 2
"""Voxels around a region whose mean takes its place."""

Corner = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box along the axes of space, or of the voxels: lower corner within, upper one not.

    Raises:
        MedarError: a side that is not above 0.
    """

    low: Corner
    high: Corner
    unit: Literal["mm", "voxel"]
    """"mm": scanner coordinates, RAS+; "voxel": indices of the volume as medar holds it, RAS+."""

    def __post_init__(self) -> None:
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise MedarError(f"box {self}: each side must run from a number to a larger one")

    def __str__(self) -> str:
        sides = zip(self.low, self.high, strict=True)
        ending = "mm" if self.unit == "mm" else ""
        return ",".join(f"{low:g}:{high:g}" for low, high in sides) + ending

    @classmethod
    def parse(cls, text: str) -> "Box":
        """The inverse of `str`: 10:20,0:16,4:12 in voxels, or -20:15.5,0:30,40:60mm.

        Raises:
            MedarError: another form, or a side that is not above 0.
        """
        unit: Literal["mm", "voxel"] = "mm" if text.endswith("mm") else "voxel"
        sides = [side.split(":") for side in text.removesuffix("mm").split(",")]
        try:
            (a, b), (c, d), (e, f) = ((float(low), float(high)) for low, high in sides)
        except ValueError as error:
            raise MedarError(
                f"region {text!r}: neither a file nor a box such as 10:20,0:16,4:12 (voxels) or "
                "-20:15.5,0:30,40:60mm"
            ) from error
        return cls(low=(a, c, e), high=(b, d, f), unit=unit)

    def mask(self, grid: Grid) -> Mask:
        """(X, Y, Z): the voxels whose centres lie within."""
        affine = grid.affine if self.unit == "mm" else np.eye(4)
        i, j, k = np.ogrid[tuple(slice(n) for n in grid.shape)]
        inside = np.ones(grid.shape, dtype=np.bool_)
        for row, low, high in zip(affine[:3], self.low, self.high, strict=True):
            place = row[0] * i + row[1] * j + row[2] * k + row[3]
            inside &= (place >= low) & (place < high)
        return inside


Region = Volume | Box


def region_of(volume: Volume, region: Region) -> Mask:
    """(X, Y, Z) of the volume's grid: which voxels are to be filled.

    Args:
        volume: what is to be filled in part.
        region: a box, or a volume of the same grid that is not 0 there.

    Raises:
        MedarError: another grid, no voxel, or no voxel left beside the region.
    """
    if isinstance(region, Box):
        mask, name = region.mask(volume.grid), f"region {region}"
    else:
        name = region.provenance.path if region.provenance else "region"
        if not region.grid.matches(volume.grid) or region.channels != 1:
            raise MedarError(
                f"{name}: {region} is not on the grid of the volume to be filled, {volume}; draw "
                "the region on that volume"
            )
        mask = region.array[0] != 0
    if not mask.any():
        raise MedarError(f"{name}: holds no voxel of the volume, {volume}")
    if mask.all():
        raise MedarError(f"{name}: covers the whole volume, so that nothing of it is known")
    return mask


def without(volume: Volume, mask: Mask) -> Volume:
    """The volume with the mean of what is around a region in its place."""
    around = binary_dilation(mask, iterations=RIM) & ~mask
    array = volume.array.copy()
    for channel in array:
        channel[mask] = channel[around].mean()
    return volume.with_array(array)
