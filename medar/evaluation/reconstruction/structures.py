"""Small lesions and thin structures, inserted into real volumes at known places.

Reconstructions of real lesions cannot be judged exactly: nobody knows where a lesion ends and how
bright it is. An inserted one is known exactly. Spheres stand for lesions, tubes for vessels and
nerves, plates for membranes and cortical bone. A voxel that a structure fills in part gets that
fraction of the contrast. The contrast of a volume is its mean over the structure, weighted by these
fractions, less its mean over a shell around it.

C channels, X Y Z voxels. Lengths are in mm unless they are called voxels; a voxel's side is then
the cube root of its volume.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from scipy.ndimage import uniform_filter
from torch import Tensor

from medar.data.phantoms.shapes import Array, capsule, ellipsoid
from medar.errors import MedarError
from medar.settings import PositiveFloat, PositiveInt, settings
from medar.volume import Shape3

Shape = Literal["sphere", "tube", "plate"]
SHAPES: tuple[Shape, ...] = ("sphere", "tube", "plate")

EXTENT = 12.0
"""Length of tubes and diameter of plates in voxels; at most a third of the shortest side."""
SHELL = (2.0, 4.0)
"""Nearest and furthest distance of the shell's voxels from the surface, in voxels."""
MARGIN = 1.5
"""Least distance of the surface from the volume's outermost voxels, in voxels."""
TRIES = 100
"""Random places, of which the first suitable one is taken, else the best."""
SUITABLE = 0.95
"""Fraction of the surrounding voxels that can take any of the contrasts without being clipped."""
SUBVOXELS = 5
"""Points per axis at which a voxel on the surface is tested."""

Sizes = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


@settings
class StructureSettings:
    """Which structures are inserted.

    Raises:
        MedarError: sizes that do not increase, or a contrast of 0 or given twice.
    """

    diameters: Sizes = (2, 3, 4, 6, 8, 12)
    """Of spheres, in voxels, increasing."""
    widths: Sizes = (1, 2, 3, 4, 6)
    """Diameters of tubes and thicknesses of plates, in voxels, increasing."""
    contrasts: tuple[float, ...] | None = None
    """In the unit of the intensities, negative for darker structures; None: 50 and 200 HU, or 0.1
    and 0.3 of the intensity window, brighter and darker."""
    cases: PositiveInt = 12
    """Maximum number of cases that structures are inserted into; every structure into each."""
    seed: int = 0
    """Of places and directions."""

    def __post_init__(self) -> None:
        for name, sizes in (("diameters", self.diameters), ("widths", self.widths)):
            if any(second <= first for first, second in pairwise(sizes)):
                raise MedarError(f"{name} must increase, got {list(sizes)}")
        given = self.contrasts
        if given is not None and (not given or 0 in given or len(set(given)) < len(given)):
            raise MedarError(f"contrasts must be different and not 0, got {list(given)}")

    def sizes(self, shape: Shape) -> tuple[float, ...]:
        """Of a shape, in voxels."""
        return self.diameters if shape == "sphere" else self.widths


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """A structure on the grid of a volume."""

    shape: Shape
    size: float
    """Diameter or thickness in voxels."""
    centre: tuple[float, float, float]
    """In voxel indices."""
    box: tuple[slice, slice, slice]
    """The part of the volume that holds structure and shell."""
    fraction: Tensor
    """Of the box's voxels, how much of each it fills; float32."""
    shell: Tensor
    """Of the box's voxels, whether they belong to the shell; bool."""

    @property
    def own_contrast(self) -> float:
        """Contrast of the fractions themselves: below 1 as some voxels are filled in part only."""
        return float(self.fraction.square().sum() / self.fraction.sum())

    def added_to(self, volume: Tensor, amplitude: Tensor) -> Tensor:
        """(C, X, Y, Z) with the structure, clipped to [-1, 1]; amplitude (C,) in [-2, 2]."""
        made = volume.clone()
        made[:, *self.box] += amplitude[:, None, None, None] * self.fraction
        return made.clamp(-1, 1)

    def contrast(self, volumes: Tensor) -> Tensor:
        """Inside less outside, mean over channels: (B, C, X, Y, Z) -> (B,) float64."""
        inside, around = self.fraction, self.shell
        values = volumes[:, :, *self.box].double()
        within = (values * inside).sum(dim=(2, 3, 4)) / inside.sum()
        return (within - values[..., around].mean(dim=2)).mean(dim=1)


