"""The generator: pyramids of tokens, scale by scale, under conditions."""

from typing import TYPE_CHECKING

from medar.lazy import lazy

if TYPE_CHECKING:
    from medar.generator.generator import Generator as Generator
    from medar.generator.settings import GeneratorSettings as GeneratorSettings
    from medar.generator.settings import SamplingSettings as SamplingSettings
    from medar.generator.training import train_generator as train_generator

__getattr__ = lazy(
    "medar.generator",
    (
        "medar.generator.generator:Generator",
        "medar.generator.settings:GeneratorSettings",
        "medar.generator.settings:SamplingSettings",
        "medar.generator.training:train_generator",
    ),
)
