"""Organs of the chest: lungs and their vessels, trachea, heart chambers, great vessels."""

import numpy as np

from medar.data.phantoms.anatomy import Anatomy
from medar.data.phantoms.shapes import (
    Array,
    Ball,
    Point,
    ball,
    ellipsoid,
    ellipsoid_box,
    ramp,
    smooth_max,
    smooth_min,
    tube,
)
from medar.data.phantoms.torso import Part, View, spine_axis

LUNG_LEFT, LUNG_RIGHT, HEART, AORTA = 1, 2, 3, 4


def moved(anatomy: Anatomy, organ: str, point: Point) -> Point:
    """A point of an organ, moved by the organ's shift in this subject."""
    x, y, z = (p + s for p, s in zip(point, anatomy.organs[organ].shift, strict=True))
    return x, y, z


def chest_parts(anatomy: Anatomy) -> list[Part]:
    """All parts, in painting order: the lungs, then the mediastinum."""
    return [
        _lung(anatomy, -1.0, LUNG_LEFT),
        *_lung_vessels(anatomy, -1.0),
        _lung(anatomy, 1.0, LUNG_RIGHT),
        *_lung_vessels(anatomy, 1.0),
        *_airway(),
        *_heart(anatomy),
        *_great_vessels(anatomy),
    ]


def _lung(anatomy: Anatomy, side: float, label: int) -> Part:
    near, far = sorted((side * 5.0, side * 170.0))
    return Part(
        fills=((0.0, "lung"),),
        field=lambda view: lung(anatomy, view, side),
        box=((near, -150.0, -110.0), (far, 150.0, 260.0)),
        label=label,
    )


def lung(anatomy: Anatomy, view: View, side: float) -> Array:
    """Signed distance to a lung: the cavity above the diaphragm, beside the mediastinum."""
    shift = anatomy.organs["lung_right" if side > 0 else "lung_left"].shift[0]
    y, z = view.y, view.z
    upper = ramp(z, 70.0, 135.0)
    inner = 9 + (15 + 5 * upper) * np.exp(-(((y + 12) / (34 + 8 * upper)) ** 2)) + 0.3 * abs(shift)
    # The lungs' tips lie behind the collar bones, apart from each other.
    inner = inner + 10 * ramp(z, 150.0, 195.0)
    medial = (inner - side * view.x) * np.float32(0.9)
    outside = smooth_max(view.wall + 2.5, -view.dome * np.float32(0.8), 5.0)
    outside = smooth_max(outside, medial.astype(np.float32), 10.0)
    return smooth_max(outside, z - 178, 12.0)


def _lung_vessels(anatomy: Anatomy, side: float) -> list[Part]:
    """A tree that branches from the hilum, in three generations of decreasing radius."""
    rng = np.random.default_rng([anatomy.seed, 1 if side > 0 else 2])
    tips = [(np.array([side * 30.0, -8.0, 78.0]), np.array([side * 1.0, 0.0, 0.0]))]
    parts = []
    for count, length, radius in ((7, 36.0, 5.0), (4, 34.0, 2.8), (3, 28.0, 1.7)):
        segments: list[Ball] = []
        grown = []
        for tip, along in tips:
            for _ in range(count):
                spread = rng.normal(size=3) * (0.85, 0.85, 1.1)
                way = along + spread
                way /= np.linalg.norm(way)
                end = tip + way * length * rng.uniform(0.7, 1.2)
                if not (side * end[0] > 26 and abs(end[0]) < 112 and -75 < end[1] < 62):
                    continue
                if not (-0.004 * (end[0] ** 2 + end[1] ** 2) + 10 < end[2] < 165):
                    continue
                segments += [ball(tip, radius), ball(end, 0.75 * radius)]
                grown.append((end, way))
        tips = grown
        if segments:
            parts.append(
                Part(fills=((0.0, "lung_vessel"),), tube=tuple(segments), pairs=True, radius=radius)
            )
    return parts


def _airway() -> list[Part]:
    trunk = tube([(0, -2, 260), (1, -8, 170), (3, -20, 108)], [9.5, 9.5, 9.5], 3)
    right = tube([(3, -20, 108), (22, -22, 88), (42, -20, 72)], [8.0, 7.0, 5.5], 3)
    left = tube([(3, -20, 108), (-22, -22, 84), (-45, -20, 70)], [7.5, 6.5, 5.0], 3)
    gullet = tube([(-4, -22, 220), (-5, -34, 120), (-10, -24, 40), (-14, -8, 0)], [7, 7, 7, 8], 3)
    parts = [Part(fills=((0.0, "bowel_wall"), (5.0, "gas")), tube=gullet, label=0)]
    return parts + [
        Part(fills=((0.0, "muscle"), (1.8, "gas")), tube=t, label=0) for t in (trunk, right, left)
    ]


