"""Implicit shapes: signed distances in mm, negative inside, on coordinate arrays of any shape.

The distances are first-order: exact on the surface and accurate close to it, where voxels are
partially covered.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
"""float32 unless stated otherwise."""
Point = tuple[float, float, float]
Ball = tuple[float, float, float, float]
"""Centre and radius."""
Tube = tuple[Ball, ...]
Box = tuple[Point, Point]
"""Lowest and highest corner, in mm of the reference body."""


def ellipsoid(
    xyz: tuple[Array, Array, Array], centre: Point, radii: Point, axes: npt.ArrayLike | None = None
) -> Array:
    """Signed distance to an ellipsoid.

    Args:
        xyz: coordinates in mm.
        centre: in mm.
        radii: half-axes in mm.
        axes: (3, 3), one unit vector per row: directions of the half-axes; default x, y, z.
    """
    offset = [c - np.float32(m) for c, m in zip(xyz, centre, strict=True)]
    if axes is not None:
        rows = np.asarray(axes, dtype=np.float32)
        offset = [row[0] * offset[0] + row[1] * offset[1] + row[2] * offset[2] for row in rows]
    scaled = [o * np.float32(1 / r) for o, r in zip(offset, radii, strict=True)]
    near = np.sqrt(sum(s * s for s in scaled)) + np.float32(1e-6)
    slope = np.sqrt(sum((s * np.float32(1 / r)) ** 2 for s, r in zip(scaled, radii, strict=True)))
    # The slope vanishes at the centre, where any depth below the smallest radius will do.
    return np.asarray(near * (near - 1) / np.maximum(slope, near / np.float32(max(radii))))


def ellipsoid_box(centre: Point, reach: float) -> Box:
    """The box that holds every point within `reach` of `centre`."""
    x, y, z = centre
    return (x - reach, y - reach, z - reach), (x + reach, y + reach, z + reach)


def capsule(
    xyz: tuple[Array, Array, Array], start: Point, stop: Point, r_start: float, r_stop: float
) -> Array:
    """Signed distance to a segment thickened by a radius that changes linearly along it."""
    first = np.asarray(start, dtype=np.float32)
    along = np.asarray(stop, dtype=np.float32) - first
    length2 = np.float32(max(float(along @ along), 1e-6))
    dx, dy, dz = xyz[0] - first[0], xyz[1] - first[1], xyz[2] - first[2]
    t = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / length2, 0, 1)
    dx, dy, dz = dx - t * along[0], dy - t * along[1], dz - t * along[2]
    radius = np.float32(r_start) + t * np.float32(r_stop - r_start)
    return np.asarray(np.sqrt(dx * dx + dy * dy + dz * dz) - radius)


def segments_box(start: Point, stop: Point, reach: float) -> Box:
    """The box around a segment, `reach` mm wider on each side."""
    low = np.minimum(start, stop) - reach
    high = np.maximum(start, stop) + reach
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def smooth_max(a: Array, b: Array, rounding: float) -> Array:
    """Intersection of two shapes with the edge between them rounded over `rounding` mm."""
    k = np.float32(rounding)
    h = np.maximum(k - np.abs(a - b), 0)
    return np.asarray(np.maximum(a, b) + h * h * np.float32(0.25 / rounding))


def smooth_min(a: Array, b: Array, rounding: float) -> Array:
    """Union of two shapes with the groove between them filled over `rounding` mm."""
    return -smooth_max(-a, -b, rounding)


def ramp(values: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, and a smooth step in between."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def ball(centre: npt.ArrayLike, radius: float) -> Ball:
    """A centre and a radius as one tuple of floats."""
    x, y, z = np.asarray(centre, dtype=np.float64)
    return float(x), float(y), float(z), radius


def widened(path: Tube, by: float) -> Tube:
    """A tube with every radius `by` mm larger."""
    return tuple((x, y, z, r + by) for x, y, z, r in path)


def tube(points: list[Point], radii: list[float], pieces: int = 4) -> Tube:
    """A smooth curve through `points` whose radius follows `radii` from end to end."""
    path = spline(points, pieces)
    at = np.linspace(0, len(radii) - 1, len(path))
    along = np.interp(at, np.arange(len(radii)), radii)
    return tuple(ball(p, float(r)) for p, r in zip(path, along, strict=True))


def spline(points: list[Point], pieces: int) -> list[Point]:
    """A Catmull-Rom curve through `points`, as a polyline of `pieces` segments per span."""
    path = np.asarray(points, dtype=np.float64)
    padded = np.concatenate([2 * path[:1] - path[1:2], path, 2 * path[-1:] - path[-2:-1]])
    out = []
    for i in range(len(path) - 1):
        p0, p1, p2, p3 = padded[i : i + 4]
        for t in np.arange(pieces) / pieces:
            out.append(
                0.5
                * (
                    2 * p1
                    + (p2 - p0) * t
                    + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
                    + (3 * p1 - p0 - 3 * p2 + p3) * t**3
                )
            )
    out.append(path[-1])
    return [(float(x), float(y), float(z)) for x, y, z in out]
