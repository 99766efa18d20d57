"""The tokenizer: a 3D volume becomes a pyramid of tokens, coarse to fine, and comes back."""

from typing import TYPE_CHECKING

from medar.lazy import lazy

if TYPE_CHECKING:
    from medar.tokenizer.pyramid import TokenPyramid as TokenPyramid
    from medar.tokenizer.schedule import ScaleSchedule as ScaleSchedule
    from medar.tokenizer.tokenizer import Tokenizer as Tokenizer

__getattr__ = lazy(
    "medar.tokenizer",
    (
        "medar.tokenizer.pyramid:TokenPyramid",
        "medar.tokenizer.schedule:ScaleSchedule",
        "medar.tokenizer.tokenizer:Tokenizer",
    ),
)
