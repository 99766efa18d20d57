"""Pretext tasks for pretraining a backbone on volumes without labels, behind one interface."""

from medar.segmentation.pretext.base import (
    MaskToken,
    Pretext,
    PretextLoss,
    View,
    make_pretext,
)
from medar.segmentation.pretext.frozen import FrozenTokenizer
from medar.segmentation.pretext.settings import PRETEXTS, PretextSettings, register_pretext

__all__ = [
    "PRETEXTS",
    "FrozenTokenizer",
    "MaskToken",
    "Pretext",
    "PretextLoss",
    "PretextSettings",
    "View",
    "make_pretext",
    "register_pretext",
]
