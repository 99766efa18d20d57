"""Codebooks: from vectors to whole numbers and back, four kinds behind one interface."""

from medar.tokenizer.codebooks.base import Codebook, CodebookSettings, Quantised
from medar.tokenizer.codebooks.bsq import BinarySphericalCodebook
from medar.tokenizer.codebooks.ema import EMACodebook
from medar.tokenizer.codebooks.fsq import FiniteScalarCodebook
from medar.tokenizer.codebooks.gradient import GradientCodebook

__all__ = [
    "BinarySphericalCodebook",
    "Codebook",
    "CodebookSettings",
    "EMACodebook",
    "FiniteScalarCodebook",
    "GradientCodebook",
    "Quantised",
    "make_codebook",
]


def make_codebook(settings: CodebookSettings) -> Codebook:
    """The codebook that the settings describe.

    Its `size` is what it really has: FSQ comes close to `settings.size` where it cannot meet it.
    """
    if settings.kind == "ema":
        return EMACodebook(settings)
    if settings.kind == "gradient":
        return GradientCodebook(settings)
    if settings.kind == "fsq":
        return FiniteScalarCodebook(settings)
    return BinarySphericalCodebook(settings)
