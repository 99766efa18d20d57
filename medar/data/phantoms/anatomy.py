"""`Anatomy`: one subject, drawn from a random generator.

Shapes are written once, in mm of a reference body of 170 cm: +x right, +y anterior, +z superior,
z = 0 at the top of the right diaphragm (the level of the tenth thoracic vertebra). A subject
differs from it in its proportions (`scale`), in muscle, fat, curvature and vessel calibre, in the
position and size of each organ, and by a smooth warp that makes every shape irregular.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

LesionSite = Literal["none", "liver", "kidney", "lung"]
SITES: tuple[LesionSite, ...] = get_args(LesionSite)

ORGANS = (
    "lung_left", "lung_right", "heart", "aorta", "liver", "spleen", "kidney_left", "kidney_right",
    "stomach", "pancreas", "gallbladder", "colon", "cava",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How one organ of a subject differs from the reference."""

    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """In mm of the reference body."""
    size: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """A spherical lesion and its location."""

    site: LesionSite = "none"
    side: Literal["left", "right"] = "right"
    """Which lung or kidney."""
    radius: float = 0.0
    """In mm of the subject."""
    seed: int = 0
    """Seed of the position within the organ."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The parameters of a subject; `draw_anatomy` draws them at random."""

    sex: Literal["F", "M"] = "M"
    age: float = 50.0
    """In years, 20 to 85. Affects bone density, kyphosis, disc height, calibre and plaques of the
    aorta, muscle, kidney size and lung density."""
    height: float = 170.0
    """In cm."""
    bmi: float = 24.0
    """Body mass index in kg/m2. Affects subcutaneous and visceral fat."""
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Size relative to the reference body along x, y, z."""
    muscle: float = 1.0
    """Thickness of the muscles relative to the reference body."""
    bowel_gas: float = 0.3
    """Fraction of the colon filled with gas."""
    organs: dict[str, Variation] = field(default_factory=lambda: dict.fromkeys(ORGANS, Variation()))
    lesion: Lesion = Lesion()
    warp: tuple[tuple[float, ...], ...] = ()
    """Waves of the warp, each (wave vector in 1/mm, phase, displacement in mm): 7 numbers."""
    seed: int = 0
    """Seed of vessel trees and bowel loops."""

    @property
    def fat(self) -> float:
        """Thickness of the subcutaneous fat at the waist, in mm of the reference body."""
        slope, least = (1.7, 8.0) if self.sex == "F" else (1.3, 5.0)
        return least + slope * max(0.0, self.bmi - 18.0)

    @property
    def belly(self) -> float:
        """How far visceral fat pushes the abdominal wall forward, in mm of the reference body."""
        slope = 1.4 if self.sex == "F" else 2.2
        return slope * (self.bmi - 22.0) + 0.12 * (self.age - 50.0)

    @property
    def aged(self) -> float:
        """Age as a fraction of the adult range: 0 at 20 years, 1 at 80."""
        return (self.age - 20.0) / 60.0


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """A random adult: half women, half men, 20 to 85 years, one in four without a lesion."""
    sex: Literal["F", "M"] = "F" if rng.random() < 0.5 else "M"
    age = float(rng.uniform(20.0, 85.0))
    height = float(np.clip(rng.normal(164.0 if sex == "F" else 177.0, 6.5), 148.0, 198.0))
    bmi = float(np.clip(18.5 + rng.gamma(3.0, 2.2), 17.5, 36.0))
    grown = height / 170.0
    build = 0.965 if sex == "F" else 1.02
    scale = (
        grown**0.6 * build * float(rng.normal(1.0, 0.025)),
        grown**0.5 * build * float(rng.normal(1.0, 0.03)),
        grown * float(rng.normal(1.0, 0.015)),
    )
    muscle = (0.85 if sex == "F" else 1.1) * (1.1 - 0.25 * (age - 20.0) / 60.0)
    return Anatomy(
        sex=sex,
        age=age,
        height=height,
        bmi=bmi,
        scale=scale,
        muscle=muscle * float(rng.normal(1.0, 0.08)),
        bowel_gas=float(rng.uniform(0.05, 0.6)),
        organs={name: _variation(rng) for name in ORGANS},
        lesion=_lesion(rng),
        warp=_warp(rng),
        seed=int(rng.integers(2**32)),
    )


def displaced(
    anatomy: Anatomy, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32],
    z: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:  # fmt: skip
    """Coordinates, in mm of the reference body, moved by the subject's warp."""
    dx, dy, dz = x, y, z
    for kx, ky, kz, phase, ax, ay, az in anatomy.warp:
        terms = np.float32(kx) * x + np.float32(ky) * y + np.float32(kz) * z
        wave = np.sin(terms + np.float32(phase))
        dx = dx + np.float32(ax) * wave
        dy = dy + np.float32(ay) * wave
        dz = dz + np.float32(az) * wave
    return dx, dy, dz


def _variation(rng: np.random.Generator) -> Variation:
    x, y, z = rng.normal(0.0, (3.0, 3.0, 6.0)).clip((-7, -7, -14), (7, 7, 14))
    size = float(np.clip(rng.normal(1.0, 0.07), 0.85, 1.15))
    return Variation(shift=(float(x), float(y), float(z)), size=size)


def _lesion(rng: np.random.Generator) -> Lesion:
    site = SITES[int(rng.integers(len(SITES)))]
    side: Literal["left", "right"] = "right" if rng.random() < 0.5 else "left"
    largest = 16.0 if site == "kidney" else 22.0
    radius, seed = float(rng.uniform(9.0, largest)), int(rng.integers(2**32))
    return Lesion() if site == "none" else Lesion(site=site, side=side, radius=radius, seed=seed)


def _warp(rng: np.random.Generator) -> tuple[tuple[float, ...], ...]:
    """Five waves, the long ones large: slopes stay below 0.25, so no shape folds."""
    waves = []
    for length, size in ((320.0, 5.0), (240.0, 4.0), (160.0, 2.5), (90.0, 1.3), (65.0, 0.9)):
        vector = rng.normal(size=3)
        vector *= 2 * np.pi / length / np.linalg.norm(vector)
        move = rng.normal(size=3)
        move *= size / np.linalg.norm(move)
        waves.append((*map(float, vector), float(rng.uniform(0, 2 * np.pi)), *map(float, move)))
    return tuple(waves)
