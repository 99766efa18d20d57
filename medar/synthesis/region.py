"""The region of a volume to fill: a label map or a box; and the volume without it.

The content of the region must not reach the model, so it is replaced before anything else: no
interpolation carries it out of the region, and no percentile is measured on it. It is replaced by
the mean of the voxels around it rather than by background: the encoder then sees a patch of tissue
instead of a hole of air, since its edges would change the neighbouring latents strongly.

X Y Z voxels of the volume's own grid, RAS+.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.volume import Grid, Volume

Mask = npt.NDArray[np.bool_]

RIM = 2
"""Width in voxels of the rim around a region whose mean replaces its content."""

Corner = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box along the axes of space or of the voxels, without its upper corner.

    Raises:
        MedarError: a side is not above 0.
    """

    low: Corner
    high: Corner
    unit: Literal["mm", "voxel"]
    """"mm": scanner coordinates, RAS+; "voxel": indices of the volume as medar holds it, RAS+."""

    def __post_init__(self) -> None:
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise MedarError(f"box {self}: the end of each side must be greater than its start")

    def __str__(self) -> str:
        sides = zip(self.low, self.high, strict=True)
        ending = "mm" if self.unit == "mm" else ""
        return ",".join(f"{low:g}:{high:g}" for low, high in sides) + ending

    @classmethod
    def parse(cls, text: str) -> "Box":
        """The inverse of `str`: 10:20,0:16,4:12 in voxels, or -20:15.5,0:30,40:60mm.

        Raises:
            MedarError: the text has another form, or a side is not above 0.
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
        """(X, Y, Z): the voxels whose centres lie inside."""
        affine = grid.affine if self.unit == "mm" else np.eye(4)
        i, j, k = np.ogrid[tuple(slice(n) for n in grid.shape)]
        inside = np.ones(grid.shape, dtype=np.bool_)
        for row, low, high in zip(affine[:3], self.low, self.high, strict=True):
            centre = row[0] * i + row[1] * j + row[2] * k + row[3]
            inside &= (centre >= low) & (centre < high)
        return inside


Region = Volume | Box


def region_of(volume: Volume, region: Region) -> Mask:
    """The voxels to fill, (X, Y, Z) on the volume's grid.

    Args:
        volume: to be filled in part.
        region: a box, or a volume on the same grid that is not 0 in the region.

    Raises:
        MedarError: another grid, or a region of no voxel or of all voxels.
    """
    if isinstance(region, Box):
        mask, name = region.mask(volume.grid), f"region {region}"
    else:
        name = region.provenance.path if region.provenance else "region"
        if not region.grid.matches(volume.grid) or region.channels != 1:
            raise MedarError(
                f"{name}: {region} is not on the grid of the volume to fill, {volume}; draw the "
                "region on that volume"
            )
        mask = region.array[0] != 0
    if not mask.any():
        raise MedarError(f"{name}: holds no voxel of the volume, {volume}")
    if mask.all():
        raise MedarError(f"{name}: covers the whole volume; leave a part of it outside")
    return mask


def without(volume: Volume, mask: Mask) -> Volume:
    """The volume with a region replaced by the mean of the voxels around it."""
    from scipy.ndimage import binary_dilation  # takes half a second to import

    around = binary_dilation(mask, iterations=RIM) & ~mask
    array = volume.array.copy()
    for channel in array:
        channel[mask] = channel[around].mean()
    return volume.with_array(array)
