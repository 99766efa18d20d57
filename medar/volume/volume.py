"""`Volume`: voxels, where they lie in the patient, and where they came from."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from medar.errors import MedarError
from medar.volume.geometry import Affine, Grid, Shape3, Spacing, reorient


@dataclass(frozen=True, kw_only=True, eq=False)
class Provenance:
    """Where a volume came from: what is needed to say so, and to go back there."""

    path: str
    """The file, or the folder of a DICOM series."""
    format: str
    """The format's name, for instance "NIfTI-1"."""
    grid: Grid
    """The grid as stored, in the file's own orientation."""
    dtype: str
    """The voxel type on disk."""
    notes: tuple[str, ...] = ()
    """What the reader found worth saying about the file's geometry."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """A 3D image or label map on a grid whose axes lie closest to right, anterior, superior.

    An integer array is a label map; anything else is an image, in float32. The array is read-only:
    a changed volume is a new one (`with_array`).

    Raises:
        MedarError: the array is not (C, X, Y, Z), or the affine is not RAS+ (use `from_array`).
    """

    array: npt.NDArray[Any]
    """(C, X, Y, Z): float32 intensities, or integer labels with C = 1."""
    affine: Affine
    """(4, 4): voxel indices to RAS+ millimetres."""
    modality: str | None = None
    """"CT" or "MR" where known."""
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        if array.ndim != 4 or min(array.shape) < 1:
            raise MedarError(f"volume array of shape {array.shape}: (C, X, Y, Z) is needed")
        if array.dtype.kind == "b":
            array = array.astype(np.uint8)
        elif array.dtype.kind == "f":
            array = array.astype(np.float32, copy=False)
        elif array.dtype.kind not in "iu":
            raise MedarError(f"volume array of type {array.dtype}: real numbers are needed")
        if array.dtype.kind in "iu" and array.shape[0] != 1:
            raise MedarError(
                f"label array of shape {array.shape}: labels have one channel; "
                "split them, or make them float32 if they are an image"
            )
        array = array.view()
        array.setflags(write=False)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", self.grid.affine)
        if self.grid.orientation != "RAS":
            raise MedarError(
                f"volume axes point to {self.grid.orientation}: medar keeps RAS inside; "
                "Volume.from_array turns any orientation"
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
            raise MedarError(f"array of shape {array.shape}: (X, Y, Z) or (C, X, Y, Z) is needed")
        x, y, z = array.shape[1:]
        grid = Grid(shape=(x, y, z), affine=np.asarray(affine))
        turned = np.ascontiguousarray(reorient(array, grid.affine, "RAS"))
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
        """Whether the voxels are labels: integers, never blended with their neighbours."""
        return self.array.dtype.kind in "iu"

    def with_array(self, array: npt.NDArray[Any]) -> "Volume":
        """The same grid and provenance with other voxels, (C, X, Y, Z)."""
        changed = replace(self, array=array)
        if changed.shape != self.shape:
            raise MedarError(f"array of grid {changed.shape} on a grid of {self.shape}")
        return changed

    def __repr__(self) -> str:
        sides = "x".join(map(str, self.shape))
        spacing = "x".join(f"{s:.4g}" for s in self.spacing)
        kind = "labels" if self.is_label else self.modality or "image"
        return f"Volume({kind}, {self.channels} channel(s), {sides} voxels of {spacing} mm)"
