"""`GeneratorConfig`: what a generator is made of, most of it from one dial, `depth`."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from medar.errors import MedarError
from medar.generator.mixers.base import MixerSettings
from medar.settings import STRICT


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """Something that a volume can be asked to have.

    Raises:
        MedarError: a category without values, or values of a number.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    name: str
    values: tuple[str, ...] = ()
    """The values of a category; none for a number."""
    mean: float = 0.0
    """Of a number, over the training cases."""
    deviation: float = 1.0
    """Of a number, over the training cases."""

    def __post_init__(self) -> None:
        if len(set(self.values)) < len(self.values):
            raise MedarError(f"attribute {self.name!r}: a value comes twice in {list(self.values)}")
        if not (math.isfinite(self.mean) and 0 < self.deviation < math.inf):
            raise MedarError(
                f"attribute {self.name!r}: mean {self.mean} and deviation {self.deviation}; a "
                "number and one above 0 are needed"
            )

    @property
    def categorical(self) -> bool:
        """One of several values, rather than a number."""
        return bool(self.values)


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """What a generator can be asked for."""

    __pydantic_config__: ClassVar[Any] = STRICT

    attributes: tuple[Attribute, ...] = ()
    map: Literal["none", "label"] = "none"
    """A map that is given voxel by voxel: the label map."""
    map_channels: int = 0
    """M: labels and background of the label map; 0 without a map."""
    map_width: int = 16
    """Features of the first level of the map's encoder."""

    def __post_init__(self) -> None:
        if self.map_width < 1:
            raise MedarError(f"condition map_width {self.map_width}: allowed from 1")
        if (self.map == "none") != (self.map_channels == 0):
            raise MedarError(
                f"condition map {self.map!r} with {self.map_channels} channels: 0 channels for "
                "'none', 1 or more otherwise"
            )


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The transformer's sizes; the tokenizer gives schedule, codes and code width.

    Raises:
        MedarError: a size below 1, or a width of heads that is odd.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    depth: int = 6
    """Blocks, and heads too: the dial for size."""
    head_width: int = 32
    """Features of a head; 64 from a depth of 16 on suits GPUs."""
    mlp: float = 4.0
    """Hidden features of each block's MLP, in multiples of the width."""
    dropout: float = 0.0
    """Share of features set to 0 at the end of each layer, in training."""
    window: int = 8
    """Sites along a side of the windows that large grids are attended in."""
    window_from: int = 12
    """Longest side of a grid from which attention stays within windows."""
    mixer: MixerSettings = field(default_factory=MixerSettings)
    """What passes from scale to scale."""

    def __post_init__(self) -> None:
        for name in ("depth", "head_width", "window", "window_from"):
            if getattr(self, name) < 1:
                raise MedarError(f"generator {name} {getattr(self, name)}: allowed from 1")
        if self.head_width % 2:
            raise MedarError(f"generator head_width {self.head_width}: an even number is needed")
        if not 0 <= self.dropout < 1:
            raise MedarError(f"generator dropout {self.dropout}: a share from 0 to below 1")
        if not 1 <= self.mlp * self.width < math.inf:
            raise MedarError(
                f"generator mlp {self.mlp}: a number from {1 / self.width:.3g} (one hidden "
                "feature) is needed"
            )

    @property
    def width(self) -> int:
        """E, features of a token."""
        return self.depth * self.head_width


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(Sizes):
    """A generator: its sizes, and what it can be asked for."""

    __pydantic_config__: ClassVar[Any] = STRICT

    condition: ConditionConfig = field(default_factory=ConditionConfig)
