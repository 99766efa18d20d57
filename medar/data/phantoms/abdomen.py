"""Organs of the abdomen: liver, spleen, stomach, pancreas, kidneys, bowel, and the psoas muscles.

Organs are painted over one another, each with a rim of fat, so that a later one indents an earlier
one, as the kidney does the liver.
"""

from itertools import pairwise

import numpy as np

from medar.data.phantoms.anatomy import Anatomy
from medar.data.phantoms.chest import moved
from medar.data.phantoms.shapes import (
    Array,
    Ball,
    Point,
    ball,
    ellipsoid,
    ellipsoid_box,
    ramp,
    smooth_max,
    tube,
    widened,
)
from medar.data.phantoms.torso import Part, View, spine_axis

LIVER, SPLEEN, KIDNEY_LEFT, KIDNEY_RIGHT = 5, 6, 7, 8


def abdomen_parts(anatomy: Anatomy) -> list[Part]:
    """All parts, in painting order."""
    return [
        Part(
            fills=((0.0, "muscle"), (3.5, "fat")),
            field=lambda view: np.maximum(view.dome, view.wall),
        ),
        *_psoas(anatomy),
        *_bowel(anatomy),
        *_liver(anatomy),
        *_spleen(anatomy),
        *_stomach(anatomy),
        *_kidney(anatomy, -1.0, KIDNEY_LEFT),
        *_kidney(anatomy, 1.0, KIDNEY_RIGHT),
        *_colon(anatomy),
    ]


def _psoas(anatomy: Anatomy) -> list[Part]:
    parts = []
    for side in (-1.0, 1.0):
        path: list[Point] = [
            (side * x, float(spine_axis(anatomy, z)) + dy, z)
            for x, dy, z in ((24, -4, -75), (32, 0, -120), (42, 4, -165), (52, 14, -240))
        ]
        thick = [w * anatomy.muscle**0.5 for w in (6, 13, 18, 20)]
        parts.append(Part(fills=((0.0, "muscle"),), tube=tube(path, thick)))
        flat: list[Point] = [(side * 62, -62, -90), (side * 70, -60, -190)]
        parts.append(Part(fills=((0.0, "muscle"),), tube=tube(flat, [7.0, 13.0], 2)))
    return parts


def liver(anatomy: Anatomy, view: View) -> Array:
    """Signed distance: under the right dome, its lower edge rising to the left."""
    x, y, z = view.xyz
    shift, size = anatomy.organs["liver"].shift, anatomy.organs["liver"].size
    under = smooth_max(view.wall + 4, view.dome + 4, 8.0)
    tip = -58 - 84 * size * ramp(x, 10.0, 105.0) + 14 * ramp(x, -25.0, -75.0) + shift[2]
    # The visceral surface faces back: it is higher behind than in front.
    lower = tip + 26 * ramp(-y, -50.0, 40.0) * ramp(-x, -95.0, 0.0) - z
    below = smooth_max(under, lower * 0.8, 14.0)
    reach = -72 * size + shift[0]
    left = (reach - x) * 0.8
    back = (-10 + 34 * ramp(-x, -30.0, 30.0) - y) * ramp(-x, -50.0, 0.0) - 40 * ramp(x, 0, 50.0)
    return smooth_max(smooth_max(below, left, 22.0), back, 16)


def _liver(anatomy: Anatomy) -> list[Part]:
    rng = np.random.default_rng([anatomy.seed, 3])
    veins: list[Ball] = []
    for x, y, z in ((78, -10, -42), (60, 35, -30), (15, 40, -28), (90, 15, -25)):
        end = (x + rng.normal(0, 6), y + rng.normal(0, 6), z + rng.normal(0, 5))
        veins += [(26.0, 0.0, -14.0, 5.0), ball(end, 2.5)]
    portal: list[Ball] = []
    for x, y, z in ((75, -15, -75), (70, 28, -70), (-10, 48, -50)):
        end = (x + rng.normal(0, 6), y + rng.normal(0, 5), z + rng.normal(0, 5))
        portal += [(32.0, 18.0, -66.0, 6.0), ball(end, 3.0)]
    portal += [(10.0, 12.0, -92.0, 6.5), (32.0, 18.0, -66.0, 6.5)]
    gallbladder = moved(anatomy, "gallbladder", (52, 46, -92))
    size = anatomy.organs["gallbladder"].size
    return [
        Part(
            fills=((0.0, "liver"),),
            field=lambda view: liver(anatomy, view),
            box=((-110.0, -130.0, -190.0), (170.0, 170.0, 30.0)),
            label=LIVER,
        ),
        Part(fills=((0.0, "blood_portal"),), tube=tuple(veins), pairs=True, radius=4.0),
        Part(fills=((0.0, "blood_portal"),), tube=tuple(portal), pairs=True, radius=5.0),
        Part(
            fills=((0.0, "bowel_wall"), (1.5, "bile")),
            field=lambda view: ellipsoid(view.xyz, gallbladder, (14 * size, 17 * size, 26 * size)),
            box=ellipsoid_box(gallbladder, 34.0),
            label=0,
        ),
    ]


