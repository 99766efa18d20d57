"""Mixers: how a block passes information from coarse scales to fine ones."""

from medar.generator.mixers.base import MIXERS as MIXERS
from medar.generator.mixers.base import Mixer as Mixer
from medar.generator.mixers.base import MixerSettings as MixerSettings
from medar.generator.mixers.base import NoMixer as NoMixer
from medar.generator.mixers.base import State as State
from medar.generator.mixers.base import make_mixer as make_mixer
from medar.generator.mixers.base import register_mixer as register_mixer
