"""Voxel grids in patient space.

An affine maps voxel indices (i, j, k) to scanner coordinates in mm, whose axes point to the
patient's right, anterior and superior (RAS+), as in NIfTI. A `Grid` is an affine and a shape.
Orientation codes give the direction of each array axis in three letters: "RAS", "LPS", "PIR".
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from medar.errors import MedarError

Affine = npt.NDArray[np.float64]
Shape3 = tuple[int, int, int]
Spacing = tuple[float, float, float]

SHEAR_TOLERANCE = 2e-3
"""Largest |cosine| between two voxel axes that counts as a right angle: 0.11 degrees, which the
rounded slice positions of a DICOM series rarely exceed."""

MOST_VOXELS = 1 << 31
"""Of a grid that medar makes, 8 GB in float32; the largest CT of a whole body has a quarter."""

TILE = 32
"""Voxels along the sides of tiles that are moved at once."""

TIE = 1e-6
"""Direction cosines closer than this are equal."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Maps the coordinates of DICOM and ITK to RAS+."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """A lattice of voxels: the number along each axis, and their positions.

    Raises:
        MedarError: a side is below 1, or the affine is not a finite, invertible 4x4 matrix.
    """

    shape: Shape3
    affine: Affine

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise MedarError(f"grid shape must be three sides of at least 1 voxel, got {shape}")
        affine = checked_affine(self.affine)
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @cached_property
    def spacing(self) -> Spacing:
        """Distance between neighbouring voxel centres along each array axis, in mm."""
        return spacing_of(self.affine)

    @cached_property
    def orientation(self) -> str:
        """Directions of the array axes, for instance "RAS"."""
        return orientation_of(self.affine)

    @property
    def extent(self) -> Spacing:
        """Side lengths of the grid in mm, voxels included."""
        x, y, z = (n * s for n, s in zip(self.shape, self.spacing, strict=True))
        return x, y, z

    @property
    def is_sheared(self) -> bool:
        """Whether any two voxel axes are not at a right angle."""
        return shear_of(self.affine) > SHEAR_TOLERANCE

    def to_ras(self) -> "Grid":
        """The same voxels with the array axes permuted and flipped to lie closest to RAS+."""
        transform = axes_of(self.affine)
        affine = self.affine @ nib.orientations.inv_ornt_aff(transform, self.shape)
        shape = [0, 0, 0]
        for axis, n in enumerate(self.shape):
            shape[int(transform[axis, 0])] = n
        return Grid(shape=(shape[0], shape[1], shape[2]), affine=affine)

    def at_spacing(self, spacing: Spacing) -> "Grid":
        """A grid of another spacing with the same centre and, up to rounding, the same extent.

        Raises:
            MedarError: the spacing is not three positive numbers, or so small that the grid would
                have more than `MOST_VOXELS`.
        """
        if not is_spacing(spacing):
            raise MedarError(f"spacing must be three positive numbers in mm, got {spacing}")
        ratio = np.asarray(self.spacing) / np.asarray(spacing, dtype=np.float64)
        sides = np.maximum(1, np.rint(np.asarray(self.shape) * ratio))
        voxels = math.prod(sides.tolist())
        if not voxels <= MOST_VOXELS:
            given, fine = (" x ".join(f"{s:g}" for s in one) for one in (self.spacing, spacing))
            raise MedarError(
                f"a spacing of {fine} mm would make {voxels:.3g} voxels of "
                f"{math.prod(self.shape)} of {given} mm; at most {MOST_VOXELS} are possible: "
                "choose a larger spacing"
            )
        shape = sides.astype(int)
        affine = self.affine.copy()
        affine[:3, :3] /= ratio
        centre = self.affine[:3, :3] @ ((np.asarray(self.shape) - 1) / 2)
        affine[:3, 3] += centre - affine[:3, :3] @ ((shape - 1) / 2)
        return Grid(shape=(int(shape[0]), int(shape[1]), int(shape[2])), affine=affine)

    def window(self, start: Shape3, shape: Shape3) -> "Grid":
        """The grid of `shape` voxels from voxel `start` on, which may lie outside this grid."""
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ np.asarray(start, dtype=np.float64)
        return Grid(shape=shape, affine=affine)

    def matches(self, other: "Grid", *, tolerance: float = 0.1) -> bool:
        """Whether both grids have the same shape and corners within `tolerance` voxel sides."""
        return self.shape == other.shape and self.distance(other) <= tolerance * min(self.spacing)

    def distance(self, other: "Grid") -> float:
        """Largest distance, in mm, of this grid's corners under the two affines."""
        return corner_distance(self.shape, self.affine, other.affine)

    def to_dict(self) -> dict[str, Any]:
        """The grid as JSON-able values."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Grid":
        """The grid that `to_dict` described."""
        return cls(shape=tuple(value["shape"]), affine=np.asarray(value["affine"]))


def checked_affine(affine: npt.ArrayLike) -> Affine:
    """A copy of a 4x4 affine in float64.

    Raises:
        MedarError: it is not 4x4, not finite, not affine (its last row is not 0, 0, 0, 1), or
            singular (a zero spacing).
    """
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise MedarError(f"affine must be a 4x4 matrix, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise MedarError("affine must be finite, got NaN or Inf")
    if np.abs(matrix[3] - (0.0, 0.0, 0.0, 1.0)).max() > 1e-6:
        raise MedarError(f"affine's last row must be 0, 0, 0, 1, got {matrix[3].tolist()}")
    columns = np.linalg.norm(matrix[:3, :3], axis=0)
    if (columns <= 0).any() or abs(np.linalg.det(matrix[:3, :3] / columns)) < 1e-6:
        spacing = ", ".join(f"{s:g}" for s in columns)
        raise MedarError(
            f"affine is singular (spacing {spacing} mm): its three axes must be independent"
        )
    return matrix


def is_spacing(value: Any) -> bool:
    """Whether `value` is three positive finite numbers."""
    try:
        sides = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return sides.shape == (3,) and bool(np.isfinite(sides).all() and (sides > 0).all())


def spacing_of(affine: Affine) -> Spacing:
    """Voxel sides in mm: the lengths of the affine's columns."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def orientation_of(affine: Affine) -> str:
    """Direction of each array axis, for instance "RAS" or "LPI"."""
    return "".join(nib.orientations.ornt2axcodes(axes_of(affine)))


