"""The generator: pyramids of tokens, scale by scale, under conditions."""

from medar.generator.generator import Generator as Generator
from medar.generator.settings import GeneratorSettings as GeneratorSettings
from medar.generator.settings import SamplingSettings as SamplingSettings
from medar.generator.training import train_generator as train_generator
