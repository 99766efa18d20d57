"""Where a scanner puts its voxels, and how the subject lies: both drawn at random."""

import numpy as np
import numpy.typing as npt

from medar.data.phantoms.anatomy import Anatomy
from medar.volume import Affine, Grid, Spacing

ORIENTATIONS = ("RAS", "LPS", "LAS", "RPI", "PIR", "ASL")
"""How volumes are stored, drawn at random: transverse, coronal and sagittal acquisitions."""


def draw_grid(rng: np.random.Generator, anatomy: Anatomy, spacing: float) -> Grid:
    """A field of view around the torso: random spacing, stored orientation, sometimes oblique."""
    sides = _spacing(rng, spacing)
    sx, sy, sz = anatomy.scale
    fat, belly, muscle = anatomy.fat, max(0.0, anatomy.belly), anatomy.muscle
    wide = sx * (146 + 1.25 * fat + 0.3 * belly) + 18
    front = sy * (108 + 1.25 * fat + max(belly, 20.0 if anatomy.sex == "F" else 0.0)) + 18
    back = sy * (96 + 24 * muscle + 0.8 * fat) + 12
    low, high = rng.uniform(-212, -196) * sz, rng.uniform(172, 188) * sz
    extent = np.array([2 * wide, front + back, high - low])
    shape = np.maximum(4, np.rint(extent / sides)).astype(int)
    turn = np.eye(3)
    if rng.random() < 0.3:
        turn = _rotation(rng.uniform(-0.2, 0.2, 3))
    matrix = turn * np.asarray(sides)
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = (0.0, (front - back) / 2, (low + high) / 2)
    affine[:3, 3] -= matrix @ ((shape - 1) / 2)
    grid = Grid(shape=(int(shape[0]), int(shape[1]), int(shape[2])), affine=affine)
    return stored_as(grid, ORIENTATIONS[int(rng.integers(len(ORIENTATIONS)))])


def stored_as(grid: Grid, code: str) -> Grid:
    """The same voxels of a RAS+ grid with the array axes pointing as `code` says."""
    affine, shape = grid.affine.copy(), [0, 0, 0]
    for column, letter in enumerate(code):
        axis = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        forward = letter in "RAS"
        step = grid.affine[:3, axis]
        affine[:3, column] = step if forward else -step
        shape[column] = grid.shape[axis]
        if not forward:
            affine[:3, 3] += (grid.shape[axis] - 1) * step
    return Grid(shape=(shape[0], shape[1], shape[2]), affine=affine)


def _spacing(rng: np.random.Generator, typical: float) -> Spacing:
    """In-plane and slice spacing, each within 20 % of the typical one; a third has thick slices."""
    plane = typical * rng.uniform(0.85, 1.15)
    thick = typical * rng.uniform(0.85, 1.2)
    if rng.random() < 0.33:
        plane, thick = typical * rng.uniform(0.8, 0.9), typical * rng.uniform(1.25, 1.5)
    return float(plane), float(plane), float(thick)


def draw_pose(rng: np.random.Generator) -> Affine:
    """How the subject lies: turned by up to 4 degrees, off centre by up to 8 mm."""
    pose = np.eye(4)
    pose[:3, :3] = _rotation(rng.uniform(-0.07, 0.07, 3))
    pose[:3, 3] = rng.uniform(-8, 8, 3)
    return pose


def _rotation(angles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The rotation by `angles` (radians) about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)
