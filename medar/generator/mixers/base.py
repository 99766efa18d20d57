"""`Mixer`: the layer of a block that passes information from coarse scales to fine ones.

Training runs over all scales at once (`forward`); sampling takes one scale at a time and carries a
state from each to the next (`step`). The two are equal, which the tests check for every mixer.

A mixer is chosen by name, see `MixerSettings.kind`. Packages add theirs with `@register_mixer`, or
with an entry point in the group "medar.mixers".

B batch, L tokens over all scales, T tokens of one scale, E width, H heads.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from medar.registry import Registry
from medar.settings import Depth, PositiveInt, Width, settings
from medar.tokenizer.schedule import ScaleSchedule

State = dict[str, Tensor]
"""State of a mixer between scales: tensors whose first axis is the batch."""


@settings(renamed={"state": "state_dim", "conv": "conv_kernel", "chunk": "chunk_size"})
class MixerSettings:
    """Which mixer, and its sizes."""

    kind: str = "none"
    """"none": scales meet only in the reconstruction so far; "attention": over all scales so far,
    with a cache of keys and values; "mamba": Mamba-2 over the tokens of all scales; "scale_ssm": a
    recurrence from scale to scale at each site; or the name of a registered mixer."""
    state_dim: Width = 16
    """N, state features per channel of "mamba" and "scale_ssm"."""
    state_max_side: PositiveInt = 8
    """Longest side of a grid that holds a state of "scale_ssm", in sites. Finer scales share the
    state of the finest such grid, or of the first grid if there is none."""
    expand: Depth = 1
    """Inner channels of "mamba" and "scale_ssm", in multiples of the generator's width."""
    conv_kernel: PositiveInt = 4
    """Kernel size of the convolution in "mamba", in tokens."""
    chunk_size: PositiveInt = 64
    """Tokens that "mamba" scans at once."""
    every: PositiveInt = 1
    """Blocks from one mixer to the next: 2 gives one to every second block; the first has one, and
    the others are those of "none"."""

    def __post_init__(self) -> None:
        MIXERS.check(self.kind)


class Mixer(nn.Module, ABC):
    """Mixes the tokens of a scale with those of all coarser scales.

    The output at scale k depends only on the inputs at scales <= k. A registered class is
    constructed with these arguments:

    Args:
        settings: kind and sizes.
        width: E, a multiple of `heads`.
        heads: H.
        schedule: the grids.
        layer: index among the blocks that have a mixer, from 0.
    """

    covers_own_scale: ClassVar[bool] = False
    """Whether it also attends within the scale; the block then needs no attention of its own."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """All scales at once, (B, L, E) to (B, L, E); or only the coarsest scales."""

    @abstractmethod
    def start(self, like: Tensor) -> State:
        """The state before the first scale, for the batch, device and dtype of (B, T, E)."""

    @abstractmethod
    def step(self, k: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Scale k alone, (B, T, E), after the scales that `state` summarises.

        Returns:
            The scale's output, (B, T, E), and the state for the next scale.
        """

    @property
    @abstractmethod
    def state_size(self) -> int:
        """Elements in the state of one volume, at its largest while sampling."""


class NoMixer(Mixer):
    """The identity: a scale sees earlier ones only through the reconstruction so far.

    The reconstruction is the input of each scale, so that nothing is hidden from it (a Markov chain
    over scales, as in HMAR, arXiv 2506.04421, and Switti, arXiv 2412.01819). Blocks skip it.
    """

    def __init__(
        self, settings: MixerSettings, width: int, heads: int, schedule: ScaleSchedule, layer: int
    ) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, E), unchanged."""
        return x

    def start(self, like: Tensor) -> State:
        """Empty."""
        return {}

    def step(self, k: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, T, E), unchanged."""
        return x, state

    @property
    def state_size(self) -> int:
        """0."""
        return 0


MIXERS: Registry[type[Mixer]] = Registry(
    "mixer",
    "medar.mixers",
    {
        "none": "medar.generator.mixers.base:NoMixer",
        "attention": "medar.generator.mixers.attention:BlockCausalAttention",
        "mamba": "medar.generator.mixers.mamba:MambaMixer",
        "scale_ssm": "medar.generator.mixers.scale_ssm:ScaleSSM",
    },
)
register_mixer = MIXERS.register


def make_mixer(
    settings: MixerSettings, width: int, heads: int, schedule: ScaleSchedule, layer: int
) -> Mixer:
    """The mixer of a block, with random weights.

    Args:
        settings: kind and sizes.
        width: E, a multiple of `heads`.
        heads: H.
        schedule: the grids.
        layer: index among the blocks that have a mixer, from 0; for odd ones "mamba" reads each
            scale backwards.

    Raises:
        MedarError: the kind is unknown, or its module cannot be imported.
    """
    return MIXERS[settings.kind](settings, width, heads, schedule, layer)
