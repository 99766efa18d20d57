"""Bones: the vertebral column, ribs and sternum, shoulder blades, collar bones, iliac wings.

Vertebrae and ribs repeat along the body, so that one field draws them all: each height is converted
to a vertebral level, and shapes depend on the distance to the centre of the nearest level.
"""

import numpy as np

from medar.data.phantoms.anatomy import Anatomy
from medar.data.phantoms.shapes import Array, capsule, ramp, segments_box, smooth_max
from medar.data.phantoms.torso import FIRST_LEVEL, LEVELS, Part, View, lookup

BONE = 9
RIB = ((0.0, "cortical"), (1.3, "marrow"))
CORD_END = -95.0
"""Height, in mm, at which the spinal cord ends (first lumbar vertebra)."""


def bone_parts(anatomy: Anatomy) -> list[Part]:
    """All bones, with the discs, the spinal canal and the rib cartilages."""
    return [*_ribs(anatomy), *_spine(anatomy), *_girdles()]


def level(z: Array) -> tuple[Array, Array]:
    """The vertebral level at a height (2 for T2, 13 for L1) and the spacing of levels, in mm."""
    index = np.arange(len(LEVELS)) + FIRST_LEVEL
    pitch = -np.gradient(np.asarray(LEVELS, dtype=np.float64))
    return lookup(z, LEVELS, index), lookup(z, LEVELS, pitch)


def _from_centre(z: Array) -> tuple[Array, Array, Array]:
    """The nearest level, the height above its centre and the spacing of levels, in mm."""
    at, pitch = level(z)
    nearest = np.rint(at)
    return nearest, (nearest - at) * pitch, pitch


def _sizes(z: Array) -> tuple[Array, Array, Array]:
    """Half width and half depth of a vertebral body, and half width of the canal, in mm."""
    low = ramp(-z, -150.0, 150.0)
    return 14.5 + 9 * low, 13 + 5 * low, 8.5 + 2.5 * low


def _spine(anatomy: Anatomy) -> list[Part]:
    box = ((-48.0, -150.0, -300.0), (48.0, 20.0, 300.0))
    gap = 3.2 - 1.2 * anatomy.aged

    def column(view: View) -> Array:
        wide, deep, _ = _sizes(view.z)
        u, v = view.x / wide, (view.y - view.spine_y) / deep
        return np.asarray((np.sqrt(u * u + v * v) - 1) * deep)

    def bodies(view: View) -> Array:
        _, above, pitch = _from_centre(view.z)
        waist = 2.0 * np.cos(np.pi * above / pitch) ** 2
        half = pitch / 2 - gap * (0.7 + 0.6 * ramp(-view.z, 0.0, 150.0))
        return smooth_max(column(view) + waist, np.abs(above) - half, 3.0)

    def behind(view: View) -> tuple[Array, Array]:
        """Distance from the canal's axis, and y relative to it."""
        _, deep, canal = _sizes(view.z)
        back = view.y - (view.spine_y - deep - canal + 1.5)
        return np.asarray(np.sqrt(view.x**2 + back * back)), np.asarray(back)

    def arch(view: View) -> Array:
        _, above, pitch = _from_centre(view.z)
        from_axis, back = behind(view)
        _, _, canal = _sizes(view.z)
        ring = np.abs(from_axis - canal - 3.5) - 3.5
        lamina = np.maximum(ring, np.abs(above - 0.06 * pitch) - 0.40 * pitch)
        thoracic = ramp(view.z, -60.0, 0.0)
        # Spinous process: a plate in the midline, slanting down in the chest.
        lowered = above + (0.30 + 0.55 * thoracic) * (-back - canal).clip(0, 40)
        length = 36.0 - 6.0 * thoracic
        plate = np.maximum(np.abs(view.x) - 3.0, np.abs(lowered - 3) - 7.5 + 2.5 * thoracic)
        plate = np.maximum(plate, np.maximum(back + canal, -back - canal - length))
        # Transverse processes: bars to both sides, pointing back in the chest.
        out = np.abs(view.x) - canal
        tilt = back - 2 + (0.15 + 0.55 * thoracic) * out.clip(0, 40)
        bar = np.sqrt(tilt * tilt + (above - 4) ** 2) - 5.0
        bar = np.maximum(bar, np.maximum(-out, out - 24))
        return np.asarray(np.minimum(np.minimum(lamina, plate), bar))

    def canal(view: View) -> Array:
        return behind(view)[0] - _sizes(view.z)[2]

    def cord(view: View) -> Array:
        nerve = 4.6 - 1.4 * ramp(-view.z, -CORD_END - 10, -CORD_END + 25)
        return behind(view)[0] - nerve

    return [
        Part(fills=((0.0, "disc"),), field=column, box=box, label=0),
        Part(fills=((0.0, "cortical"), (1.5, "marrow")), field=bodies, box=box, label=BONE),
        Part(fills=((0.0, "cortical"), (2.2, "marrow")), field=arch, box=box, label=BONE),
        Part(fills=((0.0, "fat"), (1.0, "csf")), field=canal, box=box, label=0),
        Part(fills=((0.0, "cord"),), field=cord, box=box),
    ]


