"""`Mixer`: what passes from scale to scale in a block of the generator.

Training runs over all scales at once (`forward`); sampling takes one scale at a time and carries a
state from each to the next (`step`). The two are equal: a test holds every mixer to it.

B batch, L tokens over all scales, T tokens of one scale, E width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from medar.errors import MedarError
from medar.settings import STRICT

State = dict[str, Tensor]
"""What a mixer carries from one scale to the next: tensors whose first axis is the batch."""


@dataclass(frozen=True, kw_only=True)
class MixerSettings:
    """Which mixer, and its sizes.

    Raises:
        MedarError: a size below 1.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    kind: Literal["none", "attention", "mamba", "scale_ssm"] = "none"
    """"none": scales meet through the reconstruction so far alone; "attention": over all scales so
    far, with a cache of keys and values; "mamba": Mamba-2 over the tokens of all scales;
    "scale_ssm": a recurrence from scale to scale at each site."""
    state: int = 16
    """N, features of the state-space models' state per channel."""
    expand: int = 1
    """Channels inside the state-space models, in multiples of the generator's width."""
    conv: int = 4
    """Tokens that the convolution of "mamba" reaches over."""
    chunk: int = 64
    """Tokens that "mamba" takes at once."""

    def __post_init__(self) -> None:
        for name in ("state", "expand", "conv", "chunk"):
            if getattr(self, name) < 1:
                raise MedarError(f"mixer {name} {getattr(self, name)}: allowed from 1")


class Mixer(nn.Module, ABC):
    """Mixes the tokens of a scale with those of all coarser scales.

    The output at scale k depends on the inputs at scales <= k alone.
    """

    covers_own_scale: ClassVar[bool] = False
    """It attends within the scale as well: a block then has no attention of its own."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """All scales at once, (B, L, E) to the same; fewer scales are allowed, the coarsest."""

    @abstractmethod
    def start(self, like: Tensor) -> State:
        """The state before the first scale, for the batch, device and precision of (B, T, E)."""

    @abstractmethod
    def step(self, k: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Scale k alone, (B, T, E), after the scales that `state` has taken in.

        Returns:
            The scale's output, (B, T, E), and the state that the next scale is given.
        """

    @property
    @abstractmethod
    def state_size(self) -> int:
        """Numbers in the state of one volume, at its largest while sampling."""
