"""What passes from scale to scale: `make_mixer` gives one of four behind one interface, `Mixer`."""

from medar.generator.mixers.attention import BlockCausalAttention
from medar.generator.mixers.base import Mixer, MixerSettings, State
from medar.generator.mixers.mamba import MambaMixer
from medar.generator.mixers.none import NoMixer
from medar.generator.mixers.scale_ssm import ScaleSSM
from medar.tokenizer.schedule import ScaleSchedule

__all__ = [
    "BlockCausalAttention",
    "MambaMixer",
    "Mixer",
    "MixerSettings",
    "NoMixer",
    "ScaleSSM",
    "State",
    "make_mixer",
]


def make_mixer(
    settings: MixerSettings, width: int, heads: int, schedule: ScaleSchedule, layer: int
) -> Mixer:
    """The mixer that settings ask for.

    Args:
        settings: kind and sizes.
        width: E, a multiple of `heads`.
        heads: H.
        schedule: the grids.
        layer: number of the block from 0; "mamba" reads each scale backwards in odd ones.
    """
    if settings.kind == "attention":
        return BlockCausalAttention(width, heads, schedule)
    if settings.kind == "mamba":
        return MambaMixer(width, heads, schedule, settings, reverse=layer % 2 == 1)
    if settings.kind == "scale_ssm":
        return ScaleSSM(width, heads, schedule, settings)
    return NoMixer()