def _spleen(anatomy: Anatomy) -> list[Part]:
    centre = moved(anatomy, "spleen", (-92, -42, -52))
    size = anatomy.organs["spleen"].size

    def spleen(view: View) -> Array:
        under = smooth_max(view.wall + 4, view.dome + 5, 6.0)
        body = ellipsoid(view.xyz, centre, (42 * size, 46 * size, 56 * size))
        inner = -ellipsoid(view.xyz, (centre[0] + 58, centre[1] + 26, centre[2] - 4), (36, 40, 66))
        return smooth_max(smooth_max(under, body, 8.0), inner, 10.0)

    return [
        Part(fills=((0.0, "spleen"),), field=spleen, box=ellipsoid_box(centre, 68.0), label=SPLEEN)
    ]


def _stomach(anatomy: Anatomy) -> list[Part]:
    size = anatomy.organs["stomach"].size
    points: list[Point] = [
        (-46, 8, -36), (-56, 30, -62), (-54, 46, -96), (-28, 56, -116), (8, 46, -108),
        (26, 34, -98),
    ]  # fmt: skip
    path = tube(
        [moved(anatomy, "stomach", p) for p in points],
        [r * size for r in (29, 31, 26, 20, 14, 10)],
        3,
    )
    top = moved(anatomy, "stomach", (-52, 48, -62))
    pancreas = tube(
        [
            moved(anatomy, "pancreas", p)
            for p in ((30, 12, -112), (24, 20, -98), (-6, 24, -90), (-36, 8, -82), (-66, -14, -72))
        ],
        [12, 11, 9, 9, 7],
        3,
    )
    duodenum = tube(
        [(26, 34, -98), (44, 20, -104), (42, 10, -135), (10, 12, -142), (-20, 20, -130)],
        [12, 13, 12, 11, 11],
        3,
    )
    lumen = ((0.0, "bowel_wall"), (3.5, "chyme"))
    return [
        Part(fills=((0.0, "fat"), (3.0, "pancreas")), tube=widened(pancreas, 3.0), label=0),
        Part(fills=lumen, tube=duodenum, label=0),
        Part(fills=((0.0, "fat"), (2.0, "bowel_wall"), (6.0, "chyme")),
             tube=widened(path, 2.0), label=0),
        Part(
            fills=((0.0, "gas"),),
            field=lambda view: ellipsoid(view.xyz, top, (17 * size, 11 * size, 24 * size)),
            box=ellipsoid_box(top, 32.0),
        ),
    ]  # fmt: skip


def kidney_ellipsoid(anatomy: Anatomy, side: float) -> tuple[Point, Point]:
    """Centre and half-axes of a kidney, in mm of the reference body."""
    name = "kidney_right" if side > 0 else "kidney_left"
    size = anatomy.organs[name].size * (1.04 - 0.12 * anatomy.aged)
    x, y, z = moved(anatomy, name, (side * 60.0, -46.0, -112.0 if side > 0 else -98.0))
    return (x, y, z), (27 * size, 24 * size, 54 * size)