def insert_structures(
    image: Array,
    spacing: Sequence[float],
    amplitude: Sequence[float],
    plan: StructureSettings,
    seed: Sequence[int],
) -> list[Structure]:
    """The structures for one volume: of each shape, all sizes at one place in one direction.

    Sizes that do not fit into the volume are left out.

    Args:
        image: (C, X, Y, Z) in [-1, 1].
        spacing: mm per voxel.
        amplitude: largest contrast of each channel, as a difference in [-1, 1]; places are chosen
            where it does not leave that range.
        plan: shapes and sizes.
        seed: of the places and directions.
    """
    sides = image.shape[1:]
    voxel = float(np.prod(spacing) ** (1 / 3))
    room = (min(n * s for n, s in zip(sides, spacing, strict=True)) / voxel - 1) / 2
    extent = min(EXTENT, (2 * room + 1) / 3)
    limits = (1 - np.asarray(amplitude, dtype=np.float32))[:, None, None, None]
    usable = np.asarray((np.abs(image) <= limits).all(axis=0))
    structures = []
    for number, shape in enumerate(SHAPES):
        rng = np.random.default_rng([*seed, number])
        reach = {size: _reach(shape, size, extent) for size in plan.sizes(shape)}
        fitting = [size for size in reach if reach[size] <= room]
        if not fitting:
            continue
        centre = _place(usable, reach[fitting[-1]] * voxel / np.asarray(spacing), rng)
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        structures += [
            _render(shape, size, extent, centre, direction, sides, spacing) for size in fitting
        ]
    return structures


def _reach(shape: Shape, size: float, extent: float) -> float:
    """Voxels from the centre that have to lie within the volume."""
    return size / 2 + MARGIN + (0 if shape == "sphere" else extent / 2)


def _place(
    usable: npt.NDArray[np.bool_], reach: npt.NDArray[Any], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """A random place, in voxel indices, `reach` away from the borders."""
    last = np.asarray(usable.shape) - 1.0
    margin = np.minimum(reach, last / 2)
    around = uniform_filter(
        usable.astype(np.float32), 2 * np.ceil(reach).astype(int) + 1, mode="constant"
    )
    centres = rng.uniform(margin, last - margin, (TRIES, 3))
    nearest = centres.round().astype(int)
    scores = around[nearest[:, 0], nearest[:, 1], nearest[:, 2]]
    best = scores >= min(SUITABLE, float(scores.max()))
    chosen: npt.NDArray[np.float64] = centres[int(np.argmax(best))]
    return chosen


def _render(
    shape: Shape,
    size: float,
    extent: float,
    centre: npt.NDArray[np.float64],
    direction: npt.NDArray[np.float64],
    sides: Shape3 | tuple[int, ...],
    spacing: Sequence[float],
) -> Structure:
    voxel = float(np.prod(spacing) ** (1 / 3))
    radius = size / 2 + SHELL[1] + (0 if shape == "sphere" else extent / 2)
    steps = np.ceil(radius * voxel / np.asarray(spacing))
    low = np.floor(centre - steps).clip(0).astype(int)
    high = np.minimum(np.ceil(centre + steps).astype(int) + 1, sides)
    axes = [
        ((np.arange(first, last) - c) * s).astype(np.float32)
        for first, last, c, s in zip(low, high, centre, spacing, strict=True)
    ]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    distance = _distance(shape, size * voxel, extent * voxel, direction, points)
    fraction = (distance < 0).astype(np.float32)
    cut = np.abs(distance) <= np.linalg.norm(spacing) / 2
    parts = ((np.arange(SUBVOXELS) + 0.5) / SUBVOXELS - 0.5).astype(np.float32)
    within = np.stack(np.meshgrid(*(parts * s for s in spacing), indexing="ij"), axis=-1)
    fine = points[cut][:, None] + within.reshape(-1, 3).astype(np.float32)
    inside = _distance(shape, size * voxel, extent * voxel, direction, fine) < 0
    fraction[cut] = inside.mean(axis=1)
    shell = (distance > SHELL[0] * voxel) & (distance <= SHELL[1] * voxel)
    x, y, z = (slice(int(first), int(last)) for first, last in zip(low, high, strict=True))
    return Structure(
        shape=shape,
        size=size,
        centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        box=(x, y, z),
        fraction=torch.from_numpy(fraction),
        shell=torch.from_numpy(shell),
    )


def _distance(
    shape: Shape, size: float, extent: float, direction: npt.NDArray[np.float64], points: Array
) -> Array:
    """Signed distance of points (..., 3) around the centre from the surface, in mm."""
    xyz = (points[..., 0], points[..., 1], points[..., 2])
    if shape == "sphere":
        return ellipsoid(xyz, (0, 0, 0), (size / 2, size / 2, size / 2))
    x, y, z = (float(one) * extent / 2 for one in direction)
    if shape == "tube":
        return capsule(xyz, (-x, -y, -z), (x, y, z), size / 2, size / 2)
    along = points @ direction.astype(np.float32)
    across = np.sqrt(np.maximum((points * points).sum(axis=-1) - along**2, 0))
    return np.asarray(np.maximum(np.abs(along) - size / 2, across - extent / 2))
