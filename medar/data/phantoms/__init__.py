"""Synthetic labelled torsos from analytic shapes, for first runs, tests and teaching."""

from medar.data.phantoms.anatomy import Anatomy, Lesion, Variation, draw_anatomy
from medar.data.phantoms.dataset import Phantom, make_phantom, write_phantoms
from medar.data.phantoms.paired import make_paired_phantoms, write_paired_phantoms
from medar.data.phantoms.render import LABELS, Rendering, render

__all__ = [
    "LABELS",
    "Anatomy",
    "Lesion",
    "Phantom",
    "Rendering",
    "Variation",
    "draw_anatomy",
    "make_paired_phantoms",
    "make_phantom",
    "render",
    "write_paired_phantoms",
    "write_phantoms",
]