def _heart(anatomy: Anatomy) -> list[Part]:
    size = anatomy.organs["heart"].size

    def centre(x: float, y: float, z: float) -> Point:
        return moved(anatomy, "heart", (x, y, z))

    axis = np.array([-0.70, 0.56, -0.44])
    axis /= np.linalg.norm(axis)
    across = np.cross(axis, (0.0, 0.0, 1.0))
    across /= np.linalg.norm(across)
    frame = np.stack([axis, across, np.cross(axis, across)])
    left, right = centre(-42, 18, 30), centre(-12, 44, 26)
    atrium_r, atrium_l = centre(26, 14, 36), centre(-4, -6, 56)
    s = size

    def chambers(view: View) -> Array:
        body = ellipsoid(view.xyz, left, (52 * s, 34 * s, 34 * s), frame)
        body = smooth_min(body, ellipsoid(view.xyz, right, (47 * s, 27 * s, 33 * s), frame), 12.0)
        body = smooth_min(body, ellipsoid(view.xyz, atrium_r, (24 * s, 28 * s, 33 * s)), 12.0)
        return smooth_min(body, ellipsoid(view.xyz, atrium_l, (36 * s, 19 * s, 24 * s)), 10.0)

    def whole(view: View) -> Array:
        return smooth_max(chambers(view), 2.0 - view.dome, 8.0)

    box = ((-115.0, -45.0, -30.0), (75.0, 110.0, 115.0))
    pericardium = Part(
        fills=((0.0, "fat"),),
        field=lambda view: smooth_max(chambers(view) - 6, -1.0 - view.dome, 8.0),
        box=box,
        label=0,
    )
    cavity_l = moved(anatomy, "heart", (-38, 16, 33))
    return [
        pericardium,
        Part(fills=((0.0, "myocardium"),), field=whole, box=box, label=HEART),
        _chamber("blood_left", cavity_l, (40 * s, 21 * s, 22 * s), frame),
        _chamber("blood_right", right, (42 * s, 21 * s, 27 * s), frame),
        _chamber("blood_right", atrium_r, (21 * s, 24 * s, 29 * s)),
        _chamber("blood_left", atrium_l, (33 * s, 16 * s, 20 * s)),
        Part(
            fills=((0.0, "myocardium"),),
            field=lambda view: smooth_max(
                np.abs(ellipsoid(view.xyz, cavity_l, (43 * s, 25 * s, 26 * s), frame)) - 4,
                whole(view),
                2.0,
            ),
            box=box,
        ),
    ]


def _chamber(tissue: str, centre: Point, radii: Point, frame: Array | None = None) -> Part:
    return Part(
        fills=((0.0, tissue),),
        field=lambda view: smooth_max(
            ellipsoid(view.xyz, centre, radii, frame), 6.0 - view.dome, 4.0
        ),
        box=ellipsoid_box(centre, max(radii)),
    )


def _great_vessels(anatomy: Anatomy) -> list[Part]:
    """Aorta from root to bifurcation, venae cavae, pulmonary trunk and its two branches."""
    wide = anatomy.organs["aorta"].size * (0.92 + 0.22 * anatomy.aged)
    bend = 6.0 * anatomy.aged + anatomy.organs["aorta"].shift[0] * 0.5

    def before_spine(x: float, z: float, gap: float) -> Point:
        return x, float(spine_axis(anatomy, z)) + gap, z

    aorta = tube(
        [
            (2, 20, 62), (14, 26, 88), (13, 22, 112), (-2, 4, 130), (-20, -24, 128),
            before_spine(-26, 100, 12), before_spine(-24, 55, 20),
            before_spine(-16 - bend, 10, 28), before_spine(-9, -40, 32),
            before_spine(-7 - bend, -100, 33), before_spine(-5, -165, 34),
        ],
        [w * wide for w in (15, 15.5, 15, 14, 13, 12.5, 12, 11.5, 11, 10, 9)],
    )  # fmt: skip
    iliacs = [
        tube([before_spine(-5, -165, 34), before_spine(s * 24, -200, 32), (s * 48, -12, -240)],
             [6.5 * wide, 6 * wide, 5.5 * wide])
        for s in (-1.0, 1.0)
    ]  # fmt: skip
    inferior = tube(
        [(24, 2, 22), (24, 0, -10), before_spine(25, -60, 26), before_spine(21, -120, 28),
         before_spine(18, -175, 26), before_spine(22, -240, 24)],
        [12, 12.5, 12, 11, 10, 9],
    )  # fmt: skip
    superior = tube([(24, 12, 60), (25, 8, 105), (24, 12, 150), (30, 10, 220)], [10, 9, 9, 7])
    trunk = tube([(-22, 44, 62), (-22, 28, 88), (-20, 4, 96)], [14, 14, 13])
    right = tube([(-20, 4, 96), (8, -4, 92), (40, -8, 82)], [11, 10, 8])
    left = tube([(-20, 4, 96), (-34, -12, 94), (-50, -16, 84)], [11, 10, 8])
    calcium = ((0.0, "aorta_wall"), (1.4, "blood_left"))
    parts = [
        Part(fills=((0.0, "blood_right"),), tube=t, label=0) for t in (superior, trunk, right, left)
    ]
    parts.append(Part(fills=((0.0, "blood_cava"),), tube=inferior, label=0))
    parts.extend(Part(fills=calcium, tube=t, label=AORTA if t is aorta else 0)
                 for t in (*iliacs, aorta))  # fmt: skip
    for x, y in ((10.0, 2.0), (-6.0, -2.0), (-18.0, -14.0)):
        branch = tube(
            [(x * 0.8, y, 132), (x * 1.3, y + 2, 175), (x * 2.2, y - 2, 230)], [5, 4.5, 4]
        )
        parts.append(Part(fills=((0.0, "blood_left"),), tube=branch, label=0))
    return parts