def _rib_field(view: View) -> tuple[Array, Array]:
    """Distance to the nearest rib of an infinite row, and its number.

    A rib leaves its vertebra, falls as it goes around the chest, and rises along its cartilage.
    """
    around = view.around
    turn = np.minimum(around, 2.35) / 2.35
    fall = 100 * (0.6 * turn + 0.2 * (1 - np.cos(np.pi * turn)))
    rise = 62 * (around - 2.35).clip(0, 0.8)
    number, above, _ = _from_centre(view.z + fall - rise + 6)
    thick, tall = 3.6, 6.6
    u, v = (view.wall - 4) / thick, above * 0.9 / tall
    return np.asarray((np.sqrt(u * u + v * v) - 1) * 4.4), number


def _ribs(anatomy: Anatomy) -> list[Part]:
    ends = np.zeros(24, dtype=np.float32)
    ends[1:13] = (2.3, 2.3, 2.35, 2.35, 2.35, 2.35, 2.3, 2.2, 2.1, 2.0, 1.5, 1.05)
    costal = np.where(np.arange(24) <= 7, 3.2, np.where(np.arange(24) <= 10, 2.75, 0.0))

    def ribs(view: View) -> Array:
        distance, number = _rib_field(view)
        last = ends[number.astype(np.intp).clip(0, 23)]
        away = np.maximum(view.around - last, 0.16 - view.around) * 100.0
        return np.asarray(np.maximum(distance, away))

    def cartilage(view: View) -> Array:
        distance, number = _rib_field(view)
        index = number.astype(np.intp).clip(0, 23)
        away = np.maximum(ends[index] - view.around, view.around - costal[index]) * 100.0
        return np.asarray(np.maximum(distance, away))

    def sternum(view: View) -> Array:
        width = 14 + 8 * ramp(view.z, 95.0, 135.0) - 6 * ramp(-view.z, -50.0, -25.0)
        slab = smooth_max(np.abs(view.x) - width, np.abs(view.wall - 6) - 5.5, 4.0)
        slab = np.maximum(slab, 1.0 - view.y + view.spine_y)
        return smooth_max(slab, np.abs(view.z - 86) - 62, 6.0)

    box = ((-200.0, -160.0, -120.0), (200.0, 160.0, 260.0))
    calcified = "cartilage" if anatomy.age < 65 else "old_cartilage"
    return [
        Part(fills=((0.0, calcified),), field=cartilage, box=box),
        Part(fills=RIB, field=ribs, box=box, label=BONE),
        Part(fills=RIB, field=sternum, label=BONE, box=((-40.0, 0.0, 10.0), (40.0, 160.0, 165.0))),
    ]


def _girdles() -> list[Part]:
    def blade(view: View) -> Array:
        """Shoulder blade: a thin triangle between the muscles, its tip downwards."""
        reach = 0.42 + 0.5 * ramp(view.z, 55.0, 150.0)
        plate = np.abs(view.wall - 20 - 8 * ramp(view.z, 80.0, 190.0)) - 2.8
        side = np.maximum(view.around - 0.75 - reach, 0.6 - view.around) * 110
        return np.asarray(np.maximum(plate, np.maximum(side, 52.0 - view.z)))

    def spine_of_blade(view: View) -> Array:
        plate = np.maximum(np.abs(view.z - 150 - 12 * (view.around - 1)) - 4, 24 - view.wall)
        side = np.maximum(view.around - 1.7, 0.75 - view.around) * 110
        return np.asarray(np.maximum(np.maximum(plate, view.wall - 44), side))

    def iliac(view: View) -> Array:
        """Wing of the ilium: a curved plate whose crest is highest at the side."""
        crest = -186 - 46 * np.abs(view.around - 1.15)
        plate = np.abs(view.wall + 1) - 5.5 - 2.0 * np.exp(-(((view.z - crest) / 10) ** 2))
        side = np.abs(view.around - 1.25) * 105 - 80
        return smooth_max(np.maximum(plate, side), view.z - crest, 5.0)

    upper = ((-220.0, -200.0, 40.0), (220.0, 100.0, 300.0))
    lower = ((-200.0, -180.0, -300.0), (200.0, 150.0, -170.0))
    shell = ((0.0, "cortical"), (1.5, "marrow"))
    return [
        Part(fills=shell, field=blade, box=upper, label=BONE),
        Part(fills=shell, field=spine_of_blade, box=upper, label=BONE),
        Part(fills=((0.0, "cortical"), (2.0, "marrow")), field=iliac, box=lower, label=BONE),
        *(_collar_bone(side) for side in (-1.0, 1.0)),
    ]


def _collar_bone(side: float) -> Part:
    start, stop = (side * 20.0, 56.0, 160.0), (side * 130.0, 10.0, 205.0)
    return Part(
        fills=((0.0, "cortical"), (2.2, "marrow")),
        field=lambda view: capsule(view.xyz, start, stop, 7.0, 6.5),
        box=segments_box(start, stop, 10.0),
        label=BONE,
    )
