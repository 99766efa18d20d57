"""Scans of every kind that label maps are written for, and a label map."""

import numpy as np
from dicom_files import SERIES, write_classic, write_enhanced

STACK = np.random.default_rng(0).integers(-1000, 3000, (6, 10, 12)).astype(np.int16)
NAMES = {3: "kidney_left", 7: "ptv56", 9: "tumour"}
TILTED = {"step": (0.0, 2.5 * np.tan(np.radians(15)), 2.5)}
OBLIQUE = {"orientation": (0.0, 0.8, -0.6, 1.0, 0.0, 0.0), "step": (0.0, -0.6 * 3, -0.8 * 3)}
SAGITTAL = {"orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), "step": (2.0, 0.0, 0.0)}
REVERSED = {"step": (0.0, 0.0, -2.5)}
GEOMETRIES = {
    "axial": {}, "tilted": TILTED, "oblique": OBLIQUE, "sagittal": SAGITTAL, "reversed": REVERSED,
}  # fmt: skip
ORDER = [3, 0, 5, 1, 4, 2]


def classic(folder, **options):
    return write_classic(folder, STACK, **options)


def multi(folder, **options):
    return write_enhanced(folder / "a.dcm", STACK, order=ORDER, **options).parent


def single_frames(folder, **options):
    for k in range(6):
        write_enhanced(folder / f"{k}.dcm", STACK, order=[k], instance=f"{SERIES}.{k}", **options)
    return folder


SOURCES = [classic, multi, single_frames]


def label_of(volume, seed=0):
    """Labels 3 and 7 in blobs on some slices, and none of 9."""
    shape = volume.shape
    array = np.zeros((1, *shape), np.uint8)
    cells = np.random.default_rng(seed).random((1, *shape))
    array[cells > 0.7], array[cells > 0.85] = 3, 7
    inner = tuple(slice(n // 4, n - n // 4) for n in shape)
    outside = np.ones((1, *shape), bool)
    outside[(0, *inner)] = False
    array[outside] = 0
    return volume.with_array(array)