def axes_of(affine: Affine) -> npt.NDArray[np.float64]:
    """Direction of each array axis, (3, 2): the nearest patient axis, and 1 or -1 along it.

    Array axes are paired with patient axes so that the sum of their cosines is largest; at a tie
    (axes at 45 degrees) the axes keep their order, so that a grid turned to RAS+ counts as RAS+
    again. nibabel's `io_orientation`, which returns the same form, pairs the closest axes first and
    has no rule for ties; the two agree unless the axes are rotated far from the patient's.
    """
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(columns)
    rotation = left @ right
    cosines = np.abs(rotation) + TIE * np.eye(3)
    order = max(permutations(range(3)), key=lambda order: cosines[order, range(3)].sum())
    signs = np.where(rotation[order, range(3)] < -TIE, -1.0, 1.0)
    return np.stack([np.array(order, dtype=np.float64), signs], axis=1)


def shear_of(affine: Affine) -> float:
    """Largest |cosine| between two voxel axes: 0 for a right-angled grid."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(axes.T @ axes - np.eye(3)).max())


def shear_note(affine: Affine) -> str | None:
    """A note on sheared axes; None if all angles are right."""
    columns = np.linalg.norm(affine[:3, :3], axis=0)
    # `checked_affine` refuses zero and NaN columns.
    if not (np.isfinite(columns) & (columns > 0)).all() or shear_of(affine) <= SHEAR_TOLERANCE:
        return None
    return f"sheared voxel axes (cosine {shear_of(affine):.3f} between two of them)"


def corner_distance(shape: Shape3, a: Affine, b: Affine) -> float:
    """Largest distance, in mm, between the corner voxels of `shape` under two affines."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    gap = (a[:3, :3] - b[:3, :3]) @ corners + (a[:3, 3] - b[:3, 3])[:, None]
    return float(np.linalg.norm(gap, axis=0).max())


def reorient(array: npt.NDArray[Any], source: Affine, target: str) -> npt.NDArray[Any]:
    """Permute and flip the axes of an (X, Y, Z) or (C, X, Y, Z) array to another orientation."""
    change = nib.orientations.ornt_transform(axes_of(source), nib.orientations.axcodes2ornt(target))
    if array.ndim == 3:
        return np.asarray(nib.orientations.apply_orientation(array, change))
    turned = nib.orientations.apply_orientation(np.moveaxis(array, 0, -1), change)
    return np.asarray(np.moveaxis(turned, -1, 0))


def contiguous(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A (C, X, Y, Z) array in C order; the array itself if it is so already.

    Most files hold X first. Their voxels are moved in tiles of `TILE`, which stay in the cache:
    several times faster than NumPy, which goes through the whole array for each X.
    """
    steps = [abs(step) for step, side in zip(array.strides, array.shape, strict=True) if side > 1]
    if array.flags.c_contiguous or steps[-1:] == [min(steps, default=0)]:
        return np.ascontiguousarray(array)
    out = np.empty(array.shape, array.dtype)
    for y in range(0, array.shape[2], TILE):
        for z in range(0, array.shape[3], TILE):
            tile = (..., slice(y, y + TILE), slice(z, z + TILE))
            out[tile] = array[tile]
    return out
