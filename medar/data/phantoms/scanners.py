"""Simulated scans of a rendered anatomy: CT in HU, MR in arbitrary units.

CT: the Hounsfield units of a tissue depend on the contrast phase and the subject's age; noise is
Gaussian and correlated as after a reconstruction kernel. Typical values after Hofer, CT Teaching
Manual (2010); trabecular bone by age after Jang et al. (Radiology 2019).

MR: spin echo at 1.5 T, S = PD (1 - exp(-TR / T1)) exp(-TE / T2), a smooth bias field, Rician noise
(Gudbjartsson and Patz, MRM 1995) and an arbitrary scale. T1 and T2 after de Bazelaire et al.
(Radiology 2004) and Stanisz et al. (MRM 2005). Flowing blood leaves the slice between the pulses:
its proton density is a tenth of the real one (the flow void of spin echo).
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medar.data.phantoms.anatomy import Anatomy
from medar.data.phantoms.render import Rendering
from medar.data.phantoms.shapes import Array
from medar.volume import Affine, Grid, Spacing

Phase = Literal["native", "arterial", "venous"]
Contrast = Literal["T1w", "T2w", "PDw"]
PHASES: tuple[Phase, ...] = get_args(Phase)
CONTRASTS: tuple[Contrast, ...] = get_args(Contrast)

HU: dict[str, tuple[float, float, float]] = {
    "air": (-1000, -1000, -1000), "skin": (30, 35, 40), "fat": (-102, -102, -102),
    "gland": (25, 30, 35), "muscle": (52, 56, 62), "cortical": (850, 850, 850),
    "marrow": (150, 155, 160), "disc": (75, 75, 78), "csf": (8, 8, 8), "cord": (36, 38, 40),
    "cartilage": (110, 110, 110), "old_cartilage": (190, 190, 190),
    "lung": (-820, -815, -815), "lung_vessel": (42, 220, 150), "gas": (-960, -960, -960),
    "myocardium": (45, 105, 95), "blood_left": (42, 300, 155), "blood_right": (42, 190, 150),
    "blood_cava": (42, 95, 150), "blood_portal": (42, 85, 165), "aorta_wall": (45, 55, 60),
    "liver": (58, 68, 108), "spleen": (48, 125, 118), "pancreas": (42, 100, 88),
    "bile": (8, 8, 8), "bowel_wall": (42, 75, 85), "chyme": (22, 22, 24), "stool": (5, 5, 8),
    "kidney_cortex": (34, 175, 185), "kidney_medulla": (30, 75, 165), "urine": (5, 8, 20),
    "lesion_liver": (32, 48, 58), "lesion_kidney": (36, 90, 80), "lesion_lung": (38, 60, 68),
}  # fmt: skip
"""Hounsfield units of each tissue: native, arterial, venous."""

CT_TEXTURE = {
    "fat": 6.0, "muscle": 8.0, "lung": 28.0, "marrow": 45.0, "cortical": 90.0, "liver": 5.0,
    "spleen": 4.0, "chyme": 14.0, "stool": 60.0, "gland": 20.0, "kidney_medulla": 8.0,
}  # fmt: skip
"""Standard deviation of the spatial variation within a tissue, in HU."""

RELAXATION: dict[str, tuple[float, float, float]] = {
    "air": (0.0, 1000, 50), "skin": (0.70, 880, 35), "fat": (1.00, 343, 58),
    "gland": (0.90, 1100, 55), "muscle": (0.80, 856, 27), "cortical": (0.08, 600, 2),
    "marrow": (0.80, 549, 49), "disc": (0.85, 1100, 80), "csf": (1.00, 4000, 1900),
    "cord": (0.80, 745, 74), "cartilage": (0.70, 1024, 30), "old_cartilage": (0.60, 900, 28),
    "lung": (0.12, 1100, 20), "lung_vessel": (0.15, 1441, 120), "gas": (0.0, 1000, 50),
    "myocardium": (0.80, 1030, 40), "blood_left": (0.10, 1441, 290),
    "blood_right": (0.10, 1441, 290), "blood_cava": (0.12, 1441, 290),
    "blood_portal": (0.25, 1441, 290), "aorta_wall": (0.60, 900, 45),
    "liver": (0.82, 586, 46), "spleen": (0.88, 1057, 79), "pancreas": (0.85, 584, 46),
    "bile": (1.00, 2600, 600), "bowel_wall": (0.80, 950, 50), "chyme": (0.90, 1700, 130),
    "stool": (0.60, 700, 50), "kidney_cortex": (0.88, 966, 87),
    "kidney_medulla": (0.95, 1412, 85), "urine": (1.00, 3500, 1200),
    "lesion_liver": (0.92, 1100, 95), "lesion_kidney": (0.92, 1500, 130),
    "lesion_lung": (0.85, 1150, 75),
}  # fmt: skip
"""Proton density (water 1), T1 and T2 in ms of each tissue at 1.5 T."""

ECHOES: dict[Contrast, tuple[float, float]] = {
    "T1w": (500.0, 12.0), "T2w": (4000.0, 90.0), "PDw": (3000.0, 15.0),
}  # fmt: skip
"""TR and TE, in ms."""


def hounsfield(anatomy: Anatomy, phase: Phase) -> dict[str, float]:
    """HU of every tissue in this subject; bone, muscle, lung and plaques depend on age."""
    column = PHASES.index(phase)
    values = {tissue: float(row[column]) for tissue, row in HU.items()}
    aged = anatomy.aged
    values["marrow"] += 90.0 - 150.0 * aged
    values["cortical"] += 80.0 - 220.0 * aged
    values["muscle"] += 6.0 - 16.0 * aged
    values["lung"] += 25.0 - 60.0 * aged
    values["liver"] -= 1.2 * max(0.0, anatomy.bmi - 26.0)
    values["aorta_wall"] += 420.0 * max(0.0, aged - 0.5)
    return values


def ct_image(
    rendering: Rendering, anatomy: Anatomy, phase: Phase, rng: np.random.Generator
) -> Array:
    """A CT volume (X, Y, Z) in HU, rounded, from -1024 to 3071."""
    shape = rendering.grid.shape
    values = hounsfield(anatomy, phase)
    dose = float(rng.uniform(-8.0, 8.0))
    enhanced = float(rng.uniform(0.85, 1.15)) if phase != "native" else 1.0
    for tissue, row in HU.items():
        values[tissue] += (enhanced - 1.0) * (row[PHASES.index(phase)] - row[0])
    image = rendering.compose(values, CT_TEXTURE, smooth_noise(rng, shape, 0.8))
    # Photon noise; its correlation length is that of the reconstruction kernel.
    noise = smooth_noise(rng, shape, float(rng.uniform(0.4, 0.7)))
    image += np.float32(18.0 + dose) * noise
    return np.rint(image).clip(-1024, 3071)


def signals(contrast: Contrast) -> dict[str, float]:
    """Spin-echo signal of every tissue, 1 for fully relaxed water."""
    tr, te = ECHOES[contrast]
    return {
        tissue: float(pd * (1.0 - np.exp(-tr / t1)) * np.exp(-te / t2))
        for tissue, (pd, t1, t2) in RELAXATION.items()
    }


def mr_image(rendering: Rendering, contrast: Contrast, rng: np.random.Generator) -> Array:
    """A non-negative MR volume (X, Y, Z) in arbitrary units."""
    shape = rendering.grid.shape
    values = signals(contrast)
    texture = {t: 0.06 * v for t, v in values.items()}
    texture["chyme"] = 0.12 * values["chyme"]
    texture["stool"] = 0.3 * values["stool"]
    image = rendering.compose(values, texture, smooth_noise(rng, shape, 0.8))
    image *= bias_field(rng, shape)
    level = 0.035 * max(values["fat"], values["liver"]) * float(rng.uniform(0.7, 1.4))
    real = image + np.float32(level) * rng.standard_normal(shape, dtype=np.float32)
    imaginary = np.float32(level) * rng.standard_normal(shape, dtype=np.float32)
    scale = float(np.exp(rng.uniform(np.log(150.0), np.log(4000.0))))
    return np.asarray(np.hypot(real, imaginary) * np.float32(scale / values["fat"]))


def bias_field(rng: np.random.Generator, shape: tuple[int, int, int]) -> Array:
    """A smooth gain (X, Y, Z) around 1: the exponential of a random polynomial of order 2."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    weights = rng.normal(0, 0.12, 9).astype(np.float32)
    terms = (x, y, z, x * x - 0.33, y * y - 0.33, z * z - 0.33, x * y, y * z, x * z)
    field = sum(w * t for w, t in zip(weights, terms, strict=True))
    return np.asarray(np.exp(field), dtype=np.float32)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int, int], sigma: tuple[float, ...] | float
) -> Array:
    """Gaussian noise (X, Y, Z) of standard deviation 1, correlated over `sigma` voxels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
    return np.asarray(noise / max(float(noise.std()), 1e-6))


ORIENTATIONS = ("RAS", "LPS", "LAS", "RPI", "PIR", "ASL")
"""Stored orientations, drawn at random: transverse, coronal and sagittal acquisitions."""


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
    """The same voxels of a RAS+ grid with the array axes along `code`, such as "LPS"."""
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
    """In-plane and slice spacing, within 20 % of the typical one; one in three has thick slices."""
    plane = typical * rng.uniform(0.85, 1.15)
    thick = typical * rng.uniform(0.85, 1.2)
    if rng.random() < 0.33:
        plane, thick = typical * rng.uniform(0.8, 0.9), typical * rng.uniform(1.25, 1.5)
    return float(plane), float(plane), float(thick)


def draw_pose(rng: np.random.Generator) -> Affine:
    """Pose of the subject: rotated by up to 4 degrees, off centre by up to 8 mm."""
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
