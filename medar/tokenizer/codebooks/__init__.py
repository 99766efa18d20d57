"""Codebooks: vectors to indices and back, five kinds behind one interface."""

from medar.tokenizer.codebooks.base import (
    CODEBOOKS,
    Codebook,
    CodebookSettings,
    Quantised,
    make_codebook,
    register_codebook,
)
from medar.tokenizer.codebooks.learned import EMACodebook, GradientCodebook
from medar.tokenizer.codebooks.lookup_free import BinarySphericalCodebook, FiniteScalarCodebook
from medar.tokenizer.codebooks.product import ProductCodebook

__all__ = [
    "CODEBOOKS",
    "BinarySphericalCodebook",
    "Codebook",
    "CodebookSettings",
    "EMACodebook",
    "FiniteScalarCodebook",
    "GradientCodebook",
    "ProductCodebook",
    "Quantised",
    "make_codebook",
    "register_codebook",
]
