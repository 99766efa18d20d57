"""The tokenizer: a 3D volume becomes a pyramid of tokens, coarse to fine, and comes back."""

from medar.tokenizer.pyramid import TokenPyramid as TokenPyramid
from medar.tokenizer.schedule import ScaleSchedule as ScaleSchedule
from medar.tokenizer.tokenizer import Tokenizer as Tokenizer
