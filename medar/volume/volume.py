"""`Volume`: voxels, their geometry and their provenance."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.volume.geometry import Affine, Grid, Shape3, Spacing, contiguous, reorient
from medar.volume.planes import planes_html


@dataclass(frozen=True, kw_only=True, eq=False)
class Provenance:
    """The file that a volume was read from, and its geometry, for writing."""

    path: str
    """The file, or the folder of a DICOM series."""
    format: str
    """The format's name, for instance "NIfTI-1"."""
    grid: Grid
    """The stored grid, in the file's own orientation."""
    dtype: str
    """The voxel type on disk."""
    notes: tuple[str, ...] = ()
    """Remarks of the reader about the file's geometry."""
    series: str | None = None
    """SeriesInstanceUID of a DICOM series."""
    frame_of_reference: str | None = None
    """FrameOfReferenceUID of a DICOM series."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """A 3D image or label map whose array axes are closest to right, anterior, superior (RAS+).

    An integer array is a label map; anything else is an image, in float32. The array is read-only:
    `with_array` makes a changed copy.

    Raises:
        MedarError: the array is not (C, X, Y, Z), or the affine is not RAS+ (use `from_array`).
    """

    array: npt.NDArray[Any]
    """(C, X, Y, Z): float32 intensities, or integer labels with C = 1."""
    affine: Affine
    """(4, 4): from voxel indices to RAS+ coordinates in mm."""
    modality: str | None = None
    """"CT", "MR" or None if unknown."""
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        if array.ndim != 4 or min(array.shape) < 1:
            raise MedarError(f"volume array must be (C, X, Y, Z), got shape {array.shape}")
        if array.dtype.kind == "b":
            array = array.astype(np.uint8)
        elif array.dtype.kind == "f":
            array = array.astype(np.float32, copy=False)
        elif array.dtype.kind not in "iu":
            raise MedarError(f"volume array must hold real numbers, got {array.dtype}")
        if array.dtype.kind in "iu" and array.shape[0] != 1:
            raise MedarError(
                f"label array must have one channel, got shape {array.shape}; "
                "split it, or convert it to float32 if it is an image"
            )
        array = array.view()
        array.setflags(write=False)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", self.grid.affine)
        if self.grid.orientation != "RAS":
            raise MedarError(
                f"volume orientation must be RAS, got {self.grid.orientation}; "
                "Volume.from_array accepts any orientation"
            )

    @classmethod
    def from_array(
        cls,
        array: npt.NDArray[Any],
        affine: npt.ArrayLike,
        *,
        modality: str | None = None,
        provenance: Provenance | None = None,
    ) -> "Volume":
        """A volume from an array in any orientation: (X, Y, Z) or (C, X, Y, Z)."""
        array = np.asarray(array)
        if array.ndim == 3:
            array = array[None]
        if array.ndim != 4:
            raise MedarError(f"array must be (X, Y, Z) or (C, X, Y, Z), got shape {array.shape}")
        x, y, z = array.shape[1:]
        grid = Grid(shape=(x, y, z), affine=np.asarray(affine))
        turned = contiguous(reorient(array, grid.affine, "RAS"))
        return cls(
            array=turned, affine=grid.to_ras().affine, modality=modality, provenance=provenance
        )

    @cached_property
    def grid(self) -> Grid:
        """Shape and affine together."""
        return Grid(shape=self.shape, affine=self.affine)

    @property
    def shape(self) -> Shape3:
        """Voxels along X, Y and Z."""
        x, y, z = self.array.shape[1:]
        return int(x), int(y), int(z)

    @property
    def channels(self) -> int:
        """Number of channels, C."""
        return int(self.array.shape[0])

    @property
    def spacing(self) -> Spacing:
        """Voxel sides in mm."""
        return self.grid.spacing

    @property
    def is_label(self) -> bool:
        """Whether the voxels are labels: integers, which are never mixed by interpolation."""
        return self.array.dtype.kind in "iu"

    def with_array(self, array: npt.NDArray[Any]) -> "Volume":
        """A copy with other voxels, (C, X, Y, Z), on the same grid."""
        changed = replace(self, array=array)
        if changed.shape != self.shape:
            raise MedarError(f"array must have the grid's shape {self.shape}, got {changed.shape}")
        return changed

    def __repr__(self) -> str:
        sides = "x".join(map(str, self.shape))
        spacing = "x".join(f"{s:.4g}" for s in self.spacing)
        kind = "labels" if self.is_label else self.modality or "image"
        channels = "1 channel" if self.channels == 1 else f"{self.channels} channels"
        return f"Volume({kind}, {channels}, {sides} voxels of {spacing} mm)"

    def _repr_html_(self) -> str:
        """For notebooks: the three planes through the middle of the first channel."""
        return planes_html(self.array[0], self.spacing, self.modality, repr(self))
