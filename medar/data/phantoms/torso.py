"""The torso's frame: the wall of the body cavity, its diaphragm, and the layers outside it.

All other shapes are positioned relative to this frame. `View` holds it for any coordinates: the
distance to the wall of the cavity, the angle around the body, the height above the diaphragm, and
the axis of the spine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator

from medar.data.phantoms.anatomy import Anatomy
from medar.data.phantoms.shapes import (
    Array,
    Box,
    Point,
    Tube,
    ellipsoid,
    ellipsoid_box,
    ramp,
    smooth_min,
)

SUPERELLIPSE = 2.3
"""Exponent of the cavity's cross-section; 2 would be an ellipse."""

HEIGHTS = (-260, -180, -120, -60, 0, 50, 100, 140, 170, 200, 240)
HALF_WIDTH = (128, 126, 122, 127, 132, 129, 118, 98, 74, 52, 40)
HALF_DEPTH = (84, 84, 85, 88, 90, 86, 76, 62, 50, 40, 34)
CENTRE_Y = (4, 5, 5, 4, 2, 0, -4, -10, -18, -26, -34)

LEVELS = (
    191, 170, 148, 125, 101, 76, 51, 26, 0, -27, -56, -88, -122, -157, -193, -228, -262,
)  # fmt: skip
"""Heights of the vertebral centres in mm: T2 to T12 (indices 0 to 10), L1 to L5, and one below."""
FIRST_LEVEL = 2

