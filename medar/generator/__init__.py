"""The generator: pyramids of tokens, scale by scale, under conditions; and volumes from them."""

from medar.generator.generator import Generator as Generator
from medar.generator.model import TokenModel as TokenModel
from medar.generator.region import Box as Box
from medar.generator.sampling import SamplingSettings as SamplingSettings
from medar.generator.synthesizer import Synthesizer as Synthesizer
