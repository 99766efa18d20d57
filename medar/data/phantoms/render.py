"""Render an anatomy on a grid: labels, and the fraction of each voxel that each tissue fills.

Shapes are painted in order, each over the ones before. The fraction of a voxel that a shape fills
is a linear ramp of its signed distance, one voxel wide (partial volume). A voxel gets the label of
the last shape that fills at least half of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medar.data.phantoms.abdomen import abdomen_parts, kidney_ellipsoid, liver
from medar.data.phantoms.anatomy import Anatomy, displaced
from medar.data.phantoms.chest import chest_parts, lung
from medar.data.phantoms.shapes import Array, Box, Point, capsule, ellipsoid, ellipsoid_box
from medar.data.phantoms.skeleton import bone_parts
from medar.data.phantoms.torso import Part, View, view_of, wall_parts
from medar.volume.geometry import Affine, Grid

LABELS = {
    1: "lung_left", 2: "lung_right", 3: "heart", 4: "aorta", 5: "liver", 6: "spleen",
    7: "kidney_left", 8: "kidney_right", 9: "bone", 10: "lesion",
}  # fmt: skip
LESION = 10
MARGIN = 12.0
"""Largest distance in mm by which the warp can move a shape out of its box."""

Where = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One tissue over a block of voxels."""

    tissue: str
    where: Where
    fraction: Array
    """Fraction of each voxel of the block that it fills, 0 to 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rendering:
    """An anatomy on a grid: layers in painting order, and labels."""

    grid: Grid
    labels: npt.NDArray[np.uint8]
    """(X, Y, Z)."""
    layers: tuple[Layer, ...]

    def compose(
        self, values: Mapping[str, float], texture: Mapping[str, float], pattern: Array
    ) -> Array:
        """An image (X, Y, Z) of the tissues' values, mixed within voxels.

        Args:
            values: of each tissue, and of the surrounding "air".
            texture: standard deviation within each tissue; 0 for tissues that are not listed.
            pattern: (X, Y, Z), standard deviation 1: the variation to scale by `texture`.
        """
        image = np.full(self.grid.shape, values["air"], dtype=np.float32)
        for layer in self.layers:
            block = image[layer.where]
            value: Array | np.float32 = np.float32(values[layer.tissue])
            if layer.tissue in texture:
                value = value + np.float32(texture[layer.tissue]) * pattern[layer.where]
            block += layer.fraction * (value - block)
        return image


def render(anatomy: Anatomy, grid: Grid, pose: Affine | None = None) -> Rendering:
    """Paint an anatomy on a grid.

    Args:
        anatomy: the subject.
        grid: any grid; patient coordinates in RAS+ mm, with z = 0 at the diaphragm.
        pose: (4, 4) affine from patient to scanner coordinates; default: identity.
    """
    to_scanner = (np.eye(4) if pose is None else pose) @ np.diag([*anatomy.scale, 1.0])
    to_body = np.linalg.solve(to_scanner, grid.affine)
    axes = [np.arange(n, dtype=np.float32) for n in grid.shape]
    i, j, k = np.meshgrid(*axes, indexing="ij", sparse=True)
    x, y, z = (
        (np.float32(r[0]) * i + np.float32(r[1]) * j) + (np.float32(r[2]) * k + np.float32(r[3]))
        for r in to_body[:3]
    )
    view = view_of(anatomy, *displaced(anatomy, x, y, z))
    voxel = float(abs(np.linalg.det(to_body[:3, :3])) ** (1 / 3))
    canvas = _Canvas(view, np.linalg.inv(to_body), voxel)
    for part in all_parts(anatomy):
        canvas.paint(part)
    return Rendering(grid=grid, labels=canvas.labels, layers=tuple(canvas.layers))


def all_parts(anatomy: Anatomy) -> list[Part]:
    """All parts, in painting order."""
    return [
        *wall_parts(anatomy),
        *abdomen_parts(anatomy),
        *chest_parts(anatomy),
        *lesion_parts(anatomy),
        *bone_parts(anatomy),
    ]


def lesion_parts(anatomy: Anatomy) -> list[Part]:
    """The lesion, at a position in its organ that depends on its seed."""
    lesion = anatomy.lesion
    if lesion.site == "none":
        return []
    centre = lesion_centre(anatomy)
    radius = lesion.radius / float(np.prod(anatomy.scale)) ** (1 / 3)

    def ball(view: View) -> Array:
        return ellipsoid(view.xyz, centre, (radius, radius, radius))

    return [
        Part(
            fills=((0.0, f"lesion_{lesion.site}"),),
            field=ball,
            box=ellipsoid_box(centre, radius),
            label=LESION,
        )
    ]


def lesion_centre(anatomy: Anatomy) -> Point:
    """The lesion's centre in the reference body.

    In liver and lung: a random point deep enough for the lesion to fit. In the kidney: a random
    point 10 mm below the surface.
    """
    lesion = anatomy.lesion
    side = 1.0 if lesion.side == "right" else -1.0
    rng = np.random.default_rng(lesion.seed)
    centre, radii = kidney_ellipsoid(anatomy, side)
    if lesion.site == "kidney":
        low, high = np.subtract(centre, radii), np.add(centre, radii)
    elif lesion.site == "liver":
        low, high = np.array([-60.0, -110.0, -140.0]), np.array([130.0, 110.0, 0.0])
    else:
        low, high = np.array([15.0, -110.0, -60.0]), np.array([130.0, 80.0, 160.0])
        low[0], high[0] = sorted((side * low[0], side * high[0]))
    x, y, z = rng.uniform(low, high, (400, 3)).astype(np.float32).T
    view = view_of(anatomy, x, y, z)
    if lesion.site == "kidney":
        depth = np.abs(ellipsoid(view.xyz, centre, radii) + 10)
    elif lesion.site == "liver":
        fat = (radii[0] + 8, radii[1] + 8, radii[2] + 8)
        right, _ = kidney_ellipsoid(anatomy, 1.0)
        depth = np.maximum(liver(anatomy, view), -ellipsoid(view.xyz, right, fat))
    else:
        heart = -ellipsoid(view.xyz, (-16, 22, 34), (76, 56, 56))
        depth = np.maximum(lung(anatomy, view, side), heart)
    enough = np.flatnonzero(depth < -0.8 * lesion.radius)
    chosen = int(enough[0]) if len(enough) else int(np.argmin(depth))
    return float(x[chosen]), float(y[chosen]), float(z[chosen])


class _Canvas:
    """Paints parts on the voxels of a view."""

    def __init__(self, view: View, to_index: Affine, voxel: float) -> None:
        self.view = view
        self.to_index = to_index
        self.voxel = voxel
        self.labels = np.zeros(view.x.shape, dtype=np.uint8)
        self.layers: list[Layer] = []

    def paint(self, part: Part) -> None:
        """Add the layers of one part, and its label."""
        found = self._tube(part) if part.tube else self._field(part)
        if found is None:
            return
        where, distance = found
        most = 1.0
        if part.radius is not None:
            filled = np.pi * (part.radius / self.voxel) ** 2
            most = min(1.0, filled / min(1.0, 0.5 + part.radius / self.voxel))
        for number, (depth, tissue) in enumerate(part.fills):
            fraction = np.clip(0.5 - (distance + np.float32(depth)) / np.float32(self.voxel), 0, 1)
            fraction = (fraction * np.float32(most)).astype(np.float32)
            self.layers.append(Layer(tissue=tissue, where=where, fraction=fraction))
            if number == 0 and part.label is not None:
                self.labels[where][fraction >= 0.5] = part.label

    def _field(self, part: Part) -> tuple[Where, Array] | None:
        where = self._where(part.box)
        if where is None or part.field is None:
            return None
        return where, part.field(self.view.part(where))

    def _tube(self, part: Part) -> tuple[Where, Array] | None:
        """The distance to the nearest segment, each computed within its own box only."""
        points = np.asarray(part.tube)
        reach = points[:, 3].max() + self.voxel
        where = self._where(
            (tuple(points[:, :3].min(0) - reach), tuple(points[:, :3].max(0) + reach))
        )
        if where is None:
            return None
        distance = np.full(tuple(s.stop - s.start for s in where), 1e3, dtype=np.float32)
        step = 2 if part.pairs else 1
        x, y, z = self.view.xyz
        for a, b in zip(points[:-1:step], points[1::step], strict=True):
            wide = max(a[3], b[3]) + self.voxel
            low, high = np.minimum(a, b)[:3] - wide, np.maximum(a, b)[:3] + wide
            inner = self._where((tuple(low), tuple(high)))
            if inner is None:
                continue
            near = capsule((x[inner], y[inner], z[inner]), tuple(a[:3]), tuple(b[:3]), a[3], b[3])
            offset = zip(inner, where, strict=True)
            block = distance[tuple(slice(s.start - w.start, s.stop - w.start) for s, w in offset)]
            np.minimum(block, near, out=block)
        return where, distance

    def _where(self, box: Box | None) -> Where | None:
        """The block of voxels that may intersect a box; None if no voxel does."""
        shape = self.view.x.shape
        if box is None:
            return (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
        lowest, highest = np.asarray(box[0]), np.asarray(box[1])
        centre = self.to_index[:3, :3] @ ((lowest + highest) / 2) + self.to_index[:3, 3]
        half = np.abs(self.to_index[:3, :3]) @ ((highest - lowest) / 2 + MARGIN + self.voxel)
        low = np.floor(centre - half).astype(int).clip(0, shape)
        high = (np.ceil(centre + half).astype(int) + 1).clip(0, shape)
        if (low >= high).any():
            return None
        return (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
