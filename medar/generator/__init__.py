"""The generator: pyramids of tokens, scale by scale, under conditions."""

from medar.generator.generator import Generator as Generator
from medar.generator.model import TokenModel as TokenModel
from medar.generator.sampling import SamplingSettings as SamplingSettings