LOWEST, HIGHEST, STEP = -300.0, 300.0, 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """Coordinates in the reference body (arrays of equal shape, in mm), and the frame at each."""

    x: Array
    y: Array
    z: Array
    wall: Array
    """Signed distance to the wall of the cavity, negative inside."""
    around: Array
    """Angle around the body: 0 at the back, pi at the front, the same on both sides."""
    dome: Array
    """Height above the diaphragm."""
    spine_y: Array
    """y of the axis of the vertebral column at this height."""

    @property
    def xyz(self) -> tuple[Array, Array, Array]:
        """The coordinates as a tuple."""
        return self.x, self.y, self.z

    def part(self, where: tuple[slice, ...]) -> "View":
        """The view of a block of voxels."""
        return View(**{name: array[where] for name, array in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Part:
    """One shape, painted over the ones before."""

    fills: tuple[tuple[float, str], ...]
    """(depth in mm, tissue), outermost first: the tissue from that depth inwards."""
    field: Callable[[View], Array] | None = None
    """Signed distance in mm; None if `tube` is set."""
    tube: Tube = ()
    """Polyline of (x, y, z, radius), or segment pairs where `pairs` is set."""
    pairs: bool = False
    """Whether `tube` lists separate segments, two points each, instead of one polyline."""
    box: Box | None = None
    """Where `field` may be negative; None for everywhere."""
    label: int | None = None
    """Label of its voxels; 0 removes the label below, None keeps it."""
    radius: float | None = None
    """Radius in mm of a tube that may be thinner than a voxel; limits the filled fraction."""


def lookup(z: Array, heights: npt.ArrayLike, values: npt.ArrayLike) -> Array:
    """Interpolate values given at some `heights`, monotonically between them."""
    fine = np.arange(LOWEST, HIGHEST + STEP, STEP)
    knots = np.asarray(heights, dtype=np.float64)
    order = np.argsort(knots)
    curve = PchipInterpolator(knots[order], np.asarray(values, dtype=np.float64)[order])
    table = curve(fine.clip(knots.min(), knots.max())).astype(np.float32)
    index = np.rint((z - np.float32(LOWEST)) * np.float32(1 / STEP)).astype(np.intp)
    return np.asarray(table[index.clip(0, len(fine) - 1)])


def spine_axis(anatomy: Anatomy, z: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """y of the spine's axis: thoracic kyphosis (stronger with age) and lumbar lordosis."""
    z = np.asarray(z)
    kyphosis = 10.0 + 9.0 * anatomy.aged
    thoracic = np.exp(-(((z - 95.0) / 80.0) ** 2))
    lumbar = np.exp(-(((z + 145.0) / 60.0) ** 2))
    return np.asarray(-36.0 - kyphosis * thoracic + 9.0 * lumbar)


def view_of(anatomy: Anatomy, x: Array, y: Array, z: Array) -> View:
    """The frame at coordinates in mm of the reference body (already warped)."""
    half_x, half_y = lookup(z, HEIGHTS, HALF_WIDTH), lookup(z, HEIGHTS, HALF_DEPTH)
    belly = np.float32(anatomy.belly) * np.exp(-(((z + 130) / 75) ** 2))
    off = y - lookup(z, HEIGHTS, CENTRE_Y)
    half_y = np.where(off > 0, half_y + belly, half_y)
    half_x = half_x + np.float32(0.3) * belly
    p = np.float32(SUPERELLIPSE)
    u, v = np.abs(x) / half_x, np.abs(off) / half_y
    # Powers by exp and log: twice as fast as np.power on float32.
    log_u, log_v = np.log(u + np.float32(1e-6)), np.log(v + np.float32(1e-6))
    sum_p = np.exp(p * log_u) + np.exp(p * log_v)
    log_g = np.log(sum_p) / p
    radius = np.exp(log_g)
    du, dv = np.exp((p - 1) * (log_u - log_g)) / half_x, np.exp((p - 1) * (log_v - log_g)) / half_y
    wall = (radius - 1) / np.sqrt(du * du + dv * dv)
    around = np.arctan2(u, -off / half_y)
    return View(
        x=x, y=y, z=z, wall=wall, around=around,
        dome=z - _diaphragm(x, radius, around),
        spine_y=spine_axis(anatomy, z).astype(np.float32),
    )  # fmt: skip


def _diaphragm(x: Array, radius: Array, around: Array) -> Array:
    """Height of the diaphragm: two domes, low at the wall, lowest behind."""
    crown = -16 * ramp(-x, -10.0, 50.0) - 5 * np.exp(-((x / 22) ** 2))
    rim = 58 + 24 * np.cos(around)
    inside = np.minimum(radius, 1.1)
    square = inside * inside
    return np.asarray(crown - rim * square**3, dtype=np.float32)


def muscle_depth(anatomy: Anatomy, view: View) -> Array:
    """Thickness of the muscles outside the cavity's wall, in mm."""
    z, around = view.z, view.around
    back = 24 * np.exp(-(((around - 0.35) / 0.42) ** 2)) - 3 * np.exp(-((around / 0.12) ** 2))
    shoulder = 52 * ramp(z, 85.0, 190.0) * np.sin(around.clip(0, 3.1)) ** 2
    chest = 9 * np.exp(-(((z - 125) / 45) ** 2)) * np.exp(-(((around - 2.45) / 0.4) ** 2))
    flank = 5 * ramp(-z, 60.0, 110.0) * np.exp(-(((around - 1.6) / 0.7) ** 2))
    extra = back + shoulder + chest + flank
    return np.asarray(9 + np.float32(anatomy.muscle) * extra, dtype=np.float32)


def fat_depth(anatomy: Anatomy, view: View) -> Array:
    """Thickness of the subcutaneous fat, in mm: thickest at the lower belly and the flanks."""
    z, around = view.z, view.around
    low = ramp(-z, -60.0, 150.0)
    ring = 0.75 + 0.25 * np.sin(around.clip(0, 3.1)) + 0.25 * low * (1 - np.cos(around)) / 2
    groove = 1 - 0.2 * np.exp(-((around / 0.25) ** 2)) * (1 - low)
    hips = 7.0 * ramp(-z, 120.0, 220.0) if anatomy.sex == "F" else 0.0
    return np.asarray(
        np.float32(anatomy.fat) * (0.5 + 0.5 * low) * ring * groove + hips, dtype=np.float32
    )


def skin(anatomy: Anatomy, view: View) -> Array:
    """Signed distance to the skin."""
    outer = view.wall - muscle_depth(anatomy, view) - fat_depth(anatomy, view) - 2
    if anatomy.sex == "F":
        for breast in _breasts(anatomy, view):
            outer = smooth_min(outer, breast, 18.0)
    return outer


def _breasts(anatomy: Anatomy, view: View) -> list[Array]:
    size = 34.0 + 0.9 * (anatomy.bmi - 20.0)
    radii = (1.25 * size, 0.95 * size, 1.1 * size)
    return [ellipsoid(view.xyz, (side * 72.0, 84.0, 62.0), radii) for side in (-1.0, 1.0)]


def wall_parts(anatomy: Anatomy) -> list[Part]:
    """Skin, subcutaneous fat, muscle, and the fat that fills the cavity between organs."""

    def muscles(view: View) -> Array:
        return view.wall - muscle_depth(anatomy, view)

    def seam(view: View) -> Array:
        """Fat between the muscles of the shoulder girdle and those of the chest wall."""
        depth = muscle_depth(anatomy, view)
        return np.asarray(np.abs(view.wall - 0.5 * depth) - (0.5 * depth - 14).clip(-3, 3.5))

    def groove(view: View) -> Array:
        """Fat between the erector spinae on either side and the spinous processes."""
        return np.asarray(np.maximum(np.abs(view.x) - 3, view.y - view.spine_y + 58))

    return [
        Part(
            fills=((0.0, "skin"), (2.0, "fat")),
            field=lambda view: skin(anatomy, view),
            label=0,
        ),
        Part(fills=((0.0, "muscle"),), field=muscles),
        Part(fills=((0.0, "fat"),), field=seam, box=((-260, -200, 60), (260, 200, 300))),
        Part(fills=((0.0, "fat"),), field=lambda view: view.wall),
        *_glands(anatomy),
        Part(
            fills=((0.0, "fat"),),
            field=lambda view: np.maximum(groove(view), muscles(view)),
            box=((-10, -220, -300), (10, 0, 300)),
        ),
    ]


def _glands(anatomy: Anatomy) -> list[Part]:
    """Fibroglandular tissue, which gives way to fat with age."""
    if anatomy.sex == "M":
        return []
    size = 24.0 - 10.0 * anatomy.aged
    return [_gland((side * 74.0, 104.0, 60.0), size) for side in (-1.0, 1.0)]


def _gland(centre: Point, size: float) -> Part:
    return Part(
        fills=((0.0, "gland"),),
        field=lambda view: ellipsoid(view.xyz, centre, (size, 0.55 * size, 0.8 * size)),
        box=ellipsoid_box(centre, size),
    )