def _kidney(anatomy: Anatomy, side: float, label: int) -> list[Part]:
    """Perirenal fat, cortex and medulla, and the sinus with the renal pelvis."""
    centre, radii = kidney_ellipsoid(anatomy, side)
    # The upper pole leans inwards, the hilum looks forwards and inwards.
    tilt = np.array([side * -0.28, -0.18, 1.0])
    tilt /= np.linalg.norm(tilt)
    inward = np.array([-side, 0.55, 0.0])
    inward -= tilt * (inward @ tilt)
    inward /= np.linalg.norm(inward)
    axes = np.stack([inward, np.cross(tilt, inward), tilt])
    x, y, z = np.asarray(centre) + inward * radii[0] * 0.85
    gap = 5.0 + 0.25 * max(0.0, anatomy.belly)
    wide = (radii[0] + gap, radii[1] + gap, radii[2] + gap)
    hollow = (0.75 * radii[0], 0.42 * radii[1], 0.42 * radii[2])

    def fat(view: View) -> Array:
        return smooth_max(ellipsoid(view.xyz, centre, wide, axes), view.wall + 2, 4.0)

    box = ellipsoid_box(centre, max(wide))
    return [
        Part(fills=((0.0, "fat"),), field=fat, box=box, label=0),
        Part(
            fills=((0.0, "kidney_cortex"), (8.0, "kidney_medulla")),
            field=lambda view: ellipsoid(view.xyz, centre, radii, axes),
            box=box,
            label=label,
        ),
        Part(
            fills=((0.0, "fat"), (4.0, "urine")),
            field=lambda view: ellipsoid(view.xyz, (x, y, z), hollow, axes),
            box=box,
            label=0,
        ),
    ]


def _bowel(anatomy: Anatomy) -> list[Part]:
    """Small bowel: the winding tubes of a gyroid, wall around content, fat between."""
    rng = np.random.default_rng([anatomy.seed, 4])
    phase = rng.uniform(0, 2 * np.pi, 3).astype(np.float32)
    wave = np.float32(2 * np.pi / rng.uniform(52.0, 62.0))
    loose = 0.22 + 0.012 * max(0.0, anatomy.belly)

    def loops(view: View) -> Array:
        x, y, z = (wave * c + p for c, p in zip(view.xyz, phase, strict=True))
        bend = 0.9 * np.sin(0.43 * z + 0.31 * x)
        x, y = x + bend, y + 0.7 * np.sin(0.37 * x - 0.29 * z)
        sx, cx, sy, cy = np.sin(x), np.cos(x), np.sin(y), np.cos(y)
        gyroid = sx * cy + sy * np.cos(z) + np.sin(z) * cx
        tubes = (loose - np.abs(gyroid)) / (1.5 * wave)
        room = smooth_max(view.wall + 9, view.dome + 70, 10.0)
        behind = view.spine_y + 42 + 10 * ramp(np.abs(view.x), 30.0, 80.0) - view.y
        return smooth_max(smooth_max(tubes, room, 6.0), behind, 6.0)

    return [
        Part(
            fills=((0.0, "bowel_wall"), (3.0, "chyme")),
            field=loops,
            box=((-150.0, -60.0, -300.0), (150.0, 170.0, -70.0)),
        )
    ]


def _colon(anatomy: Anatomy) -> list[Part]:
    rng = np.random.default_rng([anatomy.seed, 5])
    front = 62.0 + 0.8 * anatomy.belly
    sag = rng.uniform(-20, 10)
    points: list[Point] = [
        (84, 0, -240), (96, -12, -190), (92, -8, -150), (70, front - 28, -142),
        (30, front, -150 + sag), (-20, front + 3, -152 + sag), (-64, front - 16, -128),
        (-96, 2, -84), (-103, -24, -110), (-100, -30, -160), (-92, -16, -240),
    ]  # fmt: skip
    path = [moved(anatomy, "colon", p) for p in points]
    size = anatomy.organs["colon"].size
    radii = [20, 21, 20, 18, 17, 16, 16, 15, 14, 13, 14]
    full = tube(path, [r * size for r in radii], 5)
    # Haustra: the calibre swells and narrows along the way.
    swollen = tuple(
        (x, y, z, r * (1.0 + 0.13 * np.sin(1.9 * i))) for i, (x, y, z, r) in enumerate(full)
    )
    gas: list[Ball] = []
    for a, b in pairwise(swollen):
        if rng.random() < anatomy.bowel_gas:
            gas += [(a[0], a[1] + 4, a[2], 0.62 * a[3]), (b[0], b[1] + 4, b[2], 0.62 * b[3])]
    parts = [
        Part(fills=((0.0, "fat"), (2.5, "bowel_wall"), (5.0, "stool")),
             tube=widened(swollen, 2.5), label=0)
    ]  # fmt: skip
    if gas:
        parts.append(Part(fills=((0.0, "gas"),), tube=tuple(gas), pairs=True))
    return parts
